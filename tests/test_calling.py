"""Attacks and diagnostics by their names: what can be called, what it is told, and what a mistake is answered with."""

import copy
import inspect
import json

import pytest
import torch

import probe.attacks
import probe.diagnostics
from probe.checkpoints import save_model
from probe.cli import main
from probe.commands.arguments.calling import call_arguments, called, function_named
from probe.commands.attack import Attack
from probe.commands.diagnose import _STUDY, Diagnose
from probe.commands.sae_train import SaeTrain
from probe.rows import load

ATTACKS = called(probe.attacks, ("model", "study"))
DIAGNOSTICS = called(probe.diagnostics, _STUDY)


@pytest.mark.parametrize(("command", "functions"), [(Attack, ATTACKS), (Diagnose, DIAGNOSTICS)])
def test_the_help_names_every_function_that_can_be_called(command, functions):
    text = " ".join(inspect.getdoc(command).split())
    listed = text.split("Attacks: " if command is Attack else "Diagnostics: ")[1].split(";")[0]
    assert {word.split()[0].strip(",") for word in listed.split(", ")} == set(functions)


def test_words_are_read_by_the_types_that_a_function_states():
    found = call_arguments(
        ATTACKS["relearn"], {"model": 1, "study": 2}, {"steps": 3, "lr": 0.1}, ["batch_size=4", "seeds=1,2"]
    )
    assert found == {"model": 1, "study": 2, "steps": 3, "lr": 0.1, "batch_size": 4, "seeds": (1, 2)}
    assert (
        call_arguments(ATTACKS["latent"], {"model": 1, "study": 2}, {}, ["epsilon=1", "steps=2", "site=3"])["site"] == 3
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attack", "relern"], "did you mean 'relearn'?"),
        (["attack", "gcg"], "gcg also needs"),
        (["attack", "quantise", "--steps", "3"], "quantise takes no --steps; leave it out"),
        (["attack", "quantise", "--set", "bits"], "'bits' is no key=value pair"),
        (["attack", "quantise", "--set", "retrained=x"], "no argument 'retrained' that can be set"),
        (["attack", "quantise", "--set", "scheme=odd"], "choose round-to-nearest or nf4"),
        (["diagnose", "seperability"], "did you mean 'separability'?"),
        (["attack", "steer_back", "--sae", "s"], "--sae needs --original, --forget and --retain"),
        (["attack", "relearn", "--retrained", "r"], "--retrained needs --original"),
        (["diagnose", "separability", "--retrained", "r"], "separability takes no --retrained"),
        (["diagnose", "separability", "--side", "retain"], "looks at both sides"),
        (["diagnose", "layer_map"], "layer_map also needs --unlearned"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main([*words, "--limit", "4", "--out", str(tmp_path / "x")])
    assert left.value.code == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_an_attack_and_a_diagnostic_from_the_shell_are_those_of_python(bed, tmp_path, capsys):
    model = copy.deepcopy(bed.original)
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.mul_(0.5)
    save_model(model, tmp_path / "other", tokenizer=bed.tokenizer)
    own = ["--unlearned", str(tmp_path / "other"), "--limit", "12"]
    main(["diagnose", "separability", *own, "--set", "repeats=1", "--out", str(tmp_path / "d")])
    split = probe.make_split(bed.tokenizer, bed.split.forget_rows[:12], bed.split.retain_rows[:12])
    expected = probe.separability(model, split, repeats=1).rows("other")
    assert [row.value for row in load(tmp_path / "d" / "rows.jsonl")] == pytest.approx([row.value for row in expected])
    main(["attack", "quantise", *own, "--set", "bits=3", "--out", str(tmp_path / "a")])
    assert "never knew" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["settings"]["set"] == ["bits=3"]


def test_names_may_be_written_with_hyphens():
    assert function_named("soft-prompt", ATTACKS, "attack") is probe.soft_prompt


def test_logit_collapse_reads_what_the_model_writes(tmp_path, capsys):
    main(["diagnose", "logit_collapse", "--limit", "2", "--side", "retain", "--out", str(tmp_path / "x")])
    assert "mean" in capsys.readouterr().out
    assert '"repetition"' in (tmp_path / "x" / "rows.jsonl").read_text()


def test_a_trial_cell_of_a_dictionary_is_trained(tmp_path):
    SaeTrain(out=tmp_path / "x", **SaeTrain.small({})).run()
    assert (tmp_path / "x" / "sae").is_dir()
