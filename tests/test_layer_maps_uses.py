"""What is built on layer maps: screening from one gradient, CRU's choice of layers, and the text that comes out."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from scipy.stats import spearmanr

from probe.checkpoints import weights_hash
from probe.data import QA, Split, Template
from probe.diagnostics.layer_maps import replacement_map
from probe.diagnostics.replaced_texts import replaced_texts, words_in
from probe.diagnostics.screening import _rank_correlation, screened
from probe.hooks import our_hooks
from probe.methods.cru import best_layers, cru, held_out_cru, pareto_fronts, rank_sum
from probe.metrics.generation import generate
from probe.metrics.memorisation import answer_stats
from probe.metrics.teacher_forced import loss_and_probability
from probe.objectives.token import nll
from probe.sites import blocks
from probe.weights import blended, layers

# --- screening ------------------------------------------------------------------------------------------------


def near(original, seed, scale):
    """The original a small step away in every block."""
    other = tiny_gpt2(0, n_layers=len(blocks(original)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in blocks(other).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=scale)
    return other


def test_for_a_small_step_the_screening_is_the_exact_map():
    original, batch = tiny_gpt2(0, n_layers=5), random_batch(rows=6)
    unlearned = near(original, 0, 1e-6)
    original.transformer.wte.weight.grad = torch.ones_like(original.transformer.wte.weight)
    found = screened(original, unlearned, batch, batch_size=4)
    torch.testing.assert_close(found.predicted_L, found.exact_L, rtol=1e-2, atol=1e-11)
    assert found.spearman == pytest.approx(1.0)
    assert found.n_exact == 6
    assert found.order() == tuple(torch.argsort(found.exact_L, descending=True).tolist())
    assert "Spearman +1.00" in str(found)
    # Nobody's gradients are touched.
    assert bool((original.transformer.wte.weight.grad == 1).all())
    assert blocks(original)[0].attn.c_attn.weight.grad is None


def test_far_away_the_correlation_is_scipys_and_need_not_be_high():
    original, unlearned, batch = tiny_llama(0, n_layers=6), tiny_llama(1, n_layers=6), random_batch(rows=6)
    found = screened(original, unlearned, batch, exact_on=batch.select([0, 1]))
    expected = []
    with torch.no_grad():
        for layer in range(6):
            with blended(original, unlearned, layers([layer], 6)):
                expected.append(float(nll(original, batch.select([0, 1]))))
        expected = np.array(expected) - float(nll(original, batch.select([0, 1])))
    np.testing.assert_allclose(found.exact_L, expected, atol=1e-6)
    assert found.spearman == pytest.approx(spearmanr(found.predicted_L.numpy(), expected).statistic)
    assert found.n_exact == 2


def test_f31_p_is_the_share_of_all_orders_of_the_layers_and_never_nought():
    rising = np.arange(4.0)
    assert _rank_correlation(rising, rising) == pytest.approx((1.0, 2 / 24))
    shaken = np.array([0.3, 1.0, 0.2, 4.0, 5.0])
    at = spearmanr(np.arange(5), shaken).statistic
    orders = [spearmanr(order, shaken).statistic for order in permutations(range(5))]
    upper = np.mean(np.array(orders) >= at - 1e-12)
    assert _rank_correlation(np.arange(5.0), shaken) == pytest.approx((at, 2 * upper))
    assert _rank_correlation(np.arange(12.0), np.arange(12.0))[1] == pytest.approx(2 / 5041)


def test_screening_refuses_frozen_blocks_and_other_models():
    original, unlearned, batch = tiny_llama(0), tiny_llama(1), random_batch()
    blocks(original)[1].mlp.requires_grad_(False)
    with pytest.raises(ValueError, match="3 weights in the blocks of LlamaForCausalLM are frozen"):
        screened(original, unlearned, batch)
    with pytest.raises(ValueError, match="different architecture"):
        screened(tiny_llama(0), tiny_llama(1, n_layers=4), batch)
    with pytest.raises(ValueError, match="identical"):
        screened(tiny_llama(0), tiny_llama(0), batch)


# --- CRU ------------------------------------------------------------------------------------------------------


def test_pareto_fronts_equal_the_definition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        quality_L, utility_L = torch.randint(0, 6, (2, 12), generator=generator).double()
        left, expected = set(range(12)), []
        while left:
            front = {
                i
                for i in left
                if not any(
                    quality_L[j] >= quality_L[i]
                    and utility_L[j] >= utility_L[i]
                    and (quality_L[j] > quality_L[i] or utility_L[j] > utility_L[i])
                    for j in left
                )
            }
            expected.append(front)
            left -= front
        fronts = pareto_fronts(quality_L, utility_L)
        assert [set(front) for front in fronts] == expected
        score_L = rank_sum(quality_L, utility_L)
        for front in fronts:
            assert list(front) == sorted(front, key=lambda i: (-score_L[i].item(), i))
        chosen = best_layers(quality_L, utility_L, 5, rule="pareto")
        assert chosen == tuple(i for front in fronts for i in front)[:5]
        # Only order counts.
        assert best_layers(quality_L.exp(), utility_L**3, 5, rule="pareto") == chosen


def test_the_two_rules_can_differ():
    # Layer 0 is best in one score and worst in the other: no layer dominates it, yet its ranks add up to little.
    quality_L, utility_L = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0]), torch.tensor([0.0, 9.0, 8.0, 2.0, 1.0])
    assert pareto_fronts(quality_L, utility_L) == ((1, 0), (2,), (3,), (4,))
    assert best_layers(quality_L, utility_L, 2) == (1, 2)
    assert best_layers(quality_L, utility_L, 2, rule="pareto") == (1, 0)


def splits(*seeds):
    return Split(random_batch(seeds[0]), random_batch(seeds[1]))


def test_layers_are_chosen_on_one_half_and_reported_on_the_other():
    original, unlearned = tiny_llama(0), tiny_llama(1)
    hashes = weights_hash(original), weights_hash(unlearned)
    validation, report, seen = splits(0, 1), splits(2, 3), []

    def choose_by(split):
        seen.append(("choose", split))
        sides = {"forget": split.forget, "retain": split.retain}
        found = replacement_map(original, unlearned, sides, loss_and_probability)
        return found.score_L("forget", "loss"), -found.score_L("retain", "loss")

    def score(model, split):
        seen.append(("score", split))
        return {"forget": answer_stats(model, split.forget).loss_N.mean().item()}

    for rule in ("rank_sum", "pareto"):
        seen.clear()
        found = held_out_cru(original, unlearned, validation, report, choose_by=choose_by, score=score, k=2, rule=rule)
        assert [what for what, split in seen if split is validation] == ["choose"]
        assert [what for what, split in seen if split is report] == ["score"] * 3
        assert found.layers == best_layers(found.forget_quality_L, found.utility_L, 2, rule=rule)
        alpha_L = cru(original, unlearned, found.forget_quality_L, found.utility_L, 2, rule=rule)
        with blended(original, unlearned, alpha_L):
            assert found.replaced == score(original, report)
        assert (found.original, found.unlearned) == (score(original, report), score(unlearned, report))
    assert (weights_hash(original), weights_hash(unlearned)) == hashes
    mixed = Split(report.forget, validation.forget.select([1]))
    with pytest.raises(ValueError, match="1 of the report's retain rows are among the validation rows"):
        held_out_cru(original, unlearned, validation, mixed, choose_by=choose_by, score=score, k=1)


# --- texts ----------------------------------------------------------------------------------------------------


def test_texts_of_replaced_layers_are_those_of_blended_models(bed):
    original, unlearned = bed.original, bed.retrained
    rows = bed.split.forget_rows[:3]
    hashes = weights_hash(original), weights_hash(unlearned)
    known = words_in(
        [text for row in bed.split.forget_rows + bed.split.retain_rows for text in (row.question, row.answer)]
    )
    depth = len(blocks(original))
    found = replaced_texts(
        original,
        unlearned,
        rows,
        tokenizer=bed.tokenizer,
        known_words=known,
        max_new_tokens=12,
        template=bed.split.template,
        spans=[(0, 0), (depth // 2, depth // 2), (depth - 1, depth - 1), (0, depth - 1)],
    )
    assert len(found.texts) == 3 * (2 + 4)
    prompts = [bed.split.template.asked(row.question) for row in rows]
    for span in ((0, 0), (0, depth - 1)):
        with blended(original, unlearned, layers(range(span[0], span[1] + 1), depth)):
            expected = generate(original, bed.tokenizer, prompts, max_new_tokens=12)
        assert [text.text for text in found.of(span)] == expected
    assert [text.same_as_original for text in found.of("original")] == [1.0] * 3
    assert found.means("original")["misspelt"] == 0.0
    assert set(found.by_depth()) == {"shallow", "middle", "deep"}
    assert found.by_depth()["shallow"] == pytest.approx(found.means((0, 0)), nan_ok=True)
    listed = found.rows("NPO")
    assert {row.intervention for row in listed} == {"question", "original", "NPO"}
    assert [row.on for row in listed if row.layer == 0] == [text.text for text in found.of((0, 0))]
    assert (weights_hash(original), weights_hash(unlearned)) == hashes
    assert our_hooks(original) == []


class Words:
    """A tokenizer whose tokens are words."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __init__(self, words):
        self.words = words

    def __call__(self, text, **_):
        if isinstance(text, str):
            return {"input_ids": [self.words.index(w) for w in text.split()]}
        return {"input_ids": [[self.words.index(w) for w in t.split()] for t in text]}


