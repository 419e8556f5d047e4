"""Attacks on the testbed: what they get back from a model that hides, what from one that never knew, and identities."""

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from probe.attacks.curves import Training
from probe.attacks.facts import Facts, divided
from probe.attacks.finetuning import PUBLISHED as FINETUNING
from probe.attacks.finetuning import finetune
from probe.attacks.gcg import Search, _losses, _slopes, gcg
from probe.attacks.latent import latent, latent_each
from probe.attacks.mixing import mix_back
from probe.attacks.placeholders import Placeholders, with_placeholders
from probe.attacks.prompts import JAILBREAKS, Prompt, few_shot, prompted
from probe.attacks.quantisation import absmax, nf4, quantise, rounded_weights
from probe.attacks.recovery import AttackOutcome, Recovery, check_never_known
from probe.attacks.relearning import PUBLISHED as RELEARNING
from probe.attacks.relearning import relearn
from probe.attacks.restoring import weights_restored
from probe.attacks.sae_reactivation import SetFeatures, reactivate
from probe.attacks.score import AnswerScorer, Score, mean_score
from probe.attacks.soft_prompt import soft_prompt
from probe.attacks.steering_recovery import added_directions, steer_back
from probe.checkpoints import weights_hash
from probe.data import QA, Template, encode
from probe.hooks import edited, our_hooks
from probe.interventions.features import Clamp
from probe.interventions.steering import Steer
from probe.methods.rmu import rmu
from probe.metrics.intervals import grouped, grouped_share, interval
from probe.metrics.suite import answer_suite
from probe.sites import Site, n_layers
from tests.conftest import random_batch, tiny_gpt2, tiny_llama


@pytest.fixture(scope="module")
def hidden(bed):
    """RMU: the facts are out of reach and still there."""
    model = copy.deepcopy(bed.original)
    settings = {"lr": 3e-3, "steps": 40, "layer": 3, "alpha": 5.0, "parameters": r"^model\.layers\.[123]\."}
    rmu(model, bed.split, original=bed.original, coefficient=20.0, batch_size=16, seed=0, **settings)
    return model


@pytest.fixture(scope="module")
def facts(bed):
    """Three authors, half of the facts of each shown."""
    return divided(bed.tokenizer, bed.split.forget_rows[:30], share=0.5, by="row", seed=0, choices=False)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# Division and scores


def test_rows_are_divided_within_groups_or_between_them(bed):
    rows = bed.split.forget_rows
    within = divided(bed.tokenizer, rows, share=0.3, by="row", seed=0)
    assert len(within.shown) == 30
    assert {row.group for row in within.shown} == {row.group for row in within.held}
    between = divided(bed.tokenizer, rows, share=0.3, by="group", seed=0)
    assert not {row.group for row in between.shown} & {row.group for row in between.held}
    assert sorted(map(str, (*within.shown, *within.held))) == sorted(map(str, rows))
    assert divided(bed.tokenizer, rows, share=0.3, by="row", seed=1).shown != within.shown


def test_division_refuses_what_would_not_be_a_test(bed, facts):
    rows = bed.split.forget_rows[:10]
    with pytest.raises(ValueError, match="so that rows are held out; got 1"):
        divided(bed.tokenizer, rows, share=1.0, by="row", seed=0)
    with pytest.raises(ValueError, match="no rows are held out"):
        Facts(rows, (), bed.tokenizer, facts.score)
    with pytest.raises(ValueError, match="no rows are shown"):
        divided(bed.tokenizer, rows[:1], share=0.1, by="row", seed=0)
    with pytest.raises(ValueError, match="3 rows are both shown and held out"):
        Facts(rows, rows[:3], bed.tokenizer, facts.score)


def test_quick_scores_are_those_of_the_suite(bed):
    rows = bed.split.forget_rows[:12]
    suite = answer_suite(bed.retrained, bed.tokenizer, rows, Template(), with_generation=False)
    quick = AnswerScorer(bed.tokenizer, choices=False)(bed.retrained, rows, Template())
    whole = AnswerScorer(bed.tokenizer)(bed.retrained, rows, Template())
    np.testing.assert_allclose(quick.probability_N, suite.probability_N, rtol=1e-5)
    np.testing.assert_allclose(whole.probability_N, suite.probability_N)
    np.testing.assert_array_equal(quick.match_N, suite.exact_memorisation_N == 1)
    np.testing.assert_array_equal(whole.choice_N, suite.rank_N == 0)
    assert (whole.n_choices, quick.choice_N) == (6, None)
    with pytest.raises(ValueError, match="no wrong answers"):
        quick.of("choice")


