"""The catalogue of methods: complete, each runs and changes what it says, from Python and from the shell."""

import copy
import errno
import importlib
import inspect
import json
import pkgutil
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import random_batch, tiny_llama

import probe.methods
from probe.checkpoints import load_model, load_tokenizer, weights_hash
from probe.cli import main
from probe.commands.arguments.hyperparameters import hyperparameters
from probe.commands.unlearn import Unlearn
from probe.data import QA, Batch, Split, Template, encode
from probe.datasets import write_rows
from probe.dictionaries.made import pca_dictionary
from probe.hooks import our_hooks
from probe.interventions.activations import activations, content
from probe.methods import baselines, tarf
from probe.methods.answers import alternative_answers, beside, drawn_refusals, perturbed, read_refusals
from probe.methods.catalogue import details, method_named, methods, overview
from probe.methods.guard import QuestionGate, Refusing, word_overlap
from probe.methods.in_context import in_context, instructed
from probe.methods.logit_offset import Offset, logit_difference, logit_offset
from probe.methods.method import FAMILIES, readable, words_of
from probe.methods.pdu import pdu
from probe.methods.representation import Rerouting
from probe.methods.sequential import compounded_loss, requests, sequential
from probe.methods.task_vector import task_vector
from probe.methods.unlearn import unlearn
from probe.methods.uwc import mixed, uwc
from probe.methods.whp import whp_logits
from probe.metrics.generation import generate
from probe.metrics.memorisation import answer_stats
from probe.metrics.suite import answer_suite
from probe.objectives.token import nll
from probe.sites import Site
from probe.train import Term, minimise
from probe.weights import negate, negated

NAMES = tuple(method.name for method in methods())
TRAINED = [method for method in methods() if method.trains_in_place]
# Modules that hold no method of their own.
TOOLS = {"answers", "catalogue", "method", "published", "running", "sequential", "supplies", "unlearn", "words"}


def split() -> Split:
    return Split(random_batch(0), random_batch(1))


def otherwise(batch: Batch, shift: int = 1) -> Batch:
    """The same questions with other answers."""
    other_BT = (batch.tokens_BT + shift - 3) % 45 + 3
    return replace(batch, tokens_BT=torch.where(batch.target_BT, other_BT, batch.tokens_BT), warn=False)


def several(batch: Batch, n: int) -> Batch:
    rows = batch.select(torch.arange(len(batch)).repeat_interleave(n))
    return otherwise(rows)


def names_changed(model, before) -> set[str]:
    old = dict(before.named_parameters())
    return {name for name, p in model.named_parameters() if not torch.equal(p, old[name])}


# --- what is listed ---


def modules():
    for found in pkgutil.iter_modules(probe.methods.__path__):
        yield importlib.import_module(f"probe.methods.{found.name}")


def test_every_recipe_is_in_the_catalogue_and_every_entry_is_a_recipe():
    recipes = {
        function
        for module in modules()
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and list(inspect.signature(function).parameters)[:2] == ["model", "split"]
    }
    # What others are made of is no method of its own.
    assert recipes - {unlearn, tarf.tarf} == {method.run for method in TRAINED}
    at_home = {method.run.__module__.rpartition(".")[2] for method in methods()}
    assert at_home == {module.__name__.rpartition(".")[2] for module in modules()} - TOOLS


def test_entries_are_well_formed():
    names = [method.name for method in methods()]
    assert len(names) == len(set(names)) >= 45
    for method in methods():
        assert method.family in FAMILIES
        assert "\n" not in method.formula
        assert method.formula
        assert re.search(r"arXiv \d{4}\.\d{5}|CRU", method.source), method.name


@pytest.mark.parametrize("method", methods(), ids=lambda m: m.name)
def test_published_settings_name_what_the_recipe_takes(method):
    for setting in method.published.values():
        assert set(setting.arguments) <= set(method.hyperparameters)
        for name, value in setting.arguments.items():
            annotation = method.hyperparameters[name].annotation
            if isinstance(value, str) and words_of(annotation):
                assert value in words_of(annotation), f"{name}={value}"


def test_the_overview_is_a_line_a_method_within_the_terminal():
    for width in (60, 100):
        lines = overview(width).splitlines()
        assert max(map(len, lines)) <= width
        assert [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in NAMES] == list(NAMES)
        assert [line for line in lines if line in FAMILIES] == list(FAMILIES)
    assert any(line.endswith("\N{HORIZONTAL ELLIPSIS}") for line in lines)


def test_details_are_the_whole_entry():
    text = " ".join(details(NAMES).split())
    for method in methods():
        assert f"formula: {method.formula}" in text
        assert f"source: {method.source}" in text
        assert f"trains: {method.trains}" in text
        for name, setting in method.published.items():
            assert f"published {name}: " in text
            assert f"({setting.source})" in text
    assert max(map(len, details(NAMES, width=72).splitlines())) <= 72
    assert "2403.03218" not in details(["npo"])
    assert "tokens=real_tokens (real or answers or all)" in details(["rmu"], width=500)


