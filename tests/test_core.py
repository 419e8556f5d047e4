"""Identities of the core: sites, hooks, weights, data, training."""

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama

from probe.checkpoints import weights_hash
from probe.hooks import captured, edited, foreign_hooks
from probe.objectives.representation import hidden_at
from probe.objectives.sequence import NPO
from probe.objectives.token import TNPO, WGA, ga, nll, target_logprobs
from probe.sites import Site, blocks, layer_of, module_at
from probe.train import Term, minimise
from probe.weights import blended, layers, one_layer


def test_captured_blocks_equal_hidden_states():
    model, batch = tiny_llama(), random_batch()
    sites = [Site(layer) for layer in range(3)]
    with captured(model, sites) as states:
        out = model(**batch.inputs, output_hidden_states=True)
    for layer in range(2):  # the last entry of hidden_states is after the final norm
        assert torch.equal(states[Site(layer)], out.hidden_states[layer + 1])
    assert torch.equal(model.model.norm(states[Site(2)]), out.hidden_states[3])


def test_stopping_early_gives_the_same_states_and_leaves_no_hook():
    model, batch = tiny_llama(), random_batch()
    with captured(model, [Site(1)]) as states:
        model(**batch.inputs)
    assert torch.equal(hidden_at(model, batch, Site(1)), states[Site(1)])
    assert not any(m._forward_hooks for m in blocks(model))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_survives_an_exception(error):
    model, batch = tiny_llama(), random_batch()

    def fail(hidden_BTD):
        raise error

    with pytest.raises(error), edited(model, {Site(1): fail}):
        model(**batch.inputs)
    assert foreign_hooks(model) == []
    assert not any(m._forward_hooks for m in model.modules())


def test_failing_setup_leaves_no_hook_and_foreign_hooks_stay():
    model = tiny_llama()
    foreign = blocks(model)[0].register_forward_hook(lambda *args: None)
    with pytest.warns(UserWarning, match="not ours"), pytest.raises(ValueError, match=r"layers 0\.\.2"):
        with edited(model, {Site(0): lambda h: h + 1, Site(9): lambda h: h}):
            pass
    assert list(blocks(model)[0]._forward_hooks) == [foreign.id]


def test_edit_acts_on_every_row_whether_blocks_return_tensor_or_tuple_33_34():
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=48, hidden_size=16, n_layer=3, n_head=2)).eval()
    for model in (tiny_llama(), tiny_gpt2(dtype=torch.float32), bloom):
        tokens_BT = random_batch().tokens_BT
        with torch.no_grad():
            before_BTV = model(tokens_BT).logits
            with edited(model, {Site(1): lambda h: h + torch.linspace(-1, 1, 16)}):
                after_BTV = model(tokens_BT).logits
            assert ((after_BTV - before_BTV).abs().amax((1, 2)) > 1e-4).all()
            assert torch.equal(model(tokens_BT).logits, before_BTV)


def test_sites_of_parts_and_layers():
    model = tiny_llama()
    assert module_at(model, Site(1, "mlp")) is blocks(model)[1].mlp
    assert layer_of(model, "model.layers.2.mlp.up_proj.weight") == 2
    assert layer_of(model, "lm_head.weight") is None
    with pytest.raises(ValueError, match="negative"):
        Site(-1)


_GEMMA_3N = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 64,
    "laurel_rank": 4,
    "num_kv_shared_layers": 0,
    "layer_types": ["full_attention"],
    "activation_sparsity_pattern": [0.0],
    "intermediate_size": [64],
}
_LLAMA_4 = {"intermediate_size_mlp": 64, "num_local_experts": 2, "moe_layers": [0]}


@pytest.mark.parametrize(
    ("name", "own", "site", "shape"),
    [
        ("gemma3n_text", _GEMMA_3N, Site(0), r"\(4, 1, 5, 32\)"),  # (input, batch, position, width)
        ("llama4_text", _LLAMA_4, Site(0, "mlp"), r"\(5, 32\)"),  # rows and positions in one axis
    ],
)
def test_f5_hidden_states_without_three_axes_are_refused_where_they_are_read_or_edited(name, own, site, shape):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**sizes, **heads, **own})).eval()
    tokens_BT, fine = torch.tensor([[1, 2, 3, 4, 5]]), Site(0, "attention")
    for block in (captured(model, [site]), edited(model, {site: lambda h: h + 1})):
        with pytest.raises(ValueError, match=rf"has shape {shape}; only hidden states of three axes"), block:
            model(tokens_BT)
    with captured(model, [fine]) as states:
        model(tokens_BT)
    assert states[fine].shape == (1, 5, 32)


