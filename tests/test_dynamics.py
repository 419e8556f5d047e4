"""Diagnostics and attacks in mid-run: the run is bit for bit the one that nobody watched, and rows tell the step."""

import random
from functools import partial

import numpy as np
import pytest
import torch

from probe.attacks.facts import divided
from probe.attacks.relearning import relearn
from probe.checkpoints import weights_hash
from probe.data import encode, make_split
from probe.diagnostics.dynamics import dynamics, state_restored
from probe.methods.baselines import ga
from probe.methods.bootstrapping import bs_s
from probe.objectives.token import nll
from probe.rows import Row
from probe.train import Checkpointing, Smoothing, Term, minimise
from tests.conftest import random_batch, tiny_llama


def careless(model):
    """Draws numbers everywhere, leaves gradients, freezes a weight and switches to train mode."""
    random.random()
    np.random.rand(3)
    torch.rand(3)
    nll(model, random_batch(5)).backward()
    model.train()
    next(model.parameters()).requires_grad_(False)
    return {"nothing": 1.0}


def noisy(model, batch):
    """An objective that draws from torch's global numbers."""
    return nll(model, batch) * (1 + torch.rand(()))


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


def seeded():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="module")
def rows(bed):
    return bed.split.forget_rows[:8]


@pytest.fixture(scope="module")
def questions(bed, rows):
    facts = divided(bed.tokenizer, rows, share=0.5, by="row", seed=0, choices=False)
    return {
        "careless": careless,
        "relearning": lambda m: relearn(m, facts, steps=2, lr=1e-2, batch_size=4).recovery.model.after.means(),
        "rows": lambda m: [Row("?", "norms", "norm", m.lm_head.weight.norm().item(), layer=1)],
    }


def test_a_watched_run_is_the_run_that_nobody_watched(bed, rows, questions, tmp_path):
    data = encode(bed.tokenizer, rows)

    def prepared(folder):
        seeded()
        model = tiny_llama(vocab_size=1024)
        checkpoint = Checkpointing(folder, every=2, keep=9)
        settings = {"steps": 6, "lr": 1e-3, "batch_size": 4, "seed": 3, "stepping": Smoothing(0.01, 2)}
        return model, partial(minimise, model, [Term(1.0, noisy, data)], checkpoint=checkpoint, **settings)

    plain, run = prepared(tmp_path / "plain")
    first, history = weights_hash(plain), run()
    drawn = np.random.rand(), float(torch.rand(1))
    model, run = prepared(tmp_path / "watched")
    found = dynamics(run, model, questions, at=(0, 2, 4, 6), name="NLL")
    assert drawn == (np.random.rand(), float(torch.rand(1)))
    assert weights_hash(model) == weights_hash(plain) != first
    assert found.history == history
    # Weights and both moments of AdamW at three points of the run.
    assert len(files(tmp_path / "plain")) == 6
    assert files(tmp_path / "plain") == files(tmp_path / "watched")
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert found.steps == (0, 2, 4, 6)
    norms = [row for row in found.rows() if row.diagnostic == "norms"]
    assert [(row.intervention, row.item, row.layer) for row in norms] == [("NLL", step, 1) for step in (0, 2, 4, 6)]
    assert norms[-1].value == plain.lm_head.weight.norm().item()
    assert {row.quantity for row in found.rows() if row.diagnostic == "relearning"} == {"probability", "match"}


def test_a_method_that_samples_from_the_model_can_be_watched(bed, rows, questions):
    split = make_split(bed.tokenizer, rows, bed.split.retain_rows[:8])
    settings = {"weight": 0.5, "samples": 1, "max_new_tokens": 4, "retain_weight": 1.0, "seed": 3, "lr": 1e-3}
    model, other = tiny_llama(vocab_size=1024), tiny_llama(vocab_size=1024)
    history = bs_s(model, split, steps=3, batch_size=4, **settings)
    run = partial(bs_s, other, split, steps=3, batch_size=4, **settings)
    assert dynamics(run, other, questions, at=(1, 2), name="BS-S").history == history
    assert weights_hash(model) == weights_hash(other)


def test_random_states_come_back_after_an_exception_too():
    model = tiny_llama()
    seeded()
    before = random.getstate(), np.random.get_state()[2], torch.get_rng_state()

    def falls():
        with state_restored(model, "it"):
            careless(model)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        falls()
    assert random.getstate() == before[0]
    assert np.random.get_state()[2] == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert not model.training


def test_a_question_that_changes_the_model_is_named():
    model = tiny_llama()
    run = partial(minimise, model, [Term(1.0, nll, random_batch())], steps=2, lr=1e-3, batch_size=2, seed=0)

    def breaks(model):
        with torch.no_grad():
            model.lm_head.weight[0, 0] += 1
        return {}

    with pytest.raises(RuntimeError, match="'breaks' at step 1 left other weights behind"):
        dynamics(run, model, {"breaks": breaks}, at=(1,), name="NLL")

    def hangs(model):
        model.lm_head.register_forward_hook(lambda *given: None)
        return {}

    with pytest.raises(RuntimeError, match="left other hooks behind"):
        dynamics(run, model, {"hangs": hangs}, at=(2,), name="NLL")


def test_a_question_that_fails_loses_neither_the_run_nor_the_others(bed):
    model = tiny_llama(vocab_size=1024)
    run = partial(ga, model, bed.split, steps=2, lr=1e-3, batch_size=2, seed=0)

    def fails(model):
        raise ValueError("no such thing")

    with pytest.warns(UserWarning, match="'fails' failed at step 2: ValueError: no such thing"):
        found = dynamics(run, model, {"fails": fails, "one": lambda m: {"x": 1}}, at=(2,), name="GA")
    failed, other = found.rows()
    assert (failed.value, failed.item, failed.status) == (None, 2, "ValueError: no such thing")
    assert (other.diagnostic, other.quantity, other.value, other.item) == ("one", "x", 1.0, 2)


def test_dynamics_refuses_what_makes_no_sense():
    model = tiny_llama()
    settings = {"lr": 1e-3, "batch_size": 2, "seed": 0}
    run = partial(minimise, model, [Term(1.0, nll, random_batch())], steps=2, **settings)
    with pytest.raises(ValueError, match="expected questions and steps of at least 0"):
        dynamics(run, model, {}, at=(0,), name="NLL")
    with pytest.raises(ValueError, match="where the step goes"):
        dynamics(run, model, {"q": lambda m: [Row("a", "b", "c", 1.0, item=3)]}, at=(0,), name="NLL")
    with pytest.warns(UserWarning, match=r"not asked at steps \[9\]"):
        assert dynamics(run, model, {"q": lambda m: {}}, at=(1, 9), name="NLL").steps == (1,)

    def twice(**watching):
        run(**watching)
        return run(**watching)

    with pytest.raises(ValueError, match="step 1 came twice"):
        dynamics(twice, model, {"q": lambda m: {}}, at=(1,), name="NLL")