def test_a_new_method_is_one_file(tmp_path, monkeypatch):
    """Here in a folder of its own: nothing else names the module."""
    (tmp_path / "brand_new.py").write_text(
        "from probe.methods.unlearn import forget_loss\n"
        "from probe.objectives.token import WGA\n\n\n"
        '@forget_loss("divergence", "as WGA", "Somebody et al., arXiv 2699.00001")\n'
        "def brand_new(beta: float) -> WGA:\n"
        "    return WGA(beta)\n"
    )
    monkeypatch.setattr(probe.methods, "__path__", [*probe.methods.__path__, str(tmp_path)])
    try:
        found = method_named("brand_new")
        assert [m.name for m in methods() if m.name not in NAMES] == ["brand_new"]
        one, other = tiny_llama(), tiny_llama()
        size = {"retain_weight": 1.0, "steps": 1, "lr": 1e-2, "batch_size": 2, "seed": 0}
        found.run(one, split(), beta=1.0, **size)
        baselines.wga(other, split(), beta=1.0, **size)
        assert weights_hash(one) == weights_hash(other)
    finally:
        sys.modules.pop("probe.methods.brand_new", None)


def test_a_loss_becomes_a_recipe_with_a_signature_of_its_own():
    assert str(inspect.signature(baselines.tnpo)).startswith("(model: ")
    named = inspect.signature(baselines.tnpo).parameters
    assert list(named) == ["model", "split", "original", "beta", "retain_weight", "epsilon", "training"]
    assert named["epsilon"].default == 0.0
    assert baselines.tnpo.__module__ == "probe.methods.baselines"
    assert baselines.tnpo.__doc__.startswith("Token-wise NPO")
    model, data = tiny_llama(), split()
    size = {"steps": 1, "lr": 1e-2, "batch_size": 2, "seed": 0}
    with pytest.raises(TypeError, match=r"missing .* argument: 'beta'"):
        baselines.wga(model, data, retain_weight=1.0, **size)
    with pytest.raises(TypeError, match="retain_weight"):
        baselines.wga(model, data, beta=1.0, **size)
    with pytest.raises(TypeError, match="unexpected keyword argument 'gamma'"):
        baselines.wga(model, data, beta=1.0, retain_weight=1.0, gamma=1.0, **size)


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'simnpo'"):
        method_named("SimPNO")


# --- every trained method ---

NUMBERS = {
    "beta": 0.5,
    "beta1": 5.0,
    "beta2": 1.0,
    "alpha": 1.0,
    "gamma": 1.0,
    "retain_weight": 1.0,
    "forget_weight": 1.0,
    "mismatch_weight": 1.0,
    "irm_weight": 0.1,
    "distance_weight": 1.0,
    "reasoning_weight": 1.0,
    "weight": 0.3,
    "k": 5,
    "samples": 2,
    "max_new_tokens": 3,
    "rho": 0.1,
    "sigma": 0.01,
    "smoothing": 0.8,
    "rank": 2,
    "radius": 0.1,
    "start": 1,
    "interval": 1,
    "layer": 1,
    "coefficient": 3.0,
    "scale": 2.0,
    "attack_layer": 0,
    "epsilon": 0.5,
    "attack_steps": 2,
    "attack_lr": 0.05,
    "attack_lrs": (1e-3, 1e-2),
    "attack_batch_size": 2,
    "every": 2,
    "growth": 0.1,
    "layers": (1, 2),
    "multiplier": 1.0,
    "rate": 0.5,
    "bound": 0.1,
    "warm_up": 0,
    "divergence": "total-variation",
    "direction": "to-uniform",
    "positions": "answers",
    "eta": 2.0,
    "leading": 1,
    "text_ids": (5, 6),
    "expert_ids": (5, 6),
    "novice_ids": (7,),
    "share": 0.5,
    "rounds": 2,
    "leaving_rounds": 2,
    "leave_steps": 1,
    "stay_steps": 1,
    "features": 3,
    "ratio": 1e-3,
    "spread": 1.0,
    "coherence_weight": 1.0,
    "lift": 5.0,
    "outside_weight": 1.0,
    "k0": 1.0,
    "t1": 1,
    "t0": 2,
    "lr": 1e-2,
    "batch_size": 3,
    "steps": 2,
    "seed": 0,
}


def components(model, data: Split):
    """A dictionary that belongs to block 1."""
    states = activations(model, data.retain, [Site(1)], tokens=content)
    return pca_dictionary(states[Site(1)], 8)