def test_blend_at_zero_and_one_is_exact_and_restores_the_same_tensors():
    model, other, batch = tiny_llama(0), tiny_llama(1), random_batch()
    before, theirs = weights_hash(model), weights_hash(other)
    pointers = [p.data_ptr() for p in model.parameters()]
    with blended(model, other, torch.zeros(3)):
        assert weights_hash(model) == before
    with blended(model, other, torch.ones(3), alpha_rest=1.0):
        assert weights_hash(model) == theirs
    with pytest.raises(RuntimeError, match="inside"), blended(model, other, torch.full((3,), 0.3), 0.3):
        raise RuntimeError("inside")
    assert weights_hash(model) == before
    assert pointers == [p.data_ptr() for p in model.parameters()]
    with torch.no_grad():
        model(**batch.inputs)


def test_one_hot_blend_is_that_block_swapped():
    model, other = tiny_llama(0), tiny_llama(1)
    with blended(model, other, one_layer(1, 3)):
        for name, parameter in model.named_parameters():
            source = other if layer_of(model, name) == 1 else tiny_llama(0)
            assert torch.equal(parameter, source.get_parameter(name))


def test_training_inside_a_blend_leaves_the_other_model_alone():
    model, other, batch = tiny_llama(0), tiny_llama(1), random_batch()
    hashes = weights_hash(model), weights_hash(other)
    with blended(model, other, torch.ones(3), 1.0):
        minimise(model, [Term(1.0, nll, batch)], steps=2, lr=1e-2, batch_size=2, seed=0)
        assert weights_hash(model) != hashes[1]
    assert (weights_hash(model), weights_hash(other)) == hashes


def test_layers_out_of_range_27():
    with pytest.raises(ValueError, match=r"layers 0\.\.2"):
        layers([3], 3)


def test_target_logprobs_agree_with_the_hugging_face_loss():
    model, batch = tiny_llama(), random_batch()
    labels = batch.tokens_BT.masked_fill(~batch.target_BT, -100)
    with torch.no_grad():
        theirs = model(**batch.inputs, labels=labels).loss
        torch.testing.assert_close(nll(model, batch), theirs)
        assert (target_logprobs(model, batch)[~batch.target_BT] == 0).all()


def gradient(model, objective, batch):
    return torch.autograd.grad(objective(model, batch), list(model.parameters()))


def test_identities_of_weighted_objectives():
    model, batch = tiny_gpt2(), random_batch()
    for objective in (WGA(beta=0.0), TNPO(model, beta=4.0)):
        torch.testing.assert_close(gradient(model, objective, batch), gradient(model, ga, batch))


def test_npo_at_the_reference_is_sequence_sum_ascent():
    model, batch = tiny_gpt2(), random_batch()
    npo = NPO(model, beta=0.1)
    assert npo(model, batch).item() == pytest.approx(20 * torch.log(torch.tensor(2.0)).item(), rel=1e-7)

    def sequence_ga(model, batch):
        return target_logprobs(model, batch).sum(1).mean()

    torch.testing.assert_close(gradient(model, npo, batch), gradient(model, sequence_ga, batch))


@pytest.mark.parametrize("make", [lambda m: nll, lambda m: ga, lambda m: NPO(tiny_gpt2(1), beta=0.5)])
def test_gradients_agree_with_finite_differences_in_float64(make):
    model, batch = tiny_gpt2(), random_batch()
    objective = make(model)
    parameters = list(model.parameters())
    gradients = gradient(model, objective, batch)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    eps, values = 1e-6, []
    with torch.no_grad():
        for sign in (1, -2, 1):
            for p, d in zip(parameters, direction, strict=True):
                p += sign * eps * d
            values.append(objective(model, batch))
    torch.testing.assert_close((values[0] - values[1]) / (2 * eps), slope, rtol=1e-6, atol=1e-8)


def test_minimise_trains_only_what_it_names_and_is_deterministic():
    batch, results = random_batch(), []
    for _ in range(2):
        model = tiny_llama()
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        history = minimise(
            model,
            [Term(1.0, nll, batch)],
            steps=6,
            lr=1e-2,
            batch_size=2,
            seed=3,
            parameters=r"layers\.1\.mlp\.down_proj",
        )
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
        assert changed == {"model.layers.1.mlp.down_proj.weight"}
        results.append((weights_hash(model), history))
    assert results[0] == results[1]


def test_minimise_stops_at_nan_and_names_the_term():
    def broken(model, batch):
        return nll(model, batch) * float("nan")

    with pytest.raises(FloatingPointError, match="step 0: forget"):
        minimise(tiny_llama(), [Term(1.0, broken, random_batch(), "forget")], steps=1, lr=1e-3, batch_size=2, seed=0)
