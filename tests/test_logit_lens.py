"""Logit lens and tuned lens: at the last layer both are the model, and families differ in what lies behind."""

from dataclasses import replace

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama

from probe.checkpoints import weights_hash
from probe.diagnostics.answer_values import value_batch
from probe.diagnostics.logit_lens import logit_lens
from probe.diagnostics.tuned_lens import TunedLens, fit_tuned_lens, load_tuned_lens
from probe.dictionaries.made import rows_dictionary
from probe.features.output_score import lens_tokens
from probe.hooks import edited, our_hooks
from probe.objectives.token import target_logprobs
from probe.report.lens import what_the_lens_reads
from probe.rows import Row
from probe.sites import Site


def gemma():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.5,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def neox():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    ).eval()


def opt_projected():
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 48, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=8, max_position_embeddings=64)).eval()


def falcon_h1(multiplier=0.25):
    from transformers import FalconH1Config, FalconH1ForCausalLM

    torch.manual_seed(0)
    config = FalconH1Config(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8, mamba_d_state=4,
        mamba_chunk_size=4, lm_head_multiplier=multiplier, pad_token_id=0,
    )  # fmt: skip
    return FalconH1ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, gemma, neox, opt_projected, falcon_h1])
def test_the_last_layer_says_what_the_model_says(make):
    model, batch = make(), random_batch()
    found = logit_lens(model, batch, batch_size=3)
    with torch.no_grad():
        own_B = target_logprobs(model, batch).sum(1) / batch.target_BT.sum(1)
    torch.testing.assert_close(found.model_logprob_B.double(), own_B.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logprob_LB[-1], found.model_logprob_B, rtol=1e-4, atol=1e-5)
    assert found.logprob_LB.shape == (3, 4)
    assert our_hooks(model) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_f16_another_factor_on_a_flat_models_logits_is_noticed(dtype):
    """Probabilities of a fresh model hardly move with a factor on its logits; logits do."""
    model, batch = falcon_h1(multiplier=0.25).to(dtype), random_batch()
    logit_lens(model, batch)
    model.config.lm_head_multiplier = None  # as if the family had a factor that is not known here
    with torch.no_grad():
        flat = model(**batch.inputs).logits.float().softmax(-1)
    assert flat.max() < 0.05
    with pytest.raises(ValueError, match="logits that differ by up to"):
        logit_lens(model, batch)


def test_f16_logits_may_lie_far_from_zero_and_some_be_masked_in_half_precision():
    model, batch = tiny_llama(dtype=torch.bfloat16), random_batch()
    head = model.lm_head.forward

    def shifted(hidden):
        logits = head(hidden) - 100.0
        logits[..., -2:] = torch.finfo(logits.dtype).min
        return logits

    model.lm_head.forward = shifted
    assert logit_lens(model, batch).vocabulary == 48


def test_f16_the_tokens_a_row_writes_go_through_opts_projection():
    model, row_1D = opt_projected(), torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    sae = rows_dictionary(row_1D, active=1)
    tokens_KN, _ = lens_tokens(model, sae, (0,), n=3)
    decoder, unit_1D = model.model.decoder, row_1D / row_1D.norm()
    with torch.no_grad():
        read, zero = (decoder.project_out(decoder.final_layer_norm(h)) for h in (4.0 * unit_1D, 0 * unit_1D))
        expected = (model.lm_head(read) - model.lm_head(zero)).topk(3).indices
    assert torch.equal(tokens_KN, expected)


def test_f33_layers_at_which_the_original_is_read_worse_than_a_guess_are_said():
    model, batch = tiny_llama(initializer_range=1.0), random_batch()
    found = logit_lens(model, batch)
    assert found.vocabulary == 48
    assert found.mute_L.tolist() == (found.logprob_LB.mean(1) < torch.tensor(1 / 48).log()).tolist()
    assert bool(found.mute_L.any())
    values = {"original": (1e-8, 1e-7, 0.5, 0.6), "GA": (1e-9, 1e-9, 0.4, 0.1), "NPO": (1e-9, 1e-9, 0.5, 0.5)}
    rows = [
        Row(name, "logit_lens", "probability", value, "x", layer=layer, item=0)
        for name, value_L in values.items()
        for layer, value in enumerate(value_L)
    ]
    rows += [Row("original", "logit_lens", "mute", float(layer < 2), layer=layer) for layer in range(4)]
    first, ga, npo = what_the_lens_reads(rows)
    assert first.startswith("At layers 0, 1 the lens gives the original's own answer less than a uniform guess")
    assert ga.startswith("GA: from layer 3 on")
    assert "NPO" in npo
    silent = [replace(row, value=1.0) if row.quantity == "mute" else row for row in rows]
    assert len(what_the_lens_reads(silent)) == 1


