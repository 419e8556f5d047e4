"""One pass per text: statistics of tokens, attack scores, and what the suite keeps of them."""

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from families import family
from jaxtyping import TypeCheckError
from sklearn.metrics import roc_auc_score
from test_metrics import TEMPLATE, letter_tokenizer, roomy_gpt2, rows_for_suite
from torch.utils._python_dispatch import TorchDispatchMode

from probe.data import QA, encode
from probe.hooks import edited
from probe.metrics.attacks import (
    attack_scores,
    gradient_norm,
    membership,
    min_k,
    min_k_plus_plus,
    reference_score,
    zlib_score,
)
from probe.metrics.generation import continued_ids, next_logprobs
from probe.metrics.memorisation import answer_stats
from probe.metrics.privacy import privleak
from probe.metrics.suite import answer_suite
from probe.metrics.tofu import forget_quality
from probe.metrics.tokens import TokenStats, token_stats
from probe.positions import At, last
from probe.sites import Site


def by_hand(model, row):
    """ln p, argmax, mean and variance at the targets of one row, from the whole distributions."""
    with torch.no_grad():
        logp_TV = torch.log_softmax(model(**row.inputs, use_cache=False).logits[0, :-1].double(), -1)
    where, true = row.target_BT[0, 1:], row.tokens_BT[0, 1:]
    mean_T = (logp_TV.exp() * logp_TV).sum(1)
    variance_T = (logp_TV.exp() * logp_TV.square()).sum(1) - mean_T.square()
    logp_T = logp_TV.gather(1, true[:, None])[:, 0]
    return [x[where].numpy() for x in (logp_T, logp_TV.argmax(1) == true, mean_T, variance_T)]


# gemma2 caps its logits and cohere scales them, so their heads alone would be wrong.
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "cohere", "bloom", "opt"])
@pytest.mark.parametrize("targets_at_once", [3, 512])
def test_token_statistics_are_those_of_whole_distributions(name, targets_at_once):
    model, batch = family(name), random_batch(rows=7, length=16)
    found = token_stats(model, batch, batch_size=3, targets_at_once=targets_at_once, moments=True)
    for i in range(len(batch)):
        logp_T, correct_T, mean_T, variance_T = by_hand(model, batch.select([i]))
        np.testing.assert_allclose(found.logp[i], logp_T, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.mean[i], mean_T, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.variance[i], variance_T, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found.correct[i], correct_T)


def test_token_statistics_in_float64():
    model, batch = tiny_gpt2(), random_batch(rows=5)
    found = token_stats(model, batch, moments=True)
    for i in range(len(batch)):
        for mine, theirs in zip(
            (found.logp[i], found.mean[i], found.variance[i]),
            np.delete(np.array(by_hand(model, batch.select([i])), dtype=object), 1, 0),
            strict=True,
        ):
            np.testing.assert_allclose(mine, theirs.astype(float), rtol=1e-10, atol=1e-12)


def test_words_that_cannot_occur_do_not_disturb_the_moments():
    model, batch = tiny_gpt2(), random_batch(rows=3)
    plain = token_stats(model, batch, moments=True)

    def forbidding(module, args, output):
        return torch.cat([output[..., :1].fill_(-torch.inf), output[..., 1:]], -1)

    handle = model.lm_head.register_forward_hook(forbidding)
    forbidden = token_stats(model, batch, moments=True)
    handle.remove()
    for i in range(len(batch)):
        assert np.isfinite(forbidden.mean[i]).all()
        assert np.isfinite(forbidden.variance[i]).all()
        np.testing.assert_allclose(forbidden.mean[i], plain.mean[i], atol=0.2)


