"""The report, end to end on the testbed with small settings, and what it promises."""

import copy
import json
import re
import shutil
from dataclasses import replace

import pytest

from probe.checkpoints import weights_hash
from probe.figures import Drawn
from probe.metrics.mean_rows import mean_row
from probe.objectives.sequence import NPO
from probe.objectives.token import WGA, ga
from probe.report import TESTBED_METHODS, Settings, redraw, report
from probe.report import run as run_module
from probe.report.conditions import check_fits, resolved_methods, unlearned
from probe.report.measure import DIAGNOSED, draw_sample
from probe.report.page import write_page
from probe.report.run import run_report
from probe.report.sentences import findings, headline, performance_table
from probe.report.words import word
from probe.rows import Row, load
from probe.runs.folder import Run
from probe.runs.manifest import is_report
from probe.study.loading import testbed as make_testbed_study
from probe.study.study import Study

SMALL = {
    "sample": 12,
    "generated": 3,
    "max_new_tokens": 5,
    "sae_doses": (0.0, 1.0),
    "sae_features": (5, 20),
    "steer_doses": (0.0, 1.0),
}
METHODS = {name: {**TESTBED_METHODS[name], "steps": 3} for name in ("grad_diff", "npo", "rmu")}
FIGURES = ("tradeoff", "g_effect", "separability", "u_shape", "logit_collapse", "hidden_states", "dose_response")
ON_PAGE = (*FIGURES, "logit_lens", "sae_choices")


@pytest.fixture(scope="module")
def run(tmp_path_factory, bed):
    out = tmp_path_factory.mktemp("report") / "run"
    before, hooks = weights_hash(bed.original), hooks_of(bed.original)
    study = Study(bed.original, bed.tokenizer, bed.split, bed.retrained, {}, bed.world, bed.sae, bed.sae_site)
    report(study, out, METHODS, **SMALL)
    assert weights_hash(bed.original) == before
    assert hooks_of(bed.original) == hooks
    return out


def hooks_of(model):
    """Of anybody: transformers leaves its own once hidden states were asked for, and other tests share this model."""
    return [tuple(module._forward_hooks.values()) for module in model.modules()]


def test_every_file_is_there(run):
    for name in ON_PAGE:
        for suffix in ("pdf", "png", "json"):
            assert (run / "figures" / f"{name}.{suffix}").is_file(), (name, suffix)
    assert (run / "tables" / "main.tex").read_text().count("toprule") == 1
    assert not list(run.rglob("*.tmp"))


def test_manifest_says_what_made_the_run(run, bed):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["weights"]["original"] == weights_hash(bed.original)
    assert set(manifest["weights"]) == {"original", "retrained"}
    assert manifest["versions"]["torch"]
    assert manifest["threads"] >= 1
    assert len(manifest["data"]["forget"]["sha256"]) == 64
    assert manifest["methods"]["npo"]["retain_weight"] == 10
    assert is_report(run)


def test_one_row_per_intervention_diagnostic_and_layer(run, bed):
    rows = load(run / "rows.jsonl")
    conditions = [c["name"] for c in json.loads((run / "manifest.json").read_text())["conditions"]]
    assert {"original", "retrained", "RMU", "NPO", "GradDiff", "SAE clamp", "Steer"} <= set(conditions)
    depth = bed.original.config.num_hidden_layers
    for name in conditions:
        for diagnostic, quantity, on in (("g_effect", "effect", "retain"), ("separability", "auc", "")):
            found = [
                r.layer
                for r in rows
                if (r.intervention, r.diagnostic, r.quantity, r.on) == (name, diagnostic, quantity, on)
            ]
            assert found == list(range(depth)), (name, diagnostic)


def test_the_retrained_model_stands_on_every_figure(run):
    for name in FIGURES:
        assert "retrained" in (run / "figures" / f"{name}.json").read_text(), name