def arguments(method, data: Split, model) -> dict:
    given = {
        "original": lambda: copy.deepcopy(model),
        "refusals": lambda: otherwise(data.forget),
        "retain_refusals": lambda: otherwise(data.retain),
        "alternatives": lambda: several(data.forget, 2),
        "environment": lambda: random_batch(5),
        "traces": lambda: random_batch(6),
        "assistant": lambda: tiny_llama(7),
        "labels_K": lambda: torch.arange(3, 9),
        "sae": lambda: components(model, data),
        "site": lambda: Site(1),
        "saes": lambda: {Site(1): components(model, data)},
        "special_ids": lambda: (0, 1, 2),
    }
    required = [n for n, p in method.hyperparameters.items() if p.default is p.empty]
    required += ["share"] if method.name in ("tarf", "dr_npo", "dr_simnpo", "dr_sat_imp") else []
    return {name: given[name]() for name in method.needs} | {name: NUMBERS[name] for name in required}


@pytest.mark.parametrize("method", TRAINED, ids=lambda m: m.name)
def test_two_steps_change_the_named_parameters_alone(method):
    before, data = tiny_llama(), split()
    model = copy.deepcopy(before)
    named = arguments(method, data, model)
    hashes = {n: weights_hash(v) for n, v in named.items() if isinstance(v, torch.nn.Module)}
    flags = [p.requires_grad for p in model.parameters()]
    method.run(model, data, **named, parameters=r"layers\.1\.mlp\.")
    changed = names_changed(model, before)
    assert changed
    assert all(name.startswith("model.layers.1.mlp.") for name in changed)
    assert all(weights_hash(named[n]) == h for n, h in hashes.items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not our_hooks(model)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("method", TRAINED, ids=lambda m: m.name)
def test_without_a_pattern_what_is_trained_is_what_the_catalogue_says(method):
    before, data = tiny_llama(), split()
    model = copy.deepcopy(before)
    method.run(model, data, **arguments(method, data, model))
    changed = names_changed(model, before)
    if method.trains.startswith("MLP output"):
        assert changed == {"model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"}
    elif method.trains.startswith("blocks 0"):
        assert {int(name.split(".")[2]) for name in changed} <= {0, 1, 2}
        assert all(name.startswith("model.layers.") for name in changed)
    elif method.trains.startswith("embeddings"):
        written = {f"model.layers.{k}.{w}.weight" for k in range(3) for w in ("self_attn.o_proj", "mlp.down_proj")}
        assert changed == {"model.embed_tokens.weight", *written}
    else:
        assert {"model.layers.0.mlp.down_proj.weight", "lm_head.weight"} <= changed


@pytest.mark.parametrize("method", [m for m in TRAINED if "original" in m.needs], ids=lambda m: m.name)
def test_an_original_that_is_the_model_itself_is_refused(method):
    model, data = tiny_llama(), split()
    with pytest.raises(ValueError, match="shares weights"):
        method.run(model, data, **{**arguments(method, data, model), "original": model})


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("simnpo", {"beta": 0.0}, "beta must be above 0"),
        ("idk_dpo", {"beta": -1.0}, "beta must be above 0"),
        ("rr", {"layers": (7,)}, "layer 7 does not exist"),
        ("rr", {"layers": ()}, "at least one layer"),
        ("rmu", {"layer": 7}, "layer 7 does not exist"),
        ("adaptive_rmu", {"scale": 0.0}, "scale must be above 0"),
        ("pdu", {"rate": -1.0}, "must be at least 0"),
        ("bs_t", {"weight": 1.5}, "weight must lie in"),
        ("grad_diff", {"retain_weight": -1.0}, "retain_weight must be at least 0"),
        ("task_vector", {"scale": -1.0}, "scale must be at least 0"),
        ("crisp", {"spread": -1.0}, "spread must be a number of at least 0"),
        ("crisp", {"retain_weight": -1.0}, "retain_weight must be at least 0"),
        ("crisp", {"ratio": 1e9}, "no feature at .* fires more on forget rows"),
        ("crisp_released", {"beta": 2.0}, "beta must lie in"),
        ("dr_npo", {"temperature": 1.0}, "either temperature or share"),
        ("dr_npo", {"share": None}, "either temperature or share"),
        ("dr_simnpo", {"share": 1.5}, "share must lie above 0"),
        ("dr_sat_imp", {"share": None, "temperature": 0.0}, "temperature must be above 0"),
        ("ga_gru", {"smoothing": 0.0}, "smoothing must lie above 0"),
        ("ga_gru", {"retain_weight": -1.0}, "retain_weight must be at least 0"),
        ("kto", {"beta": 0.0}, "beta must be above 0"),
        ("rmu_mask", {"alpha": -1.0}, "alpha must be at least 0"),
        ("r2mu", {"coefficient": 0.0}, "coefficient must be above 0"),
        ("r2mu", {"trace_weight": -1.0}, "trace_weight must be at least 0"),
        ("whp", {"alpha": -1.0}, "alpha must be at least 0"),
        ("loku", {"rank": 9}, "rank must lie between 1 and 8"),
        ("loku", {"parameters": "lm_head"}, "no linear map"),
        ("jensun_released", {"text_ids": ()}, "text_ids is empty"),
        ("sspu", {"features": 99}, "are ever on"),
        ("sspu", {"coefficient": 0.0}, "coefficient must be above 0"),
        ("orthogonalised", {"ratio": 1e9}, "lower ratio"),
    ],
)
def test_impossible_hyperparameters_are_refused(name, changes, said):
    method, model, data = method_named(name), tiny_llama(), split()
    before = weights_hash(model)
    with pytest.raises(ValueError, match=said):
        method.run(model, data, **{**arguments(method, data, model), **changes})
    assert weights_hash(model) == before


