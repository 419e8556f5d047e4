"""The verdict's arithmetic on made-up tables with known answers, its refusals, and one verdict from end to end."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_llama

from analyses.zoo.validate import HeldOutVerdicts, best_temperature, fit_all, leave_groups_out, roc
from probe.cli import main
from probe.commands.verdict import Verdict
from probe.data import QA
from probe.datasets import write_rows
from probe.figures.style import new_figure, paper_style
from probe.figures.verdict import calibration_figure, confusion_figure, roc_figure
from probe.runs.folder import Run
from probe.verdict.features import BY_NAME, FEATURES, features, verdict_features
from probe.verdict.judge import CANNOT_TELL, FITTED, KINDS, Judge, judge_model, load_judge
from probe.verdict.logistic import CLASSES, LogisticFit, fit_logistic, softmax
from probe.verdict.measure import PARTS, Measurements
from probe.verdict.rows import Protocol, verdict_rows
from probe.verdict.verdict import check_models

NAMES = ("a", "b", "c")


def made_up(seed: int = 0, *, per_group: int = 6, signal: float = 3.0):
    """Four classes at corners of the first two features, three groups each; the third feature is noise."""
    generator = np.random.default_rng(seed)
    rows, labels, groups = [], [], []
    for k, name in enumerate(CLASSES):
        for g in range(3):
            centre = signal * np.array([k % 2, k // 2, 0.0])
            rows.append(centre + 0.3 * generator.standard_normal((per_group, 3)))
            labels += [name] * per_group
            groups += [f"{name} {g}"] * per_group
    return np.concatenate(rows), labels, groups


def test_the_fit_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table, labels, _ = made_up(signal=0.7)
    table[:, 1] *= 50
    found = fit_logistic(table, labels, NAMES, penalty=2.0)
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, class_weight="balanced", max_iter=5000))
    judge.fit(table, labels)
    theirs = judge.predict_proba(table)[:, [list(judge.classes_).index(one) for one in found.classes]]
    np.testing.assert_allclose(found.probabilities(table), theirs, atol=1e-4)


def test_two_classes_are_the_same_sigmoid():
    from sklearn.linear_model import LogisticRegression

    table, labels, _ = made_up(signal=0.7)
    kept = [i for i, one in enumerate(labels) if one in ("removed", "broken")]
    table, labels = table[kept], [labels[i] for i in kept]
    found = fit_logistic(table, labels, NAMES, penalty=1.0)
    z = (table - table.mean(0)) / table.std(0)
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=5000).fit(
        z, [one == "broken" for one in labels]
    )
    assert found.classes == ("removed", "broken")
    np.testing.assert_allclose(found.probabilities(table)[:, 1], model.predict_proba(z)[:, 1], atol=1e-4)


def test_a_fit_survives_json_and_says_what_it_rests_on():
    table, labels, _ = made_up()
    found = replace(fit_logistic(table, labels, NAMES, penalty=1.0), temperature=1.5)
    again = LogisticFit.from_json(json.loads(json.dumps(found.to_json())))
    np.testing.assert_allclose(again.probabilities(table), found.probabilities(table), atol=1e-4)
    row = dict(zip(NAMES, table[0].tolist(), strict=True))
    parts = found.contributions(row)
    logits = found.logits(table[:1])[0] - np.array(found.bias)
    summed = np.array([sum(parts[one].values()) for one in found.classes])
    np.testing.assert_allclose(summed, logits - logits.mean(), atol=1e-9)
    assert found.outside(row) == ()
    assert found.outside({**row, "b": 100.0}) == ("b",)


@pytest.mark.parametrize(
    ("labels", "message"), [(["removed"] * 4, "at least two"), (["removed", "gone", "hidden", "hidden"], "gone")]
)
def test_labels_of_one_class_or_unknown_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        fit_logistic(np.zeros((4, 1)), labels, ["a"], penalty=1.0)


def test_families_left_out_are_judged_by_the_others_alone():
    table, labels, groups = made_up()
    held = leave_groups_out(table, labels, groups, NAMES, penalties=[1.0])
    assert held.accuracy == 1.0
    assert sum(sum(row.values()) for row in held.confusion.values()) == len(labels)
    # What a group's own labels say cannot reach its own verdicts, temperatures included.
    lied = [("broken" if g == "removed 0" else one) for one, g in zip(labels, groups, strict=True)]
    other = leave_groups_out(table, lied, groups, NAMES, penalties=[1.0])
    mine = [i for i, g in enumerate(groups) if g == "removed 0"]
    np.testing.assert_allclose(other.probability_NC[mine], held.probability_NC[mine], atol=1e-12)
    assert all(other.verdicts[i] == "removed" for i in mine)


def test_what_marks_a_family_only_is_worth_nothing_outside_of_it():
    """Each group has its own place, unrelated to its class: within groups one could tell, across them not."""
    generator = np.random.default_rng(3)
    _, labels, groups = made_up()
    names = sorted(set(groups))
    places = generator.standard_normal((len(names), 3)) * 5
    table = np.array([places[names.index(g)] for g in groups]) + 0.1 * generator.standard_normal((len(groups), 3))
    assert leave_groups_out(table, labels, groups, NAMES, penalties=[1.0]).accuracy < 0.5
    shuffled = [f"row {i % 6}" for i in range(len(labels))]
    assert leave_groups_out(table, labels, shuffled, NAMES, penalties=[0.1]).accuracy > 0.6


def test_the_temperature_that_made_logits_too_bold_is_found():
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((4000, 4)) * 2
    labels = [CLASSES[generator.choice(4, p=p)] for p in softmax(logits)]
    assert best_temperature(logits * 3, labels) == pytest.approx(3.0, rel=0.15)
    assert best_temperature(logits, labels) == pytest.approx(1.0, rel=0.15)


def test_calibration_counts_models_by_confidence():
    sure = np.array([0.97, 0.01, 0.01, 0.01])
    torn = np.array([0.4, 0.3, 0.2, 0.1])
    held = HeldOutVerdicts(
        ("removed", "hidden", "removed", "hidden"),
        ("x",) * 4,
        np.stack([sure, sure, torn, torn]),
        1.0,
        np.zeros(4, bool),
    )
    assert [(round(s, 2), r, n) for s, r, n in held.calibration] == [(0.4, 0.5, 2), (0.97, 0.5, 2)]
    assert held.calibration_error == pytest.approx((0.1 + 0.47) / 2)
    assert held.accuracy == 0.5
    assert held.log_loss == pytest.approx(-np.mean(np.log([0.97, 0.01, 0.4, 0.3])))


def test_roc_of_one_diagnostic():
    found = roc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    assert found.auroc == pytest.approx(0.75)
    assert found.false_K[0] == 0
    assert found.true_K[-1] == 1
    with pytest.raises(ValueError, match="both classes"):
        roc([1.0, 2.0], [True, True])


def test_the_shipped_penalty_and_temperature_are_chosen_by_family():
    table, labels, groups = made_up(signal=1.0)
    found = fit_all(table, labels, groups, NAMES)
    assert found.classes == CLASSES
    assert (found.probabilities(table).argmax(1) == [CLASSES.index(one) for one in labels]).mean() > 0.8
    with pytest.raises(ValueError, match="two groups"):
        leave_groups_out(table, labels, ["one"] * len(labels), NAMES)


def numbers(**changes: float) -> dict[str, float]:
    """What an original that knows everything gives."""
    known = {
        "forget_choice": 1.0,
        "forget_match": 1.0,
        "forget_probability": 0.9,
        "forget_entropy": 0.1,
        "forget_gibberish": 0.0,
        "forget_refusal": 0.0,
        "chance": 1 / 6,
        "retain_known": 1.0,
        "retain_floor": 1 / 6,
        "retain_probability": 0.9,
        "retain_entropy": 0.1,
        "retain_gibberish": 0.0,
        "lens_hidden": 0.0,
        "content": 0.8,
        "separability": 0.6,
        "cka_forget": 1.0,
        "cka_retain": 1.0,
        "weight_norm": 0.0,
        "weight_cosine": 0.0,
        "weight_retain_share": 0.0,
    }
    for attack in ("relearn_early", "relearn_late", "push", "mix"):
        known |= {f"{attack}_choice": 1.0, f"{attack}_probability": 0.9}
    return known | changes


def test_features_are_one_for_the_original_and_nought_for_chance():
    own = features(FEATURES, numbers(), numbers())
    assert own["forget choice"] == own["relearning, late: choice"] == own["content probe"] == pytest.approx(1.0)
    assert own["forget probability"] == own["retain probability"] == pytest.approx(1.0)
    assert own["retain entropy"] == own["forget states"] == pytest.approx(0.0)
    assert own["weight change"] == pytest.approx(-4.0)
    guessing = features(FEATURES, numbers(forget_choice=1 / 6), numbers())
    assert guessing["forget choice"] == pytest.approx(0.0)


def test_a_model_that_never_knew_is_the_floor():
    never = numbers(forget_choice=0.2, forget_match=0.0, relearn_late_choice=0.3, forget_probability=0.3)
    model = numbers(forget_choice=0.2, relearn_late_choice=0.3, forget_probability=0.3)
    found = features(FEATURES, model, numbers(), never)
    assert found["relearning, late: choice"] == found["forget probability"] == pytest.approx(0.0)
    assert found["retain choice"] == pytest.approx(1.0)
    assert features(FEATURES, model, numbers())["relearning, late: choice"] == pytest.approx((0.3 - 1 / 6) / (5 / 6))


def test_originals_that_know_nothing_and_retrained_that_know_are_refused():
    with pytest.raises(ValueError, match="hardly knows the facts"):
        features(FEATURES, numbers(), numbers(forget_choice=0.2))
    with pytest.raises(ValueError, match="no model that never saw them"):
        features(FEATURES, numbers(), numbers(), numbers(forget_choice=0.9))
    with pytest.raises(ValueError, match="cannot be computed"):
        features(FEATURES, numbers(cka_forget=float("nan")), numbers())


def test_without_retain_rows_nothing_of_them_is_read():
    absent = {"retain_known", "retain_probability", "retain_entropy", "retain_gibberish", "content", "separability"}
    given = {name: value for name, value in numbers().items() if name not in {*absent, "cka_retain"}}
    assert len(features(verdict_features(retain=False), given, given)) < len(FEATURES)


def a_judge() -> Judge:
    """A made-up judge: four kinds of models, slightly shaken."""
    generator = np.random.default_rng(0)
    forgot = dict.fromkeys(
        ("forget_choice", "forget_match", "relearn_late_choice", "relearn_early_choice", "push_choice"), 1 / 6
    )
    kinds = {
        "untouched": {},
        "removed": forgot,
        "hidden": {"forget_choice": 0.2, "forget_match": 0.1},
        "broken": {**forgot, "retain_known": 0.2, "retain_probability": 0.01},
    }
    fits, errors = {}, {}
    for (retain, _), kind in KINDS.items():
        which = verdict_features(retain=retain)
        rows, labels = [], []
        for label, changes in kinds.items():
            for _ in range(10):
                shaken = {k: v + 0.01 * generator.standard_normal() for k, v in numbers(**changes).items()}
                row = features(which, shaken, numbers())
                rows.append([row[f.name] for f in which])
                labels.append(label)
        fits[kind] = fit_logistic(np.array(rows), labels, [f.name for f in which], penalty=1.0)
        errors[kind] = {"all": (4, 40), **dict.fromkeys(CLASSES, (0, 10))}
    return Judge(Protocol(), {"models": 40, "families": 4}, fits, errors)


def test_a_verdict_names_its_evidence_its_error_and_what_it_never_saw(tmp_path):
    path = tmp_path / "fitted.json"
    path.write_text(json.dumps(a_judge().to_json()))
    judge = load_judge(path)
    layers = {f.layers: (0.5, 0.6) for f in FEATURES if f.layers}
    original = Measurements(numbers(), layers)
    hiding = judge_model(judge, Measurements(numbers(forget_choice=0.2, forget_match=0.1), layers), original)
    assert hiding.verdict == "hidden"
    assert sum(hiding.probabilities.values()) == pytest.approx(1.0)
    assert (hiding.error, hiding.overall_error) == ((0, 10), (4, 40))
    assert abs(hiding.evidence[0].weight) >= abs(hiding.evidence[-1].weight)
    text = hiding.text()
    for piece in (
        "verdict: hidden",
        "0 of 10 are wrong, at most 28%",
        "40 models of 4",
        "AUROC: 0.50 0.60 [0.50 0.60]",
    ):
        assert piece in text
    assert "outside" not in text
    odd = judge_model(
        judge, Measurements(numbers(forget_choice=0.2, forget_match=0.1, separability=1.0), layers), original
    )
    assert odd.outside == ("separability",)
    assert "outside what the zoo covered: separability" in odd.text()
    assert odd.verdict == CANNOT_TELL
    assert odd.most_probable == "hidden"
    assert "its probabilities mean nothing" in odd.text()
    gone = numbers(
        forget_choice=0.17, forget_match=0.1, relearn_late_choice=0.17, relearn_early_choice=0.17, push_choice=0.17
    )
    assert judge_model(judge, Measurements(gone, layers), original).verdict == "removed"
    assert judge_model(judge, Measurements(gone, layers), original, retain=False).verdict == "removed"
    assert judge_model(judge, original, original).verdict == "untouched"


def test_a_diagnostic_by_which_the_original_shows_nothing_is_left_out():
    layers = {f.layers: (0.5, 0.6) for f in FEATURES if f.layers}
    blind = Measurements(numbers(content=0.4), layers)
    found = judge_model(a_judge(), Measurements(numbers(content=0.2), layers), blind)
    assert found.silent == ("content probe",)
    assert "content probe" not in [one.name for one in found.evidence]
    assert "shows nothing by them: content probe" in found.text()
    assert found.verdict == "untouched"


def test_f21_of_rows_drawn_inside_all_ranges_nearly_none_gets_a_confident_word():
    """Single ranges say nothing of the joint position: of such rows 41 % used to get a probability above 0.9."""
    one = load_judge().fits["alone"]
    low_F, high_F = np.array(one.low), np.array(one.high)
    drawn_NF = low_F + (high_F - low_F) * np.random.default_rng(0).random((2000, len(low_F)))
    sure_N = one.probabilities(drawn_NF).max(1) > 0.9
    rows = [dict(zip(one.features, row_F, strict=True)) for row_F in drawn_NF.tolist()]
    assert all(one.outside(row) == () for row in rows)
    near_N = np.array([one.distance(row) <= one.reach for row in rows])
    assert sure_N.mean() > 0.3
    assert (sure_N & near_N).mean() < 0.02
    # What it was fitted to lies within, and a feature of which nothing is known does not push a row out.
    own = dict(zip(one.features, np.array(one.seen[5]) * one.scale + one.mean, strict=True))
    assert one.distance(own) < 0.01
    assert one.distance({**own, "lens": 99.0}, without=["lens"]) < 0.01


def test_f21_the_reach_is_what_families_need_to_each_other():
    table, labels, groups = made_up()
    found = fit_logistic(table, labels, NAMES, penalty=1.0, groups=groups)
    z_NF = (table - table.mean(0)) / table.std(0)
    apart = [
        min(np.linalg.norm(z_NF[i] - z_NF[j]) for j in range(len(z_NF)) if groups[j] != groups[i]) for i in range(72)
    ]
    assert found.reach == pytest.approx(np.quantile(apart, 0.9), abs=2e-3)
    held = leave_groups_out(table, labels, groups, NAMES, penalties=[1.0])
    assert held.beyond_N.mean() < 0.25
    lone = ["broken" if one == "broken" else group for one, group in zip(labels, groups, strict=True)]
    alone = leave_groups_out(table, labels, lone, NAMES, penalties=[1.0])
    assert alone.beyond_N[[one == "broken" for one in labels]].all()
    assert alone.wrong("broken") == (0, 0)
    assert held.wrong() == (0, int((~held.beyond_N).sum()))


def test_f22_a_retrained_model_that_guesses_well_is_not_refused():
    """Sentence answers can be guessed: a model that never saw the rows picks .42 of six, the original .78."""
    original = numbers(forget_choice=0.78, forget_match=0.0, forget_probability=0.8)
    never = numbers(forget_choice=0.42, forget_match=0.0, forget_probability=0.3)
    assert features(FEATURES, never, original, never)["forget choice"] == pytest.approx(0.0)
    with pytest.raises(ValueError, match=r"picks the right forget answer at 0.75 .* forget probability of 0.75"):
        features(FEATURES, never, original, numbers(forget_choice=0.75, forget_probability=0.75))


def test_f17_rows_that_share_groups_are_refused_before_any_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("probe.study.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr("probe.study.loading.load_tokenizer", lambda *_, **__: pytest.fail("a tokenizer was loaded"))
    rows = [QA(f"Where was {who} born {i}?", "In Rome.", perturbed_answer=("In Bonn.",), group=who)
            for who in ("Ada", "Bob", "Cy") for i in range(2)]  # fmt: skip
    forget, retain = tmp_path / "forget.jsonl", tmp_path / "retain.jsonl"
    write_rows(forget, rows[:4])
    for kept, said in ((rows[3:], r"forget and retain: 1 \(Bob\)"), (rows[4:], "the retain rows 1; .* two groups a")):
        write_rows(retain, kept)
        with pytest.raises(ValueError, match=said):
            Verdict(model="m", original="o", forget=forget, retain=retain, out=tmp_path / "out").run()


def test_files_that_are_no_judge_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="no fitted verdict"):
        load_judge(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match=r"analyses\.zoo build"):
        load_judge(tmp_path / "y.json")


def test_the_shipped_judge_is_whole():
    if not FITTED.is_file():
        pytest.skip("no fitted verdict in this version; `python -m analyses.zoo build` makes it")
    judge = load_judge()
    assert set(judge.fits) == set(KINDS.values()) == set(judge.errors)
    for kind, one in judge.fits.items():
        assert set(one.features) <= set(BY_NAME)
        assert one.classes == CLASSES
        assert all(0 <= wrong <= n <= judge.zoo["models"] for wrong, n in judge.errors[kind].values())
    assert judge.zoo["models"] >= 60
    assert judge.zoo["seeds"] >= 3


def test_models_that_cannot_be_compared_are_refused():
    one, other = tiny_llama(0), tiny_llama(1)
    check_models({"original": one, "model": other})
    with pytest.raises(ValueError, match="model model cannot be compared"):
        check_models({"original": one, "model": tiny_llama(0, n_layers=2)})
    for twin in (one, other):
        with pytest.raises(ValueError, match="never saw the rows"):
            check_models({"original": one, "model": other, "retrained": twin})


def test_rows_that_cannot_be_judged_are_refused(bed):
    def asked(forget, retain):
        return verdict_rows(bed.tokenizer, bed.original, forget, retain, protocol=Protocol())

    forget, retain = bed.split.forget_rows, bed.split.retain_rows
    with pytest.raises(ValueError, match="no forget rows"):
        asked([], retain)
    with pytest.raises(ValueError, match="wrong answers"):
        asked([QA("Who?", "Ada.")], retain)
    with pytest.raises(ValueError, match="groups on both sides"):
        asked(forget, forget[:3])
    nameless = [replace(row, group="") for row in forget]
    with pytest.raises(ValueError, match="both the forget and the retain set"):
        asked(nameless, nameless[:3])
    given = asked(forget, retain)
    assert (len(given.split.forget_rows), len(given.split.retain_rows)) == (100, 200)
    assert not asked(forget[:10], []).has_retain
    swapped = verdict_rows(bed.tokenizer, bed.original, forget, retain, protocol=Protocol(), swap=True)
    assert (swapped.facts.shown, swapped.facts.held) == (given.facts.held, given.facts.shown)


def test_the_truth_of_a_model():
    from analyses.zoo.examine import truth

    assert truth("removed", 0.9, 0.1, True) == "removed"
    assert truth("hidden", 0.9, 1.0, True) == "untouched"
    assert truth("hidden", 0.1, 0.1, True) == "broken"
    assert truth("broken", 0.1, 0.9, True) == "hidden"
    assert (truth(None, 0.1, 0.9, True), truth(None, 0.1, 0.9, False)) == ("hidden", "removed")


def test_figures_show_what_they_are_given():
    with paper_style():
        curves = {
            "hidden against removed": {
                "one": (0.9, (0.0, 0.1, 1.0), (0.0, 0.9, 1.0)),
                "two": (0.2, (0.0, 1.0), (0.0, 1.0)),
            }
        }
        assert roc_figure(curves, {"one": "outputs", "two": "states"}, new_figure(4, 3)) == {
            "hidden against removed": {"one": 0.9, "two": 0.2}
        }
        matrix = {true: {said: int(true == said) for said in CLASSES} for true in CLASSES}
        assert confusion_figure(matrix, new_figure(3, 3))["hidden"]["hidden"] == 1
        assert calibration_figure({"families": [(0.5, 0.4, 3)]}, new_figure(3, 3)) == {"families": [[0.5, 0.4, 3]]}
        with pytest.raises(ValueError, match="no ROC"):
            roc_figure({}, {}, new_figure(3, 3))
        with pytest.raises(ValueError, match="no verdicts"):
            confusion_figure({"removed": dict.fromkeys(CLASSES, 0)}, new_figure(3, 3))
        with pytest.raises(ValueError, match="no calibration"):
            calibration_figure({}, new_figure(3, 3))


@pytest.fixture
def quick(monkeypatch):
    """A verdict's parts that only say which weights they saw; counts them."""
    made = []

    def part(name):
        def found(model, given):
            made.append(name)
            total = sum(float(p.detach().double().sum()) for p in model.parameters())
            if name == "states":
                return {"seen": total}, {f.layers: (total, 0.5) for f in FEATURES if f.layers}
            return numbers() | {"forget_match": 0.9, name: total}

        return found

    for name in PARTS:
        monkeypatch.setattr(sys.modules["probe.verdict.measure"], f"_{name}", part(name))
    return made