def test_the_page_is_self_contained_and_names_every_condition(run):
    page = (run / "index.html").read_text()
    assert page.count("<svg") == len(ON_PAGE)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)
    for condition in json.loads((run / "manifest.json").read_text())["conditions"]:
        assert condition["name"] in page


def test_the_sae_is_judged_on_other_people_than_it_was_chosen_on_and_beside_controls(run):
    chosen = [r for r in load(run / "rows.jsonl") if r.diagnostic == "sae_choice"]
    assert {r.intervention for r in chosen} >= {"SAE", "random features"}
    assert any(r.quantity.startswith("verdict ") for r in chosen)
    page = (run / "index.html").read_text()
    assert "on new people the loss rises by" in page
    assert "where it was chosen" in page


def test_figures_are_redrawn_from_rows_alone(run, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "figures")
    monkeypatch.setattr("probe.checkpoints.load_model", None)
    redraw(copy)
    for name in ON_PAGE:
        assert (copy / "figures" / f"{name}.json").read_text() == (run / "figures" / f"{name}.json").read_text()
    assert (copy / "index.html").read_text() == (run / "index.html").read_text()


def test_a_layer_outside_the_model_is_refused_before_training_27(tmp_path):
    wrong = {"rmu": {**TESTBED_METHODS["rmu"], "layer": 8}}
    with pytest.raises(ValueError, match=r"rmu: layer 8 does not exist; choose one of the model's layers 0\.\.7"):
        run_report(make_testbed_study, Settings(**SMALL), tmp_path / "out", wrong)
    with pytest.raises(ValueError, match=r"--steer-layer 9 does not exist"):
        run_report(make_testbed_study, Settings(steer_layer=9), tmp_path / "out")


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"nppo": {}}, "no method 'nppo'; did you mean 'npo'"),
        ({"npo": {"beta": 0.1, "strength": 3}}, "npo has no hyper-parameter 'strength'"),
        ({"npo": {"beta": 0.1}}, "npo also needs"),
        ({"npo": {"setting": "none"}}, "npo has no setting 'none'; published: open-unlearning"),
        ({"cru": {"k": 2}}, "cru trains no model and edits no hidden states"),
    ],
)
def test_methods_that_cannot_be_run_are_refused_before_models_are_loaded(tmp_path, methods, message):
    with pytest.raises(ValueError, match=message):
        run_report(make_testbed_study, Settings(), tmp_path / "out", methods)
    assert not (tmp_path / "out").exists()


def test_what_a_method_needs_is_asked_for_before_anything_is_trained(bed):
    study = Study(bed.original, bed.tokenizer, bed.split)
    with pytest.raises(ValueError, match="sae_suppression needs sae: an SAE"):
        check_fits(study, {"sae_suppression": {}}, Settings())


def test_any_method_enters_with_its_own_loss_or_as_edits(bed):
    study = make_testbed_study(limit=8)
    run = {"lr": 3e-4, "steps": 1, "batch_size": 2}
    methods = {
        "wga": {"beta": 2.0, "retain_weight": 1.0, **run},
        "idk": {"retain_weight": 1.0, **run},
        "sae_suppression": {"rule": "mean-difference", "features": 2, "value": -1.0},
    }
    found = list(unlearned(study, resolved_methods(methods, seed=0)))
    assert [(c.name, c.kind) for c in found] == [
        *(("WGA", "training"), ("IDK", "training"), ("sae_suppression", "activation")),
    ]
    assert [found[0].objective, found[1].objective] == [WGA(2.0), ga]
    assert found[0].what.startswith("mean sg[p^beta] log p + w NLL(retain); seed 0, beta 2, retain_weight 1, lr 0.0003")
    before, batch = weights_hash(study.original), study.split.forget
    plain = study.original(**batch.inputs).logits
    with found[2].applied() as model:
        assert not model(**batch.inputs).logits.equal(plain)
    assert study.original(**batch.inputs).logits.equal(plain)
    assert weights_hash(study.original) == before


