"""The studies: their commands, data, caches and intervals. What they measure is tested where it is made."""

import runpy
import sys
from pathlib import Path

import pytest
from conftest import tiny_llama

import analyses
from analyses.shared import ANY, DIFFERENCE, SHARE, cached, over_seeds, paired, seed_row, verdict
from analyses.stories import tofu_rows
from probe.checkpoints import load_tokenizer, weights_hash


def test_tofu_rows_are_the_last_ten_authors(shared):
    forget, retain = tofu_rows(shared / "data" / "tofu")
    assert (len(forget), len(retain)) == (40, 160)
    assert len({row.group for row in forget}) == 2
    assert len({row.group for row in retain}) == 8
    assert not {row.group for row in forget} & {row.group for row in retain}
    assert all(len(row.perturbed_answer) == 5 for row in forget)


def test_a_model_is_made_once_per_recipe(shared, tmp_path):
    tokenizer, made = load_tokenizer(shared / "models" / "stories260K"), []

    def make():
        made.append(1)
        return tiny_llama(len(made))

    first = cached(tmp_path, {"lr": 1e-3}, make, tokenizer)
    assert weights_hash(cached(tmp_path, {"lr": 1e-3}, make, tokenizer)) == weights_hash(first)
    assert len(made) == 1
    other = cached(tmp_path, {"lr": 2e-3}, make, tokenizer)
    assert len(made) == 2
    assert weights_hash(other) != weights_hash(first)


def test_every_study_is_a_command_with_help(monkeypatch, capsys):
    parts = {"sae": ("dose-response", "controls"), "tarf": ("digits", "language"), "zoo": ("build", "stories")}
    for folder in sorted(Path(analyses.__file__).parent.glob("*/__main__.py")):
        name = folder.parent.name
        for part in ((), *((one,) for one in parts.get(name, ()))):
            monkeypatch.setattr(sys, "argv", ["", *part, "--help"])
            with pytest.raises(SystemExit) as ended:
                runpy.run_module(f"analyses.{name}", run_name="__main__")
            assert ended.value.code == 0
            assert " ".join((f"usage: python -m analyses.{name}", *part)) in capsys.readouterr().out


def test_intervals_over_seeds_stay_where_a_mean_can_be():
    from scipy.stats import ttest_1samp

    inside = [0.4, 0.5, 0.7]
    judge = ttest_1samp(inside, 0).confidence_interval(0.95)
    assert over_seeds(inside, ANY).ends == pytest.approx((1.6 / 3, judge.low, judge.high))
    assert over_seeds([1.0, 0.9, 1.0], SHARE).high == 1.0
    assert paired([1.0, 0.9], [0.0, 0.2]).high == 1.0
    nothing = over_seeds([], DIFFERENCE)
    assert (nothing.n, nothing.low, nothing.high) == (0, -1, 1)
    assert (verdict(over_seeds([0.1, 0.11, 0.1])), verdict(nothing)) == ("holds here", "cannot be told")
    row = seed_row("NPO", "raw", "rouge", [0.0, 0.01, 0.2], "forget")
    assert (row.low, row.n) == (0.0, 3)
    one = seed_row("NPO", "raw", "rouge", [0.5])
    assert (one.value, one.low, one.high, one.n) == (0.5, None, None, 1)


def test_one_seed_settles_nothing():
    for within in (SHARE, DIFFERENCE, ANY):
        assert {verdict(over_seeds([value], within)) for value in (0.0, 0.3, 1.0)} == {"cannot be told"}
