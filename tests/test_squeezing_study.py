"""The study of squeezing: its judgements on made-up runs of known outcome, its measurements on the testbed."""

from dataclasses import replace

import numpy as np
import pytest

from analyses.shared import runs_of, steps_of
from analyses.squeezing.claims import (
    CONTROL,
    REWORDED,
    gains,
    judged,
    looks_forgotten,
    rows_of,
    share_at,
    table,
)
from analyses.squeezing.measures import METRICS, answers, drawn, material, naturalness, questions
from analyses.squeezing.study import AT, METHODS
from probe.diagnostics.spurious_unlearning import KINDS
from probe.figures.answer_kinds import answer_kinds, gains_over_steps
from probe.figures.style import new_figure, paper_style
from probe.metrics.intervals import interval

RESPONSES = ("target", "high", "mid", "low", REWORDED, CONTROL)
LOOKS = (5, 10, 20, 35, 50)


def state(rng, *, rephrased, collapsed, level, likely, seen=0.0):
    """What one look gives: shares of kinds, log-probabilities, and rows of which a part looks forgotten."""
    jitter = 0.002 * rng.standard_normal()
    found = {f"answers/{kind}": 0.0 for kind in KINDS}
    found |= {"answers/rephrased": rephrased + jitter, "answers/gibberish": collapsed, "answers/right": 0.1}
    found |= {"answers/wrong": 0.9 - rephrased - collapsed, "answers/fluent": 1 - collapsed + jitter}
    found |= {f"answers/{key}": 0.3 for key in ("probability", "rouge", "truth ratio", "truth ratio, published")}
    found |= {"answers/naturalness": -1.0, "retain/probability": 0.97, "relearning/after": 0.5}
    found |= {"drawn/right": 0.1, "drawn/rephrased": rephrased}
    found |= {f"squeezing/{name}": likely + jitter for name in RESPONSES} | {"squeezing/target": level}
    for group in ("rephrased", "collapsed", "wrong"):
        found |= {f"answers/rows/{group}": 10.0}
        found |= {f"answers/look forgotten/{group}/{metric}": 10 * (1 - seen) + jitter for metric in METRICS}
    return found


@pytest.fixture
def records():
    """GA, GradDiff and NPO rephrase and collapse while likely responses rise; BS-T and BS-S do neither."""
    rng = np.random.default_rng(0)
    found = [
        {"method": name, "seed": 0, "status": "ok", **state(rng, rephrased=0.01, collapsed=0.0, level=0.0, likely=-8.0)}
        for name in ("original", "retrained")
    ]
    for method in METHODS:
        spurious = method in ("GA", "GradDiff", "NPO")
        kinds = {"rephrased": 0.3 if spurious else 0.05, "collapsed": 0.2 if spurious else 0.0}
        for seed in range(3):
            run = {"method": method, "seed": seed, "status": "ok"}
            for k, step in enumerate(LOOKS):
                likely = -7.0 + k if spurious else -9.0 - k
                looked = state(rng, **kinds, level=-1.0 - k, likely=likely)
                run |= {f"{step}/{key}": value for key, value in looked.items()}
            run |= {f"equal/{key}": v for key, v in state(rng, **kinds, level=-5.0, likely=-9.0).items()}
            run |= {f"raw/drawn/{kind}": 0.1 for kind in ("right", "rephrased")}
            found.append(run)
    return found


def test_claims_hold_where_they_were_built_to_hold(records):
    lines = judged(records)
    assert "- Both kinds, missed by all three metrics: holds here." in lines
    assert "- The same fact in other words, early in the run log-probability rises: holds here." in lines
    assert "- The same fact in other words, at the end it has risen: holds here." in lines
    for method in ("BS-T", "BS-S"):
        own = [line for line in lines if line.startswith(f"- {method}")]
        assert sum("less than NPO" in line and "less than GradDiff" in line for line in own) == 4
        assert any("monotone: holds here" in line for line in own)
        assert sum(line.startswith(f"- {method}, naturalness") and "holds here" in line for line in own) == 2