def test_what_the_testbed_is_unlearned_by_is_measured_by_its_own_loss(bed):
    study = make_testbed_study(limit=8)
    found = {c.name: c.objective for c in unlearned(study, resolved_methods(TESTBED_METHODS, seed=0))}
    assert list(found) == ["GA", "GradDiff", "WGA", "NPO", "RMU"]
    assert found["GA"] is found["GradDiff"] is ga
    assert isinstance(found["NPO"], NPO)
    assert float(found["RMU"].target_D.norm()) == pytest.approx(20)


def test_an_unlearned_model_identical_to_the_original_is_refused_48(bed, tmp_path):
    study = Study(bed.original, bed.tokenizer, bed.split, unlearned={"mine": bed.original})
    with pytest.raises(ValueError, match="original and the mine model are identical"):
        report(study, tmp_path / "out", **SMALL)


def small_study(bed) -> Study:
    split = replace(bed.split, forget=bed.split.forget.select(range(6)), forget_rows=bed.split.forget_rows[:6])
    return Study(bed.original, bed.tokenizer, split, bed.retrained)


TINY = Settings(**{**SMALL, "sample": 3, "generated": 1, "max_new_tokens": 1, "steer_doses": (0.0,)})
FEW_STEPS = {name: {**values, "steps": 1, "batch_size": 2} for name, values in TESTBED_METHODS.items()}


@pytest.fixture
def quick(monkeypatch):
    """Diagnostics that only tell which weights they saw, and no figures; counts what is trained and measured."""
    trained, measured = [], []

    def diagnosed(study, sample, condition, model, settings):
        total = sum(float(p.detach().double().sum()) for p in model.parameters())
        for diagnostic in DIAGNOSED:
            yield diagnostic, told(condition.name, diagnostic, total)

    def layers(study, sample, condition, settings):
        yield from (Row(condition.name, "fragility", "changed", 1.0, layer=layer) for layer in range(4))
        for on in ("forget", "retain"):
            for layer in range(8):
                yield Row(condition.name, "fragility", "probability", 1 / (1 + layer), on, layer=layer)

    def told(name, diagnostic, total):
        measured.append(f"{name}, {diagnostic}")
        yield Row(name, diagnostic, "weights", total)

    unlearn = Study.unlearn

    def counted(self, name, **settings):
        trained.append(name)
        return unlearn(self, name, **settings)

    monkeypatch.setattr(Study, "unlearn", counted)
    monkeypatch.setattr(run_module, "single_layer_rows", layers)
    monkeypatch.setattr(run_module, "diagnosed", diagnosed)
    monkeypatch.setattr(run_module, "redraw", lambda folder: None)
    return trained, measured


def test_r23_a_report_that_is_stopped_goes_on_and_gives_the_same_rows(bed, tmp_path, monkeypatch, quick):
    trained, measured = quick
    study, kept = small_study(bed), Run.kept
    run_report(lambda: study, TINY, tmp_path / "whole", FEW_STEPS)
    every = list(measured)
    assert trained == ["ga", "grad_diff", "wga", "npo", "rmu"]
    for steps in (8, 1, 22):
        taken = []

        def stopping(self, key, make, taken=taken, steps=steps):
            if key not in self.done:
                if len(taken) == steps:
                    raise KeyboardInterrupt
                taken.append(key)
            return kept(self, key, make)

        with monkeypatch.context() as patched:
            patched.setattr(Run, "kept", stopping)
            with pytest.raises(KeyboardInterrupt) as caught:
                run_report(lambda: study, TINY, tmp_path / "cut", FEW_STEPS)
        assert "the same command goes on" in caught.value.__notes__[0]
        assert not (tmp_path / "cut").exists()
    trained.clear()
    measured.clear()
    run_report(lambda: study, TINY, tmp_path / "cut", FEW_STEPS)
    assert (tmp_path / "cut" / "rows.jsonl").read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()
    assert 0 < len(measured) < len(every)
    assert measured == every[-len(measured) :]
    # What is finished is not trained again; CRU, which was under way, takes its layers from GradDiff.
    assert trained == ["grad_diff", "wga", "npo", "rmu"]
    conditions = [json.loads((tmp_path / n / "manifest.json").read_text())["conditions"] for n in ("cut", "whole")]
    assert conditions[0] == conditions[1]


