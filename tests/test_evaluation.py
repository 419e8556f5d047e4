"""The table of one model, the log it is exchanged in, and what is said of models and logs that cannot be compared."""

import copy
import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score

from probe.checkpoints import load_model, load_tokenizer
from probe.cli import main
from probe.commands.evaluate import Evaluate
from probe.data import QA, Template, encode
from probe.datasets import read_rows, write_rows
from probe.evaluation.ask import EvaluationSettings, evaluate, reference_log
from probe.evaluation.data import RowSets, read_sets
from probe.evaluation.numbers import quality_rows
from probe.evaluation.table import latex_table, text_table
from probe.metrics.suite import answer_suite
from probe.open_unlearning.log import EvaluationLog, read_log, write_log
from probe.open_unlearning.recomputed import MUSE_ROUGE, recomputed, truth_ratios
from probe.rows import Row, load
from probe.runs.folder import Run
from probe.study.templates import chosen

# The log


def single(value):
    return np.float32(value).astype(np.float64).tolist()


def indexed(**columns):
    n = len(next(iter(columns.values())))
    return {"value_by_index": {str(i): {key: column[i] for key, column in columns.items()} for i in range(n)}}


def published(golden):
    """The samples that were published, in the layout they were published in."""
    results = {}
    for on in ("forget", "retain", "ra", "wf"):
        for ours, theirs in (("gt", "Q_A_Prob"), ("para", "Q_A_PARA_Prob"), ("pert", "Q_A_PERT_Prob")):
            if ours in golden[on]:
                results[f"{on}_{theirs}"] = indexed(avg_loss=[single(v) for v in golden[on][ours]])
        if "rougeL_recall" in golden[on]:
            results[f"{on}_Q_A_ROUGE"] = indexed(rougeL_recall=golden[on]["rougeL_recall"])
    sides = {side: indexed(score=golden["mia_min_k"][side]) for side in ("forget", "holdout")}
    return {**results, "mia_min_k": {**sides, "agg_value": golden["expect"]["mia_min_k_auc"]}}


@pytest.fixture(params=["forget01", "forget10"])
def golden(request, shared):
    path = shared / "golden" / f"openunlearning_Llama-3.2-1B-Instruct_{request.param}.json"
    return json.loads(path.read_text())


def logs_of(golden, tmp_path):
    paths = {name: tmp_path / f"{name}.json" for name in ("full", "retain")}
    for name, path in paths.items():
        path.write_text(json.dumps(published(golden[name])))
    return tuple(read_log(path) for path in paths.values())


def test_published_aggregates_come_out_of_published_samples(golden, tmp_path):
    full, retain = logs_of(golden, tmp_path)
    for name, log in (("full", full), ("retain", retain)):
        found = recomputed(log)
        for key, value in golden[name]["expect"].items():
            # The logs took their probabilities' exponential in float32 on a GPU; half a unit there is 3e-8.
            rel = 1.5e-8 if "_Prob" in key else 1e-9
            assert found[key.removesuffix("_auc")] == pytest.approx(value, rel=rel), key
    against = recomputed(full, retain)
    assert against["forget_quality"] == pytest.approx(golden["expect"]["forget_quality"], rel=1e-9)
    assert against["privleak"] == pytest.approx(golden["expect"]["privleak"], rel=1e-9)


def test_a_log_that_holds_probabilities_is_averaged_as_published(golden, tmp_path):
    """Published logs hold float32 probabilities; their mean, not that of exp(-loss), is what was published."""
    results = published(golden["full"])
    for name in ("retain_Q_A_Prob", "ra_Q_A_Prob", "ra_Q_A_PERT_Prob"):
        for sample in results[name]["value_by_index"].values():
            sample["prob"] = single(np.exp(-np.float32(sample["avg_loss"])))
    found = recomputed(EvaluationLog(results))
    probs = [sample["prob"] for sample in results["retain_Q_A_Prob"]["value_by_index"].values()]
    assert found["retain_Q_A_Prob"] == np.mean(probs)
    right = np.array([s["prob"] for s in results["ra_Q_A_Prob"]["value_by_index"].values()])
    wrong = np.array([s["prob"] for s in results["ra_Q_A_PERT_Prob"]["value_by_index"].values()])
    assert found["ra_Q_A_Prob_normalised"] == pytest.approx((right / (right + wrong.sum(1) + 1e-10)).mean(), rel=1e-14)