def test_rerouting_weights_always_sum_to_alpha_and_end_alike():
    way = Rerouting(10.0, 150)
    assert all(sum(way.weights(t)) == pytest.approx(10.0) for t in range(1, 151))
    assert way.weights(1) == pytest.approx((10 - 10 / 300, 10 / 300))
    assert way.weights(150) == (5.0, 5.0)


def test_pdu_multiplier_follows_the_retain_loss():
    model = tiny_llama()
    numbers = {"multiplier": 1.0, "rate": 0.5, "bound": 2.0, "steps": 6, "lr": 1e-3, "batch_size": 3, "seed": 0}
    result = pdu(model, split(), warm_up=2, **numbers)
    retain = [losses[1] for losses in result.history.losses]
    expected = [1.0]
    for step, loss in enumerate(retain[:-1]):
        expected.append(max(0.0, expected[-1] + 0.5 * (loss - 2.0)) if step >= 2 else expected[-1])
    assert result.multipliers == pytest.approx(expected)
    assert result.multipliers[0] == result.multipliers[2] < result.multipliers[3]
    with pytest.raises(ValueError, match="takes no checkpoint"):
        pdu(model, split(), warm_up=0, checkpoint="x", **numbers)


# --- other answers ---


def test_refusals_and_alternatives_follow_the_forget_rows(bed, tmp_path):
    rows = bed.split.forget_rows
    refusals = drawn_refusals(bed.tokenizer, bed.split, "forget", seed=3)
    assert len(refusals) == len(rows)
    paired = beside(refusals, bed.split.forget)
    assert torch.equal(paired.tokens_BT, bed.split.forget.tokens_BT)
    again = drawn_refusals(bed.tokenizer, bed.split, "forget", seed=3)
    assert torch.equal(refusals.tokens_BT, again.tokens_BT)
    others = perturbed(bed.tokenizer, bed.split)
    assert len(others) == sum(len(row.perturbed_answer) for row in rows)
    assert len(beside(others, bed.split.forget)) == len(others)
    shuffled = [QA(row.question, text) for row in reversed(rows) for text in row.perturbed_answer]
    assert torch.equal(alternative_answers(bed.tokenizer, bed.split, shuffled).tokens_BT, others.tokens_BT)
    with pytest.raises(ValueError, match="between 0 and"):
        alternative_answers(bed.tokenizer, bed.split, shuffled[:7])
    with pytest.raises(ValueError, match="same number of them"):
        beside(others.select(range(7)), bed.split.forget)


