"""Every method from the shell: each runs on the testbed's model, and each mistake is one readable line."""

import copy
import errno
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import tiny_llama

from probe.checkpoints import load_model, load_tokenizer, save_model, weights_hash
from probe.cli import main
from probe.commands.unlearning.files import _OPTIONS, special_options
from probe.data import Split, Template, encode, make_split
from probe.datasets import write_rows
from probe.dictionaries.autoencoder import dictionary_hash
from probe.hooks import edited
from probe.methods.catalogue import method_named, methods
from probe.methods.in_context import in_context_drawn
from probe.methods.method import readable
from probe.methods.sae_suppression import suppress_ranked
from probe.methods.supplies import HANDED_IN, handed_in, label_tokens, retention
from probe.methods.tarf import Annealing, TopGroups, TopShare, tarf, tarf_by_numbers
from probe.methods.uwc import mixed
from probe.metrics.memorisation import answer_stats
from probe.metrics.suite import answer_suite
from probe.weights import blended, layers

N = 4  # rows a side
TRAINING = "--steps 2 --lr 1e-4 --batch-size 4"
# What a method needs besides; {tmp} holds the files that the fixture writes.
NUMBERS = {
    "beta": "0.5",
    "beta1": "5",
    "beta2": "1",
    "alpha": "0.5",
    "gamma": "1",
    "retain_weight": "1",
    "forget_weight": "1",
    "mismatch_weight": "1",
    "irm_weight": "0.1",
    "distance_weight": "1",
    "reasoning_weight": "1",
    "weight": "0.3",
    "samples": "2",
    "max_new_tokens": "3",
    "rho": "0.01",
    "sigma": "0.001",
    "smoothing": "0.8",
    "rank": "2",
    "radius": "0.01",
    "start": "1",
    "interval": "1",
    "layer": "2",
    "layers": "1,2",
    "coefficient": "3",
    "scale": "2",
    "attack_layer": "1",
    "epsilon": "0.5",
    "attack_steps": "2",
    "attack_lr": "0.01",
    "attack_lrs": "1e-4,1e-3",
    "attack_batch_size": "2",
    "every": "2",
    "growth": "0.1",
    "multiplier": "1",
    "rate": "0.5",
    "bound": "0.1",
    "warm_up": "0",
    "divergence": "total-variation",
    "direction": "to-uniform",
    "positions": "answers",
    "eta": "2",
    "leading": "1",
    "text_ids": "5,6",
    "expert_ids": "5,6",
    "novice_ids": "7",
    "share": "0.5",
    "rounds": "1",
    "leaving_rounds": "1",
    "leave_steps": "1",
    "stay_steps": "1",
    "k0": "1",
    "t1": "1",
    "t0": "2",
    "k": "2",
    "forget_shown": "2",
    "retain_shown": "1",
    "instruction": "Say that you do not know.",
    "threshold": "1",
    "refusal": "I cannot say.",
    "leak": "1e-4",
    "rule": "mean-difference",
    "features": "3",
    "value": "-3",
    "ratio": "1",
    "spread": "1",
    "coherence_weight": "0.1",
    "lift": "5",
    "outside_weight": "1",
}
FILES = {
    "refusals": "{tmp}/idk.txt",
    "environment": "{tmp}/other.jsonl",
    "traces": "{tmp}/other.jsonl",
    "labels": "answers",
    "unlearned": "{tmp}/unlearned",
    "retrained": "{tmp}/retrained",
    "assistant": "{tmp}/unlearned",
    "assistant_before": "{tmp}/model",
    "sae": "{tmp}/sae",
    "sae_layer": "4",
}


