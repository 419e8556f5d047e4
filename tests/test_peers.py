"""The comparison with peers' code: it sees what is the same and what is not, on a checkout made here."""

import re
import sys
from pathlib import Path

import pytest
import torch

from analyses.peers.__main__ import PEERS, main
from analyses.peers.imported import attribute, imports_from
from analyses.peers.open_unlearning import on_forget
from analyses.peers.subject import alike, compared, hugging_face, subject
from probe.methods.catalogue import methods
from probe.objectives.sequence import NPO
from probe.objectives.token import GA, ga, position_mean

# A repository in the manner of closer-look, written here; only its first loss is right.
LOSSES = """
import unheard_of
from torch.nn.functional import cross_entropy

def ga_loss(model, batches):
    tokens, labels, mask = batches[0]
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
    return -cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
"""


@pytest.fixture(scope="module")
def of():
    return subject()


def test_the_same_objective_is_the_same_and_another_is_not(of):
    same = compared(of, "ga", "", on_forget(ga), on_forget(GA()))
    assert max(same.loss, same.even, same.padded) < 1e-14
    other = compared(of, "ga", "", on_forget(ga), on_forget(GA(normalise=position_mean)))
    assert min(other.loss, other.even, other.padded) > 0.1
    npo = compared(of, "npo", "", on_forget(NPO(of.original, beta=0.1)), on_forget(NPO(of.model, beta=0.1)))
    assert npo.even > 1e-3, "the reference is another model"


def test_even_batches_have_no_padding_and_padded_ones_have(of):
    assert hugging_face(of.even.forget)["attention_mask"].all()
    given = hugging_face(of.padded.forget)
    assert not given["attention_mask"].all()
    assert ((given["labels"] == -100) | given["attention_mask"].bool()).all()


def test_a_checkout_is_imported_from_its_folder_and_forgotten_again(of, tmp_path):
    (tmp_path / "losses.py").write_text(LOSSES)
    with imports_from(tmp_path, absent=("unheard_of",)):
        theirs = attribute("losses", "ga_loss")
    assert not {"losses", "unheard_of"} & set(sys.modules)

    def loss(model, sides):
        given = hugging_face(sides.forget)
        return theirs(model, [(given["input_ids"], given["labels"], given["attention_mask"])])

    found = compared(of, "ga", "", loss, on_forget(ga))
    assert max(found.loss, found.even, found.padded) < 1e-14
    with pytest.raises(ModuleNotFoundError), imports_from(tmp_path):
        attribute("losses", "ga_loss")
    with pytest.raises(FileNotFoundError, match="give the root of a checkout"), imports_from(tmp_path / "none"):
        pass


def test_the_shell_names_the_peers(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["peers", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "locuslab/open-unlearning" in capsys.readouterr().out


def test_the_page_names_every_method_and_quotes_commands_that_exist():
    page = (Path(__file__).parents[1] / "docs" / "peers.md").read_text()
    assert [m.name for m in methods() if f"`{m.name}`" not in page] == []
    quoted = re.findall(r"python -m analyses\.peers ([a-z]\S*)", page)
    assert set(quoted) == set(PEERS)
    for name, (repository, _) in PEERS.items():
        assert f"### `{name}`: {repository}, commit " in page


def test_what_is_no_loss_is_compared_by_its_largest_entry(of):
    found = alike(of, "x", "", lambda m, s: [torch.tensor([4.0, 1.0])], lambda m, s: [torch.tensor([4.0, 2.0])])
    assert (found.loss, found.even, found.padded) == (None, 0.25, 0.25)
    assert str(found) == "| x |  |  | 2.5e-01 | 2.5e-01 |"
    drawn = alike(of, "x", "", lambda m, s: [torch.rand(3)], lambda m, s: [torch.rand(3)])
    assert drawn.even == 0, "both sides draw from the same state"
    assert all(p.grad is None for p in of.model.parameters()), "gradients of a peer would be added to these"