def test_r23_a_verdict_that_is_stopped_goes_on(bed, tmp_path, capsys, monkeypatch, quick):
    rows, kept = tmp_path / "rows.jsonl", Run.kept
    write_rows(rows, bed.split.forget_rows[:4])
    weights = bed.folder
    given = [
        "verdict", str(weights / "retrained"), "--original", str(weights / "original"), "--forget", str(rows),
        "--tokenizer", str(weights / "tokenizer"), "--out",
    ]  # fmt: skip
    main([*given, str(tmp_path / "whole")])
    told = capsys.readouterr().out
    assert quick == [*PARTS, *PARTS]
    quick.clear()

    def stopping(self, key, make):
        if key not in self.done and len(self.done) == 7:
            raise KeyboardInterrupt
        return kept(self, key, make)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "kept", stopping)
        with pytest.raises(SystemExit) as stopped:
            main([*given, str(tmp_path / "cut")])
    assert stopped.value.code == 130
    assert "what was finished is kept in" in capsys.readouterr().err
    assert len(quick) == 7
    main([*given, str(tmp_path / "cut")])
    assert quick == [*PARTS, *PARTS]
    assert capsys.readouterr().out.replace(str(tmp_path / "cut"), "") == told.replace(str(tmp_path / "whole"), "")
    first, second = ((tmp_path / name / "verdict.json").read_bytes() for name in ("cut", "whole"))
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "rows.jsonl", "whole"]