def test_a_log_is_written_as_it_was_read(golden, tmp_path):
    results = dict(sorted((published(golden["full"]) | {"forget_quality": {"agg_value": None}}).items()))
    results["a_metric_of_theirs"] = {"agg_value": 0.1 + 0.2, "step": {"deep": ["é", None, 1e-300]}}
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(dict(sorted(results.items())), indent=4))
    write_log(second, read_log(first))
    assert second.read_bytes() == first.read_bytes()
    assert read_log(second).results == results


def test_samples_go_by_number_not_by_place(tmp_path):
    shuffled = {"10": {"score": 3.0}, "2": {"score": 2.0}, "0": {"score": 1.0}}
    log = EvaluationLog({"forget_truth_ratio": {"value_by_index": shuffled}})
    assert log.samples("forget_truth_ratio", "score").tolist() == [1, 2, 3]
    assert truth_ratios(log).tolist() == [1, 2, 3]
    assert log.value("forget_truth_ratio") is None


def test_scores_that_are_null_leave_the_published_mean(tmp_path):
    log = EvaluationLog({"exact_memorization": indexed(score=[0.5, None, 1.0])})
    assert recomputed(log) == {"exact_memorization": 0.75}
    with pytest.raises(ValueError, match="1 of 3 samples of exact_memorization have no score"):
        log.samples("exact_memorization", "score")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "is no evaluation log .a list.; expected metric -> "),
        ({}, "is no evaluation log"),
        ({"model_utility": 0.6, "forget_quality": None}, "is a summary without samples; take the EVAL file"),
        ({"avg_gt_loss": {}}, "one set of TOFU's first code; take eval_log_aggregated.json"),
        ({"eval_log.json": {"avg_gt_loss": [1.0]}}, "avg_gt_loss of eval_log.json is a list; expected number -> value"),
        ({"retain_Q_A_Prob": {"values": []}}, "retain_Q_A_Prob holds values; expected"),
        ({"retain_Q_A_Prob": {"value_by_index": [1.0]}}, "value_by_index of retain_Q_A_Prob is a list"),
        ({"mia_loss": {"forget": {"value_by_index": {"a": {}}}}}, "sample 'a' of mia_loss is"),
    ],
)
def test_files_of_other_layouts_are_named(tmp_path, content, message):
    path = tmp_path / "log.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_log(path)


def test_f15_refusals_are_short(tmp_path):
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"rougeL_recall": {str(i): 0.5 for i in range(400)}}))
    with pytest.raises(ValueError, match=r"rougeL_recall holds 0, 1, 2, .*; expected metric") as refused:
        read_log(path)
    assert len(str(refused.value)) < 400


