"""Weights that are kept as whole numbers are recognised in every form, and models come back in their own dtype."""

import warnings

import pytest
import torch
from conftest import random_batch, tiny_llama
from torch import Tensor, nn

from probe.checkpoints import weight_hashes, weights_hash
from probe.diagnostics.g_effect import g_effect
from probe.objectives.token import ga
from probe.quantised import quantised
from probe.sites import blocks
from probe.train.setup import trained_parameters
from probe.weights import blended


class Int8(Tensor):
    """A float matrix to look at, whole numbers and a scale inside, as torchao keeps them."""

    @staticmethod
    def __new__(cls, number: Tensor, scale: Tensor):
        return Tensor._make_wrapper_subclass(cls, number.shape, dtype=scale.dtype)

    def __init__(self, number: Tensor, scale: Tensor) -> None:
        self.number, self.scale = number, scale

    def __tensor_flatten__(self):
        return ["number", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, held, context, size, stride):
        return cls(held["number"], held["scale"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].number, args[0].scale)
        args = [a.number * a.scale if isinstance(a, cls) else a for a in args]
        return function(*args, **(kwargs or {}))


def inside(linear: nn.Linear) -> nn.Linear:
    scale = linear.weight.detach().abs().max() / 127
    coded = Int8((linear.weight.detach() / scale).round().to(torch.int8), scale)
    linear.weight = nn.Parameter(coded, requires_grad=False)
    return linear


def packed(linear: nn.Linear) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, torch.qint8)[0]


def eight_bit(code, seed: int = 0):
    model = tiny_llama(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated, and still used
        for block in blocks(model):
            block.mlp.up_proj = code(block.mlp.up_proj)
        model.lm_head = code(model.lm_head)
    return model


@pytest.mark.parametrize("code", [inside, packed])
def test_r16_eight_bit_weights_are_recognised_in_tensors_and_in_modules(code):
    model, plain, batch = eight_bit(code), tiny_llama(), random_batch()
    expected = [*(f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)), "lm_head.weight"]
    assert quantised(model) == {name: plain.get_parameter(name).numel() for name in expected}
    with pytest.raises(ValueError, match="holds 4 quantised weights"):
        blended(model, eight_bit(code, 1), [1.0, 1.0, 1.0], 1.0).__enter__()
    with pytest.raises(ValueError, match=r"the first is model\.layers\.0\.mlp\.up_proj\.weight\) are quantised"):
        g_effect(model, ga, batch, over=batch)
    if code is inside:
        with pytest.raises(ValueError, match="4 of the 30 parameters to be trained are quantised"):
            trained_parameters(model, "")


@pytest.mark.parametrize("code", [inside, packed])
def test_r16_a_changed_eight_bit_weight_changes_the_hash(code):
    model, same, other = eight_bit(code), eight_bit(code), eight_bit(code)
    other.lm_head = eight_bit(code, 1).lm_head
    assert weights_hash(model) == weights_hash(same) != weights_hash(other)
    ours, theirs = weight_hashes(model), weight_hashes(other)
    assert [name for name, digest in ours.items() if theirs[name] != digest] == ["lm_head.weight"]


def test_r18_a_model_halved_inside_a_blend_comes_back_in_its_own_dtype():
    model, other, batch = tiny_llama(0), tiny_llama(1), random_batch()
    before, pointers = weights_hash(model), [p.data_ptr() for p in model.parameters()]
    buffers = {name: (b.data_ptr(), b.dtype) for name, b in model.named_buffers()}
    with torch.no_grad():
        bare = model(**batch.inputs).logits
        with blended(model, other, [0.0, 1.0, 0.0]):
            model.half()
            assert {p.dtype for p in model.parameters()} == {torch.float16}
        assert torch.equal(model(**batch.inputs).logits, bare)
    assert weights_hash(model) == before
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert {name: (b.data_ptr(), b.dtype) for name, b in model.named_buffers()} == buffers
    assert buffers
