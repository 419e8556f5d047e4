"""Multiple choice, aggregates, intervals and the reliability of metrics."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_llama
from jaxtyping import TypeCheckError
from scipy import stats
from test_metrics import letter_tokenizer, roomy_gpt2

from probe.data import Template
from probe.metrics import aggregates
from probe.metrics.choices import LETTERS, ChoiceResult, choice_suite, guessing, side_by_side
from probe.metrics.intervals import Interval, correlation, fisher_z, wilson
from probe.metrics.reliability import noised, reliability
from probe.metrics.tofu import truth_ratio, truth_ratio_forget, truth_ratio_known
from probe.readers import Choice

ROWS = [
    Choice("what is 1?", ("one", "two", "three or so", "four"), 0),
    Choice("who is it?", ("me", "you"), 1),
    Choice("where?", ("here", "there", "no"), 2),
]


def logp_of(model, tokenizer, prompt, text):
    """ln p of every letter of the text after the prompt."""
    ids = [1, *tokenizer(prompt + text, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        logp_TV = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
    n = len(text)
    return np.array([logp_TV[len(ids) - n + i - 1, ids[len(ids) - n + i]].item() for i in range(n)])


@pytest.mark.parametrize("form", ["letter", "text sum", "text mean"])
def test_option_scores_are_those_of_one_text_at_a_time(form, monkeypatch):
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    # The letters of the tiny alphabet.
    monkeypatch.setattr("probe.metrics.choices.LETTERS", "abcd")
    template = Template("{question}\nA:", "{answer}") if form == "letter" else Template("Q: {question}\nA:", "{answer}")
    found = choice_suite(model, tokenizer, ROWS, form=form, template=template, batch_size=2)
    for row, logp_K, picked in zip(ROWS, found.logp, found.picked_N, strict=True):
        if form == "letter":
            listed = "".join(f"\n{'abcd'[k]}. {text}" for k, text in enumerate(row.choices))
            prompt, texts = f"{row.question}{listed}\nA:", "abcd"[: len(row.choices)]
        else:
            prompt, texts = f"Q: {row.question}\nA:", row.choices
        expected = [logp_of(model, tokenizer, prompt, text) for text in texts]
        expected = [x.mean() if form == "text mean" else x.sum() for x in expected]
        np.testing.assert_allclose(logp_K, expected, rtol=1e-8)
        assert picked == int(np.argmax(expected))
    assert found.accuracy == np.mean(found.picked_N == [0, 1, 2])
    assert found.guess == pytest.approx((1 / 4 + 1 / 2 + 1 / 3) / 3)
    low, high = found.interval()
    assert low <= found.accuracy <= high
    assert 0 <= found.entropy <= 1


def test_letters_need_a_token_each_and_rows_need_sense():
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    with pytest.raises(ValueError, match="one token of its own"):
        choice_suite(model, tokenizer, ROWS, form="letter", template=Template("{question}", " {answer}"))
    with pytest.raises((ValueError, TypeCheckError)):
        choice_suite(model, tokenizer, ROWS, form="words")
    for bad, message in (
        (Choice("a", ("b",), 0), "1 options"),
        (Choice("a", ("b", "c"), 2), "from 0 to 1"),
        (Choice("a", ("b", "b"), 0), "twice"),
        (Choice("a", ("b", " "), 0), "empty option"),
    ):
        with pytest.raises(ValueError, match=f"row 1 .*{message}"):
            choice_suite(model, tokenizer, [ROWS[0], bad], form="text sum")
    with pytest.raises(ValueError, match="0 given"):
        choice_suite(model, tokenizer, [], form="text sum")
    assert LETTERS.startswith("ABCD")


def result(logp, answers):
    logp = [np.asarray(row, dtype=float) for row in logp]
    picked = np.array([int(row.argmax()) for row in logp])
    return ChoiceResult("letter", tuple(logp), picked, np.array(answers), np.array([1 / len(row) for row in logp]))


def test_collapse_to_guessing_is_told_from_knowledge():
    random, answers = np.random.default_rng(0), np.arange(80) % 4
    limits = {"near_uniform": 0.99, "one_sided": 0.9}
    knows = result(np.eye(4)[answers] * 5, answers)
    assert not guessing(knows, **limits).collapsed
    assert knows.accuracy == 1
    uniform = result(-1.4 + 0.001 * random.normal(size=(80, 4)), answers)
    assert guessing(uniform, **limits).uniform
    assert guessing(uniform, **limits).collapsed
    always = result(np.tile([0.0, 4, 0, 0], (80, 1)), answers)
    assert always.favourite == (1, 1.0)
    found = guessing(always, **limits)
    assert (found.at_chance, found.uniform, found.one_option, found.collapsed) == (True, False, True, True)
    # Sure, varied and as often right as by chance: wrong, but no collapse of the options.
    wrong = result(np.eye(4)[random.permutation(answers)] * 5, answers)
    assert not guessing(wrong, **limits).collapsed
    # One right answer throughout: picking it always is knowledge.
    one = result(np.tile([0.0, 4, 0, 0], (80, 1)), np.ones(80, dtype=int))
    assert not guessing(one, **limits).one_option
    with pytest.raises(ValueError, match="one_sided"):
        guessing(knows, near_uniform=0.9, one_sided=1.5)


def test_wrong_choice_but_right_open_answer():
    found = result(np.eye(4)[[0, 1, 2, 3]], [0, 1, 0, 0])
    both = side_by_side(found, [True, False, True, False])
    assert (both.both, both.only_choice, both.only_open, both.neither) == (0.25, 0.25, 0.25, 0.25)
    assert both.only_open_N.tolist() == [2]
    with pytest.raises(ValueError, match="1 open answers for 4"):
        side_by_side(found, [True])


def test_harness_is_optional_and_says_so():
    from probe.metrics.harness import harness

    model, tokenizer = tiny_llama(), letter_tokenizer()
    with pytest.raises((ValueError, TypeCheckError)):
        harness(model, tokenizer, "mmlu")
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install lm-eval"):
            harness(model, tokenizer, ["wmdp_bio"])


def test_harness_measures_the_live_model():
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    model = tiny_llama()
    assert HFLM(pretrained=model, tokenizer=letter_tokenizer()).model is model


# Aggregates


def test_published_arithmetic_of_the_harmonic_aggregates():
    # Two cells of the BS table that were checked by hand: .571 and .370.
    assert aggregates.bs_aggregate(memorisation=0.53, utility=0.62).value == pytest.approx(0.571, abs=5e-4)
    assert aggregates.bs_aggregate(memorisation=0.25, utility=0.71).value == pytest.approx(0.370, abs=5e-4)
    whole = aggregates.openunlearning_aggregate(memorisation=0.31, privacy=1.0, utility=0.99)
    assert whole.value == pytest.approx(stats.hmean([0.31, 1.0, 0.99]))
    assert aggregates.openunlearning_aggregate(memorisation=0.0, privacy=0.1, utility=1.0).zero_parts == (
        "memorisation",
    )
    given = {"extraction_strength": 0.1, "exact_memorisation": 0.4, "paraphrased_probability": 0.2}
    mem = aggregates.memorisation_score(**given, truth_ratio_known=0.3)
    assert mem.value == pytest.approx(stats.hmean([0.9, 0.6, 0.8, 0.7]))
    util = aggregates.utility_score(model_utility=0.5, fluency=0.8, finetuned=0.7)
    assert util.value == pytest.approx(stats.hmean([0.5, 0.8]) / 0.7)
    with pytest.raises(ValueError, match=r"exact_memorisation = 1\.5"):
        aggregates.memorisation_score(**{**given, "exact_memorisation": 1.5}, truth_ratio_known=0.3)
    with pytest.raises(ValueError, match="nan"):
        aggregates.bs_aggregate(memorisation=float("nan"), utility=0.5)


def test_privacy_score_by_both_closenesses_and_a_third():
    attacks = aggregates.PRIVACY_ATTACKS
    auc, kept, full = (dict.fromkeys(attacks, value) for value in (0.5, 0.4, 0.9))
    assert aggregates.privacy_score(auc, kept, full, closeness="distance").value == pytest.approx(0.8)
    assert aggregates.privacy_score(auc, kept, closeness="ratio").value == pytest.approx(0.8)
    assert aggregates.privacy_score(kept, kept, full, closeness="distance").value == 1
    assert aggregates.privacy_score(full, kept, full, closeness="distance").value == 0
    assert aggregates.privacy_score(auc, kept, closeness=lambda a, r, f: 0.25).value == 0.25
    with pytest.raises(ValueError, match="give its AUC"):
        aggregates.privacy_score(auc, kept, closeness="distance")
    with pytest.raises(ValueError, match="auc lacks zlib"):
        aggregates.privacy_score({k: v for k, v in auc.items() if k != "zlib"}, kept, closeness="ratio")


def test_closer_look_and_muse():
    names = [f"{w}_{m}" for w in aggregates.CLOSER_LOOK_SETS for m in aggregates.CLOSER_LOOK_METRICS]
    parts = dict(zip(names, np.linspace(0.2, 0.9, 18), strict=True))
    assert aggregates.closer_look_utility(parts).value == pytest.approx(stats.hmean(list(parts.values())))
    with pytest.raises(ValueError, match="wf_entailment"):
        aggregates.closer_look_utility({k: v for k, v in parts.items() if k != "wf_entailment"})
    ratio_N = truth_ratio([1.0, 2.0], [[0.5, 1.0], [3.0, 4.0]])
    forget = {"rouge": 0.4, "probability": 0.1, "cosine_similarity": 0.5, "entailment": 0.2}
    found = aggregates.forget_efficacy(ratio_N=ratio_N, **forget)
    assert found.value == pytest.approx(1 - np.mean([0.4, 0.1, 1 - truth_ratio_forget(ratio_N), 0.5, 0.2]))
    assert aggregates.Muse(0.2, 0.3, -99.8, 0.5).privleak == -99.8
    with pytest.raises(ValueError, match="not percent"):
        aggregates.Muse(57.9, 0.3, 0.0, 0.5)


def test_truth_ratio_known_is_the_share_of_the_right_answer():
    right, wrong = np.array([1.0, 2.0]), np.array([[0.5, 1.5], [3.0, 4.0]])
    p, q = np.exp(-right), np.exp(-wrong.mean(1))
    assert truth_ratio_known(truth_ratio(right, wrong)) == pytest.approx((p / (p + q)).mean())


# Reliability


def test_correlation_agrees_with_scipy():
    random = np.random.default_rng(1)
    one = random.normal(size=12)
    two = one + random.normal(size=12)
    found, judged = correlation(one, two, seed=0), stats.pearsonr(one, two)
    assert found.r == pytest.approx(judged.statistic)
    assert found.fisher == pytest.approx(tuple(judged.confidence_interval(0.95)))
    method = stats.BootstrapMethod(n_resamples=2000, method="percentile", rng=np.random.default_rng(2))
    assert found.bootstrap == pytest.approx(tuple(judged.confidence_interval(0.95, method)), abs=0.08)
    assert correlation(one, 2 * one, seed=0).fisher == pytest.approx((1.0, 1.0))
    flat = correlation(one, np.ones(12), seed=0)
    assert math.isnan(flat.r)
    assert flat.n == 12
    with pytest.raises(ValueError, match="at least 3"):
        correlation([1, 2], [1, 2], seed=0)
    with pytest.raises(ValueError, match="must be the same"):
        correlation([1, 2, 3], [1, 2], seed=0)


def test_rank_correlations_have_bonett_and_wrights_interval_and_none_leaves_its_range():
    for r, n in ((0.6, 20), (-0.95, 6), (0.0, 4)):
        half = stats.norm.ppf(0.975) * math.sqrt((1 + r**2 / 2) / (n - 3))
        expected = [math.tanh(math.atanh(r) + sign * half) for sign in (-1, 1)]
        assert fisher_z(r, n, ranks=True) == pytest.approx(tuple(expected))
        low, high = fisher_z(r, n)
        assert -1 <= fisher_z(r, n, ranks=True)[0] <= low <= r <= high <= 1
    assert fisher_z(0.9, 3) == (-1, 1)
    assert fisher_z(-1.0, 9) == (-1, -1)
    assert all(map(math.isnan, fisher_z(math.nan, 9)))
    with pytest.raises(ValueError, match=r"lies in \[-1, 1\], got 1.5"):
        fisher_z(1.5, 9)


def test_an_interval_is_told_apart_from_a_number_and_prints_all_three():
    found = Interval(0.5, 0.25, 0.75, 3)
    assert (found.side(), found.side(0.5), found.side(0.8)) == (1, 0, -1)
    assert f"{found} {found:+.1f}" == "0.50 [0.25, 0.75] +0.5 [+0.2, +0.8]"


def test_wilson_agrees_with_its_formula():
    p, n, z = 7 / 20, 20, stats.norm.ppf(0.975)
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = ((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n))
    assert wilson(7, 20) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no share"):
        wilson(3, 2)


def test_reliability_names_the_metric_that_an_attack_moves():
    models = np.linspace(0.1, 0.9, 9)
    before = {"strength": models, "probability": models**2}
    after = {
        "relearning": {"strength": models + 0.05, "probability": models[::-1]},
        "noise": {"strength": models * 0.8, "probability": models},
    }
    found = reliability(before, after, seed=0)
    assert found.models == 9
    assert found.by_metric["strength"]["relearning"].r == pytest.approx(1)
    attack, r = found.worst()["probability"]
    assert attack == "relearning"
    assert r == pytest.approx(stats.pearsonr(models**2, models[::-1]).statistic)
    with pytest.raises(ValueError, match="strength under noise"):
        reliability(before, {"noise": {**after["noise"], "strength": models[:-1]}}, seed=0)
    with pytest.raises(ValueError, match="different metrics: probability"):
        reliability(before, {"noise": {"strength": models}}, seed=0)


def test_token_noise_changes_prompts_alone():
    batch = random_batch(rows=6, length=12)
    found = noised(batch, rate=0.5, vocabulary=48, seed=3)
    changed_BT = found.tokens_BT != batch.tokens_BT
    position_T = torch.arange(12)
    prompt_BT = (position_T > 0) & (position_T < batch.prompt_B[:, None])
    assert not (changed_BT & ~prompt_BT).any()
    assert 0.2 < changed_BT[prompt_BT].double().mean() < 0.8
    assert torch.equal(found.tokens_BT, noised(batch, rate=0.5, vocabulary=48, seed=3).tokens_BT)
    assert torch.equal(noised(batch, rate=0.0, vocabulary=48, seed=3).tokens_BT, batch.tokens_BT)
    assert bool((noised(batch, rate=1.0, vocabulary=48, seed=3).tokens_BT != batch.tokens_BT)[prompt_BT].all())
    assert int(found.tokens_BT.max()) < 48
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        noised(batch, rate=1.5, vocabulary=48, seed=3)
    with pytest.raises(ValueError, match="vocabulary is 9"):
        noised(replace(batch, warn=False), rate=0.5, vocabulary=9, seed=3)