def test_generated_matches_agree_with_argmaxes_and_empty_generations_are_counted(bed):
    rows = bed.split.forget_rows[:6]
    said = AnswerScorer(bed.tokenizer, generate=True, choices=False)(bed.original, rows, Template())
    np.testing.assert_array_equal(said.match_N, np.ones(6))
    assert said.means()["empty"] == 0
    mute = copy.deepcopy(bed.original)
    with torch.no_grad():
        # A head that reads nothing but the final norm's mean square, positive for the end of text only.
        mute.lm_head.weight.zero_()
        mute.generation_config.eos_token_id = 0
        silent = AnswerScorer(bed.tokenizer, generate=True, choices=False)(mute, rows, Template())
    assert silent.means()["empty"] == 1
    assert silent.means()["match"] == 0


def test_intervals_are_those_of_scipy_and_count_groups():
    values = [0.1, 0.4, 0.2, 0.35]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    rows, groups = np.array([0.0, 1.0, 0.0, 1.0]), ("a", "a", "b", "b")
    assert grouped(rows, groups).low == grouped(rows, groups).high == 0.5
    assert grouped(rows, ("a",) * 4).low == -np.inf
    assert grouped(np.array([0.0, 1.0, 1.0]), ("a", "b", "b")).mean == pytest.approx(2 / 3)
    assert interval([0.1, 0.9], within=(-1.0, 1.0)).ends == (0.5, -1.0, 1.0)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_f28_intervals_of_shares_count_groups_and_stay_within_their_range(share):
    """Half of the variance lies between ten groups of ten rows: counting rows covers .43 to .6 of the time."""
    generator, rows, hits = np.random.default_rng(0), 10, []
    groups = tuple(np.repeat(np.arange(10), rows).astype(str))
    for _ in range(300):
        of_group_K = generator.beta(share, 1 - share, 10)
        values_N = (generator.random((10, rows)) < of_group_K[:, None]).ravel().astype(float)
        found = grouped_share(values_N, groups)
        assert 0 <= found.low <= found.mean <= found.high <= 1
        hits.append(found.low <= share <= found.high)
    assert np.mean(hits) > 0.85
    # Of one row a group it is Wilson's own interval, but for Student's quantile; none of five is not nothing.
    p, n, q = 0.25, 40, stats.t.ppf(0.975, 39)
    found = grouped_share(np.repeat([1.0, 0.0], [10, 30]), tuple(map(str, range(n))))
    effective = n - 1
    low, high = ((p + q * q / 2 / effective + s * q * np.sqrt(p * (1 - p) / effective + q * q / 4 / effective**2))
                 / (1 + q * q / effective) for s in (-1, 1))  # fmt: skip
    assert (found.low, found.high) == pytest.approx((low, high))
    assert grouped_share(np.zeros(5), tuple("abcde")).high > 0.5
    with pytest.raises(ValueError, match=r"shares lie in \[0, 1\]"):
        grouped_share(np.array([1.2, 0.1]), ("a", "b"))


def recovery(before, after, reference_before=None, reference_after=None):
    def outcome(b, a):
        noise = np.array([-0.01, 0.01, 0.0])
        return AttackOutcome(Score(b + noise, noise), Score(a - 2 * noise, noise))

    other = None if reference_before is None else outcome(reference_before, reference_after)
    return Recovery("test", {}, outcome(before, after), other, ("a", "b", "c"))


def test_findings_say_what_the_reference_implies():
    assert recovery(0.1, 0.1).finding() == "nothing recovered"
    assert recovery(0.1, 0.9).finding() == "recovered; no retrained model to compare with"
    assert recovery(0.1, 0.9, 0.3, 0.3).finding() == "recovered"
    assert recovery(0.1, 0.9, 0.3, 0.6).finding() == "recovered, though part of it was never known"
    assert recovery(0.1, 0.9, 0.3, 0.9).finding() == "extracts what was never known"
    assert recovery(0.1, 0.3, 0.3, 0.3).finding() == "no more than a model that never knew"
    with pytest.raises(ValueError, match="without a retrained model"):
        recovery(0.1, 0.9).excess()


