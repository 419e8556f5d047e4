"""A method by its name from Python: what it needs is found, what is wrong is said, and it does what its recipe does."""

import copy
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from conftest import tiny_llama

from probe.checkpoints import weights_hash
from probe.data import Template, encode
from probe.methods.answers import drawn_refusals
from probe.methods.baselines import npo
from probe.methods.catalogue import method_named, methods
from probe.methods.preference import idk
from probe.methods.running import accepts, run_method
from probe.methods.supplies import HANDED_IN, handed_in

SIZE = {"lr": 1e-3, "steps": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def rows(bed):
    """Few rows of the testbed, with their texts."""
    sides = {"forget": bed.split.forget.select(range(4)), "retain": bed.split.retain.select(range(4))}
    return replace(bed.split, **sides, forget_rows=bed.split.forget_rows[:4], retain_rows=bed.split.retain_rows[:4])


def model():
    return tiny_llama(vocab_size=1024)


def test_it_does_what_the_recipe_does(bed, rows):
    one, other = model(), model()
    run_method("npo", one, rows, bed.tokenizer, beta=0.1, retain_weight=10, **SIZE)
    npo(other, rows, original=copy.deepcopy(other), beta=0.1, retain_weight=10.0, seed=0, **SIZE)
    assert weights_hash(one) == weights_hash(other) != weights_hash(model())


def test_published_settings_are_where_it_starts(bed, rows):
    one, other = model(), model()
    run_method("simnpo", one, rows, bed.tokenizer, setting="tofu-forget10", steps=1, beta=1.0)
    numbers = dict(method_named("simnpo").published["tofu-forget10"].arguments) | {"beta": 1.0}
    run_method("simnpo", other, rows, bed.tokenizer, steps=1, **numbers)
    assert weights_hash(one) == weights_hash(other)


def test_refusals_are_texts_or_a_batch(bed, rows):
    hashes = set()
    batch = drawn_refusals(bed.tokenizer, rows, "forget", ["No idea."], seed=0)
    for refusals in ("No idea.", ["No idea."], batch):
        one = model()
        run_method("idk", one, rows, bed.tokenizer, refusals=refusals, retain_weight=1.0, **SIZE)
        hashes.add(weights_hash(one))
    other = model()
    idk(other, rows, refusals=batch, retain_weight=1.0, seed=0, **SIZE)
    assert hashes == {weights_hash(other)}


def test_what_the_method_has_no_use_for_is_left_aside_among_supplies(bed, rows):
    one, other = model(), model()
    supplies = {"sae": bed.sae, "site": bed.sae_site, "unlearned": bed.retrained, "original": None}
    run_method("ga", one, rows, bed.tokenizer, supplies=supplies, **SIZE)
    run_method("ga", other, rows, bed.tokenizer, **SIZE)
    assert weights_hash(one) == weights_hash(other)


def test_mixtures_stay_in_the_model(bed, rows):
    one, unlearned = model(), tiny_llama(1, vocab_size=1024)
    found = run_method(
        "uwc", one, rows, bed.tokenizer, unlearned=unlearned, score=lambda m: float(m is one), share=0.5, batch_size=2
    )
    assert found.alpha == 1.0
    assert weights_hash(one) == weights_hash(unlearned)
    one, scores = model(), (torch.tensor([0.0, 3.0, 1.0]), torch.tensor([0.0, 3.0, 1.0]))
    supplies = {"unlearned": unlearned, "layer_scores": lambda: scores}
    run_method("cru", one, rows, bed.tokenizer, supplies=supplies, k=1)
    names = {n for (n, p), q in zip(one.named_parameters(), model().parameters(), strict=True) if not torch.equal(p, q)}
    assert names
    assert all(name.startswith("model.layers.1.") for name in names)


def test_methods_that_act_while_a_text_is_read_return_what_acts(bed, rows):
    before = weights_hash(bed.original)
    template = run_method("in_context", bed.original, rows, bed.tokenizer, forget_shown=1, retain_shown=1)
    assert isinstance(template, Template)
    edits = run_method(
        "sae_suppression",
        bed.original,
        rows,
        bed.tokenizer,
        supplies={"sae": bed.sae, "site": bed.sae_site},
        rule="mean-difference",
        features=2,
        value=-1.0,
    )
    assert list(edits) == [bed.sae_site]
    assert weights_hash(bed.original) == before


def test_rows_of_another_task_are_encoded(bed, rows):
    one, other = model(), model()
    numbers = {"beta": 0.5, "retain_weight": 1.0, "irm_weight": 1.0, **SIZE}
    world = list(bed.world[:4])
    run_method("npo_irm", one, rows, bed.tokenizer, environment=world, **numbers)
    run_method("npo_irm", other, rows, bed.tokenizer, environment=encode(bed.tokenizer, world), **numbers)
    assert weights_hash(one) == weights_hash(other)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("npx", {}, "did you mean 'npo'"),
        ("npo", {"bta": 1.0}, "no hyper-parameter 'bta'; did you mean 'beta'"),
        ("npo", {"refusals": ["No."]}, "no hyper-parameter 'refusals'"),
        ("npo", {"steps": 2}, r"also needs beta \(published: 0.1 in open-unlearning\).*lr \(published: 1e-05"),
        ("npo", {"setting": "tofu"}, "no setting 'tofu'; published: open-unlearning"),
        ("npo", {"beta": "high", "retain_weight": 1.0, **SIZE}, "beta must be a number, got the text 'high'"),
        ("npo_irm", {"beta": 1.0, "retain_weight": 1.0, "irm_weight": 1.0, **SIZE}, "needs environment: rows"),
        ("whp", {"alpha": 1.0, **SIZE}, "whp needs assistant: a model"),
        ("random_labels", SIZE, "needs labels: 'answers' or 'vocabulary'"),
        ("random_labels", {"labels": "all", **SIZE}, "labels must be 'answers' or 'vocabulary', got 'all'"),
        ("sae_suppression", {"rule": "frequency", "features": 1, "value": 0}, "needs sae: an SAE .*; site: the site"),
    ],
)
def test_mistakes_are_said_before_anything_is_done(name, arguments, message, bed, rows):
    one = model()
    before = weights_hash(one)
    with pytest.raises(ValueError, match=message):
        run_method(name, one, rows, bed.tokenizer, **arguments)
    assert weights_hash(one) == before


def test_everything_a_recipe_takes_can_be_given():
    for method in methods():
        assert set(method.hyperparameters) <= {*accepts(method), *method.needs}
        assert set(handed_in(method)) <= set(HANDED_IN)
    assert {"observe", "every", "stepping", "forget_weight"} <= set(accepts(method_named("npo")))
    assert "steps" not in accepts(method_named("scrub"))


def test_every_family_of_methods_has_an_example():
    for module in {method.run.__module__ for method in methods()}:
        assert ">>> " in import_module(module).__doc__, module
