"""Verdicts of the calibrated comparison, from made-up records whose answer is known."""

import sys
from functools import partial

import numpy as np
import pytest
from scipy.stats import f as f_distribution

from analyses.calibrated.claims import bar, judged, u2, u3, u4, u5
from analyses.calibrated.measures import choices_of, noised_rows, with_options
from analyses.calibrated.methods import NAMES, TRICKS, settings
from analyses.calibrated.metric_claims import c3, m2, u1
from analyses.calibrated.numbers import ATTACKS, METRICS, STATES, bootstrap_means, studied
from analyses.calibrated.pictures import draw
from analyses.shared import conclude, finished
from probe.data import QA, Template
from probe.metrics import correlation, reliability
from probe.metrics.suite import SuiteResult
from probe.metrics.tokens import TokenStats


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The intervals of the study are tested where they are made."""
    monkeypatch.setattr(sys.modules[reliability.__module__], "correlation", partial(correlation, resamples=20))


METHODS = tuple(settings("testbed"))


def records(change=None, seeds=3, methods=METHODS):
    """Numbers drawn once per method, a little apart from seed to seed; ``change(method, key, value)`` has a say."""
    stream = np.random.default_rng(0)
    found = []
    for name in ("original", "retrained", *methods):
        level = {"original": 1.0, "retrained": 0.3}.get(name, float(stream.uniform(0.2, 0.8)))
        for seed in range(1 if name in ("original", "retrained") else seeds):
            record = {"method": name, "seed": seed, "status": "ok", "error": "", "alpha": 0.5}
            record |= {"retain score": 0.96, "retain bar": 0.95}
            record |= {f"path/{a}/{on}": 0.5 for a in (0.25, 0.5, 0.75) for on in ("forget", "retain")}
            for state in STATES:
                for metric in (*METRICS, "open_right", "only_open", "only_choice", "at_chance"):
                    noise = 0.01 * float(stream.normal())
                    record[f"{state}/forget/{metric}"] = level + noise
                    record[f"{state}/retain/{metric}"] = 1.0 - abs(noise)
                    for attack in ATTACKS:
                        record[f"{state} + {attack}/{metric}"] = level + 0.01 * float(stream.normal())
            if change is not None:
                record = {k: change(name, k, v) for k, v in record.items()}
            found.append(record)
    return found


def verdict(lines, part):
    line = next(line for line in lines if part in line)
    return next(v for v in ("does not hold here", "holds here", "cannot be told", "not measured") if v in line)


def forget(table, state="calibrated"):
    """Extraction strength of methods on forget rows, in one state."""
    key = f"{state}/forget/extraction_strength"
    return lambda name, k, v: table[name] + (v - int(v)) * 1e-3 if k == key and name in table else v


def test_the_bar_names_who_missed_it():
    def change(name, key, value):
        return 0.8 if (name, key) == ("npo", "calibrated/retain/extraction_strength") else value

    assert "npo seed 0 (0.800)" in bar(records(change), 0.95)[0]
    fine = records(lambda n, k, v: 1.0 if k.endswith("/retain/extraction_strength") else v)
    assert "not " not in bar(fine, 0.95)[0]
    nothing = records(lambda n, k, v: 0.0 if (n, k) == ("ga", "alpha") else v)
    assert "ga seed 2" in bar(nothing, 0.95)[1]


def test_u1_follows_a_metric_that_attacks_shuffle():
    attacked = tuple(f"+ {attack}" for attack in ATTACKS)
    stream = np.random.default_rng(1)

    def shuffled(*left_alone):
        def change(name, key, value):
            moved = any(a in key for a in attacked) and key.split("/")[-1] not in left_alone
            return float(stream.uniform()) if moved else value

        return change

    strengths = tuple(m for m in METRICS if "strength" in m)
    assert verdict(u1(records(shuffled(*strengths))), "(raw)") == "holds here"
    assert verdict(u1(records(shuffled("rouge"))), "(raw)") == "does not hold here"
    assert verdict(u1(records()), "(raw)") == "cannot be told"
    assert verdict(u1(records(methods=METHODS[:3])), "(raw)") == "cannot be told"


def test_the_bootstrap_starts_from_the_correlations_of_the_study():
    made = records()
    found, mean_r = studied(made, "raw"), bootstrap_means(made, "raw", resamples=5)
    for metric in METRICS:
        assert mean_r[metric][0] == pytest.approx(np.mean([found.by_metric[metric][a].r for a in ATTACKS]))
        assert len(mean_r[metric]) == 6


def test_u2_compares_the_best_of_each_family():
    table = dict.fromkeys(NAMES, 0.9) | {"grad_diff": 0.2, "npo": 0.5}
    assert verdict(u2(records(forget(table))), "U2") == "holds here"
    assert verdict(u2(records(forget(table | {"rmu": 0.1}))), "U2") == "does not hold here"
    assert verdict(u2(records(methods=("ga",))), "U2") == "not measured"


def test_u3_is_about_the_retrained_model():
    table = {"ga": 0.0, "npo alone": 0.7, "grad_diff": 0.0, "npo": 0.1}
    lines = u3(records(forget(table, "raw")))
    assert verdict(lines, "ga over-unlearns (raw)") == "holds here"
    assert verdict(lines, "grad_diff over-unlearns (raw)") == "does not hold here"


def test_u4_sees_recovery_and_spread():
    def back(name, key, value):
        return 0.99 if name in ("rmu", "adaptive_rmu") and key == "raw + relearning/extraction_strength" else value

    lines = u4(records(back))
    assert verdict(lines, "U4 RMU") == "holds here"
    assert verdict(lines, "U4 PO") == "cannot be told"


def test_u4_compares_variances_by_their_f_distribution():
    from analyses.calibrated.claims import _variance_ratio

    wide, narrow = _variance_ratio((4.0, 6), (1.0, 6))
    assert f_distribution.cdf(4.0 / narrow, 6, 6) == pytest.approx(0.975)
    assert f_distribution.cdf(4.0 / wide, 6, 6) == pytest.approx(0.025)


def test_u5_compares_tricks_with_the_method_they_change():
    base = {f"grad_diff ({trick})": 0.5 for trick in TRICKS} | {"grad_diff": 0.5}
    lines = u5(records(forget(base | {"grad_diff (T 5)": 0.2, "grad_diff (likely half)": 0.9})))
    assert verdict(lines, "temperature") == "holds here"
    assert verdict(lines, "smaller batches") == "holds here"
    assert verdict(lines, "some tokens") == "holds here"
    assert verdict(u5(records(forget(base | {"grad_diff (T 5)": 0.9, "grad_diff (T 2)": 0.9}))), "temperature") == (
        "does not hold here"
    )


def test_m2_needs_open_answers_that_choices_miss():
    def change(name, key, value):
        if name == "idk":
            return {"raw/retain/open_right": 0.2, "raw/forget/only_open": 0.6}.get(key, value)
        return 0.3 if key.endswith("only_open") else value

    lines = m2(records(change))
    assert verdict(lines, "over-forgetting (raw)") == "holds here"
    assert verdict(lines, "bring out (raw)") == "holds here"
    assert verdict(lines, "over-forgetting (calibrated)") == "does not hold here"
    assert verdict(m2(records(seeds=1)), "over-forgetting (raw)") == "cannot be told"


def test_c3_needs_models_that_the_old_metrics_take_for_the_retrained_one():
    def change(name, key, value):
        if name == "npo" and key.startswith("raw/forget/"):
            return {"rouge": 0.3, "probability": 0.3, "token_entropy": 0.9}.get(key.split("/")[-1], 0.3) + value * 1e-4
        return value

    line = c3(records(change))[0]
    assert "npo (token_entropy)" in line
    assert verdict([line], "C3") == "holds here"
    assert verdict(c3(records(seeds=1)), "C3") == "cannot be told"


def test_everything_is_judged_and_drawn_and_failures_are_named(tmp_path):
    few = ("ga", "grad_diff", "npo", "rmu", "idk", "grad_diff (T 5)")
    made = [*records(methods=few), {"method": "ga", "seed": 9, "status": "failed", "error": "FloatingPointError: NaN"}]
    runs = finished(made)
    lines = judged(runs, "made", share=0.95)
    for claim in ("U1", "U2", "U3", "U4", "U5", "M2", "C3"):
        assert any(line.startswith(claim) for line in lines)
    conclude(tmp_path, lines, made)
    written = (tmp_path / "claims.txt").read_text().splitlines()
    assert written == [*lines, "failed: ga, seed 9: FloatingPointError: NaN"]
    draw(runs, tmp_path, "made")
    names = {path.name for path in tmp_path.rglob("*") if path.suffix in (".pdf", ".csv", ".tex")}
    assert {"calibration.pdf", "alpha.pdf", "choice_raw.pdf", "reliability_calibrated.pdf"} <= names
    assert {"raw.csv", "raw.tex", "calibrated.csv", "calibrated.tex", "all.csv"} <= names


@pytest.mark.parametrize("name", ["testbed", "stories"])
def test_every_method_has_settings_on_every_subject(name):
    found = settings(name)
    assert set(found) == set(METHODS)
    assert found["grad_diff (batch / 4)"]["batch_size"] * 4 == found["grad_diff"]["batch_size"]
    assert found["grad_diff (steps / 3)"]["steps"] < found["grad_diff"]["steps"]


def suite(right, wrong):
    tokens = TokenStats((np.zeros(1),) * len(right), (np.zeros(1, bool),) * len(right))
    return SuiteResult((), tokens, np.array(right), np.array(wrong))


def test_choices_are_four_and_the_right_one_moves():
    found = choices_of(suite([0.1] * 8, [[1.0, 2.0, 3.0, 0.0]] * 8))
    assert found.accuracy == 1.0  # the fourth wrong answer, the likeliest of all, is no option
    assert found.guess == 0.25
    assert sorted(found.answer_N.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    # A model that gives all options the same number is right as often as a blind guess.
    assert choices_of(suite([1.0] * 8, [[1.0, 1.0, 1.0]] * 8)).accuracy == 0.25


def test_noise_is_the_same_for_every_answer_and_absent_at_no_rate(shared):
    from probe.checkpoints import load_tokenizer

    tokenizer, template = load_tokenizer(shared / "models" / "stories260K"), Template()
    rows = [QA("Who is Ann?", "A girl.", "Ann is who?"), QA("Who is Tim?", "A boy.")]
    still = noised_rows(tokenizer, rows, template, rate=0.0, seed=0)
    assert still[0].question.strip() == "Question: Who is Ann?\nAnswer:"
    assert [row.answer for row in still] == ["A girl.", "A boy."]
    assert still[1].paraphrased_question == ""
    loud = noised_rows(tokenizer, rows, template, rate=0.5, seed=0)
    assert loud == noised_rows(tokenizer, rows, template, rate=0.5, seed=0)
    assert all(a.question != b.question for a, b in zip(loud, still, strict=True))


def test_rows_without_wrong_answers_get_those_of_other_rows():
    rows = [QA(f"q{i}", f"a{i}") for i in range(5)]
    assert with_options(rows)[3].perturbed_answer == ("a4", "a0", "a1")
    given = QA("q", "a", perturbed_answer=("b",))
    assert with_options([given]) == (given,)