def returned(before, after, groups, reference=None):
    def outcome(b, a):
        return AttackOutcome(Score(np.array(b), np.zeros(len(b))), Score(np.array(a), np.zeros(len(b))))

    other = None if reference is None else outcome(reference, reference)
    return Recovery("test", {}, outcome(before, after), other, groups)


@pytest.mark.parametrize(
    ("before", "after", "reference", "said"),
    [
        ([0.05], [0.91], None, "cannot tell whether anything is recovered: +0.86 [-1.00, +1.00] over one group"),
        ([0.05, 0.05], [0.95, 0.55], None, "cannot tell whether anything is recovered: +0.70 [-1.00, +1.00] over 2"),
        ([0.1, 0.1, 0.1], [0.7, 0.71, 0.69], [0.2, 0.9, 0.3], "cannot tell whether more than a model that never knew"),
        ([0.1, 0.1, 0.1], [0.11, 0.1, 0.1], [0.2, 0.9, 0.3], "nothing recovered"),
    ],
)
def test_f23_not_significant_is_not_nothing(before, after, reference, said):
    found = returned(before, after, tuple("abc"[: len(before)]), reference)
    assert found.finding().startswith(said)
    assert found.recovered() is (None if said.startswith("cannot tell") else False)


def test_f23_none_of_a_few_groups_is_not_none_of_all():
    few, many = (returned([0.0] * n, [0.0] * n, tuple(map(str, range(n)))) for n in (8, 60))
    assert few.recovered("match") is None
    assert many.recovered("match") is False


def test_a_reference_that_knows_is_refused_with_the_number(bed):
    facts = divided(bed.tokenizer, bed.split.forget_rows[:20], share=0.5, by="row", seed=0)
    known = check_never_known(bed.retrained, facts, limit=0.3)
    suite = answer_suite(bed.retrained, bed.tokenizer, bed.split.forget_rows[:20], Template(), with_generation=False)
    assert known == pytest.approx((suite.means()["choice_accuracy"] - 1 / 6) / (5 / 6))
    with pytest.raises(ValueError, match=r"the retrained model knows 1 of the facts \(chosen among wrong answers"):
        check_never_known(bed.original, facts, limit=0.2)
    plain = replace(facts, score=AnswerScorer(bed.tokenizer, choices=False))
    with pytest.raises(ValueError, match="given back by greedy decoding"):
        check_never_known(bed.original, plain, limit=0.2)


def test_scores_of_other_rows_are_not_averaged():
    with pytest.raises(ValueError, match="same rows"):
        mean_score([Score(np.zeros(2), np.zeros(2)), Score(np.zeros(3), np.zeros(3))])
    both = mean_score([Score(np.zeros(2), np.zeros(2)), Score(np.ones(2), np.ones(2))])
    np.testing.assert_array_equal(both.probability_N, [0.5, 0.5])


# Training


def test_relearning_gets_hidden_facts_back_that_were_not_shown_and_leaves_no_trace(bed, hidden, facts):
    before = weights_hash(hidden), weights_hash(bed.retrained)
    curves = relearn(hidden, facts, steps=16, lr=3e-4, batch_size=15, at=(8,), retrained=bed.retrained)
    assert (weights_hash(hidden), weights_hash(bed.retrained)) == before
    assert curves.steps == (0, 8, 16)
    assert curves.curve()[0, -1] > 0.8
    assert curves.curve(of="retrained")[0, -1] < 0.5
    assert curves.curve(on="shown", of="retrained")[0, -1] > 0.9
    assert curves.recovery.finding() == "recovered"
    assert curves.excess().mean == pytest.approx(curves.area().mean - curves.area(of="retrained").mean)
    assert curves.excess_at(16).mean == pytest.approx(curves.curve()[0, -1] - curves.curve(of="retrained")[0, -1])
    with pytest.raises(ValueError, match="step 3 was not scored"):
        curves.excess_at(3)
    short = {"steps": 3, "lr": 3e-4, "batch_size": 15}
    np.testing.assert_array_equal(relearn(hidden, facts, **short).curve(), relearn(hidden, facts, **short).curve())