@pytest.fixture(scope="module")
def tmp(bed, tmp_path_factory):
    """The testbed as a user's own models, rows and SAE."""
    folder = tmp_path_factory.mktemp("own")
    for name, model in (("model", bed.original), ("retrained", bed.retrained)):
        save_model(model, folder / name, tokenizer=bed.tokenizer)
    write_rows(folder / "forget.jsonl", bed.split.forget_rows[:N])
    write_rows(folder / "retain.jsonl", bed.split.retain_rows[:N])
    write_rows(folder / "other.jsonl", bed.world[:4])
    (folder / "idk.txt").write_text("I do not know.\nNo idea.\n")
    shutil.copytree(bed.folder / "sae", folder / "sae")
    # Mixed by hand, so that no test waits for training.
    with mixed(bed.original, bed.retrained, 0.5):
        save_model(bed.original, folder / "unlearned", tokenizer=bed.tokenizer)
    for name, noise in (("damaged", 0.03), ("broken", 1.0)):
        model, generator = copy.deepcopy(bed.original), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(noise * torch.randn(p.shape, generator=generator))
        save_model(model, folder / name, tokenizer=bed.tokenizer)
    return folder


def own(tmp) -> list[str]:
    return ["--original", f"{tmp}/model", "--forget", f"{tmp}/forget.jsonl", "--retain", f"{tmp}/retain.jsonl"]


def words(method, tmp) -> list[str]:
    """The shortest line that runs a method on the user's own model."""
    known = method.hyperparameters
    needed = [n for n, p in known.items() if p.default is p.empty and n in NUMBERS]
    needed += ["share"] if method.name in ("tarf", "dr_npo", "dr_simnpo", "dr_sat_imp") else []
    said = TRAINING.split() if "lr" in known else []
    if "steps" not in known and said:
        said = said[2:]
    for flag in special_options(method):
        if flag in FILES:
            said += [f"--{flag.replace('_', '-')}", FILES[flag].replace("{tmp}", str(tmp))]
    numbers = ["--set", *(f"{name}={NUMBERS[name]}" for name in needed)] if needed else []
    return [*own(tmp), *said, *numbers]


def unlearn(*said: object) -> None:
    main(["unlearn", *map(str, said)])