@pytest.mark.parametrize("given", [False, True])
def test_a_report_that_was_given_neither_methods_nor_models_says_whose_settings_it_takes(bed, tmp_path, given):
    said = []

    def tell(line):
        said.append(line)
        if line.startswith("memory: "):
            raise KeyboardInterrupt

    study = replace(small_study(bed), unlearned={"mine": tiny_change(bed)} if given else {})
    with pytest.raises(KeyboardInterrupt):
        report(study, tmp_path / "out", tell=tell)
    assert any("settings found on the testbed, which suit no other model" in line for line in said) is not given


def tiny_change(bed):
    model = copy.deepcopy(bed.original)
    next(model.parameters()).data[0, 0] += 1
    return model


def test_r9_a_report_whose_models_cannot_be_read_leaves_what_was_there(tmp_path, quick):
    def missing():
        raise FileNotFoundError("--original is misspelt")

    with pytest.raises(FileNotFoundError):
        run_report(missing, TINY, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "rows.jsonl").write_text("2,312 rows\n")
    with pytest.raises(ValueError, match="old exists and is not empty"):
        run_report(missing, TINY, tmp_path / "old")
    assert (tmp_path / "old" / "rows.jsonl").read_text() == "2,312 rows\n"


def test_r11_an_unfinished_report_says_so(run, tmp_path):
    copy = tmp_path / "part"
    copy.mkdir()
    shutil.copy(run / "manifest.json", copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "rows.jsonl").write_text("".join((run / "rows.jsonl").read_text().splitlines(keepends=True)[:15]))
    write_page(copy, load(copy / "rows.jsonl"), Drawn())
    assert "is not finished" not in (copy / "index.html").read_text()
    (copy / "manifest.json").write_text(json.dumps({**manifest, "status": "unfinished", "stopped": "out of <memory>"}))
    write_page(copy, load(copy / "rows.jsonl"), Drawn())
    assert "This report is not finished (out of &lt;memory&gt;)" in (copy / "index.html").read_text()


@pytest.mark.parametrize("name", ["original", "retrained", "Steer", "CRU (x)", "GradDiff"])
def test_r9_a_model_called_like_a_condition_is_refused(bed, name):
    """Its rows would be taken for those of the other one, which a report that goes on would not measure again."""
    study = Study(bed.original, bed.tokenizer, bed.split, unlearned={name: bed.retrained})
    with pytest.raises(ValueError, match="as the report calls a condition of its own; rename it"):
        check_fits(study, TESTBED_METHODS, Settings())