def test_no_steps_change_nothing_and_untouched_seeds_differ(facts):
    def at_random(model, rows, template):
        value = float(sum(p.detach().double().sum() for p in model.parameters()))
        return Score(np.full(len(rows), value), np.zeros(len(rows)))

    model = tiny_llama(vocab_size=1024)
    blank = replace(facts, score=at_random)
    still = relearn(model, blank, steps=0, lr=1e-3, batch_size=4)
    assert still.steps == (0,)
    assert still.recovery.gain().mean == 0
    moved = relearn(model, blank, steps=2, lr=1e-3, batch_size=4, seeds=(0, 1))
    assert moved.curve()[0, 0] == moved.curve()[1, 0]
    assert moved.curve()[0, 1] != moved.curve()[1, 1]


def test_weights_come_back_after_an_exception(facts):
    model = tiny_llama(vocab_size=1024)
    before = copy.deepcopy(model)
    model.lm_head.weight.requires_grad_(False)

    def falls_over(model, rows, template):
        if not same(model, before):
            raise RuntimeError("the judge fell over")
        return Score(np.zeros(len(rows)), np.zeros(len(rows)))

    with pytest.raises(RuntimeError, match="fell over"):
        relearn(model, replace(facts, score=falls_over), steps=2, lr=1e-2, batch_size=4)
    assert same(model, before)
    assert not model.lm_head.weight.requires_grad
    addresses = [p.data_ptr() for p in model.parameters()]
    with weights_restored(model), torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    assert same(model, before)
    assert [p.data_ptr() for p in model.parameters()] == addresses


def test_training_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"step 7 is asked for, the attack has steps 0\.\.5"):
        Training(steps=5, lr=1e-3, batch_size=4, at=(7,))
    with pytest.raises(ValueError, match="lr above 0"):
        Training(steps=5, lr=0.0, batch_size=4)
    with pytest.raises(ValueError, match="different numbers"):
        Training(steps=5, lr=1e-3, batch_size=4, seeds=(0, 0))
    rob = RELEARNING["rob-rel"]
    assert (rob["steps"], rob["batch_size"], rob["lr"], FINETUNING["rob-ft"]["steps"]) == (100, 4, 2e-5, 250)


def test_fine_tuning_refuses_rows_that_are_facts(bed, facts):
    with pytest.raises(ValueError, match="2 rows of the fine-tuning data are among the facts"):
        finetune(
            bed.retrained,
            facts,
            data=encode(bed.tokenizer, (*bed.world[:3], *facts.held[:2])),
            steps=1,
            lr=1e-4,
            batch_size=4,
        )


def test_fine_tuning_elsewhere_is_measured_on_the_facts(bed, hidden, facts):
    curves = finetune(hidden, facts, data=bed.world_batch, steps=10, lr=3e-4, batch_size=16)
    assert curves.attack == "fine-tuning"
    assert curves.curve()[0, -1] > curves.curve()[0, 0]


# Weights


def test_rounding_is_the_formula_and_16_bits_are_nearly_nothing():
    weight_OI = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    for bits in (3, 4, 8):
        found = absmax(weight_OI, bits, 64)
        for columns in (slice(0, 64), slice(64, 70)):
            scale = weight_OI[:, columns].abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            torch.testing.assert_close(found[:, columns], torch.round(weight_OI[:, columns] / scale) * scale)
            assert ((found - weight_OI)[:, columns].abs() <= scale / 2 + 1e-6).all()
    torch.testing.assert_close(absmax(weight_OI, 16, 64), weight_OI, atol=1e-4, rtol=0)
    assert not absmax(torch.zeros(2, 3), 4, 64).any()


def test_f30_nf4_scales_run_on_from_row_to_row_as_bitsandbytes_counts_them():
    weight_OI = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    flat_N = weight_OI.flatten()
    found = nf4(weight_OI, 32).flatten()
    for start in range(0, 120, 32):
        group = slice(start, start + 32)
        assert found[group].abs().max() == flat_N[group].abs().max()
        torch.testing.assert_close(found[group], nf4(flat_N[None, group], 32)[0])


def test_nf4_takes_the_nearest_level_of_normal_quantiles():
    weight_OI = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    found = nf4(weight_OI, 64).reshape(4, 2, 64)
    scale = weight_OI.reshape(4, 2, 64).abs().amax(-1, keepdim=True)
    levels = (found / scale).flatten().unique()
    merged = levels[torch.cat([torch.tensor([True]), levels.diff() > 1e-4])]
    assert len(merged) <= 16
    # The published construction: averaged quantiles of a normal, scaled to 1, with an exact 0.
    offset = 0.9677083
    positive = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    built = np.sort(np.concatenate([positive, [0.0], negative])) / positive.max()
    np.testing.assert_allclose(merged.numpy(), [b for b in built if np.abs(merged.numpy() - b).min() < 1e-3], atol=1e-3)
    nearest = np.abs((weight_OI.reshape(4, 2, 64) / scale).numpy()[..., None] - built).argmin(-1)
    np.testing.assert_allclose((found / scale).numpy(), built[nearest], atol=1e-3)


