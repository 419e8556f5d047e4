import pytest
import torch
from conftest import random_batch, tiny_llama

from probe.diagnostics.g_effect import g_effect
from probe.objectives.token import ga
from probe.train import Checkpointing, Term, at_checkpoint, checkpoints, minimise


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_any_diagnostic_can_be_asked_of_saved_checkpoints(tmp_path):
    model, seen = tiny_llama(), {}
    batch, retain = random_batch(0), random_batch(1)

    def effect(model):
        return g_effect(model, ga, batch, over=retain).total

    def observe(step, model):
        seen[step] = (effect(model), weights(model))

    how = {"steps": 6, "lr": 1e-2, "batch_size": 2, "seed": 3}
    minimise(
        model, [Term(1.0, ga, batch)], checkpoint=Checkpointing(tmp_path, 2, keep=9), every=2, observe=observe, **how
    )
    fresh = tiny_llama()
    before, visited = weights(fresh), []
    for path in checkpoints(tmp_path):
        with at_checkpoint(fresh, path) as step:
            visited.append(step)
            assert all(map(torch.equal, weights(fresh), seen[step][1]))
            assert effect(fresh) == seen[step][0]
        assert all(map(torch.equal, weights(fresh), before))
    assert visited == [2, 4, 6]


def test_what_is_no_checkpoint_of_this_model_is_refused(tmp_path):
    minimise(
        tiny_llama(),
        [Term(1.0, ga, random_batch())],
        steps=1,
        lr=1e-2,
        batch_size=2,
        seed=0,
        checkpoint=Checkpointing(tmp_path, 1),
    )
    with pytest.raises(FileNotFoundError, match="no checkpoint at"), at_checkpoint(tiny_llama(), tmp_path / "step-7"):
        pass
    other = tiny_llama(hidden_size=32)
    with pytest.raises(ValueError, match="holds weights that this model does not have"):
        with at_checkpoint(other, checkpoints(tmp_path)[0]):
            pass
    (path,) = checkpoints(tmp_path)
    weights_file = path / "weights.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not what was written"), at_checkpoint(tiny_llama(), path):
        pass