@pytest.mark.parametrize(
    ("content", "said"), [(b" \n\n", "holds no refusals"), (b'{"a": 1}\n', "plain text"), (b"\xff\xfe", "not UTF-8")]
)
def test_refusal_files_that_are_none(content, said, tmp_path):
    (tmp_path / "idk.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_refusals(tmp_path / "idk.txt")


def test_published_refusals_are_read(shared):
    assert len(read_refusals(shared / "data" / "tofu" / "idontknow.jsonl")) == 100


# --- without gradient ---


def test_task_vector_identities():
    model, tuned = tiny_llama(), tiny_llama(1)
    before = weights_hash(model)
    with negated(model, tuned, 0.0):
        assert weights_hash(model) == before
    with negated(model, copy.deepcopy(model), 2.5):
        assert weights_hash(model) == before
    expected = {n: p - 0.5 * (q - p) for (n, p), q in zip(model.named_parameters(), tuned.parameters(), strict=True)}
    with negated(model, tuned, 0.5):
        assert all(torch.equal(p, expected[n]) for n, p in model.named_parameters())
        inside = weights_hash(model)
    assert weights_hash(model) == before
    negate(model, tuned, 0.5)
    assert weights_hash(model) == inside
    with pytest.raises(ValueError, match="scale must be"), negated(model, tuned, float("nan")):
        pass
    with pytest.raises(ValueError, match="different architecture"):
        negate(model, tiny_llama(n_layers=2), 1.0)


def test_task_vector_undoes_what_training_on_the_rows_does():
    model, data, size = tiny_llama(), split(), {"steps": 5, "lr": 1e-2, "batch_size": 4, "seed": 0}
    original, tuned = copy.deepcopy(model), copy.deepcopy(model)
    minimise(tuned, [Term(1.0, nll, data.forget)], **size)
    task_vector(model, data, scale=1.0, **size)
    with torch.no_grad():
        losses = [nll(m, data.forget).item() for m in (tuned, original, model)]
    assert losses == sorted(losses)
    unchanged = copy.deepcopy(original)
    task_vector(unchanged, data, scale=0.0, **size)
    assert weights_hash(unchanged) == weights_hash(original)


def test_mixing_at_the_ends_is_either_model():
    one, other = tiny_llama(), tiny_llama(1)
    hashes = weights_hash(one), weights_hash(other)
    with mixed(one, other, 0.0):
        assert weights_hash(one) == hashes[0]
    with mixed(one, other, 1.0):
        assert weights_hash(one) == hashes[1]
    assert weights_hash(one) == hashes[0]


def test_calibration_finds_the_largest_share_that_meets_the_bar():
    one, other = tiny_llama(), tiny_llama(1)
    first = dict(one.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    ends = [first.data[0, 0].item(), other.model.layers[0].mlp.up_proj.weight.data[0, 0].item()]

    def score(model) -> float:  # 1 - alpha, read off a weight
        return 1 - (model.model.layers[0].mlp.up_proj.weight.data[0, 0].item() - ends[0]) / (ends[1] - ends[0])

    found = uwc(one, other, score, share=0.7)
    assert 0.29 <= found.alpha <= 0.3
    assert found.score >= found.bar == pytest.approx(0.7)
    assert found.tried[0] == (0.0, 1.0)
    assert uwc(one, other, lambda m: 1.0, share=0.95).alpha == 1.0
    assert (
        uwc(one, other, lambda m: float(m.model.layers[0].mlp.up_proj.weight.data[0, 0] == ends[0]), share=1.0).alpha
        == 0.0
    )
    for broken, said in ((lambda m: float("nan"), "nan"), (lambda m: 0.0, "above 0")):
        with pytest.raises(ValueError, match=said):
            uwc(one, other, broken, share=0.9)
    with pytest.raises(ValueError, match="share must lie"):
        uwc(one, other, score, share=1.5)


def test_logit_offset_identities():
    large, small, unlearned = tiny_llama(), tiny_llama(1, n_layers=2), tiny_llama(2, n_layers=2)
    batch = random_batch(4)
    hashes = [weights_hash(m) for m in (large, small, unlearned)]
    with torch.no_grad():
        z, z_small, z_unlearned = (m(**batch.inputs).logits for m in (large, small, unlearned))
        assert torch.equal(logit_offset(large, unlearned, small, alpha=0.0)(**batch.inputs).logits, z)
        shifted = logit_offset(large, unlearned, small, alpha=0.5)(**batch.inputs).logits
        torch.testing.assert_close(shifted, z + 0.5 * (z_unlearned - z_small))
        # With the model itself as the original assistant only the unlearned one is left.
        torch.testing.assert_close(logit_offset(large, unlearned, large, alpha=1.0)(**batch.inputs).logits, z_unlearned)
        torch.testing.assert_close(logit_difference(large, small, alpha=0.5)(**batch.inputs).logits, z - 0.5 * z_small)
        torch.testing.assert_close(
            whp_logits(large, small, alpha=0.5)(**batch.inputs).logits, torch.minimum(z, 1.5 * z - 0.5 * z_small)
        )
        assert torch.equal(whp_logits(large, small, alpha=0.0)(**batch.inputs).logits, z)
    assert [weights_hash(m) for m in (large, small, unlearned)] == hashes
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        whp_logits(large, small, alpha=-1.0)
    with pytest.raises(ValueError, match="tokens and the model"):
        Offset(large, [(1.0, tiny_llama(vocab_size=40))])


def test_logit_offset_writes_with_a_cache_what_it_would_without(bed):
    wrapped = logit_offset(bed.original, bed.retrained, bed.original, alpha=1.0)
    prompts = [Template().asked(row.question) for row in bed.split.forget_rows[:5]]
    there = generate(wrapped, bed.tokenizer, prompts, max_new_tokens=8)
    assert there == generate(bed.retrained, bed.tokenizer, prompts, max_new_tokens=8)
    assert there != generate(bed.original, bed.tokenizer, prompts, max_new_tokens=8)


def test_in_context_prompts_leave_the_model_untouched(bed):
    forget, retain = bed.split.forget_rows[:2], bed.split.retain_rows[:1]
    odd = replace(forget[0], question="What is {this}?")
    template = in_context(Template(), [odd, forget[1]], ["No {idea}.", "I cannot say."], retain)
    prompt = template.asked("Q?")
    assert prompt == (
        "Question: What is {this}?\nAnswer: No {idea}.\n\n"
        f"Question: {forget[1].question}\nAnswer: I cannot say.\n\n"
        f"Question: {retain[0].question}\nAnswer: {retain[0].answer}\n\nQuestion: Q?\nAnswer:"
    )
    before = weights_hash(bed.original)
    suite = answer_suite(bed.original, bed.tokenizer, forget, template, max_new_tokens=3)
    assert len(suite) == 2
    assert weights_hash(bed.original) == before
    assert not our_hooks(bed.original)
    with pytest.raises(ValueError, match="one answer for each"):
        in_context(Template(), forget, ["only one"], ())
    with pytest.raises(ValueError, match="instruction is empty"):
        instructed(Template(), " ")


def test_a_guarded_model_refuses_forbidden_questions_and_nothing_else(bed):
    gate = QuestionGate(tuple(row.question for row in bed.split.forget_rows), 1.0)
    refusal = "I have no idea."
    guarded = Refusing(bed.original, bed.tokenizer, gate, refusal, template=Template(), leak=1e-4)
    forget, retain = bed.split.forget_rows[:5], bed.split.retain_rows[:5]
    before = weights_hash(bed.original)
    batch = encode(bed.tokenizer, retain)
    with torch.no_grad():
        assert torch.equal(guarded(**batch.inputs).logits, bed.original(**batch.inputs).logits)
        both = encode(bed.tokenizer, [*forget, *retain])
        everywhere = guarded(**both.inputs).logits
        for keep, places in ((1, slice(-1, None)), (torch.tensor([3, 7]), torch.tensor([3, 7]))):
            assert torch.equal(guarded(**both.inputs, logits_to_keep=keep).logits, everywhere[:, places])
    refused = encode(bed.tokenizer, [replace(row, answer=refusal) for row in forget])
    assert answer_stats(guarded, refused).probability_N.min() > 0.999
    assert answer_stats(guarded, bed.split.forget.select(range(5))).probability_N.max() < 0.05
    prompts = [Template().asked(row.question) for row in (*forget, *retain)]
    texts = generate(guarded, bed.tokenizer, prompts, max_new_tokens=15)
    assert texts[:5] == [f" {refusal}"] * 5
    assert texts[5:] == generate(bed.original, bed.tokenizer, prompts[5:], max_new_tokens=15)
    # Other words for the same question pass a gate that compares words.
    assert not any(gate(row.paraphrased().question) for row in forget)
    assert weights_hash(bed.original) == before
    assert word_overlap("Who wrote it?", "who WROTE it") == 1.0
    with pytest.raises(ValueError, match="forbids nothing"):
        QuestionGate((), 0.5)
    with pytest.raises(ValueError, match="leak must lie"):
        Refusing(bed.original, bed.tokenizer, gate, refusal, template=Template(), leak=0.0)


# --- one request after another ---


def test_compounded_loss_is_that_of_the_survey():
    assert compounded_loss(0, share=0.03) == 0
    assert compounded_loss(1, share=0.03) == pytest.approx(0.03)
    assert compounded_loss(20, share=0.03) == pytest.approx(1 - 0.97**20) == pytest.approx(0.456, abs=5e-4)


@pytest.mark.parametrize("reference", ["updated", "fixed"])
def test_requests_are_unlearned_in_turn_against_the_chosen_reference(reference):
    model, seen = tiny_llama(), []
    start = weights_hash(model)

    def recipe(current, data, original):
        seen.append((weights_hash(current), weights_hash(original)))
        return baselines.npo(
            current, data, original=original, beta=0.5, retain_weight=1.0, steps=1, lr=1e-2, batch_size=2, seed=0
        )

    splits = [Split(random_batch(n), random_batch(9)) for n in range(3)]
    scores = iter([0.8, 0.8, 0.6, 0.4])
    stages = sequential(model, splits, recipe, lambda m: next(scores), reference=reference)
    assert [stage.request for stage in stages] == [1, 2, 3]
    assert [stage.lost for stage in stages] == pytest.approx([0.0, 0.25, 0.5])
    assert [stage.compounded for stage in stages] == pytest.approx([0.03, 1 - 0.97**2, 1 - 0.97**3])
    assert len({current for current, _ in seen}) == 3
    assert [original for _, original in seen] == ([c for c, _ in seen] if reference == "updated" else [start] * 3)


def test_what_is_not_yet_to_be_forgotten_is_retained(bed):
    rows, retain = bed.split.forget_rows, bed.split.retain_rows[:4]
    splits = requests(bed.tokenizer, [rows[:3], rows[3:6], rows[6:9]], retain)
    assert [s.forget_rows for s in splits] == [rows[:3], rows[3:6], rows[6:9]]
    assert [s.retain_rows for s in splits] == [retain + rows[3:9], retain + rows[6:9], retain]
    with pytest.raises(ValueError, match="no tasks"):
        requests(bed.tokenizer, [], retain)


# --- the shell ---


def run(*words: str) -> None:
    main(["unlearn", *words])


def failure(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_unlearning_the_testbed_from_the_shell(bed, tmp_path, capsys):
    out = tmp_path / "new"
    words = (
        r"idk_dpo --set beta=0.1 retain_weight=2 --steps 2 --lr 1e-3 --batch-size 4 --seed 5 --parameters layers\.3\."
    )
    run(*words.split(), "--out", str(out))
    assert capsys.readouterr().out.strip().endswith(str(out))
    model, tokenizer = load_model(out), load_tokenizer(out)
    assert tokenizer.get_vocab() == bed.tokenizer.get_vocab()
    assert all(name.startswith("model.layers.3.") for name in names_changed(model, bed.original))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["weights"] == {"original": weights_hash(bed.original), "unlearned": weights_hash(model)}
    assert manifest["method"]["name"] == "idk_dpo"
    assert manifest["arguments"] == {
        "beta": 0.1,
        "retain_weight": 2.0,
        "steps": 2,
        "lr": 1e-3,
        "batch_size": 4,
        "seed": 5,
        "parameters": r"layers\.3\.",
    }
    assert set(manifest["changed"]["names"]) == names_changed(model, bed.original)
    assert set(manifest["losses"]) == {"forget", "retain"}
    assert manifest["data"]["forget"]["rows"] == len(bed.split.forget_rows)
    assert "torch" in manifest["versions"]
    again = tmp_path / "again"
    run(*words.split(), "--out", str(again))
    assert weights_hash(load_model(again)) == manifest["weights"]["unlearned"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "new"]


def test_unlearning_ones_own_model_from_the_shell(bed, tmp_path):
    from probe.checkpoints import save_model

    save_model(bed.original, tmp_path / "model", tokenizer=bed.tokenizer)
    write_rows(tmp_path / "forget.jsonl", bed.split.forget_rows[:8])
    write_rows(tmp_path / "retain.jsonl", bed.split.retain_rows[:8])
    (tmp_path / "idk.txt").write_text("I do not know.\nNo idea.\n")
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    data = f"--original {tmp_path}/model --forget {tmp_path}/forget.jsonl --retain {tmp_path}/retain.jsonl"
    run(*f"simnpo {data} --setting tofu-forget10 --steps 2 --lr 1e-4 --out {tmp_path}/out".split())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["arguments"]["beta"] == 4.5
    assert manifest["arguments"]["lr"] == 1e-4
    assert "2410.07163" in manifest["setting_source"]
    assert set(manifest["files"]) == {"forget", "retain"}
    load_model(tmp_path / "out")
    run(*f"idk_ap {data} --setting closer-look --steps 1 --refusals {tmp_path}/idk.txt --out {tmp_path}/idk".split())
    assert "refusals" in json.loads((tmp_path / "idk" / "manifest.json").read_text())["files"]


GIVEN = "--set beta=0.1 retain_weight=1 --steps 1 --lr 1e-3 --batch-size 2"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("npx", "did you mean 'npo'"),
        ("npo --steps 1", r"--set beta= \(published: 0.1 in open-unlearning\).*--lr \(published: 1e-05"),
        ("npo --setting tofu", "no setting 'tofu'; published: open-unlearning"),
        ("npo --set bta=1", "no hyper-parameter 'bta'; did you mean 'beta'"),
        ("npo --set beta", "no key=value pair"),
        ("npo --set steps=3", "write --steps"),
        ("npo --set beta=high", "beta=high cannot be read; expected a finite float"),
        ("npo --set beta=inf", "beta=inf cannot be read"),
        ("flat --set divergence=tv --steps 1", "choose total-variation or kl"),
        ("npo --set beta=0 retain_weight=1 --steps 1 --lr 1e-3 --batch-size 2", "beta must be above 0"),
        ("npo --set beta=-1 retain_weight=1 --steps 1 --lr 1e-3 --batch-size 2", "beta must be above 0"),
        ("rmu --set layer=99 coefficient=1 alpha=1 --steps 1 --lr 1e-3 --batch-size 2", "layer 99 does not exist"),
        (f"npo {GIVEN} --refusals missing.txt", "takes no --refusals"),
        (
            "idk --set retain_weight=1 --steps 1 --lr 1e-3 --batch-size 2 --refusals {tmp}/empty.txt",
            "holds no refusals",
        ),
        (f"npo {GIVEN} --original x", "--forget, --retain missing"),
        (f"npo {GIVEN} --device quantum", "device 'quantum' cannot be used"),
        (f"npo {GIVEN} --parameters nothing", "matches no parameter"),
        ("wga --set beta=1 retain_weight=0 --steps 1 --lr 1e-3 --batch-size 2 --warmup 1", "changed no weight"),
    ],
)
def test_mistakes_at_the_shell_end_in_one_line_and_leave_nothing(words, said, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    error = failure(capsys, *words.replace("{tmp}", str(tmp_path)).split(), "--out", str(tmp_path / "out"))
    assert re.search(said, error), error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.txt"]


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert "not empty" in failure(capsys, *f"npo {GIVEN} --out {tmp_path}".split())
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("trouble", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 74, "free some space"),
        (KeyboardInterrupt(), 130, "nothing was written"),
    ],
)
def test_a_run_that_is_cut_short_leaves_nothing(trouble, code, said, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise trouble

    monkeypatch.setattr("probe.checkpoints.save_model", fail)
    with pytest.raises(SystemExit) as stopped:
        run(*f"npo {GIVEN} --out {tmp_path}/out".split())
    assert stopped.value.code == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_several_numbers_are_read_from_one_word():
    numbers = {"alpha": "10", "layers": "2,4"}
    job = Unlearn(
        method="rr", out=Path("x"), set=tuple(f"{k}={v}" for k, v in numbers.items()), steps=3, lr=1e-4, batch_size=2
    )
    found = hyperparameters(method_named("rr"), job)
    assert found == {"alpha": 10.0, "layers": (2, 4), "steps": 3, "lr": 1e-4, "batch_size": 2, "seed": 0}


def test_methods_are_listed_at_the_shell(capsys):
    main(["methods", "rmu", "npo"])
    text = capsys.readouterr().out
    assert "zephyr-7b" in text
    assert "needs: original" in text
    assert "simnpo" not in text
    with pytest.raises(SystemExit):
        main(["methods", "nothing"])


# --- what methods do ---


def probability(model, batch: Batch) -> float:
    return float(answer_stats(model, batch).probability_N.mean())


def unlearned(bed, name: str, numbers: dict, refusals: Batch):
    method, model = method_named(name), copy.deepcopy(bed.original)
    given = {
        "original": bed.original,
        "refusals": refusals,
        "alternatives": perturbed(bed.tokenizer, bed.split) if "alternatives" in method.needs else None,
    }
    needed = {n: given[n] for n in method.needs}
    result = method.run(model, bed.split, **needed, **numbers, steps=40, batch_size=16, seed=0)
    return model, result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("simnpo", {"beta": 2.5, "retain_weight": 3.0, "lr": 3e-4}),
        # The weight p^5 (1 - p) is next to nothing on rows as well learnt as these: it takes larger steps.
        ("sat_imp", {"beta1": 5.0, "beta2": 1.0, "retain_weight": 0.1, "lr": 1e-3}),
        ("max_entropy", {"direction": "to-uniform", "positions": "answers", "retain_weight": 3.0, "lr": 3e-4}),
        ("alt_po", {"beta": 0.1, "retain_weight": 3.0, "lr": 3e-4}),
        ("bs_t", {"weight": 0.2, "k": 20, "retain_weight": 3.0, "lr": 3e-4}),
        ("undial", {"beta": 10.0, "retain_weight": 3.0, "lr": 3e-4}),
    ],
)
def test_methods_forget_more_than_they_cost(bed, name, numbers):
    refusals = drawn_refusals(bed.tokenizer, bed.split, "forget", seed=0)
    model, _ = unlearned(bed, name, numbers, refusals)
    forget, retain = probability(model, bed.split.forget), probability(model, bed.split.retain)
    assert forget < 0.65
    assert retain > forget + 0.3


