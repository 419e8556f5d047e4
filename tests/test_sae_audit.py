"""The audit of a baked model: its sums by hand, what moves where, and that silence alone convinces nobody."""

import copy
import math

import pytest
import torch
from conftest import random_batch, tiny_llama

from probe.attacks.curves import Training
from probe.attacks.facts import divided
from probe.checkpoints import weights_hash
from probe.data import encode
from probe.dictionaries.made import random_dictionary
from probe.hooks import edited, our_hooks
from probe.interventions.activations import activations, content
from probe.interventions.steering import Steer
from probe.objectives.features import FeatureActivity, StatesHeld, WatchedFeatures
from probe.rows import Row, append, load
from probe.sae.audit import audit
from probe.sae.changes import changed
from probe.sites import Site
from probe.train import Term, minimise


@pytest.fixture(scope="module")
def facts(bed):
    return divided(bed.tokenizer, bed.split.forget_rows, share=0.2, by="row", seed=0)


@pytest.fixture(scope="module")
def chosen(bed):
    """The features that are strongest on the forget answers and weaker on the rest."""
    means = []
    for batch in (bed.split.forget, bed.split.retain.select(range(200))):
        hidden_ND = activations(bed.original, batch, [bed.sae_site], tokens=content)[bed.sae_site]
        means.append(bed.sae.encode(hidden_ND).mean(0))
    return tuple((means[0] - means[1]).topk(10).indices.tolist())


@pytest.fixture(scope="module")
def baked(bed, chosen):
    """A model whose chosen features were trained to be silent, and nothing else was asked for."""
    model = copy.deepcopy(bed.original)
    quiet = FeatureActivity((WatchedFeatures(bed.sae_site, bed.sae, chosen),), 0.0)
    near = StatesHeld(bed.original, (bed.sae_site,), "entries")
    terms = [Term(1.0, quiet, bed.split.forget, "forget"), Term(0.02, near, bed.split.retain, "retain")]
    minimise(model, terms, steps=25, lr=1e-3, batch_size=8, seed=0, parameters=r"layers\.4\.")
    return model


@pytest.fixture(scope="module")
def audited(bed, baked, chosen, facts):
    training = Training(steps=3, lr=1e-3, batch_size=8)
    held = bed.split.retain_rows[-30:]
    hashes = [weights_hash(m) for m in (bed.original, baked, bed.retrained)]
    found = audit(
        bed.original, baked, bed.sae, bed.sae_site, chosen, facts, held, name="quiet", retrained=bed.retrained,
        training=training,
    )  # fmt: skip
    assert [weights_hash(m) for m in (bed.original, baked, bed.retrained)] == hashes
    return found


# --- where it went ---


def test_what_leaves_the_features_goes_to_others_outside_or_away():
    before, after, batch = tiny_llama(), tiny_llama(), random_batch()
    with torch.no_grad():
        after.model.layers[1].mlp.down_proj.weight.mul_(3)
    site, few = Site(1), [0, 5, 9]
    hidden = [activations(m, batch, [site], tokens=content)[site] for m in (before, after)]
    sae = random_dictionary(16, 14, active=5, seed=0, mean_D=hidden[0].mean(0))
    found = changed(before, after, sae, site, few, batch)
    f = [sae.encode(h_ND) for h_ND in hidden]
    v_ND = (f[0] - f[1])[:, few] @ sae.directions_FD[few]
    change_ND = hidden[1] - hidden[0]
    # The stream changes by what others and the rest write, less what the chosen features no longer write.
    away = 1 + (change_ND * v_ND).sum() / v_ND.square().sum()
    assert found.by_others + found.by_error == pytest.approx(away.item(), rel=1e-4, abs=1e-5)
    rest = [j for j in range(14) if j not in few]
    assert found.by_others != pytest.approx(0, abs=1e-3)
    other_ND = (f[1] - f[0])[:, rest] @ sae.directions_FD[rest]
    assert found.by_others == pytest.approx(((other_ND * v_ND).sum() / v_ND.square().sum()).item(), rel=1e-4, abs=1e-5)
    torch.testing.assert_close(found.before_F, f[0].abs().mean(0).double(), rtol=1e-4, atol=1e-6)
    assert found.tokens == len(hidden[0])
    nothing = changed(before, copy.deepcopy(before), sae, site, few, batch)
    assert nothing.left(few) == 1
    assert math.isnan(nothing.by_others)
    assert nothing.fvu_before == nothing.fvu_after