class Widest(TorchDispatchMode):
    """The largest number of entries of a tensor as wide as the vocabulary."""

    def __init__(self, width):
        super().__init__()
        self.width, self.most = width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.t.default:  # the head's weight, turned
            return result
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.shape[-1:] == (self.width,):
                self.most = max(self.most, tensor.numel() // self.width)
        return result


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_no_more_distributions_than_the_chunk_are_held(name):
    model, batch = family(name, vocab_size=331), random_batch(rows=12, length=24)
    assert int(batch.target_BT.sum()) > 80
    with Widest(331) as widest:
        token_stats(model, batch, batch_size=6, targets_at_once=16, moments=True)
    # gemma2 gives whole logits, of one row at least.
    assert widest.most == 16 if name == "llama" else widest.most <= 24


def test_edits_act_whichever_way_the_logits_come():
    model, batch = tiny_gpt2(), random_batch(rows=4)
    edits = {Site(1): At(lambda hidden_BTD: hidden_BTD + 1.5, last), Site(0, "norm"): lambda hidden_BTD: 2 * hidden_BTD}
    plain = token_stats(model, batch)
    with edited(model, edits):
        found = token_stats(model, batch, batch_size=3)
        for i in range(len(batch)):
            np.testing.assert_allclose(found.logp[i], by_hand(model, batch.select([i]))[0], rtol=1e-9)
    assert abs(found.loss_N - plain.loss_N).min() > 1e-3


def test_a_hook_on_the_head_is_not_passed_by():
    model, batch = tiny_llama(), random_batch(rows=4)
    handle = model.register_forward_hook(lambda m, a, output: setattr(output, "logits", output.logits * 3) or output)
    found = token_stats(model, batch)
    for i in range(len(batch)):
        np.testing.assert_allclose(found.logp[i], by_hand(model, batch.select([i]))[0], rtol=1e-4)
    handle.remove()


def test_token_statistics_refuse_sizes_and_give_what_answer_stats_gives():
    model, batch = tiny_gpt2(), random_batch(rows=4)
    with pytest.raises(ValueError, match="targets_at_once 0"):
        token_stats(model, batch, targets_at_once=0)
    tokens, answers = token_stats(model, batch, batch_size=2), answer_stats(model, batch)
    np.testing.assert_allclose(tokens.loss_N, answers.loss_N, rtol=1e-12)
    assert tokens.mean is tokens.variance is None
    assert tokens.select([3, 0, 3]).loss_N.tolist() == tokens.loss_N[[3, 0, 3]].tolist()
    assert [len(x) for x in tokens.without_eos().logp] == (tokens.n_tokens_N - 1).tolist()


# Attack scores


def test_min_k_and_its_plus_plus_by_hand():
    model, batch = tiny_gpt2(), random_batch(rows=6, length=20)
    tokens = token_stats(model, batch, moments=True)
    for k in (0.2, 0.4, 1.0):
        for i in range(len(batch)):
            logp_T, _, mean_T, variance_T = (values[:-1] for values in by_hand(model, batch.select([i])))
            n = max(1, int(k * len(logp_T)))
            assert min_k(tokens, k)[i] == pytest.approx(-np.sort(logp_T)[:n].mean(), rel=1e-9)
            z_T = (logp_T - mean_T) / np.sqrt(np.clip(variance_T, 1e-6, None))
            assert min_k_plus_plus(tokens, k)[i] == pytest.approx(-np.sort(z_T)[:n].mean(), rel=1e-9)
    with pytest.raises(ValueError, match="moments=True"):
        min_k_plus_plus(token_stats(model, batch))
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        min_k(tokens, 0.0)


def test_one_token_answers_score_nothing_and_sure_tokens_are_clamped():
    logp, nothing = np.array([-0.5, -0.1]), np.array([-2.0])
    tokens = TokenStats((logp, nothing), (logp < 0, nothing < 0), (logp * 0, nothing * 0), (np.zeros(2), np.zeros(1)))
    assert min_k(tokens).tolist() == [0.5, 0.0]
    assert min_k_plus_plus(tokens).tolist() == pytest.approx([0.5 / 1e-3, 0.0])
    assert tokens.loss_N.tolist() == [0.3, 2.0]


def test_zlib_and_reference_scores():
    texts = ["a name", "a name a name a name a name"]
    found = zlib_score([1.0, 2.0], texts)
    assert found.tolist() == [1 / len(zlib.compress(b"a name")), 2 / len(zlib.compress(texts[1].encode()))]
    # Names in other scripts, and an answer that is empty, are bytes like any other.
    assert np.isfinite(zlib_score([1.0, 1.0, 1.0], ["陈小红 是谁", "علي", ""])).all()
    assert reference_score([3.0, 1.0], [1.0, 2.0]).tolist() == [2, -1]
    with pytest.raises(ValueError, match="1 examples"):
        zlib_score([1.0], texts)
    with pytest.raises(ValueError, match="1 of 2 entries of loss_N are NaN"):
        reference_score([np.nan, 1.0], [1.0, 2.0])


def test_gradient_norm_is_that_of_backward_and_leaves_no_trace():
    model, batch = tiny_gpt2(), random_batch(rows=3)
    found = gradient_norm(model, batch)
    assert all(p.grad is None for p in model.parameters())
    for i in range(len(batch)):
        row = batch.select([i])
        model.zero_grad()
        model(**row.inputs, labels=row.tokens_BT.masked_fill(~row.target_BT, -100)).loss.backward()
        assert found[i] == pytest.approx(np.mean([p.grad.norm().item() for p in model.parameters()]), rel=1e-6)
    assert gradient_norm(model, batch, mode="train") == pytest.approx(found)
    assert not model.training
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad_"):
        gradient_norm(model, batch)
    with pytest.raises((ValueError, TypeCheckError)):
        gradient_norm(model, batch, mode="test")


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_p3_h5_gradient_norm_as_open_unlearning_computes_it(p):
    """Its token-wise log-probabilities drop the last label; the loss is their mean, the norm one of each tensor."""
    model, batch = tiny_gpt2(), random_batch(rows=3)
    found = gradient_norm(model, batch, mode="train", p=p, eos=False)
    for i in range(len(batch)):
        model.zero_grad()
        labelled = batch.target_BT[i].nonzero().flatten()[:-1]
        logp_TV = model(**batch.inputs).logits[i].log_softmax(-1)
        (-logp_TV[labelled - 1, batch.tokens_BT[i, labelled]].mean()).backward()
        expected = torch.stack([w.grad.norm(p=p) for w in model.parameters()]).mean().item()
        assert found[i] == pytest.approx(expected, rel=1e-12)
    model.zero_grad()
    assert not np.allclose(found, gradient_norm(model, batch, p=p), rtol=1e-2)


def test_p3_rows_of_one_target_and_norms_that_are_none_are_refused():
    batch = random_batch(rows=2)
    one_BT = batch.target_BT & (batch.target_BT.cumsum(1) == 1)
    short = replace(batch, target_BT=torch.stack([batch.target_BT[0], one_BT[1]]))
    assert len(gradient_norm(tiny_gpt2(), short)) == 2
    with pytest.raises(ValueError, match=r"1 of 2 rows have no target token besides the last \(first: row 1\)"):
        gradient_norm(tiny_gpt2(), short, eos=False)
    with pytest.raises(ValueError, match="p must be above 0"):
        gradient_norm(tiny_gpt2(), batch, p=0)


@pytest.mark.parametrize("part", ["lm_head.weight", "layers.1.mlp.down_proj.weight"])
def test_p11_a_model_of_nan_writes_nothing(part):
    """argmax over NaN is some token: 0 in one place, the first NaN in another."""
    model = tiny_llama()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith(part)).fill_(math.nan)
    with pytest.raises(ValueError, match="logits of 2 of 2 texts are NaN at new token 0"):
        continued_ids(model, [[1, 5, 6], [1, 7]], {2}, max_new_tokens=3)
    with pytest.raises(ValueError, match="NaN"):
        next_logprobs(model, [[1, 5, 6]], [[7, 8]])