def test_broken_logs_say_where(tmp_path):
    path = tmp_path / "log.json"
    path.write_text('{"a":\n {"agg_value": }}')
    with pytest.raises(ValueError, match=r"log\.json:2:16: not JSON"):
        read_log(path)
    with pytest.raises(ValueError, match=r"holds no truth ratios of forget .*it has exact_memorization"):
        truth_ratios(EvaluationLog({"exact_memorization": {"agg_value": 1.0}}, "that log"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        write_log(path, EvaluationLog({"a": {"agg_value": math.nan}}))


def test_f9_samples_are_paired_by_number_and_unequal_sets_are_refused(golden):
    results = published(golden["full"])
    right, wrong = (results[f"forget_Q_A_{name}_Prob"]["value_by_index"] for name in ("PARA", "PERT"))
    both = np.array([[s["avg_loss"] for s in right.values()], [np.mean(s["avg_loss"]) for s in wrong.values()]])
    kept = np.delete(np.arange(both.shape[1]), [7, 20])
    expected = np.exp(both[0] - both[1])[kept]
    right["7"], wrong["20"] = None, {"avg_loss": None}
    assert truth_ratios(EvaluationLog(results)) == pytest.approx(expected, rel=1e-6)
    del right["7"], wrong["20"]
    with pytest.raises(ValueError, match=r"2 are in one alone \(7, 20\).*evaluate both on the same rows"):
        recomputed(EvaluationLog(results))


def test_f15_logs_of_forks_and_nulls_are_read_as_their_own_code_reads_them(tmp_path):
    path = tmp_path / "log.json"
    odd = {"0.0": {"prob": 0.5}, "1.0": {"prob": NAN}, "2": {"prob": 0.25}, "3": None}
    path.write_text(json.dumps({"retain_Q_A_Prob": {"value_by_index": odd}, "theirs": {"value_by_index": {"x": 1}}}))
    assert recomputed(read_log(path)) == {"retain_Q_A_Prob": 0.375}
    odd |= {"0": {"prob": 0.1}}
    path.write_text(json.dumps({"retain_Q_A_Prob": {"value_by_index": odd}}))
    with pytest.raises(ValueError, match="holds a sample number twice"):
        read_log(path)
    muse = {name: indexed(rougeL_f1=[0.5, None, 1.0], rougeL_recall=[0, 0, 0]) for name in MUSE_ROUGE}
    assert recomputed(EvaluationLog(muse)) == dict.fromkeys(MUSE_ROUGE, 0.75)
    sides = {"forget": indexed(score=[1.0, 3.0]), "holdout": indexed(score=[2.0, 4.0])}
    assert recomputed(EvaluationLog({"mia_min_k": sides}))["privleak"] == pytest.approx(-50)


def test_p15_two_denominators_carry_the_constant_and_two_do_not():
    """As ``recomputed`` says; OpenUnlearning adds 1e-10 in all four."""
    results = {
        "ra_Q_A_Prob": indexed(avg_loss=[20.0]),
        "ra_Q_A_PERT_Prob": indexed(avg_loss=[[21.0, 22.0]]),
        "forget_Q_A_PARA_Prob": indexed(avg_loss=[20.0]),
        "forget_Q_A_PERT_Prob": indexed(avg_loss=[[19.0]]),
        "mia_min_k": {"forget": indexed(score=[1.0, 2.0]), "holdout": indexed(score=[1.5, 3.0])},
    }
    found, right, wrong = recomputed(EvaluationLog(results)), math.exp(-20), math.exp(-21) + math.exp(-22)
    assert found["ra_Q_A_Prob_normalised"] == pytest.approx(right / (right + wrong + 1e-10), rel=1e-12)
    assert found["forget_truth_ratio"] == pytest.approx((right + 1e-10) / math.exp(-19), rel=1e-12)
    assert found["privleak"] == pytest.approx(100 * ((1 - 0.75) - 0.5) / 0.5, rel=1e-14)


@pytest.mark.parametrize("with_losses", [True, False])
def test_f15_truth_ratios_of_the_form_prob_mean_stay_in_it(golden, with_losses):
    results = published(golden["full"])
    ratio_N = truth_ratios(EvaluationLog(results))
    share_N = 1 / (1 + ratio_N)
    stated = {**indexed(score=share_N.tolist()), "agg_value": float(share_N.mean())}
    log = EvaluationLog({**(results if with_losses else {}), "forget_Truth_Ratio": stated})
    assert recomputed(log)["forget_truth_ratio"] == pytest.approx(share_N.mean(), rel=1e-9)
    if with_losses:
        # Alone, scores of at most 1 have the same mean in both forms, and nothing tells the two apart.
        assert truth_ratios(log) == pytest.approx(ratio_N, rel=1e-9)
    usual = {**indexed(score=ratio_N.tolist()), "agg_value": recomputed(EvaluationLog(results))["forget_truth_ratio"]}
    log = EvaluationLog({**(results if with_losses else {}), "forget_truth_ratio": usual})
    assert recomputed(log)["forget_truth_ratio"] == pytest.approx(usual["agg_value"], rel=1e-9)


def test_f15_logs_of_tofus_first_code_give_the_values_of_its_script(golden, tmp_path):
    """Its script: exp of losses, no 1e-10 in any denominator, the forget set's min(R, 1/R)."""
    new, old = published(golden["full"]), {}
    new = {name: result for name, result in new.items() if "_Q_A_" in name}
    fields = {
        "avg_gt_loss": "Q_A_Prob",
        "avg_paraphrased_loss": "Q_A_PARA_Prob",
        "average_perturb_loss": "Q_A_PERT_Prob",
    }
    files = {"forget": "eval_log_forget", "retain": "eval_log", "ra": "eval_real_author_wo_options"}
    for on, file in (files | {"wf": "eval_real_world_wo_options"}).items():
        for field, metric in fields.items():
            metric = "Q_A_Prob" if on in ("ra", "wf") and metric == "Q_A_PARA_Prob" else metric
            samples = new.get(f"{on}_{metric}", {"value_by_index": {}})["value_by_index"]
            old.setdefault(f"{file}.json", {})[field] = {key: sample["avg_loss"] for key, sample in samples.items()}
        rouge = new.setdefault(f"{on}_Q_A_ROUGE", indexed(rougeL_recall=[0.5]))["value_by_index"]
        old[f"{file}.json"]["rougeL_recall"] = {key: sample["rougeL_recall"] for key, sample in rouge.items()}
    path = tmp_path / "eval_log_aggregated.json"
    path.write_text(json.dumps(old))
    found, ours = recomputed(read_log(path)), recomputed(EvaluationLog(new, eps=0.0))
    assert {"model_utility", "forget_truth_ratio", "wf_Q_A_Prob_normalised"} <= set(found)
    assert {found.pop(f"{on}_Q_A_PARA_Prob") for on in ("ra", "wf")} == {found[f"{on}_Q_A_Prob"] for on in ("ra", "wf")}
    assert found == pytest.approx(ours, rel=1e-12)


# The shell


NAN = float("nan")
LIMIT, WHOLE = 5, 7


@pytest.fixture(scope="module")
def places(shared, tmp_path_factory):
    """A model, one that differs from it, the first rows of TOFU, and rows that neither saw."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "tofu").mkdir()
    sets = ("forget01", "forget01_perturbed", "forget10_perturbed", "retain_perturbed", "real_authors_perturbed")
    for name in (*sets, "world_facts_perturbed"):
        _first(shared / "data" / "tofu" / f"{name}.json", folder / "tofu", WHOLE)
    model = shared / "models" / "stories260K"
    other = load_model(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight) * weight.std())
    other.save_pretrained(folder / "retrained")
    load_tokenizer(model).save_pretrained(folder / "retrained")
    write_rows(
        folder / "holdout.jsonl", [QA(f"What is number {i}?", f"It is the {i}th one of them.") for i in range(9)]
    )
    rest = {name: folder / name for name in ("retrained", "holdout.jsonl", "tofu")}
    return {"model": model, "folder": folder, "holdout": rest.pop("holdout.jsonl"), **rest}


def _first(path, folder, n):
    (folder / path.name).write_text("".join(path.read_text().splitlines(keepends=True)[:n]))


def words(places, out, *more):
    data = ["--tofu", str(places["tofu"]), "--split", "forget10", "--limit", str(LIMIT)]
    sizes = ["--max-new-tokens", "6", "--batch-size", "16", "--out", str(out)]
    return ["evaluate", str(places["model"]), *data, *sizes, *map(str, more)]


@pytest.fixture(scope="module")
def finished(places):
    out = places["folder"] / "out"
    main(words(places, out, "--retrained", places["retrained"], "--holdout", places["holdout"], "--gradnorm"))
    return out


def values_of(rows):
    return {(row.on, row.quantity): row.value for row in rows}


def test_the_shell_writes_everything_and_prints_the_table(finished, places, capsys):
    assert sorted(path.name for path in finished.iterdir()) == [
        "evaluation.json",
        "manifest.json",
        "rows.jsonl",
        "table.tex",
        "table.txt",
    ]
    assert not [path for path in finished.parent.iterdir() if path.name.endswith(".part")]
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["data"]["forget"] | {"sha256": ""} == {"rows": LIMIT, "of": WHOLE, "sha256": "", "repeated": 0}
    assert set(manifest["weights"]) == {"model", "retrained"}
    table = (finished / "table.txt").read_text()
    assert "a trial run: only the first 5 rows of each set" in table
    for said in ("real authors", "world facts", "model utility", "two-sample KS, exact", "min-k-plus-plus", "log10 p"):
        assert said in table
    assert r"\toprule" in (finished / "table.tex").read_text()


def test_numbers_are_those_of_outside_judges(finished, places):
    """Losses by transformers itself, KS by scipy, the harmonic mean by scipy, the rest from these."""
    model, tokenizer = load_model(places["model"]), load_tokenizer(places["model"])
    asked = read_sets(tofu=str(places["tofu"]), split="forget10", limit=LIMIT)
    log, found = read_log(finished / "evaluation.json"), values_of(load(finished / "rows.jsonl"))

    def loss(question, answer):
        batch = encode(tokenizer, [QA(question, answer)])
        labels = batch.tokens_BT.masked_fill(~batch.target_BT, -100)
        return model(input_ids=batch.tokens_BT, labels=labels).loss.item()

    for on, name in (("forget", "forget"), ("ra", "real_authors")):
        rows = asked.sets[on]
        losses = [loss(row.question, row.answer) for row in rows]
        assert log.samples(f"{on}_Q_A_Prob", "avg_loss") == pytest.approx(losses, rel=1e-5)
        assert found[name, "probability"] == pytest.approx(np.exp(-np.array(losses)).mean(), rel=1e-5)
        wrong = [[loss(row.question, answer) for answer in row.perturbed_answer] for row in rows]
        assert log.samples(f"{on}_Q_A_PERT_Prob", "avg_loss") == pytest.approx(np.array(wrong), rel=1e-5)
    para = [loss(row.question, row.paraphrased_answer) for row in asked.sets["forget"]]
    assert found["forget", "paraphrased_answer_probability"] == pytest.approx(np.exp(-np.array(para)).mean(), rel=1e-5)
    parts = [found[f"{on}", q] for on in ("retain", "real_authors", "world_facts") for q in ("rouge", "truth_ratio")]
    parts += [found["retain", "probability"]]
    parts += [found[on, "normalised_probability"] for on in ("real_authors", "world_facts")]
    assert found["", "model_utility"] == pytest.approx(hmean(parts), rel=1e-12)


def test_h6_comparisons_are_those_of_scipy_and_of_the_logs(finished, places):
    rows = load(finished / "rows.jsonl")
    found, log = values_of(rows), read_log(finished / "evaluation.json")
    out = places["folder"] / "theirs"
    job = Evaluate(
        model=str(places["retrained"]),
        tofu=str(places["tofu"]),
        limit=LIMIT,
        out=out,
        generate=False,
        holdout=places["holdout"],
        gradnorm=True,
    )
    job.run()
    theirs = read_log(out / "evaluation.json")
    judge = ks_2samp(truth_ratios(log), truth_ratios(theirs), method="exact")
    assert found["forget", "forget_quality_p"] == pytest.approx(judge.pvalue, rel=1e-9)
    assert found["forget", "forget_quality_statistic"] == pytest.approx(judge.statistic)
    assert found["forget", "forget_quality_log10_p"] == pytest.approx(math.log10(judge.pvalue))
    assert found["forget", "forget_quality_floor"] == pytest.approx(2 / math.comb(2 * LIMIT, LIMIT))
    again = recomputed(log, theirs)
    stated = {name: log.value(name) for name in log.results}
    assert {name: value for name, value in stated.items() if value is not None} == pytest.approx(again, rel=1e-12)
    assert again["privleak"] == pytest.approx(found["forget", "privleak_min_k"])
    assert found["forget", "auc_retrained_loss"] == pytest.approx(recomputed(theirs)["mia_loss"])
    sides = {side: log.samples("mia_loss", "score", side) for side in ("forget", "holdout")}
    less = {side: loss_N - theirs.samples("mia_loss", "score", side) for side, loss_N in sides.items()}
    label = [0] * LIMIT + [1] * LIMIT
    judge = roc_auc_score(label, [*less["forget"], *less["holdout"]])
    assert found["forget", "auc_reference"] == pytest.approx(judge, rel=1e-12)


def test_h6_the_gradnorm_attack_is_written_where_it_is_asked_for(finished, places):
    log = read_log(finished / "evaluation.json")
    model, tokenizer = load_model(places["model"]), load_tokenizer(places["model"])
    batch = encode(tokenizer, read_rows(places["holdout"])[:1])
    logits_TV = model(**batch.inputs).logits[0, :-1]
    wanted_T = batch.target_BT[0, 1:].nonzero().flatten()[:-1]
    torch.nn.functional.cross_entropy(logits_TV[wanted_T], batch.tokens_BT[0, 1:][wanted_T]).backward()
    norm = np.mean([float(weight.grad.norm()) for weight in model.parameters() if weight.grad is not None])
    assert log.samples("mia_gradnorm", "score", "holdout")[0] == pytest.approx(norm, rel=1e-4)
    assert {row.quantity for row in load(finished / "rows.jsonl")} >= {"auc_gradnorm", "privleak_gradnorm"}


def test_h4_penalties_that_are_not_applied_are_named(places, tmp_path):
    folder = shutil.copytree(places["model"], tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"repetition_penalty": 1.1, "do_sample": True, "eos_token_id": 2}))
    job = Evaluate(model=str(folder), tofu=str(places["tofu"]), limit=1, out=tmp_path / "out", max_new_tokens=2)
    job.run()
    table = (tmp_path / "out" / "table.txt").read_text()
    assert "generation_config asks for repetition_penalty=1.1, which is not applied here" in " ".join(table.split())


def test_a_log_stands_for_the_retrained_model(places, tmp_path):
    """Cut to the rows that are asked about; a log of another split's size is refused."""
    ratios = np.linspace(0.5, 2, WHOLE)
    path = tmp_path / "retain99.json"
    theirs = {"forget_truth_ratio": indexed(score=ratios.tolist()), "mia_loss": {"agg_value": 0.5}}
    write_log(path, EvaluationLog(theirs))
    out = tmp_path / "out"
    job = Evaluate(
        model=str(places["model"]),
        tofu=str(places["tofu"]),
        split="forget01",
        retrained=str(path),
        out=out,
        limit=4,
        generate=False,
    )
    job.run()
    found = load(out / "rows.jsonl")
    judge = ks_2samp(truth_ratios(read_log(out / "evaluation.json")), ratios[:4], method="exact")
    assert values_of(found)["forget", "forget_quality_p"] == pytest.approx(judge.pvalue)
    write_log(path, EvaluationLog({"forget_truth_ratio": indexed(score=[1.0] * 40)}))
    with pytest.raises(ValueError, match=r"holds 40 truth ratios and TOFU forget01 has 7 forget rows"):
        replace(job, out=tmp_path / "other").run()
    assert not (tmp_path / "other").exists()


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_retrained_model_that_is_the_model_is_refused_48(places, tmp_path, capsys):
    out = tmp_path / "out"
    assert "are identical" in failure(capsys, *words(places, out, "--retrained", places["model"]))
    shutil.copytree(places["model"], tmp_path / "copy")
    said = failure(capsys, *words(places, out, "--no-generate", "--retrained", tmp_path / "copy"))
    assert "are identical; forget quality would be perfect by itself" in said
    assert list(tmp_path.iterdir()) == [tmp_path / "copy"]


def test_a_log_of_the_model_itself_is_labelled(finished):
    log = read_log(finished / "evaluation.json")
    rows = list(quality_rows("m", log, log))
    assert {row.status for row in rows} == {"identical"}
    assert "identical: both models give the very same truth ratios" in text_table(rows)
    assert "(identical)" in latex_table(rows)
    assert recomputed(log, log)["forget_quality"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--tofu {tofu} --split forget1", "did you mean 'forget10'"),
        ("--tofu {tofu} --split retain90", "no split 'retain90'"),
        ("--tofu {tofu}/absent", "no folder at .*pass a folder with TOFU's files, or locuslab/TOFU"),
        ("--tofu {tofu} --forget x.json --retain y.json", "choose one"),
        ("--forget {tofu}/forget01.json", "--retain missing"),
        ("--mcq {tofu}/forget01.json", "forget01.json:1: row 1 has no field 'choices'; found question, answer"),
        ("--mcq {tofu}/forget01.json --retrained {tofu}", "--retrained and --holdout compare forget rows"),
        ("--tofu {tofu} --limit 0", "--limit must be a whole number from 1"),
        (
            "--forget {tofu}/forget01.json --retain {tofu}/forget01_perturbed.json",
            "7 rows are in both the forget and the retain set",
        ),
        (
            "--tofu {tofu} --holdout {tofu}/forget10_perturbed.json",
            "7 rows are in both the forget and the held-out set",
        ),
        ("--tofu {tofu} --template chat", "no chat template"),
        ("--tofu {tofu} --prompt nothing", "needs {question}"),
        ("--tofu {tofu} --retrained {golden}", "is no evaluation log: source holds a str"),
        ("--tofu {tofu} --device cuda:77", "device 'cuda:77' cannot be used here"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(places, shared, tmp_path, capsys, arguments, message):
    golden = shared / "golden" / "openunlearning_Llama-3.2-1B-Instruct_forget10.json"
    given = arguments.replace("{tofu}", str(places["tofu"])).replace("{golden}", str(golden)).split()
    said = failure(capsys, "evaluate", str(places["model"]), "--out", str(tmp_path / "out"), *given)
    assert re.search(message, said), said
    assert not list(tmp_path.iterdir())


def test_r23_an_evaluation_that_is_stopped_goes_on_and_gives_the_same(finished, places, capsys, monkeypatch):
    out, kept, made = places["folder"] / "cut", Run.kept, []
    given = words(places, out, "--retrained", places["retrained"], "--holdout", places["holdout"], "--gradnorm")

    def stopping(self, key, make):
        if key not in self.done:
            if len(made) in (2, 7):
                made.append("Ctrl-C")
                raise KeyboardInterrupt
            made.append(key)
        return kept(self, key, make)

    monkeypatch.setattr(Run, "kept", stopping)
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            main(given)
        assert stopped.value.code == 130
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"probe: stopped; what was finished is kept in {out.with_name('.cut.part')}; ")
        assert not out.exists()
    # Other rows are another evaluation.
    assert "settings.limit: 5 then, 4 now" in failure(capsys, *(["4" if w == str(LIMIT) else w for w in given]))
    main(given)
    for name in ("rows.jsonl", "evaluation.json", "table.txt", "table.tex"):
        theirs = (finished / name).read_text()
        assert (out / name).read_text() == theirs, name
    assert len(set(made)) == len(made) - 1
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in finished.iterdir())


def test_r22_short_numbers_are_said_beside_rouge(places, tmp_path, capsys):
    for dtype, generate in (("bfloat16", "--generate"), ("bfloat16", "--no-generate"), ("float32", "--generate")):
        main(words(places, tmp_path / f"{dtype}{generate}", "--dtype", dtype, generate))
        said = "texts are greedy in bfloat16" in capsys.readouterr().out
        assert said == (dtype == "bfloat16" and generate == "--generate")


def test_a_folder_in_use_is_kept(finished, places, capsys):
    before = (finished / "rows.jsonl").read_bytes()
    assert "exists and is not empty" in failure(capsys, *words(places, finished))
    assert (finished / "rows.jsonl").read_bytes() == before


def test_choices_alone_are_a_job_too(places, tmp_path, capsys):
    """Picks against a sum of log-probabilities by transformers itself."""
    rows = [
        {"question": "Lily went to the", "choices": ["park", "xylophone quarry"], "answer": 0},
        {"question": "The dog was very", "choices": ["zzz qq", "happy", "sad"], "answer": 1},
    ]
    path = tmp_path / "mcq.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    main(["evaluate", str(places["model"]), "--mcq", str(path), "--mcq-form", "text-sum", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "multiple choice   accuracy" in printed
    assert "blind guess 0.4167" in printed
    assert "model utility" not in printed
    samples = read_log(out / "evaluation.json").results["mcq_accuracy"]["value_by_index"]
    model, tokenizer = load_model(places["model"]), load_tokenizer(places["model"])
    for row, sample in zip(rows, samples.values(), strict=True):
        for choice, logp in zip(row["choices"], sample["logp"], strict=True):
            batch = encode(tokenizer, [QA(row["question"], choice)])
            with torch.no_grad():
                logits = model(input_ids=batch.tokens_BT).logits.log_softmax(-1)
            places_T = batch.target_BT[0].nonzero().flatten()[:-1]
            expected = sum(logits[0, t - 1, batch.tokens_BT[0, t]].item() for t in places_T.tolist())
            assert logp == pytest.approx(expected, rel=1e-5)
    found = {row.quantity: row for row in load(out / "rows.jsonl")}
    right = [sample["picked"] == row["answer"] for row, sample in zip(rows, samples.values(), strict=True)]
    assert found["mcq_accuracy"].value == pytest.approx(np.mean(right))
    assert found["mcq_guess"].value == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_aggregates_are_harmonic_means_of_what_the_table_shows(finished):
    found = values_of(load(finished / "rows.jsonl"))
    names = ("extraction_strength_floored", "exact_memorisation", "paraphrased_answer_probability", "truth_ratio_known")
    mem = hmean([1 - found["forget", name] for name in names])
    assert found["", "mem"] == pytest.approx(mem)
    pairs = [
        (found["forget", f"auc_{name}"], found["forget", f"auc_retrained_{name}"])
        for name in ("loss", "zlib", "min_k", "min_k_plus_plus")
    ]
    priv = hmean([min(pair) / max(pair) for pair in pairs])
    assert found["", "priv_by_ratio"] == pytest.approx(priv)
    utility = found["", "model_utility"]
    assert found["", "agg_mem_priv_utility"] == pytest.approx(hmean([mem, priv, utility]))


def test_a_part_that_is_zero_is_named():
    """A collapsed model has a utility of 0; the table says which of the nine parts did that."""
    parts = [("retain", "probability"), ("real_authors", "normalised_probability"), ("world_facts", "truth_ratio")]
    rows = [Row("m", "performance", quantity, 0.3, on, n=4) for on, quantity in parts]
    rows += [Row("m", "performance", "rouge", 0.0, "world_facts", n=4), Row("m", "evaluation", "model_utility", 0.0)]
    assert "zero because of world_facts rouge" in text_table(rows)


# Rows of one's own, on the testbed


def asked_of(bed, n=6, **more):
    sets = {"forget": bed.split.forget_rows[:n], "retain": bed.split.retain_rows[:n]}
    whole = {name: len(rows) for name, rows in sets.items()} | {"holdout": 0, "choices": 0}
    return RowSets(**{"sets": sets, "holdout": (), "choices": (), "whole": whole, "name": "testbed"} | more)


def asking_of(bed, **changes):
    return EvaluationSettings(bed.split.template, batch_size=16, max_length=64, max_new_tokens=10, **changes)


def test_the_testbed_gets_the_numbers_of_the_suite(bed):
    asked, asking = asked_of(bed), asking_of(bed)
    theirs = reference_log(bed.retrained, bed.tokenizer, asked, asking)
    result = evaluate(bed.original, bed.tokenizer, asked, asking, name="original", retrained=theirs)
    found = values_of(result.rows)
    for on, rows in asked.sets.items():
        suite = answer_suite(
            bed.original, bed.tokenizer, rows, bed.split.template, batch_size=16, max_new_tokens=10, max_length=64
        )
        for quantity, value in suite.means().items():
            quantity = {f"truth_ratio_{on}": "truth_ratio"}.get(quantity, quantity)
            if (on, quantity) in found:
                assert found[on, quantity] == pytest.approx(value, rel=1e-6), (on, quantity)
        assert found[on, "rouge"] == pytest.approx(suite.rouge_N.mean())
    assert found["forget", "probability"] > 0.5 > found["forget", "truth_ratio"]
    assert "model_utility" not in {quantity for _, quantity in found}
    assert "model utility: not measured" in result.table
    floor = 2 / math.comb(12, 6)
    assert found["forget", "forget_quality_floor"] == pytest.approx(floor)


def test_complete_separation_is_marked_as_the_floor(bed):
    log, other = ({"forget_truth_ratio": indexed(score=list(np.arange(1.0, 5) + shift))} for shift in (0, 9))
    rows = list(quality_rows("m", EvaluationLog(log), EvaluationLog(other)))
    assert {row.status for row in rows} == {"floor"}
    assert "at the floor: the two sets of truth ratios do not overlap" in text_table(rows)
    assert "(floor)" in latex_table(rows)


def test_rows_without_wrong_answers_or_paraphrases_give_what_they_can(bed):
    bare = {name: tuple(QA(row.question, row.answer) for row in rows[:3]) for name, rows in asked_of(bed).sets.items()}
    result = evaluate(bed.original, bed.tokenizer, asked_of(bed, sets=bare), asking_of(bed, generate=False))
    quantities = {row.quantity for row in result.rows}
    assert {"probability", "extraction_strength", "exact_memorisation"} <= quantities
    assert not {"truth_ratio", "rouge", "paraphrased_probability", "forget_quality_p"} & quantities
    assert "forget quality: not measured" in result.table


def test_edits_in_force_are_what_is_evaluated(bed):
    asked, asking = asked_of(bed, n=3), asking_of(bed, generate=False)
    plain = evaluate(bed.original, bed.tokenizer, asked, asking)
    changed = copy.deepcopy(bed.original)
    with torch.no_grad():
        changed.get_output_embeddings().weight.mul_(0.5)
    other = evaluate(changed, bed.tokenizer, asked, asking)
    assert values_of(other.rows)["forget", "probability"] != values_of(plain.rows)["forget", "probability"]


def test_an_answer_of_one_token_is_left_out_of_exact_memorisation_and_counted(bed):
    rows = bed.split.forget_rows[:2]
    word = next(row.answer.split()[0] for row in rows)
    short = replace(rows[0], answer=word)
    asked = asked_of(bed, sets={"forget": (short, rows[1]), "retain": bed.split.retain_rows[:2]})
    result = evaluate(bed.original, bed.tokenizer, asked, asking_of(bed, generate=False))
    template = Template(bed.split.template.prompt, bed.split.template.answer)
    n_short = int(encode(bed.tokenizer, [short], template=template, max_length=64).target_BT.sum()) - 1
    [row] = [row for row in result.rows if (row.on, row.quantity) == ("forget", "exact_memorisation")]
    scores = [s["score"] for s in result.log.results["exact_memorization"]["value_by_index"].values()]
    assert (n_short >= 1, row.n, None in scores) == (True, 2, False)


# Templates


def test_templates_are_the_published_ones(bed):
    job = Evaluate(model="m")
    assert chosen(job, bed.tokenizer).template == Template()
    assert chosen(replace(job, template="llama2"), bed.tokenizer).template.prompt == "[INST] {question} [/INST]"
    assert chosen(replace(job, prompt="Q {question}"), bed.tokenizer).template == Template("Q {question}", " {answer}")
