"""A reference for divergences that keeps what enters the head, and heads that run only where they are needed."""

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from families import FAMILIES, family

from probe.objectives.logprobs import before_targets, logits_at, logprobs_at
from probe.objectives.original import OriginalAnswers
from probe.objectives.retain import ForwardKL, ReverseKL
from probe.train import Term, lora, minimise
from probe.train.configuration import identity_of


def remembered(original, batch, **how):
    return OriginalAnswers(original, batch, batch_size=3, **how)


def gradient(model, objective, batch):
    return torch.autograd.grad(objective(model, batch), list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "mamba"])
def test_distributions_from_kept_states_are_those_of_the_model(name):
    original, model, whole = family(name), family(name, seed=1), random_batch(2)
    positions_BT = before_targets(whole)
    kept = remembered(original, whole, states=True)
    with torch.no_grad():
        before = logprobs_at(original, whole, positions_BT)
    torch.testing.assert_close(kept.distributions_at(whole, positions_BT), before, rtol=1e-6, atol=1e-6)
    width = original.config.get_text_config().hidden_size
    assert {held.shape[1] for _, held in kept.distributions.values()} == {width}
    some = whole.select([3, 1])
    for make in (ForwardKL, ReverseKL):
        found, judge = (gradient(model, make(o), some) for o in (kept, original))
        for one, other in zip(found, judge, strict=True):
            if other is None:
                assert one is None
            else:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # the reference does not move with the model it was made from
        for p in original.parameters():
            p.mul_(1.5)
    torch.testing.assert_close(kept.distributions_at(whole, positions_BT), before, rtol=1e-6, atol=1e-6)


def test_kept_states_hold_one_head_and_no_second_model():
    for original in (tiny_llama(), tiny_gpt2()):  # GPT-2's head is tied to its embedding
        kept = remembered(original, random_batch(), states=True)
        assert kept.head is not None
        assert [n for n, _ in kept.head.shell.named_parameters()] == ["lm_head.weight"]
        assert not kept.head.shell.lm_head.weight.requires_grad
        assert kept.head.shell.lm_head.weight.data_ptr() != original.lm_head.weight.data_ptr()
        assert all(p.requires_grad for p in original.parameters())
    with pytest.raises(ValueError, match="two ways to keep the same"):
        remembered(original, random_batch(), states=True, full=True)
    with pytest.raises(ValueError, match=r"states before \d+ targets over 16 numbers take .* GiB"):
        remembered(original, random_batch(), states=True, limit_gib=1e-9)
    assert identity_of(ForwardKL(kept)) == identity_of(ForwardKL(remembered(original, random_batch(), states=True)))
    assert identity_of(ForwardKL(kept)) != identity_of(ForwardKL(remembered(tiny_gpt2(1), random_batch(), states=True)))


def test_a_head_that_cannot_stand_alone_is_refused():
    original = tiny_llama()
    plain = original.forward

    def twisted(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits * len(output.logits)
        return output

    original.forward = twisted
    with pytest.raises(ValueError, match="gives other logits by itself"):
        remembered(original, random_batch(), states=True)


def test_training_with_kept_states_is_training_with_the_model():
    batch, weights = random_batch(), []
    for make in (lambda o: o, lambda o: remembered(o, batch, states=True)):
        model = tiny_gpt2()
        minimise(model, [Term(1.0, ForwardKL(make(tiny_gpt2(1))), batch)], steps=4, lr=1e-3, batch_size=2, seed=0)
        weights.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-9)


def adapted(model):
    pytest.importorskip("peft")
    return lora(model, rank=2, alpha=4.0, targets=["o_proj"], seed=0)


@pytest.mark.parametrize("wrap", [lambda m: m, adapted], ids=["bare", "peft"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt2"])
def test_the_head_runs_only_where_a_row_needs_it(name, wrap):
    if wrap is adapted and name not in ("llama", "gemma2"):
        pytest.skip("has no o_proj")
    model, batch, widths = wrap(family(name)), random_batch(), []
    handle = model.get_output_embeddings().register_forward_hook(lambda m, args, out: widths.append(out.shape[1]))
    positions_BT = before_targets(batch)
    found = logits_at(model, batch, positions_BT)
    handle.remove()
    torch.testing.assert_close(found, model(**batch.inputs).logits[positions_BT], rtol=1e-6, atol=1e-6)
    assert widths == [int(positions_BT.any(0).sum())]
    assert widths[0] < batch.tokens_BT.shape[1] - 1