def test_membership_of_every_attack():
    model, seen, unseen = tiny_gpt2(), random_batch(0, rows=8), random_batch(1, rows=6)
    sides = []
    for batch in (seen, unseen):
        tokens = token_stats(model, batch, moments=True)
        texts = [f"row {i}" for i in range(len(batch))]
        sides.append(attack_scores(tokens, texts, reference=tokens, gradient_norm_N=gradient_norm(model, batch)))
    assert set(sides[0]) == {"loss", "min_k", "min_k_plus_plus", "zlib", "reference", "gradient_norm"}
    found = membership(*sides, auc_reference=dict.fromkeys(sides[0], 0.4))
    assert (found.n_forget, found.n_holdout) == (8, 6)
    for name, area in found.auc.items():
        label = [0] * 8 + [1] * 6
        assert area == pytest.approx(roc_auc_score(label, np.concatenate([sides[0][name], sides[1][name]])))
        assert found.privleak[name] == privleak(area, 0.4)
    assert found.auc["reference"] == 0.5
    assert membership(*sides).auc_reference["loss"] == 0.5
    with pytest.raises(ValueError, match="give the same"):
        membership({"loss": [1.0]}, {"zlib": [1.0]})
    with pytest.raises(ValueError, match="lacks loss"):
        membership({"loss": [1.0]}, {"loss": [1.0]}, {"zlib": 0.4})