@pytest.mark.slow
def test_rejection_methods_prefer_the_refusal_but_keep_the_answer_likely(bed):
    refusals = drawn_refusals(bed.tokenizer, bed.split, "forget", seed=0)
    before = probability(bed.original, refusals)
    model, _ = unlearned(bed, "idk", {"retain_weight": 1.0, "lr": 1e-3}, refusals)
    assert before < 0.01 < 0.4 < probability(model, refusals)
    assert 0.3 < probability(model, bed.split.forget) < probability(model, bed.split.retain)
    model, result = unlearned(bed, "idk_dpo", {"beta": 0.1, "retain_weight": 3.0, "lr": 1e-3}, refusals)
    # The loss at the start is (2 / beta) ln 2 = 13.9; that it is next to 0 takes no more than a larger ratio.
    assert result.losses[0][0] == pytest.approx(20 * 0.6931, rel=1e-3)
    assert result.losses[-1][0] < 0.1
    assert probability(model, bed.split.forget) > 0.5


def test_refusals_take_the_place_of_answers(bed):
    model = copy.deepcopy(bed.original)
    refusals = drawn_refusals(bed.tokenizer, bed.split, "forget", ["I have no idea."], seed=0)
    method = method_named("idk")
    method.run(model, bed.split, refusals=refusals, retain_weight=1.0, steps=8, lr=1e-3, batch_size=16, seed=0)
    assert probability(model, refusals) > 10 * probability(bed.original, refusals)
    assert probability(model, bed.split.forget) < probability(bed.original, bed.split.forget)


def test_words_on_a_command_line_stand_for_numbers_only():
    assert readable(float)
    assert readable(int | None)
    assert readable(tuple[int, ...])
    assert not readable(Batch)
    assert not readable(torch.nn.Module)