@pytest.mark.parametrize("make", [lambda: tiny_llama(), lambda: tiny_gpt2()], ids=["linear", "conv1d"])
def test_rounded_weights_come_back_and_head_and_embedding_are_left_alone(make):
    model = make()
    before = copy.deepcopy(model)
    with rounded_weights(model, bits=3) as names:
        assert names
        for (name, p), q in zip(model.named_parameters(), before.parameters(), strict=True):
            inside = any(f".{n}.weight" in name for n in names)
            assert torch.equal(p, q) != inside
    assert same(model, before)
    with pytest.raises(ZeroDivisionError), rounded_weights(model, bits=3):
        _ = 1 / 0
    assert same(model, before)


def test_conv1d_is_grouped_along_its_inputs():
    model = tiny_gpt2()
    weight_IO = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    with rounded_weights(model, bits=4, group=8):
        torch.testing.assert_close(model.transformer.h[0].mlp.c_fc.weight.T, absmax(weight_IO.T, 4, 8))


def test_quantisation_refuses_and_says_what_is_missing():
    model = tiny_llama()
    with pytest.raises(ValueError, match="nf4 has 4 bits"), rounded_weights(model, bits=8, scheme="nf4"):
        pass
    with pytest.raises(ValueError, match="2 to 16 bits"), rounded_weights(model, bits=1):
        pass
    for scheme, bits, package in (("bitsandbytes-nf4", 4, "bitsandbytes"), ("torchao-int8", 8, "torchao")):
        try:
            __import__(package)
        except ImportError:
            with (
                pytest.raises(ImportError, match=f"{scheme} needs {package}"),
                rounded_weights(model, bits=bits, scheme=scheme),
            ):  # type: ignore[arg-type]
                pass


def test_nf4_is_that_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes").functional
    weight_OI = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    codes, state = functional.quantize_4bit(weight_OI, blocksize=64, quant_type="nf4")
    torch.testing.assert_close(nf4(weight_OI, 64), functional.dequantize_4bit(codes, state), atol=1e-5, rtol=1e-5)


def test_eight_bits_hardly_change_a_score(bed, hidden, facts):
    fine = quantise(hidden, facts, bits=16, retrained=bed.retrained)
    np.testing.assert_allclose(fine.model.after.probability_N, fine.model.before.probability_N, atol=2e-3)
    coarse = quantise(bed.original, facts, bits=3)
    assert coarse.model.after.probability_N.mean() < coarse.model.before.probability_N.mean()


def test_mixing_ends_are_the_two_models(bed, hidden, facts):
    line = mix_back(hidden, facts, alphas=[0.5, 1.0], original=bed.original, retrained=bed.retrained)
    own, whole = (facts.score(model, facts.held, facts.template) for model in (hidden, bed.original))
    assert line.alphas == (0.0, 0.5, 1.0)
    np.testing.assert_array_equal(line.scores[0].probability_N, own.probability_N)
    np.testing.assert_array_equal(line.scores[-1].probability_N, whole.probability_N)
    np.testing.assert_array_equal(line.retrained_scores[-1].probability_N, whole.probability_N)
    assert line.recovery(1.0).gain().mean == pytest.approx(line.curve()[-1] - line.curve()[0])
    with pytest.raises(ValueError, match=r"alpha 0.3 was not measured"):
        line.recovery(0.3)
    with pytest.raises(ValueError, match="mixing weight"):
        mix_back(hidden, facts, alphas=[1.5], original=bed.original)


# Prompts


def test_prompts_write_what_they_say():
    row = QA("Who {wrote}?", "I {did}.", paraphrased_question="By whom?")
    shot = few_shot([row, row], 1).template(Template())
    assert shot.asked("Q") == "Question: Who {wrote}?\nAnswer: I {did}.\n\nQuestion: Q\nAnswer:"
    opened = Prompt("open", opening="Sure {x}:").template(Template())
    assert opened.asked("Q") == "Question: Q\nAnswer: Sure {x}:"
    assert Prompt("again", paraphrase=True).rows([row])[0].question == "By whom?"
    led = Prompt("led", before="Be good.").template(Template())
    assert led.asked("Q") == "Be good.\n\nQuestion: Q\nAnswer:"