def test_claims_fail_where_they_were_built_to_fail(records):
    for record in records:
        for key in list(record):
            if "look forgotten" in key:
                record[key] = 0.0
            if key.endswith(f"squeezing/{REWORDED}") and record["method"] not in ("original", "retrained"):
                record[key] = -20.0
    lines = judged(records)
    assert "- Both kinds, missed by all three metrics: does not hold here for every kind and metric." in lines
    assert "- The same fact in other words, early in the run log-probability rises: does not hold here." in lines
    few = [r for r in records if r["method"] != "BS-S"]
    assert judged(few)[0].endswith("so claims are not judged")


def test_numbers_under_the_judgements_are_those_of_the_records(records):
    run = runs_of(records, "NPO")[1]
    assert steps_of(run) == list(LOOKS)
    before = records[0][f"squeezing/{REWORDED}"]
    assert gains(records, run, REWORDED) == [run[f"{s}/squeezing/{REWORDED}"] - before for s in LOOKS]
    shares = [
        sum(r[f"{s}/answers/look forgotten/wrong/rouge"] for s in LOOKS) / 50
        for method in ("GA", "GradDiff", "NPO")
        for r in runs_of(records, method)
    ]
    assert looks_forgotten(records, "wrong", "rouge") == interval(shares, within=(0.0, 1.0))
    assert table(records).count("| BS-S |") == 2


def test_shares_are_read_where_forgetting_is_equal(records):
    run = {"5/squeezing/target": -2.0, "10/squeezing/target": -6.0}
    run |= {"5/answers/gibberish": 0.1, "10/answers/gibberish": 0.5}
    found = [share_at(run, ("gibberish",), level) for level in (0.0, -1.0, -2.0, -4.0, -6.0, -9.0)]
    assert found == pytest.approx([0.0, 0.05, 0.1, 0.3, 0.5, 0.5])


def test_figures_show_every_method_and_state(records):
    rows = rows_of(records)
    with paper_style():
        data = answer_kinds(rows, new_figure(5.5, 2.4), {"raw": "end", "equal": "equal retention"})
        assert set(data["raw"]) == {*METHODS, "original", "retrained"}
        assert sum(data["equal"]["NPO"].values()) == pytest.approx(1, abs=0.2)
        lines = gains_over_steps(rows, new_figure(5.5, 1.9), {"target": "answer", REWORDED: "other words"})
        assert lines["NPO"]["target"]["x"] == [0, *LOOKS]
        assert lines["NPO"]["target"]["value"][1] == pytest.approx(-1.0)
        with pytest.raises(ValueError, match="at most 4"):
            gains_over_steps(rows, new_figure(5.5, 1.9), {str(k): "" for k in range(5)})


def test_measurements_know_the_original_from_its_twin():
    from analyses.subjects import subject

    given = material(replace(subject("testbed"), rows=(8, 10)))
    original, never = (answers(model, given) for model in (given.study.original, given.study.retrained))
    assert original["right"] == 1
    assert never["wrong"] >= 0.7
    assert original["fluent"] == never["fluent"] == 1
    assert original["probability"] > given.forgotten["probability"] > never["probability"]
    assert never["rows/wrong"] == 8 * never["wrong"]
    assert drawn(given.study.original, given, 0)["right"] > 0.7
    texts = ["", "The home town was Rivenna.", "town home was The the was the"]
    natural = naturalness([*texts, *[""] * 5], given)
    assert natural[0] == -np.inf
    assert natural[1] > given.floor > natural[2]
    asked = questions(given)
    logp = asked["squeezing"](given.study.original)
    assert logp["target"] > logp[REWORDED] > logp[CONTROL]
    assert logp["target"] > logp["high"] > logp["mid"] > logp["low"]
    assert asked["relearning"](given.study.retrained)["excess"] == 0


def test_every_run_is_asked_at_five_different_steps():
    for _, settings in METHODS.values():
        assert len({round(part * settings["steps"]) for part in AT}) == len(AT)