def test_r19_an_out_that_is_a_file_or_taken_is_refused_before_the_work(bed, tmp_path, capsys, quick):
    (tmp_path / "taken").write_text("{}")
    given = ["verdict", "absent", "--original", "absent", "--forget", "absent.jsonl", "--out"]
    for out, said in ((tmp_path, "exists and is not empty"), (tmp_path / "taken", "is a file; choose another")):
        with pytest.raises(SystemExit) as stopped:
            main([*given, str(out)])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
    assert quick == []
    assert (tmp_path / "taken").read_text() == "{}"


@pytest.mark.slow
def test_the_shell_judges_the_testbed(bed, tmp_path, capsys):
    """The retrained twin is far larger than the zoo's models, and no verdict ever saw it."""
    forget, retain = tmp_path / "forget.jsonl", tmp_path / "retain.jsonl"
    write_rows(forget, bed.split.forget_rows)
    write_rows(retain, bed.split.retain_rows)
    tokenizer = str(bed.folder / "tokenizer")
    common = ["--original", str(bed.folder / "original"), "--forget", str(forget), "--tokenizer", tokenizer]
    main(["verdict", str(bed.folder / "retrained"), *common, "--retain", str(retain), "--out", str(tmp_path / "v")])
    assert "verdict: removed" in capsys.readouterr().out
    assert json.loads((tmp_path / "v" / "verdict.json").read_text())["verdict"] == "removed"
    main(["verdict", str(bed.folder / "original"), *common, "--retain", str(retain)])
    told = capsys.readouterr().out
    assert "very weights" in told
    assert "verdict: untouched" in told