def test_prompts_refuse_to_give_answers_away(bed, facts):
    with pytest.raises(ValueError, match="scored rows are among the examples"):
        prompted(bed.retrained, facts, [few_shot(facts.held, 2)])
    with pytest.raises(ValueError, match="different names"):
        prompted(bed.retrained, facts, [])
    with pytest.raises(ValueError, match="no paraphrased question"):
        Prompt("p", paraphrase=True).rows([QA("a", "b")])
    with pytest.raises(ValueError, match="n must lie between 1 and the 2"):
        few_shot(facts.held[:2], 3)


def test_the_best_prompt_is_chosen_on_shown_rows(bed, hidden, facts):
    found = prompted(
        hidden, facts, [JAILBREAKS[0], JAILBREAKS[-1], few_shot(bed.split.retain_rows, 2)], retrained=bed.retrained
    )
    reached = found.best.model.found["on_shown"]
    chosen = found.best.model.found["prompt"]
    assert reached[chosen] == max(reached.values())
    assert found.each[chosen].model.after is found.best.model.after
    assert set(found.each) == {"sure", "paraphrase", "2-shot"}
    worded = facts.score(hidden, [row.paraphrased() for row in facts.held], facts.template)
    np.testing.assert_array_equal(found.each["paraphrase"].model.after.probability_N, worded.probability_N)


def test_placeholders_are_exactly_as_many_tokens_as_asked_for(bed):
    for length in (1, 5, 17):
        room = with_placeholders(bed.tokenizer, Template(), length)
        plain = encode(bed.tokenizer, bed.split.forget_rows[:4])
        longer = encode(bed.tokenizer, bed.split.forget_rows[:4], template=room.template)
        assert torch.equal(longer.tokens_BT[:, length + 1 :], plain.tokens_BT[:, 1:])
        assert torch.equal(longer.prompt_B, plain.prompt_B + length)
        vectors_PD = torch.randn(length, bed.original.config.hidden_size)
        with torch.no_grad(), edited(bed.original, room.edits(vectors_PD)):
            other = longer.tokens_BT.clone()
            other[:, 1 : 1 + length] = 7
            one = bed.original(**longer.inputs).logits
            two = bed.original(**{**longer.inputs, "input_ids": other}).logits
        assert torch.equal(one, two)
    from transformers import PreTrainedTokenizerFast

    # As in GPT-2: one special token for everything, which is bos.
    single = PreTrainedTokenizerFast(tokenizer_object=bed.tokenizer._tokenizer, bos_token="<s>", eos_token="<s>")
    room = with_placeholders(single, Template(), 6)
    ids = single(room.template.asked("Who?"), add_special_tokens=False)["input_ids"]
    assert len(set(ids[:6])) == 1
    assert ids[6:] == single("\n" + Template().asked("Who?"), add_special_tokens=False)["input_ids"]
    with pytest.raises(ValueError, match="at least one placeholder"):
        with_placeholders(bed.tokenizer, Template(), 0)


def test_vectors_in_front_equal_embeddings_given_to_the_model(bed):
    """The judge is the model's own inputs_embeds."""
    room = with_placeholders(bed.tokenizer, Template(), 3)
    batch = encode(bed.tokenizer, bed.split.forget_rows[:3], template=room.template)
    vectors_PD = torch.randn(3, bed.original.config.hidden_size)
    embedded_BTD = bed.original.get_input_embeddings()(batch.tokens_BT).detach().clone()
    embedded_BTD[:, 1:4] = vectors_PD
    given = {k: v for k, v in batch.inputs.items() if k != "input_ids"}
    with torch.no_grad():
        expected = bed.original(inputs_embeds=embedded_BTD, **given).logits
        with edited(bed.original, room.edits(vectors_PD)):
            found = bed.original(**batch.inputs).logits
    torch.testing.assert_close(found, expected)


def test_soft_prompts_learn_and_are_run_against_the_reference(bed, hidden, facts):
    settings = {"length": 4, "lr": 0.05, "batch_size": 8, "seed": 0}
    found = soft_prompt(hidden, facts, steps=15, retrained=bed.retrained, **settings)
    losses = found.model.found["losses"]
    assert len(losses) == 15
    assert losses[-1] < 0.8 * losses[0]
    assert len(found.retrained.found["losses"]) == 15
    assert not our_hooks(hidden)
    still = soft_prompt(hidden, facts, steps=0, **settings)
    assert still.model.found["losses"] == ()
    with pytest.raises(ValueError, match="lr > 0"):
        soft_prompt(hidden, facts, steps=1, **{**settings, "lr": 0.0})