def test_measures_say_what_a_text_does():
    from probe.diagnostics.replaced_texts import _measured

    tokenizer = Words(["the", "tower", "stands", "towar", "in", "Paris", "12"])
    row = QA("where?", "the tower stands in Paris")
    known = words_in([row.answer])
    assert known == {"the", "tower", "stands", "in", "paris"}

    def measured(text):
        return _measured((0, 1), "into original", row, text, "the tower stands in Paris", known, tokenizer)

    spelt = measured("the towar stands in Paris")
    assert (spelt.unknown, spelt.misspelt) == (("towar",), 0.2)
    assert spelt.recalled == pytest.approx(0.8)
    assert spelt.same_as_original == pytest.approx(0.8)
    loop = measured("the the the the")
    assert (loop.distinct_1, loop.repeated, loop.misspelt) == (0.25, 1.0, 0.0)
    assert loop.distinct_2 == pytest.approx(1 / 3)
    silent = measured("12")
    assert math.isnan(silent.misspelt)
    assert (silent.distinct_1, silent.repeated, silent.same_as_original) == (1.0, 0.0, 0.0)
    assert measured(row.answer).same_as_original == 1.0
    assert words_in(["Don't stop—well-known, 3 naïve x_y"]) == {"don't", "stop", "well-known", "naïve", "x", "y"}


def test_texts_refuse_bad_input(bed):
    rows, known = bed.split.forget_rows[:1], frozenset(["a"])
    other = tiny_llama(1)

    def ask(original=bed.original, unlearned=bed.retrained, rows=rows, **changes):
        given = {"known_words": known, "max_new_tokens": 2, **changes}
        return replaced_texts(original, unlearned, rows, tokenizer=bed.tokenizer, **given)

    for make, message in (
        (lambda: ask(unlearned=other), "different architecture"),
        (lambda: ask(unlearned=bed.original), "identical blocks"),
        (lambda: ask(rows=[]), "0 rows and 1 known words"),
        (lambda: ask(known_words=frozenset()), "1 rows and 0 known words"),
        (lambda: ask(spans=[(0, 99)]), "layer 99 does not exist"),
        (lambda: ask(max_new_tokens=0), "max_new_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    found = ask(template=Template(), spans=[(0, 0)])
    with pytest.raises(ValueError, match="no texts of the middle third"):
        found.by_depth()
    with pytest.raises(ValueError, match=r"no texts of \(1, 1\)"):
        found.means((1, 1))