def failure(capsys, *said: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        unlearn(*said)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def manifest_of(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def answers_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def probabilities(model, bed, rows, template=Template()):
    return answer_suite(model, bed.tokenizer, rows, template, with_generation=False, with_wrong_answers=False)


# --- all of them ---


def one_of_each_kind():
    """Every method; slow but for the first of each family, of each thing it makes and of each set of options."""
    seen, found = set(), []
    for method in methods():
        kind = (method.family, method.makes, special_options(method))
        found.append(pytest.param(method, id=method.name, marks=[pytest.mark.slow] if kind in seen else []))
        seen.add(kind)
    return found


@pytest.mark.parametrize("method", one_of_each_kind())
def test_every_method_runs_from_the_shell(method, bed, tmp, tmp_path, capsys):
    out = tmp_path / "out"
    unlearn(method.name, *words(method, tmp), "--max-new-tokens", 4, "--out", out)
    printed = capsys.readouterr().out
    assert printed.strip().endswith(str(out))
    manifest = manifest_of(out)
    assert manifest["status"] == "complete"
    assert manifest["method"]["name"] == method.name
    assert manifest["weights"]["original"] == weights_hash(bed.original)
    if method.makes in ("model", "mixture"):
        assert manifest["weights"]["unlearned"] == weights_hash(load_model(out)) != weights_hash(bed.original)
        assert load_tokenizer(out).get_vocab() == bed.tokenizer.get_vocab()
        assert manifest["changed"]["tensors"] > 0
        assert f"before {method.name} -> after it" in printed
    else:
        assert sorted(p.name for p in out.iterdir()) == ["answers.jsonl", "manifest.json"]
        rows = answers_of(out)
        assert [row["question"] for row in rows] == [
            row.question for row in (*bed.split.forget_rows[:N], *bed.split.retain_rows[:N])
        ]
        assert all(0 <= row["probability"] <= 1 and 0 <= row["probability_without"] <= 1 for row in rows)
        assert "retain" in printed
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_f42_a_run_ends_with_scores_and_two_answers_of_each_side(bed, tmp, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["--set", "beta=0.1", "retain_weight=1", "--steps", "1", "--lr", "1e-3", "--batch-size", "2"]
    unlearn("npo", *own(tmp), *given, "--max-new-tokens", 4, "--out", out)
    captured = capsys.readouterr()
    scores, after = manifest_of(out)["scores"], load_model(out)
    for side, rows in (("forget", bed.split.forget_rows[:N]), ("retain", bed.split.retain_rows[:N])):
        for when, model in (("before", bed.original), ("after", after)):
            found = scores[when][side]
            # The judge: every row alone, by the metrics' own pass over texts.
            assert found["rows"] == N
            expected = probabilities(model, bed, rows).probability_N.mean()
            assert found["probability"] == pytest.approx(expected, rel=1e-4)
            assert list(found["answers"]) == [rows[0].question, rows[-1].question]
            for question, text in found["answers"].items():
                assert question in captured.out
                assert text.strip() in captured.out
        numbers = [scores[when][side]["probability"] for when in ("before", "after")]
        assert f"{numbers[0]:.3f} -> {numbers[1]:.3f}" in captured.out
    # One more model than the one that is trained: NPO compares with the original.
    size = sum(p.numel() * 4 for p in after.parameters())
    assert f"memory: {2 * size / 1e6:.2g} MB for the weights of 2 models" in captured.err
    assert f"{3 * size / 1e6:.2g} MB for gradients and moments" in captured.err


def test_f42_a_model_that_cannot_be_asked_is_no_reason_to_lose_it(bed, tmp, tmp_path, capsys):
    """The context has no room for so many new tokens; training needs none."""
    given = ["--set", "retain_weight=1", "--steps", "1", "--lr", "1e-3", "--batch-size", "2"]
    unlearn("grad_diff", *own(tmp), *given, "--max-new-tokens", 10_000, "--out", tmp_path / "out")
    assert re.search(r"forget +not asked: 10016 tokens", capsys.readouterr().out)
    assert load_model(tmp_path / "out")


@pytest.mark.parametrize("method", ["npo", "instructed"])
def test_r22_texts_in_short_numbers_say_that_they_depend_on_the_batch(method, tmp, tmp_path, capsys):
    trained = ["--set", "beta=0.1", "retain_weight=1", "--steps", "1", "--lr", "1e-3", "--batch-size", "2"]
    given = [*own(tmp), *trained] if method == "npo" else words(method_named(method), tmp)
    for dtype in ("float32", "bfloat16"):
        unlearn(method, *given, "--max-new-tokens", 1, "--dtype", dtype, "--out", tmp_path / dtype)
        note = "texts are greedy in bfloat16: where two tokens nearly tie they change with --batch-size"
        assert (note in capsys.readouterr().out) == (dtype == "bfloat16")


def test_every_need_is_known_and_every_flag_serves_one():
    needed = {name for method in methods() for name in handed_in(method)}
    # What follows from the model and its rows has no option; the site is named by the dictionary's layer.
    assert needed - set(_OPTIONS) == {"original", "score", "site"}
    assert needed <= set(HANDED_IN)
    every = {option for options in _OPTIONS.values() for option in options}
    assert {option for method in methods() for option in special_options(method)} == every


def test_the_list_says_what_the_shell_wants(capsys):
    main(["methods", *(method.name for method in methods())])
    text = capsys.readouterr().out
    assert text.count("writes: ") == len(methods())
    main(["methods"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) < len(methods()) + 20
    main(["methods", "uwc", "sae_suppression"])
    text = capsys.readouterr().out
    assert "asks for: --unlearned" in text
    assert "asks for: --sae, --sae-layer" in text
    assert "writes: answers with and without it" in text


# --- each does what its Python call does ---


def test_calibrated_model_is_the_mixture_that_the_manifest_names(bed, tmp, tmp_path):
    out = tmp_path / "out"
    unlearn("uwc", *own(tmp), "--unlearned", tmp / "damaged", "--set", "share=0.8", "--out", out)
    found = manifest_of(out)["mixture"]
    alpha = found["alpha_rest"]
    assert 0 < alpha < 1
    assert found["alpha_L"] == [alpha] * 8
    assert found["tried"][0] == [0.0, pytest.approx(found["bar"] / 0.8)]
    with mixed(bed.original, load_model(tmp / "damaged"), alpha):
        assert weights_hash(bed.original) == weights_hash(load_model(out))
    score = retention(encode(bed.tokenizer, bed.split.retain_rows[:N]), 64)
    assert score(load_model(out)) == pytest.approx(found["score"])
    assert found["score"] >= found["bar"]


def test_replaced_layers_are_those_of_best_rank(bed, tmp, tmp_path):
    from scipy.stats import rankdata

    out = tmp_path / "out"
    given = ["--unlearned", tmp / "unlearned", "--retrained", tmp / "retrained", "--max-new-tokens", 8]
    unlearn("cru", *own(tmp), *given, "--set", "k=2", "--out", out)
    found = manifest_of(out)["mixture"]
    ranks = rankdata(found["forget_quality_L"]) + rankdata(found["utility_L"])
    assert len(ranks) == 8
    assert min(ranks[layer] for layer in found["layers"]) >= sorted(ranks)[-2]
    with blended(bed.original, load_model(tmp / "unlearned"), layers(found["layers"], 8)):
        assert weights_hash(bed.original) == weights_hash(load_model(out))
    assert set(manifest_of(out)["weights"]["given"]) == {"unlearned"}


def test_tarf_by_numbers_is_tarf(bed):
    data = Split(bed.split.forget.select(range(4)), bed.split.retain.select(range(8)))
    numbers = {"steps": 3, "lr": 1e-4, "batch_size": 2, "seed": 0}
    hashes = []
    for select, said in ((TopShare(0.25), {"share": 0.25}), (TopGroups(0), {"groups": 0})):
        one, other = tiny_llama(vocab_size=1024), tiny_llama(vocab_size=1024)
        result = tarf(one, data, annealing=Annealing(1.0, 1, 2), select=select, **numbers)
        again = tarf_by_numbers(other, data, k0=1.0, t1=1, t0=2, **said, **numbers)
        assert weights_hash(one) == weights_hash(other)
        assert torch.equal(result.dropped_N, again.dropped_N)
        hashes.append(weights_hash(one))
    assert hashes[0] != hashes[1]


def test_labels_are_tokens_of_answers_or_of_the_vocabulary(bed):
    data = Split(bed.split.forget.select(range(2)), bed.split.retain.select(range(2)))
    of_answers = label_tokens(bed.tokenizer, data, "answers").tolist()
    texts = [f" {row.answer}" for row in (*bed.split.forget_rows[:2], *bed.split.retain_rows[:2])]
    assert of_answers == sorted({i for ids in bed.tokenizer(texts)["input_ids"] for i in ids} - {0, 1, 2, 3})
    everything = label_tokens(bed.tokenizer, data, "vocabulary")
    assert everything.tolist() == list(range(4, 1024))


def test_answers_with_a_prompt_are_those_of_the_template(bed, tmp, tmp_path):
    out = tmp_path / "out"
    said = [*own(tmp), "--refusals", tmp / "idk.txt", "--set", "forget_shown=2", "retain_shown=1", "--seed", 3]
    unlearn("in_context", *said, "--out", out)
    forget, retain = bed.split.forget_rows[:N], bed.split.retain_rows[:N]
    template = in_context_drawn(
        Template(), forget, retain, ("I do not know.", "No idea."), forget_shown=2, retain_shown=1, seed=3
    )
    assert template.prompt.count("Question:") == 4
    assert manifest_of(out)["made"]["prompt"] == template.prompt
    for side, rows in (("forget", forget), ("retain", retain)):
        lines = [row for row in answers_of(out) if row["side"] == side]
        without, acted = probabilities(bed.original, bed, rows), probabilities(bed.original, bed, rows, template)
        assert [row["probability_without"] for row in lines] == pytest.approx(without.probability_N.tolist())
        assert [row["probability"] for row in lines] == pytest.approx(acted.probability_N.tolist())
        assert manifest_of(out)["answers"][side]["probability"] == pytest.approx(acted.probability_N.mean())


def test_a_guarded_model_refuses_in_the_answers(tmp, tmp_path, capsys):
    out = tmp_path / "out"
    numbers = ["--set", "threshold=1", "refusal=I cannot say.", "leak=1e-4"]
    unlearn("refusing", *own(tmp), *numbers, "--out", out)
    rows = answers_of(out)
    assert {row["generated"] for row in rows if row["side"] == "forget"} == {" I cannot say."}
    kept = [row for row in rows if row["side"] == "retain"]
    assert all(row["probability"] == row["probability_without"] and row["rouge"] == 1 for row in kept)
    assert re.search(r"retain\s+4\s+(0\.\d+) -> \1; 1\.000", capsys.readouterr().out)


def test_logits_shifted_by_an_assistant_are_those_of_the_unlearned_model(bed, tmp, tmp_path):
    # With the model itself as the assistant before, what remains at alpha = 1 is the assistant.
    pair = ["--assistant", tmp / "retrained", "--assistant-before", tmp / "model"]
    unlearn("logit_offset", *own(tmp), *pair, "--set", "alpha=1", "--out", tmp_path / "out")
    found = [row["probability"] for row in answers_of(tmp_path / "out") if row["side"] == "forget"]
    expected = probabilities(bed.retrained, bed, bed.split.forget_rows[:N]).probability_N.tolist()
    assert found == pytest.approx(expected, rel=1e-4)
    assert set(manifest_of(tmp_path / "out")["weights"]["given"]) == {"assistant", "assistant_before"}


def test_clamped_features_are_those_ranked_on_the_rows(bed, tmp, tmp_path):
    numbers = ["--set", "rule=frequency", "threshold=0.05", "features=2", "value=-4"]
    sae = ["--sae", tmp / "sae", "--sae-layer", bed.sae_site.layer]
    unlearn("sae_suppression", *own(tmp), *sae, *numbers, "--out", tmp_path / "out")
    data = Split(encode(bed.tokenizer, bed.split.forget_rows[:N]), encode(bed.tokenizer, bed.split.retain_rows[:N]))
    edits = suppress_ranked(
        bed.original,
        bed.sae,
        bed.sae_site,
        data,
        bed.tokenizer.all_special_ids,
        rule="frequency",
        threshold=0.05,
        features=2,
        value=-4.0,
    )
    features = list(edits[bed.sae_site].features)
    assert manifest_of(tmp_path / "out")["made"] == {repr(bed.sae_site): {"features": features, "value": -4.0}}
    with edited(bed.original, edits):
        expected = answer_stats(bed.original, data.forget).probability_N.tolist()
    found = [row["probability"] for row in answers_of(tmp_path / "out") if row["side"] == "forget"]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "said",
    [
        f"npo_irm --set beta=0.5 retain_weight=1 irm_weight=0.1 {TRAINING}",
        f"idk --set retain_weight=1 {TRAINING}",
        "cru --set k=1 --unlearned {tmp}/unlearned --max-new-tokens 4",
        "in_context --set forget_shown=1 retain_shown=1 --max-new-tokens 4",
        "logit_offset --set alpha=1 --assistant {tmp}/unlearned --max-new-tokens 4",
        "sae_suppression --set rule=mean-difference features=3 value=-3 --max-new-tokens 4",
    ],
)
def test_the_testbed_brings_what_it_has(said, bed, tmp, tmp_path, monkeypatch):
    few = make_split(bed.tokenizer, bed.split.forget_rows[:N], bed.split.retain_rows[:N])
    small = replace(bed, original=copy.deepcopy(bed.original), split=few)
    monkeypatch.setattr("probe.study.loading.load", lambda: small)
    unlearn(*said.replace("{tmp}", str(tmp)).split(), "--out", tmp_path / "out")
    manifest = manifest_of(tmp_path / "out")
    assert manifest["files"] == {}
    assert manifest["settings"]["original"] is None
    assert manifest["weights"]["original"] == weights_hash(bed.original)
    given = manifest["weights"].get("given", {})
    assert given.get("assistant_before", weights_hash(bed.original)) == weights_hash(bed.original)
    assert given.get("sae", dictionary_hash(bed.sae)) == dictionary_hash(bed.sae)


# --- mistakes ---


@pytest.fixture(scope="module")
def odd(bed, tmp, tmp_path_factory):
    """Models, rows and an SAE that do not go with the testbed's."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("odd")
    save_model(tiny_llama(vocab_size=1024), folder / "narrow", tokenizer=bed.tokenizer)
    other = AutoTokenizer.from_pretrained(bed.folder / "tokenizer")
    other.add_tokens(["never heard of"])
    save_model(tiny_llama(vocab_size=1025), folder / "foreign", tokenizer=other)
    save_model(tiny_llama(vocab_size=1100), folder / "wide", tokenizer=bed.tokenizer)
    shutil.copytree(bed.folder / "sae", folder / "sae")
    config = json.loads((folder / "sae" / "cfg.json").read_text())
    (folder / "sae" / "cfg.json").write_text(json.dumps({**config, "d_in": 64}))
    weights = load_file(folder / "sae" / "sae_weights.safetensors")
    narrow = {"W_enc": weights["W_enc"][:64], "W_dec": weights["W_dec"][:, :64], "b_dec": weights["b_dec"][:64]}
    save_file(
        {name: narrow.get(name, value).contiguous() for name, value in weights.items()},
        folder / "sae" / "sae_weights.safetensors",
    )
    write_rows(folder / "plain.jsonl", [type(row)(row.question, row.answer) for row in bed.split.forget_rows[:3]])
    return folder


LABELLED = f"random_labels {TRAINING}"
OFFSET = "logit_offset --set alpha=1 --assistant-before {tmp}/model"
TARF = f"tarf --set k0=1 t1=1 t0=2 {TRAINING}"
CLAMP = "sae_suppression --set features=3 value=-3"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("uwc --set share=0.9", "--unlearned missing: uwc needs the model after unlearning"),
        ("cru --set k=2 --unlearned {tmp}/unlearned", "--retrained missing.*trained without the forget rows"),
        ("cru --unlearned {tmp}/unlearned --retrained {tmp}/retrained", "cru also needs --set k="),
        ("uwc --set share=0.9 --unlearned {tmp}/nowhere", "no folder at .*nowhere"),
        ("uwc --set share=0.9 --unlearned {odd}/narrow", "of different architecture"),
        ("uwc --set share=0.9 --unlearned {odd}/foreign", "--unlearned .*foreign does not go with.*tokenizers differ"),
        ("uwc --set share=0.9 --unlearned {tmp}/model", "original and the unlearned model are identical"),
        ("uwc --set share=1.5 --unlearned {tmp}/unlearned", "share must lie in"),
        ("uwc --set share=0.9 --unlearned {tmp}/unlearned --steps 3", "uwc takes no --steps"),
        ("uwc --set share=1 tolerance=0.9 --unlearned {tmp}/broken", "nothing is taken from the unlearned model"),
        ("cru --set k=9 --unlearned {tmp}/unlearned --retrained {tmp}/retrained", "k must lie in 0..8"),
        (
            "cru --set k=0 --unlearned {tmp}/unlearned --retrained {tmp}/retrained",
            "take at least one layer",
        ),
        ("cru --set k=1 --unlearned {odd}/narrow --retrained {tmp}/retrained", "of different architecture"),
        ("logit_difference --set alpha=1", "--assistant missing.*--forget and --retain there"),
        ("logit_offset --set alpha=1 --assistant {tmp}/unlearned", "--assistant-before missing"),
        (f"{OFFSET} --assistant {{odd}}/foreign", "--assistant .*foreign does not go with.*tokenizers differ"),
        (f"{OFFSET} --assistant {{odd}}/wide", "an assistant has 1100 tokens and the model 1024"),
        (f"{OFFSET} --assistant {{odd}}/narrow --unlearned x", "logit_offset takes no --unlearned"),
        (f"npo_irm --set beta=1 retain_weight=1 irm_weight=1 {TRAINING}", "--environment missing.*unrelated task"),
        (f"npo_irm --set beta=1 retain_weight=1 irm_weight=1 {TRAINING} --environment {{tmp}}/no", "no file at"),
        (LABELLED, "--labels missing.*answers or vocabulary"),
        (TARF, "give either share .* or groups"),
        (f"tarf --set k0=1 t1=1 t0=2 share=0.5 groups=1 {TRAINING}", "give either share .* or groups"),
        (f"tarf --set k0=1 t1=3 t0=2 share=0.5 {TRAINING}", "0 <= t1 <= t0"),
        (f"tarf --set annealing=3 {TRAINING}", "no hyper-parameter 'annealing'"),
        ("in_context --set forget_shown=2 retain_shown=1", "--refusals missing.*one a line"),
        (
            "in_context --set forget_shown=5 retain_shown=1 --refusals {tmp}/idk.txt",
            r"forget_shown must lie in 1\.\.4 .*got 5",
        ),
        ("in_context --set forget_shown=4 retain_shown=4 --refusals {tmp}/idk.txt --max-length 99", "raise max_length"),
        ("instructed", "instructed also needs --set instruction="),
        ("refusing --set threshold=0 refusal=No leak=0.1", "threshold is a share of words"),
        ("refusing --set threshold=1 refusal=No leak=2", "leak must lie in"),
        (f"{CLAMP} rule=mean-difference", "--sae and --sae-layer missing"),
        (f"{CLAMP} rule=mean-difference --sae {{tmp}}/sae", "--sae and --sae-layer belong together"),
        (f"{CLAMP} rule=frequency --sae {{tmp}}/sae --sae-layer 4", "rule frequency needs a threshold"),
        (f"{CLAMP} rule=mean-difference threshold=1 --sae {{tmp}}/sae --sae-layer 4", "takes no threshold"),
        (f"{CLAMP} rule=best --sae {{tmp}}/sae --sae-layer 4", "choose frequency or activation-ratio or"),
        (f"{CLAMP} rule=mean-difference --sae {{odd}}/sae --sae-layer 4", "the SAE"),
        (f"{CLAMP} rule=mean-difference --sae {{tmp}}/sae --sae-layer 9", "layer 9 does not exist"),
        (f"{CLAMP} rule=mean-difference --sae {{tmp}}/sae --sae-layer 1", "does not fit|fits layer"),
        (
            f"{CLAMP} rule=mean-difference --sae {{tmp}}/nowhere --sae-layer 4",
            "no folder .*nowhere; pass a folder that holds a dictionary",
        ),
        (
            "sae_suppression --set rule=mean-difference features=3 value=3 --sae {tmp}/sae --sae-layer 4",
            "a clamp suppresses at 0 or below",
        ),
    ],
)
def test_mistakes_are_said_in_one_line_and_leave_nothing(said, text, tmp, odd, tmp_path, capsys):
    name, *rest = said.replace("{tmp}", str(tmp)).replace("{odd}", str(odd)).split()
    error = failure(capsys, name, *own(tmp), *rest, "--out", tmp_path / "out")
    assert re.search(text, error), error
    # What comes before is the progress of loading.
    assert error.count("probe: ") == 1
    assert "\n" not in error.partition("probe: ")[2].rstrip()
    assert "cannot be run from the shell" not in error
    assert not list(tmp_path.iterdir())


def test_layers_cannot_be_chosen_on_rows_without_wrong_answers(tmp, odd, tmp_path, capsys):
    said = ["--original", tmp / "model", "--forget", odd / "plain.jsonl", "--retain", tmp / "retain.jsonl"]
    said += ["--unlearned", tmp / "unlearned", "--retrained", tmp / "retrained", "--set", "k=1"]
    error = failure(capsys, "cru", *said, "--out", tmp_path / "out")
    assert "3 forget rows have no perturbed_answer (first: row 0)" in error


def test_a_full_disk_leaves_no_half_written_answers(tmp, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("probe.commands.unlearning.summary.answer_suite", fail)
    with pytest.raises(SystemExit) as stopped:
        unlearn("instructed", *own(tmp), "--set", "instruction=Say nothing.", "--out", tmp_path / "out")
    assert stopped.value.code == 74
    assert not list(tmp_path.iterdir())


def test_lists_of_words_are_no_words():
    from collections.abc import Sequence

    assert not readable(Sequence[str])
    assert readable(float | None)
    assert "refusal_texts" in method_named("in_context").needs