def test_gcg_never_makes_it_worse_and_scores_what_it_searched(bed, hidden, facts):
    few = replace(facts, shown=facts.shown[:4])
    search = {"length": 4, "steps": 4, "top_k": 16, "candidates": 12}
    found = gcg(hidden, few, **search).model.found
    losses = found["losses"]
    assert len(losses) == 5
    assert all(later <= earlier for earlier, later in pairwise(losses))
    assert losses[-1] < losses[0]
    assert not set(found["tokens"]) & set(bed.tokenizer.all_special_ids)
    # The judge: the same tokens as input ids, and the model's own loss.
    room = with_placeholders(bed.tokenizer, few.template, 4)
    batch = encode(bed.tokenizer, few.shown, template=room.template)
    ids_BT = batch.tokens_BT.clone()
    ids_BT[:, 1:5] = torch.tensor(found["tokens"])
    with torch.no_grad():
        judged = hidden(**{**batch.inputs, "input_ids": ids_BT}, labels=ids_BT.masked_fill(~batch.target_BT, -100)).loss
    assert float(judged) == pytest.approx(losses[-1], rel=1e-5)
    assert gcg(hidden, few, **search).model.found["tokens"] == found["tokens"]
    assert gcg(hidden, few, **search | {"batch_size": 4}).model.found["tokens"] == found["tokens"]
    with pytest.raises(ValueError, match="at least 1"):
        Search(length=0, steps=1, top_k=1, candidates=1, seed=0)


def test_gcg_slopes_are_those_of_finite_differences():
    model, batch = tiny_gpt2(), random_batch()
    generator = torch.Generator().manual_seed(0)
    room = Placeholders(Template(), 1, 2)
    tokens_P = torch.randint(3, 48, (2,), generator=generator)
    slope_PV = _slopes(model, batch, room, tokens_P)
    weight_VD = model.get_input_embeddings().weight
    step = 1e-5
    for place, new in ((0, 9), (1, 30)):
        rows = batch.tokens_BT.clone()
        rows[:, 1:3] = tokens_P
        embedded_BTD = weight_VD[rows].detach().clone()
        towards_D = (weight_VD[new] - weight_VD[tokens_P[place]]).detach()
        given = {k: v for k, v in batch.inputs.items() if k != "input_ids"}
        labels = rows.masked_fill(~batch.target_BT, -100)

        def loss(size, place=place, given=given, labels=labels, embedded_BTD=embedded_BTD, towards_D=towards_D):
            moved = embedded_BTD.clone()
            moved[:, 1 + place] += size * towards_D
            with torch.no_grad():
                # The model's own loss would round to float32.
                logits_BTV = model(inputs_embeds=moved, **given).logits[:, :-1]
                return float(torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), labels[:, 1:].flatten()))

        expected = (loss(step) - loss(-step)) / (2 * step)
        assert float(slope_PV[place, new] - slope_PV[place, tokens_P[place]]) == pytest.approx(expected, rel=1e-3)
    assert _losses(model, batch, room, tokens_P[None], 4).shape == (1,)


# Hidden states


def test_latent_pushes_stay_in_their_ball_and_lower_the_loss(bed, hidden, facts):
    site = Site(4)
    settings = {"steps": 6, "step_size": 0.4}
    found = latent(hidden, facts, site, epsilon=0.5, **settings).model.found
    assert float(found["delta_D"].norm()) <= found["radius"] * (1 + 1e-5)
    assert min(found["losses"]) < found["losses"][0]
    for one in ({"epsilon": 0.0, **settings}, {"epsilon": 0.5, "steps": 0, "step_size": 0.4}):
        still = latent(hidden, facts, site, **one).model
        np.testing.assert_array_equal(still.before.probability_N, still.after.probability_N)
    with pytest.raises(ValueError, match="at least 0"):
        latent(hidden, facts, site, epsilon=-1.0, **settings)