# --- what it says ---


def test_silent_features_with_the_answers_still_there_are_flagged(audited, chosen):
    assert audited.forget.left(chosen) < 0.1
    assert audited.silenced
    assert audited.scores["quiet"]["forget"].choice_N.mean() > 0.7
    assert audited.known.above_zero
    assert audited.flagged
    assert audited.findings[-1].startswith("silent is not forgotten")
    assert audited.scores["retrained"]["forget"].choice_N.mean() < 0.4


def test_a_model_that_never_knew_is_not_flagged(bed, chosen, facts):
    found = audit(bed.original, bed.retrained, bed.sae, bed.sae_site, chosen, facts, bed.split.retain_rows[-10:])
    assert not found.known.above_zero
    assert not found.flagged
    # The dictionary belongs to the original; of another model it says little, and the audit says so.
    assert found.drifted
    assert "does not fit the edited model" in found.findings[2]


def test_rows_carry_every_number(audited, chosen, tmp_path):
    rows = audited.rows(grown=3)
    assert all(isinstance(row, Row) and row.status == "ok" for row in rows)
    table = {(r.intervention, r.quantity, r.on, r.item, r.dose): r.value for r in rows}
    assert len(table) == len(rows)
    assert table["original", "selected_written", "forget", None, None] > 0
    left = (
        table["quiet", "selected_written", "forget", None, None]
        / table["original", "selected_written", "forget", None, None]
    )
    assert left == pytest.approx(audited.forget.left(chosen))
    score = audited.scores["quiet"]["retain"]
    assert table["quiet", "choice", "retain", None, None] == pytest.approx(score.choice_N.mean())
    assert table["quiet", "fvu", "retain", None, None] == audited.retain.fvu_after
    grown = [r for r in rows if r.quantity == "growth_of_feature" and r.on == "forget"]
    assert len(grown) == 3
    assert not {r.item for r in grown} & set(chosen)
    assert grown[0].value >= grown[-1].value
    assert {r.dose for r in rows if r.quantity == "relearned_choice" and r.intervention == "retrained"} == {0.0, 3.0}
    append(tmp_path / "rows.jsonl", rows)
    assert load(tmp_path / "rows.jsonl") == rows
    assert "audited at Site(4)" in audited._repr_html_()


# --- what it refuses ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features": ()}, "no features"),
        ({"features": (99999,)}, "does not exist"),
        ({"site": Site(3)}, "fits layer 4 better"),
        ({"name": "original"}, "cannot be called"),
        ({"edited": None}, "are identical"),
    ],
)
def test_audits_that_would_mean_nothing(bed, baked, chosen, facts, change, said):
    given = {"edited": baked, "sae": bed.sae, "site": bed.sae_site, "features": chosen, **change}
    given["edited"] = given["edited"] or copy.deepcopy(bed.original)
    with pytest.raises(ValueError, match=said):
        audit(bed.original, facts=facts, retain=bed.split.retain_rows[:10], **given)


def test_an_audit_has_hooks_off(bed, baked, chosen, facts):
    with (
        edited(baked, {Site(2): Steer(torch.ones(128), scale=1.0)}),
        pytest.raises(ValueError, match=r"an edit is in force .* hooks off"),
    ):
        audit(bed.original, baked, bed.sae, bed.sae_site, chosen, facts, bed.split.retain_rows[:10])
    assert not our_hooks(baked)
    assert len(encode(bed.tokenizer, bed.split.retain_rows[:10])) == 10


def test_people_of_two_rows_are_divided_by_people():
    from probe.commands.sae_audit import _divided_by
    from probe.data import QA

    rows = [QA(f"Who is {i}?", "A.", group=str(i // 2)) for i in range(12)]
    assert _divided_by(rows) == "group"
    assert _divided_by([*rows, QA("Where?", "B.", group="0")]) == "row"
