"""One model, many open blocks: left out of order, or entered in two threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from conftest import random_batch, tiny_llama

from probe.checkpoints import weights_hash
from probe.hooks import captured, edited, our_hooks
from probe.interventions.replacement import Scale
from probe.modes import evaluating
from probe.sites import Site
from probe.weights import blended, negated, swapped

MIXED = {
    "blended": lambda model, other: blended(model, other, [0.5] * 3, 1.0),
    "negated": lambda model, other: negated(model, other, 0.3),
    "swapped": lambda model, other: swapped(model, lambda name, weight: weight + 1),
}


def held(context):
    with context:
        yield


@pytest.mark.parametrize("first", MIXED)
def test_r14_weights_come_back_when_blocks_are_left_out_of_order(first):
    model, other = tiny_llama(0), tiny_llama(1)
    before, pointers = weights_hash(model), [p.data_ptr() for p in model.parameters()]
    outer, inner = held(MIXED[first](model, other)), held(blended(model, other, [1.0] * 3))
    next(outer)
    next(inner)
    within = weights_hash(model)
    with pytest.raises(ValueError, match=rf"{first} was left while blended, entered after it .*reverse order"):
        next(outer)
    assert weights_hash(model) == within
    with pytest.raises(StopIteration):
        next(inner)
    assert weights_hash(model) == before
    assert pointers == [p.data_ptr() for p in model.parameters()]


def test_r14_three_blocks_left_from_the_outermost_on_and_by_close():
    model, other = tiny_llama(0), tiny_llama(1)
    before = weights_hash(model)
    blocks = [held(blended(model, other, [share] * 3)) for share in (0.2, 0.5, 1.0)]
    for block in blocks:
        next(block)
    for block in blocks[:2]:
        with pytest.raises(ValueError, match="left while blended"):
            block.close()
    blocks[2].close()
    assert weights_hash(model) == before
    with blended(model, other, [1.0] * 3):  # and nothing is remembered of them
        pass


def test_r14_modes_come_back_too_and_an_exception_of_the_body_is_not_hidden():
    model = tiny_llama().train()
    outer, inner = held(evaluating(model)), held(evaluating(model))
    with pytest.warns(UserWarning, match="train mode"):
        next(outer)
    next(inner)
    with pytest.raises(KeyError):
        outer.throw(KeyError("of the body"))
    inner.close()
    assert all(module.training for module in model.modules())


def test_r14_readings_and_edits_may_be_left_in_any_order_and_compiling_is_allowed_again():
    import torch._dynamo
    from torch._dynamo import eval_frame

    model, inputs = tiny_llama(), random_batch().inputs
    stance, bare = eval_frame._stance, model(**inputs).logits
    outer, inner = held(edited(model, {Site(0): Scale(2.0)})), held(edited(model, {Site(1): Scale(2.0)}))
    next(outer)
    next(inner)
    outer.close()
    with edited(tiny_llama(), {Site(1): Scale(2.0)}):
        assert eval_frame._stance.stance == "force_eager"
    assert eval_frame._stance.stance == "force_eager"
    inner.close()
    assert eval_frame._stance == stance
    assert our_hooks(model) == []
    assert torch.equal(model(**inputs).logits, bare)


def in_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_r15_a_block_of_another_thread_on_the_same_model_is_refused_by_name():
    model, other = tiny_llama(0), tiny_llama(1)
    makers = {
        "captured": lambda: captured(model, [Site(0)]),
        "edited": lambda: edited(model, {Site(0): Scale(2.0)}),
        "blended": lambda: blended(model, other, [1.0] * 3),
        "evaluating": lambda: evaluating(model),
    }

    def enter(make):
        with make():
            return "entered"

    before = weights_hash(model)
    for name in ("captured", "edited", "blended"):
        with makers[name]():
            for second, make in makers.items():
                with pytest.raises(ValueError, match=rf"{second} was entered while another thread is inside {name}"):
                    in_thread(lambda make=make: enter(make))
    assert {in_thread(lambda make=make: enter(make)) for make in makers.values()} == {"entered"}
    with makers["evaluating"]():  # a model that is in eval mode already may be measured by both
        assert in_thread(lambda: enter(makers["evaluating"])) == "entered"
    assert weights_hash(model) == before


def test_r15_a_forward_in_another_thread_runs_into_no_edit_and_no_reading():
    model, inputs = tiny_llama(), random_batch().inputs
    for block in (edited(model, {Site(1): Scale(2.0)}), captured(model, [Site(1)])):
        with block as states:
            with pytest.raises(ValueError, match="block that another thread entered; enter the block in the thread"):
                in_thread(lambda: model(**inputs))
            assert not states
            model(**inputs)
    bare = model(**inputs).logits
    assert torch.equal(in_thread(lambda: model(**inputs).logits), bare)


def test_r15_two_models_in_two_threads_stay_right():
    inputs, meet = random_batch().inputs, threading.Barrier(2)
    models = [tiny_llama(0), tiny_llama(1)]

    def alone(i):
        with edited(models[i], {Site(1): Scale(2.0 + i)}), captured(models[i], [Site(1)]) as states:
            logits = models[i](**inputs).logits
        return logits, states[Site(1)]

    expected = [alone(i) for i in range(2)]

    def together(i):
        same = True
        for _ in range(4):
            with ExitStack() as stack:
                stack.enter_context(edited(models[i], {Site(1): Scale(2.0 + i)}))
                states = stack.enter_context(captured(models[i], [Site(1)]))
                meet.wait(10)
                logits = models[i](**inputs).logits
                meet.wait(10)
            same &= torch.equal(logits, expected[i][0]) and torch.equal(states[Site(1)], expected[i][1])
        return same

    with torch.no_grad(), ThreadPoolExecutor(2) as pool:
        assert list(pool.map(together, range(2))) == [True, True]