def test_own_models_and_rows_through_the_shell(bed, tmp_path, monkeypatch):
    from dataclasses import asdict

    from probe.checkpoints import save_model
    from probe.cli import main
    from probe.methods.baselines import ga

    def without_figures(folder):
        return write_page(folder, load(folder / "rows.jsonl"), Drawn())

    monkeypatch.setattr(run_module, "redraw", without_figures)
    unlearned = copy.deepcopy(bed.original)
    ga(unlearned, bed.split, steps=2, lr=3e-4, batch_size=8, seed=0)
    for name, model in (("before", bed.original), ("after", unlearned), ("twin", bed.retrained)):
        save_model(model, tmp_path / name, tokenizer=bed.tokenizer)
    for name, rows in (("forget", bed.split.forget_rows[:12]), ("retain", bed.split.retain_rows[:40])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    sizes = "--sample 12 --generated 2 --max-new-tokens 3"
    models = f"--original {tmp_path}/before --unlearned {tmp_path}/after --retrained {tmp_path}/twin"
    data = f"--forget {tmp_path}/forget.jsonl --retain {tmp_path}/retain.jsonl"
    main(["report", *f"{models} {data} {sizes} --out {tmp_path}/run".split()])
    names = [c["name"] for c in json.loads((tmp_path / "run" / "manifest.json").read_text())["conditions"]]
    assert names == ["original", "retrained", "after", "CRU (after)", "Steer", "Project"]
    assert "after" in (tmp_path / "run" / "index.html").read_text()


def performed(name: str, forget: float, retain: float, choice: float, collapsed: float = 0.0) -> list[Row]:
    """Rows with intervals of .05 on either side."""

    def near(value: float) -> dict[str, float]:
        return {"low": max(value - 0.05, 0.0), "high": min(value + 0.05, 1.0)}

    return [
        Row(name, "performance", "probability", forget, "forget", **near(forget)),
        Row(name, "performance", "probability", retain, "retain", **near(retain)),
        Row(name, "performance", "choice_accuracy", choice, "forget", **near(choice)),
        Row(name, "performance", "choice_chance", 1 / 3, "forget"),
        Row(name, "logit_collapse", "crossed silence", collapsed, "retain"),
    ]


BEFORE = performed("original", 0.6, 0.8, 0.95)


@pytest.mark.parametrize(
    ("numbers", "alone", "beside"),
    [
        ((0.6, 0.8, 1.0), "no change shown", "no change shown"),
        ((0.56, 0.8, 0.9), "no change shown", "no change shown"),
        ((0.3, 0.8, 0.5), "weakened", "weakened"),
        ((0.1, 0.78, 0.9), "hidden", "hidden"),
        ((0.1, 0.78, 0.5), "hidden", "suppressed"),
        ((0.1, 0.78, 0.36), "suppressed", "suppressed"),
        ((0.1, 0.6, 0.2), "suppressed, at a cost", "suppressed, at a cost"),
        ((0.0, 0.2, 0.2), "broken", "broken"),
        ((0.0, 0.38, 0.2), "suppressed, at a cost", "suppressed, at a cost"),
        ((0.0, 0.8, 0.2, 1.0), "broken", "broken"),
    ],
)
def test_f25_words_are_relative_to_the_original_and_the_retrained_model(numbers, alone, beside):
    rows = BEFORE + performed("X", *numbers)
    assert word(rows, "X") == alone
    never = performed("retrained", 0.12, 0.8, 0.45)
    assert word(rows + never, "X") == beside
    assert (word(rows + never, "original"), word(rows + never, "retrained")) == ("reference", "never knew")


def test_f25_chance_is_that_of_the_rows():
    rows = BEFORE + performed("RMU", 0.1, 0.78, 0.9)
    assert headline(rows)[1].startswith("RMU: hidden. Forget answers have probability 0.10 [0.05, 0.15]")
    assert "ranks first in 0.90 [0.85, 0.95] of questions (chance 0.33)" in headline(rows)[1]
    assert [row.cells[0] for row in performance_table(rows).body] == ["original", "RMU"]


def test_f25_nothing_is_most_that_its_interval_does_not_set_apart():
    rows = (
        BEFORE + performed("RMU", 0.1, 0.78, 0.9) + performed("NPO", 0.15, 0.76, 0.2) + performed("GA", 0.0, 0.2, 0.2)
    )
    said = findings(rows, "performance")[0]
    assert "not tell them apart: RMU (0.10 [0.05, 0.15]), NPO (0.15 [0.10, 0.20])" in said
    assert "0.9 of the original's retain probability (0.72)" in said
    rows = [*rows, *performed("Steer", 0.4, 0.8, 0.9)]
    assert "Steer" not in findings(rows, "performance")[0]
    alone = findings(BEFORE + performed("RMU", 0.1, 0.78, 0.9) + performed("NPO", 0.4, 0.76, 0.2), "performance")[0]
    assert alone.endswith("RMU (0.10 [0.05, 0.15]) forgets most.")
    assert "none is shown to forget" in findings(BEFORE + performed("Steer", 0.55, 0.8, 0.9), "performance")[0]


def test_f34_what_the_original_crosses_does_not_count_as_collapse():
    rows = performed("original", 0.6, 0.8, 0.9, 1.0) + performed("X", 0.1, 0.8, 0.2, 1.0)
    assert word(rows, "X") == "suppressed"
    assert findings(rows, "logit_collapse") == [
        "No intervention crosses a threshold of collapse that the original does not cross."
    ]


def test_f27_the_block_named_moves_the_loss_the_way_the_sentence_says():
    parts = {0: -0.9, 1: 0.22, 2: 0.03}
    rows = [Row("WGA", "g_effect", "effect", e, "forget", layer=layer) for layer, e in parts.items()]
    rows += [Row("WGA", "g_effect", "total", 1.0, "forget"), Row("WGA", "g_effect", "objective WGA", 1.0)]
    assert findings(rows, "g_effect") == [
        "WGA: a further step of WGA lowers the forget loss (e = 1); of the blocks, 1 has the largest part that way "
        "(0.22, 22% of e)."
    ]


def test_f39_the_layer_named_is_the_one_that_moves_the_answers_most():
    changes = {0: (0.024, 0.02, 0.028), 1: (-0.001, -0.002, 0.001), 2: (-0.005, -0.006, -0.004)}
    rows = [
        Row("RMU", "fragility", "change", value, "forget", layer, low=low, high=high)
        for layer, (value, low, high) in changes.items()
    ]
    said = findings(rows, "fragility")
    assert (
        said[0]
        == "Of RMU's layers, alone in the original, these move the forget probability most: 0 (0.02 [0.02, 0.03])."
    )
    assert said[-1] == "Measured on the rows that layers are chosen by, which are not those of the table."
    still = [replace(row, low=-1.0, high=1.0) for row in rows]
    assert "None of RMU's layers" in findings(still, "fragility")[0]


def test_f46_without_a_retrained_model_nothing_is_read_from_separability():
    rows = [Row(n, "separability", "auc", auc, layer=0, low=auc - 0.1, high=1.0)
            for n, auc in (("original", 0.98), ("X", 0.99))]  # fmt: skip
    rows.append(Row("original", "separability", "words alone", 0.97, low=0.9, high=1.0))
    said = " ".join(findings(rows, "separability"))
    assert "nothing can be read from these numbers alone" in said
    assert "The words of the questions alone, before any block: 0.97 [0.90, 1.00]" in said
    assert "recognise" not in said
    rows += [Row("retrained", "separability", "auc", 0.9, layer=0)]
    more = Row("X", "separability", "beyond retrained", 0.09, layer=0, low=-0.01, high=0.19)
    assert "told apart from the retrained model" in findings([*rows, more], "separability")[-1]
    assert "recognise" in findings([*rows, replace(more, low=0.01)], "separability")[-1]


def test_f45_retain_rows_that_are_reported_are_not_trained_on(bed):
    study = make_testbed_study()
    sample = draw_sample(study, Settings(sample=20))
    reported = set(sample.split.retain_rows)
    assert not reported & set(sample.training.retain_rows)
    assert len(sample.training.retain_rows) == len(study.split.retain_rows) - len(reported)
    assert sample.training.forget_rows == study.split.forget_rows
    assert "may have been trained on the retain rows" in next(
        c.what for c in unlearned(replace(study, unlearned={"mine": bed.original}), {})
    )


def test_f28_intervals_of_the_report_count_groups():
    values = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    rows, people = (mean_row("X", "performance", "p", values, "forget", groups) for groups in (None, tuple("aaabbb")))
    assert rows.high - rows.low < 0.85
    assert (people.low, people.high) == pytest.approx((0, 1), abs=0.01)
    assert people.n == 6