def test_rank_counts_tokens_at_least_as_probable():
    model, batch = tiny_gpt2(), random_batch()
    found = logit_lens(model, batch)
    with torch.no_grad():
        logits_BTV = model(**batch.inputs).logits
    for i in range(4):
        first = int(batch.target_BT[i].long().argmax())
        logits_V = logits_BTV[i, first - 1]
        right = logits_V[batch.tokens_BT[i, first]]
        assert int(found.rank_LB[-1, i]) == int((logits_V >= right).sum()) - 1
        expected = (right - logits_V.logsumexp(0)).item()
        assert found.first_logprob_LB[-1, i].item() == pytest.approx(expected, rel=1e-6)


def test_a_lens_of_zeros_is_the_plain_one_and_a_fitted_one_ends_at_the_model(tmp_path):
    model, batch = tiny_llama(), random_batch(rows=6)
    zeros = TunedLens(
        (0, 1, 2),
        {k: torch.zeros(16, 16) for k in range(3)},
        {k: torch.zeros(16) for k in range(3)},
        dict.fromkeys(range(3), 0.0),
    )
    torch.testing.assert_close(logit_lens(model, batch, lens=zeros).logprob_LB, logit_lens(model, batch).logprob_LB)
    before = weights_hash(model)
    lens = fit_tuned_lens(model, random_batch(1, rows=30), penalty=1e-6)
    assert weights_hash(model) == before
    assert lens.explained[2] == pytest.approx(1, abs=1e-6)
    found = logit_lens(model, batch, lens=lens)
    assert found.tuned
    torch.testing.assert_close(found.logprob_LB[-1], found.model_logprob_B, rtol=1e-4, atol=1e-4)
    lens.save(tmp_path / "lens.safetensors")
    again = load_tuned_lens(tmp_path / "lens.safetensors")
    assert again.layers == lens.layers
    assert all(torch.equal(again.weight[k], lens.weight[k]) for k in lens.layers)
    assert torch.equal(logit_lens(model, batch, lens=again).logprob_LB, found.logprob_LB)


def test_the_fit_is_scikit_learns():
    from sklearn.linear_model import Ridge

    from probe.harvest import harvest
    from probe.positions import not_first

    model, text = tiny_gpt2(), random_batch(1, rows=40)
    penalty = 0.1
    lens = fit_tuned_lens(model, text, penalty=penalty, layers=[0], batch_size=7)
    kept = harvest(model, [text], [Site(0), Site(2)], positions=not_first)
    x, y = kept[Site(0)].double().numpy(), kept[Site(2)].double().numpy()
    judge = Ridge(alpha=len(x) * penalty * x.var(0).mean()).fit(x, y - x)
    torch.testing.assert_close(lens.weight[0].double(), torch.from_numpy(judge.coef_), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lens.bias[0].double(), torch.from_numpy(judge.intercept_), rtol=1e-4, atol=1e-5)
    left = ((y - x - judge.predict(x)) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert lens.explained[0] == pytest.approx(1 - left, rel=1e-6)


def test_edits_act_and_an_edit_of_the_norm_is_refused():
    model, batch = tiny_llama(), random_batch()
    plain = logit_lens(model, batch)
    with edited(model, {Site(1): lambda h: 3 * h + 1}):
        moved = logit_lens(model, batch)
    assert torch.equal(moved.logprob_LB[0], plain.logprob_LB[0])
    assert not torch.allclose(moved.logprob_LB[1], plain.logprob_LB[1])
    sharp = tiny_llama(initializer_range=1.0)
    with edited(sharp, {Site(0, "norm"): lambda h: -5 * h}):
        # The edit acts inside norm(h) too, so the path is the model's own and nothing is amiss.
        found = logit_lens(sharp, batch)
    torch.testing.assert_close(found.logprob_LB[-1], found.model_logprob_B, rtol=1e-4, atol=1e-4)


def test_bad_input(tmp_path):
    model, batch = tiny_llama(), random_batch()
    empty = replace(batch, target_BT=batch.target_BT & (torch.arange(4) > 0)[:, None], warn=False)
    with pytest.raises(ValueError, match="1 of 4 rows have no target"):
        logit_lens(model, empty)
    lens = fit_tuned_lens(model, batch, penalty=0.1, layers=[1])
    with pytest.raises(ValueError, match="fitted for layers"):
        logit_lens(model, batch, lens=lens)
    with pytest.raises(ValueError, match="width 16, the hidden states width 8"):
        lens.translate(torch.zeros(2, 8), 1)
    with pytest.raises(ValueError, match="penalty must be positive"):
        fit_tuned_lens(model, batch, penalty=0.0)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="safetensors"):
        load_tuned_lens(tmp_path / "bad.safetensors")
    broken = tiny_llama()
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="differ"):
        logit_lens(broken, batch)


def test_original_says_the_answer_late_and_retrained_never(bed):
    batch = value_batch(bed.tokenizer, bed.split.forget_rows[:40])
    known, never = logit_lens(bed.original, batch), logit_lens(bed.retrained, batch)
    assert known.first_share_L[-1] > 0.95
    assert known.probability_L[-1] > known.probability_L[0] + 0.2
    assert never.probability_L.max() < 0.3
    assert known.hidden_from_output == pytest.approx(0, abs=0.05)