# The suite


def test_the_suite_keeps_tokens_for_both_floors_and_the_attacks():
    model, tokenizer, rows = roomy_gpt2(), letter_tokenizer(), rows_for_suite(4)
    rows[2] = QA(rows[2].question, rows[2].answer, "", "", rows[2].perturbed_answer)
    found = answer_suite(model, tokenizer, rows, TEMPLATE, with_generation=False, with_moments=True)
    np.testing.assert_array_equal(found.extraction("0"), found.extraction_strength_N)
    length_N = found.tokens.n_tokens_N - 1
    np.testing.assert_allclose(found.extraction("1/L"), np.maximum(found.extraction("0"), 1 / length_N))
    perturbed = found.extraction("0", perturbed=True)
    assert np.isnan(perturbed).tolist() == [False, False, True, False]
    asked = answer_suite(model, tokenizer, [row.paraphrased() for row in rows], TEMPLATE, with_generation=False)
    np.testing.assert_array_equal(perturbed[[0, 1, 3]], asked.extraction("0")[[0, 1, 3]])
    plain = token_stats(model, encode(tokenizer, rows, template=TEMPLATE), moments=True)
    for name, score_N in attack_scores(plain).items():
        np.testing.assert_allclose(attack_scores(found.tokens)[name], score_N, rtol=1e-9)


def test_duplicate_questions_and_names_in_other_scripts_are_rows_like_any_other():
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    rows = [QA("who?", "me"), QA("who?", "me"), QA("who?", "you"), QA("谁?", "陈小红"), QA("من؟", "علي")]
    found = answer_suite(model, tokenizer, rows, TEMPLATE, max_new_tokens=4)
    assert len(found) == 5
    assert found.probability_N[0] == found.probability_N[1] != found.probability_N[2]
    assert np.isfinite(found.loss_N).all()


def test_a_row_cut_down_to_one_token_is_warned_of_and_that_token_counts():
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    rows = [QA("who?", "me"), QA("who was that?", "me")]
    short = len(encode(tokenizer, rows[1:], template=TEMPLATE).tokens_BT[0]) - 3
    with pytest.warns(UserWarning, match="cut at"):
        found = answer_suite(model, tokenizer, rows, TEMPLATE, max_length=short, with_generation=False)
    assert found.exact_memorisation_N[1] in (0.0, 1.0)
    assert found.extraction_strength_N[1] in (0.0, 1.0)


def test_a_retrained_model_that_is_the_unlearned_one_is_labelled_48():
    ratio_N = np.array([0.3, 1.2, 0.7, 2.0])
    same = forget_quality(ratio_N, ratio_N[::-1].copy())
    assert same.identical
    assert same.p == 1
    other = forget_quality(ratio_N, ratio_N + 5)
    assert other.at_floor
    assert not other.identical
    assert other.p == pytest.approx(other.floor)
