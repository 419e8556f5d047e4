"""Flags of the shell: numbers, regular expressions and devices that cannot be are one line each, before any work."""

import os
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from probe.checkpoints import check_device, load_model
from probe.cli import main
from probe.commands.command import command_named, command_names
from probe.commands.unlearn import Unlearn
from probe.ranges import Count, Positive, Seed, check_ranges, ranges_in
from probe.report.settings import Settings
from probe.sites import compiled

ROWS = ["--forget", "f.jsonl", "--retain", "r.jsonl"]


def refused(capsys, *words):
    """The one line of a user's mistake."""
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    printed = capsys.readouterr().err.strip()
    assert stopped.value.code == 2, printed
    assert printed.startswith("probe: ")
    assert len(printed.splitlines()) == 1
    assert len(printed) < 400
    return printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["doctor"], "`probe doctor` needs MODEL: Folder of safetensors"),
        (["doctor", "m", "--dtyp", "x"], "`probe doctor` has no option --dtyp; did you mean --dtype?"),
        (["doctor", "m", "--dtype", "int8"], "expected one of ('float32', 'bfloat16', 'float16')"),
        (["doctor", "m", "--device"], "no value for '--device'; one is expected"),
        (["doctor", "m", "n"], "n is not expected"),
        (["doctor", "m", "--batch-size", "3"], "`probe doctor` has no option --batch-size"),
        (["evaluate", "m", *ROWS, "--split", "forget01"], "--split is one of TOFU's"),
        (["evaluate", "m", *ROWS, "--mcq-form", "text-sum"], "pass --mcq, or leave it out"),
        (["g-effect", "ga"], "`probe g-effect` needs --objective:"),
        (["layers", "--limit", "abc"], "--limit 'abc' cannot be read; expected a whole number"),
        (["attack", "relearn", "--lr", "abc"], "--lr 'abc' cannot be read; expected a number"),
        (["report", "--sample", "-1"], "--sample must be a whole number from 1 to 2147483647, got -1"),
        (["report", "--generated", "-1"], "--generated must be a whole number"),
        (["report", "--methods", "npo:steps=x"], "npo:steps=x cannot be read; expected a finite int"),
        (["report", "--methods", "rmu:alpha=nan"], "rmu:alpha=nan cannot be read"),
        (["report", "--methods", "rmu:alfa=3"], "rmu has no hyper-parameter 'alfa'; did you mean 'alpha'?"),
        (["report", "--methods", "npo:setting=x"], "npo has no setting 'x'; published: open-unlearning"),
        (["report", "--methods", "npo", "npo:beta=1"], "--methods takes each method once"),
        (["report", "--methods", "npo", "--original", "m", *ROWS], "npo also needs beta (published: 0.1 in"),
        (["report", "--measuring.rows", "9"], "--measuring.rows of `probe report` is now --sample"),
        (["report", "--training.npo-beta=1"], "is now a setting of a method, as in --methods npo:steps=30"),
        (["report", "--editing.sae-doses", "1"], "--editing.sae-doses of `probe report` is now spelt without editing."),
        (["report", "--sae-doses", "1", "-2"], "--sae-doses must be at least 0, got -2.0"),
        (["report", "--limit", "-1"], "--limit must be a whole number from 1 to 2147483647, got -1"),
        (["report", "--threads", "1000000000"], f"to {os.cpu_count()}, the cores of this machine, got 1000000000"),
        (["report", "--threads", "0"], "--threads must be a whole number from 1"),
        (["unlearn", "ga", "--out", "o", "--lr", "nan"], "--lr must be above 0, got nan"),
        (["unlearn", "ga", "--out", "o", "--lr", "inf"], "--lr must be above 0, got inf"),
        (["unlearn", "ga", "--out", "o", "--steps", "9" * 4000], "got a number of about 4000 digits"),
        (["unlearn", "ga", "--out", "o", "--seed", "-1"], "--seed must be a whole number from 0 to 4294967295"),
        (["evaluate", "m", *ROWS, "--max-length", "1"], "--max-length must be a whole number from 2"),
        (["layers", "--out", "o", "--batch-size", "0"], "--batch-size must be a whole number"),
        (["verdict", "m", "--original", "o", *ROWS, "--max-length", "0"], "--max-length must be a whole number"),
        (["sae", "train", "--out", "o", "--least-variance", "1.5"], "--least-variance must be from 0 to 1, got 1.5"),
        (["sae", "suppress", "--out", "o", "--counts", "5", "0"], "--counts must be a whole number from 1"),
        (["sae", "audit", "--out", "o", "--features", "-1"], "--features must be a whole number from 0"),
    ],
)
def test_r7_r20_r21_numbers_outside_their_range_are_refused_with_flag_and_range(
    capsys, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_r7_every_number_of_every_command_states_its_range():
    seen, without = 0, []

    def walk(kind):
        nonlocal seen
        for name, hint in get_type_hints(kind, include_extras=True).items():
            inner = get_type_hints(kind)[name]
            if is_dataclass(inner):
                walk(inner)
            seen += 1
            without.extend(f"{kind.__name__}.{name}" for _, limits in ranges_in(hint) if limits is None)

    for command in command_names():
        walk(command_named(command))
    # Every command of the shell was looked at, and the walk finds numbers.
    assert seen > 250
    assert without == []
    check_ranges(Settings())


@pytest.mark.parametrize("name", command_names())
def test_the_help_of_every_command_has_an_example_and_no_flag_twice(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert f"usage: probe {name}" in shown
    assert f"probe {name}" in " ".join(shown.split("Example:")[1].split())


def test_the_list_of_commands_fits_a_screen_and_is_in_our_words(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 24
    assert max(map(len, shown.splitlines())) <= 112
    assert all(f"  {name} " in shown for name in command_names())
    main([])
    assert capsys.readouterr().out == shown
    assert "Union" not in shown
    with pytest.raises(SystemExit) as stopped:
        main(["sae"])
    assert not stopped.value.code
    assert "sae rank" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    from importlib.metadata import version

    main(["--version"])
    assert capsys.readouterr().out == f"probe {version('unlearn-probe')}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["layrs"], "no command 'layrs'; did you mean 'layers'?"),
        (["sae", "rang"], "no command 'sae rang'; did you mean 'sae rank'?"),
        (["unlearn", "npo", "--model", "m"], "--model of `probe unlearn` is now --original"),
        (["layers", "--rows=3"], "--rows of `probe layers` is now --limit"),
    ],
)
def test_a_mistyped_command_and_an_old_option_are_answered_with_the_name_as_it_is(words, said, capsys):
    assert said in refused(capsys, *words)


def test_r20_a_message_stays_short_whatever_was_given(capsys):
    said = refused(capsys, "unlearn", "ga", "--out", "never", "--set", "a" * 3000)
    assert said.startswith("probe: --set 'aaaa")
    assert said.endswith("aaa' is no key=value pair; write beta=0.1, say")


def test_r7_ranges_hold_their_ends_and_nothing_beyond():
    limits = {kind: next(ranges_in(kind))[1] for kind in (Count, Seed, Positive)}
    assert limits[Count].holds(1)
    assert not limits[Count].holds(0)
    assert not limits[Count].holds(10**400)
    assert limits[Seed].holds(0)
    assert not limits[Positive].holds(0.0)
    assert not limits[Positive].holds(float("inf"))
    with pytest.raises(ValueError, match="--lr must be above 0, got nan"):
        Unlearn(method="ga", out=Path("nowhere"), lr=float("nan")).check()


@pytest.mark.parametrize("pattern", ["[", "(" * 5000, "a{99999999999}", "*mlp"])
def test_r6_a_pattern_that_is_no_regular_expression_is_refused_before_a_model_is_loaded(
    capsys, tmp_path, monkeypatch, pattern
):
    monkeypatch.chdir(tmp_path)
    words = ["--steps", "1", "--lr", "1e-3", "--batch-size", "4"]
    said = refused(capsys, "unlearn", "ga", "--out", "o", *words, f"--parameters={pattern}")
    assert "is no regular expression (" in said
    assert not list(tmp_path.iterdir())


def test_r6_patterns_are_refused_by_name_wherever_they_are_used(bed):
    from probe.methods.orthogonalised import orthogonalise
    from probe.sites import matching_parameters
    from probe.train.setup import trained_parameters

    uses = (
        lambda: matching_parameters(bed.original, "["),
        lambda: trained_parameters(bed.original, "["),
        lambda: orthogonalise(bed.original, torch.eye(bed.original.config.hidden_size)[:, :1], parameters="["),
    )
    for use in uses:
        with pytest.raises(ValueError, match=r"pattern '\[' is no regular expression \(unterminated character set"):
            use()
    assert compiled(r"layers\.[34]\.").search("model.layers.3.mlp")


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "", "meta", "gpu"])
def test_r6_a_device_that_is_not_here_is_refused_by_every_command(capsys, tmp_path, monkeypatch, bed, device):
    monkeypatch.chdir(tmp_path)
    model = str(bed.folder / "original")
    for words in (
        ["verdict", model, "--original", model, *ROWS],
        ["report", "--original", model, *ROWS],
        ["doctor", model],
    ):
        assert f"device {device!r} cannot be used here (" in refused(capsys, *words, f"--device={device}")
    for use in (lambda: check_device(device), lambda: load_model(model, device=device)):
        with pytest.raises(ValueError, match="cannot be used here"):
            use()