def test_a_push_of_each_row_spells_out_what_was_never_known(bed, facts):
    few = replace(facts, held=facts.held[:6])
    found = latent_each(bed.retrained, few, Site(2), epsilon=1.0, steps=8, step_size=0.4, batch_size=4)
    assert found.model.found["delta_BD"].shape == (6, bed.original.config.hidden_size)
    assert found.gain().mean > 0.1
    # Without a push the scores are those of everyone else, and rows keep their order.
    np.testing.assert_allclose(
        found.model.before.probability_N, few.score(bed.retrained, few.held, few.template).probability_N, rtol=1e-5
    )
    still = latent_each(bed.retrained, few, Site(2), epsilon=0.0, steps=8, step_size=0.4)
    np.testing.assert_allclose(still.model.after.probability_N, still.model.before.probability_N, rtol=1e-6)


def test_a_direction_that_was_added_is_found_and_taken_away(bed, facts):
    """A model whose block adds a constant: subtracting the found direction gives the original's states back."""
    shifted = copy.deepcopy(bed.original)
    push_D = 40 * torch.nn.functional.normalize(torch.randn(128, generator=torch.Generator().manual_seed(0)), dim=0)
    # Llama has no bias to shift; a unit of the MLP that is always on would do the same, so an edit stands in.
    with edited(shifted, {Site(5): Steer(push_D, scale=1.0)}):
        found = steer_back(shifted, facts, original=bed.original, layers=[4, 5], modes=["subtract"])
    # Below the push nothing differs, so only layer 5 is left.
    assert found.model.found["layer"] == 5
    assert found.model.found["norms"][4] == 0
    np.testing.assert_allclose(found.model.after.probability_N, 1.0, atol=0.2)
    assert found.gain().mean > 0.1


def test_steering_back_refuses_and_finds_nothing_where_nothing_was_added(bed, facts):
    same_model = steer_back(bed.original, facts, original=bed.original)
    assert same_model.model.found["layer"] is None
    assert same_model.finding() == "nothing recovered"
    with pytest.raises(ValueError, match="modes among subtract and ablate"):
        steer_back(bed.original, facts, original=bed.original, modes=[])
    with pytest.raises(ValueError, match="different architecture"):
        added_directions(bed.original, tiny_llama(), facts, [0])


def test_setting_features_is_exact_on_the_chosen_and_leaves_the_rest(bed):
    sae = bed.sae
    hidden_BTD = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0)) * 5
    assert SetFeatures(sae, (), torch.zeros(0))(hidden_BTD) is hidden_BTD
    f_BTF = sae.encode(hidden_BTD)
    active = int(f_BTF[0, 0].argmax())
    silent = int((f_BTF.amax((0, 1)) == 0).nonzero()[0])
    value_K = torch.tensor([2.0, 3.0])
    found = SetFeatures(sae, (active, silent), value_K)(hidden_BTD)
    rows_FD = sae.directions_FD
    expected = hidden_BTD + (2.0 - f_BTF[..., active, None]) * rows_FD[active] + 3.0 * rows_FD[silent]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Where the feature is on, setting is clamping.
    here = hidden_BTD[:1, :1]
    torch.testing.assert_close(SetFeatures(sae, (active,), value_K[:1])(here), Clamp(sae, (active,), 2.0)(here))
    with pytest.raises(ValueError, match="1 values for 2 features"):
        SetFeatures(sae, (0, 1), torch.zeros(1))


def test_features_that_fell_are_set_back(bed, hidden, facts):
    found = reactivate(
        hidden, facts, original=bed.original, sae=bed.sae, site=bed.sae_site, n_features=[0, 5], retrained=bed.retrained
    )
    on_shown = found.model.found["on_shown"]
    assert set(on_shown) == {(0, 1.0), (5, 1.0)}
    plain = facts.score(hidden, facts.shown, facts.template).probability_N.mean()
    assert on_shown[0, 1.0] == pytest.approx(plain)
    with pytest.raises(ValueError, match=r"n_features must lie in 0..1024"):
        reactivate(hidden, facts, original=bed.original, sae=bed.sae, site=bed.sae_site, n_features=[2000])
    with pytest.raises(ValueError, match="the SAE"):
        reactivate(hidden, facts, original=bed.original, sae=bed.sae, site=Site(0), n_features=[1])


def test_nothing_is_left_on_the_models(bed, hidden):
    assert not our_hooks(bed.original)
    assert not our_hooks(bed.retrained)
    assert not our_hooks(hidden)
    assert n_layers(hidden) == 8
    assert all(p.grad is None for p in hidden.parameters())
