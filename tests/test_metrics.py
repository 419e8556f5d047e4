import json
import math
import zlib

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.checkpoints import load_model, load_tokenizer
from probe.data import QA, Batch, Template, encode
from probe.hooks import edited
from probe.metrics import (
    auc,
    compression_ratio,
    exact_memorisation,
    extraction_strength,
    forget_quality,
    model_utility,
    normalised_probability,
    privleak,
    probability,
    repetition,
    rouge_l_recall,
    token_entropy,
    truth_ratio,
    truth_ratio_arithmetic,
    truth_ratio_forget,
    truth_ratio_retain,
)
from probe.metrics.generation import generate
from probe.metrics.memorisation import answer_stats
from probe.metrics.suite import answer_suite, n_texts
from probe.metrics.text import Rouge, rouge, words
from probe.metrics.tofu import UTILITY_PARTS
from probe.objectives.token import target_logprobs
from probe.sites import Site
from probe.weights import blended

LETTERS = "abcdefghijklmnopqrstuvwxyz \n:?.QA0123456789"
TEMPLATE = Template("Q: {question}\nA:", " {answer}")


def letter_tokenizer(**special):
    """One token a letter, for the tiny models' 48 ids; no pad token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *LETTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    if special.get("bos_token", "<s>"):
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def roomy_gpt2(seed=0, **changes):
    """A float64 model with a context long enough for prompts and answers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    settings = {"vocab_size": 48, "n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**settings, bos_token_id=1, eos_token_id=2, initializer_range=0.6, **changes)
    return GPT2LMHeadModel(config).double().eval()


def rows_for_suite(n=6):
    def row(i):
        wrong = tuple(f"{c}{i} no" for c in "abcde")
        return QA(f"who is {i}?", f"person {i}", f"name of {i}?", f"it is {i}", wrong)

    return [row(i) for i in range(n)]


# Published numbers


@pytest.fixture(params=["forget01", "forget10"])
def golden(request, shared):
    return json.loads((shared / "golden" / f"openunlearning_Llama-3.2-1B-Instruct_{request.param}.json").read_text())


def single(values):
    return np.asarray(values, dtype=np.float32).astype(np.float64)


@pytest.mark.parametrize("model", ["full", "retain"])
def test_tofu_aggregates_come_out_as_published(golden, model):
    logs, expect = golden[model], golden[model]["expect"]
    forget = truth_ratio(single(logs["forget"]["para"]), single(logs["forget"]["pert"]), eps=1e-10)
    assert truth_ratio_forget(forget) == pytest.approx(expect["forget_truth_ratio"], rel=1e-9)
    parts = {}
    for where in ("retain", "ra", "wf"):
        log = logs[where]
        right, wrong = single(log["gt"]), single(log["pert"])
        paraphrased = single(log["para"]) if where == "retain" else right
        parts[f"{where}_truth_ratio"] = truth_ratio_retain(truth_ratio(paraphrased, wrong, eps=1e-10))
        parts[f"{where}_rouge"] = float(np.mean(log["rougeL_recall"]))
        chosen = probability(right) if where == "retain" else normalised_probability(right, wrong, eps=1e-10)
        parts[f"{where}_probability"] = float(chosen.mean())
        suffix = "" if where == "retain" else "_normalised"
        assert parts[f"{where}_truth_ratio"] == pytest.approx(expect[f"{where}_Truth_Ratio"], rel=1e-9)
        assert parts[f"{where}_rouge"] == pytest.approx(expect[f"{where}_Q_A_ROUGE"], rel=1e-12)
        # The logs took the exponential itself in float32 (half a unit in the last place is 3e-8).
        assert parts[f"{where}_probability"] == pytest.approx(expect[f"{where}_Q_A_Prob{suffix}"], rel=1.5e-8)
    assert model_utility(parts).value == pytest.approx(expect["model_utility"], rel=1e-9)


def test_forget_quality_and_privacy_come_out_as_published(golden):
    ratios, areas = {}, {}
    for model in ("full", "retain"):
        forget, scores = golden[model]["forget"], golden[model]["mia_min_k"]
        ratios[model] = truth_ratio(single(forget["para"]), single(forget["pert"]))
        areas[model] = auc(scores["forget"], scores["holdout"])
        assert areas[model] == pytest.approx(golden[model]["expect"]["mia_min_k_auc"], rel=1e-9)
    quality = forget_quality(ratios["full"], ratios["retain"])
    assert quality.p == pytest.approx(golden["expect"]["forget_quality"], rel=1e-9)
    assert quality.ln_p == pytest.approx(math.log(quality.p))
    assert privleak(areas["full"], areas["retain"]) == pytest.approx(golden["expect"]["privleak"], rel=1e-9)


SENTENCES = {
    "Russian": ("Столица этой страны находится на севере, у большой реки.", "На севере у реки стоит другой город."),
    "Greek": ("Η πρωτεύουσα της χώρας βρίσκεται δίπλα στη θάλασσα.", "Η χώρα έχει πολλά νησιά."),
    "Arabic": ("وُلِدَ الكاتِبُ في مَدينةٍ صغيرةٍ على شاطئِ البحر.", "يعيش الكاتب في العاصمة."),
    "Hindi": ("लेखक का जन्म एक छोटे से गाँव में हुआ था और वह आज दिल्ली में रहता है।", "लेखक की किताबें बहुत प्रसिद्ध हैं।"),
    "Thai": ("นักเขียนเกิดในหมู่บ้านเล็กๆ ทางภาคเหนือของประเทศไทยเมื่อหลายปีก่อน", "เขาเขียนหนังสือหลายเล่ม"),
    "Chinese": ("这位作家出生在北方的一个小村庄，现在住在首都。", "他写过很多书。"),
    "Japanese": ("その作家は北の小さな村で生まれ、今は東京に住んでいます。", "彼は本をたくさん書きました。"),
    "Korean": ("그 작가는 북쪽의 작은 마을에서 태어나 지금은 수도에 살고 있습니다.", "그는 책을 많이 썼습니다."),
}


@pytest.mark.parametrize("language", SENTENCES)
def test_f3_rouge_reads_every_script(language):
    text, other = SENTENCES[language]
    assert rouge(text, text) == Rouge(1.0, 1.0, 1.0)
    assert rouge(text, other).rouge_l_recall < 0.5
    half = " ".join(words(text)[: len(words(text)) // 2])
    assert rouge(text, half).rouge_l_recall == pytest.approx(len(words(half)) / len(words(text)))


def test_f3_words_are_the_same_composed_or_not():
    assert words("Don’t go to the CAFÉ") == words("don't go to the cafe\u0301") == ["don't", "go", "to", "the", "café"]
    assert words("'quoted' rock'n'roll") == ["quoted", "rock'n'roll"]


def test_rouge_of_120_published_pairs(shared):
    pairs = json.loads((shared / "golden" / "rouge_pairs.json").read_text())
    assert len(pairs) == 120
    for pair in pairs:
        found = rouge(pair["ground_truth"], pair["generation"])
        assert found.rouge1_recall == pair["rouge1_recall"]
        assert found.rouge_l_f1 == pair["rougeL_f1"]
        assert rouge_l_recall(pair["ground_truth"], pair["generation"]) == pair["rougeL_recall"]
    assert rouge_l_recall("a fact", "") == 0


# TOFU


@pytest.mark.parametrize(
    ("n", "m", "floor"),
    [(40, 40, 1.86e-23), (200, 200, 1.94e-119), (300, 300, 1.48e-179), (400, 400, 1.06e-239), (40, 200, 3.16e-46)],
)
def test_forget_quality_of_disjoint_samples_is_the_floor(n, m, floor):
    found = forget_quality(np.linspace(0, 1, n), np.linspace(2, 3, m))
    assert found.p == pytest.approx(floor, rel=5e-3)
    assert found.floor == pytest.approx(found.p, rel=1e-9)
    assert (found.statistic, found.n, found.m) == (1.0, n, m)


def test_ln_p_goes_on_where_p_underflows():
    found = forget_quality(np.arange(4000.0), np.arange(4000.0) + 5000)
    assert found.p == found.floor == 0
    assert found.ln_p == pytest.approx(math.log(2) - math.log(math.comb(8000, 4000)), rel=1e-12)
    near = forget_quality(np.arange(4000.0), np.arange(4000.0) + 3900.5)
    assert found.ln_p < near.ln_p < -745


@pytest.mark.parametrize("n", [1, 5, 23, 40, 400])
def test_forget_quality_agrees_with_scipy(n):
    from scipy.stats import ks_2samp

    generator = np.random.default_rng(n)
    for shift in (0.0, 0.1, 0.5, 2.0):
        for m in (n, 30):
            a, b = generator.gamma(2, 1, n), generator.gamma(2, 1, m) + shift
            found, judged = forget_quality(a, b), ks_2samp(a, b, method="exact")
            assert found.p == pytest.approx(judged.pvalue, rel=1e-9)
            assert found.statistic == pytest.approx(judged.statistic, rel=1e-12)
    # Equal but for one entry: p is 1, and scipy itself gives up on some of these sizes.
    assert forget_quality(np.ones(n), np.append(np.ones(n - 1), 2.0)).p == pytest.approx(1, abs=1e-12)


@settings(max_examples=25)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30), st.lists(st.floats(0.01, 100), min_size=2, max_size=30))
def test_forget_quality_ignores_inversion_and_side(first, second):
    a, b = np.array(first), np.array(second)
    # 1/R may merge neighbours that differ in the last bit; rounding first keeps ties what they are.
    a, b = np.round(a, 3), np.round(b, 3)
    p = forget_quality(a, b).p
    assert forget_quality(1 / a, 1 / b).p == pytest.approx(p, rel=1e-9)
    assert forget_quality(b, a).p == pytest.approx(p, rel=1e-9)
    assert forget_quality(a, a).p == 1


def test_truth_ratio_forms():
    wrong = np.array([[1.0, 2, 3, 4, 5]])
    assert truth_ratio([0.0], wrong)[0] == pytest.approx(0.0498, abs=5e-5)
    assert truth_ratio_arithmetic([0.0], wrong)[0] == pytest.approx(0.1156, abs=5e-5)
    generator = np.random.default_rng(0)
    right, wrong = generator.gamma(2, 1, 50), generator.gamma(2, 1, (50, 5))
    geometric, arithmetic = truth_ratio(right, wrong), truth_ratio_arithmetic(right, wrong)
    assert (geometric <= arithmetic).all()
    np.testing.assert_allclose(arithmetic, np.exp(-wrong).mean(1) / np.exp(-right), rtol=1e-12)
    np.testing.assert_allclose(truth_ratio_forget(geometric), truth_ratio_forget(1 / geometric))
    shares = np.exp(-right) / (np.exp(-right) + np.exp(-wrong).sum(1))
    np.testing.assert_allclose(normalised_probability(right, wrong), shares, rtol=1e-12)


def test_losses_too_large_for_exp_keep_their_ratios():
    assert truth_ratio([1000.0], [[1001.0, 1001.0]])[0] == pytest.approx(math.exp(-1))
    assert normalised_probability([1000.0], [[1000.0]])[0] == pytest.approx(0.5)
    assert truth_ratio_forget([0.0, np.inf, 1.0]) == pytest.approx(1 / 3)


def test_model_utility_is_the_harmonic_mean_and_names_bad_parts_62():
    from scipy.stats import hmean

    parts = dict(zip(UTILITY_PARTS, np.linspace(0.1, 0.9, 9).tolist(), strict=True))
    assert model_utility(parts).value == pytest.approx(hmean(list(parts.values())))
    zero = model_utility({**parts, "wf_rouge": 0.0})
    assert (zero.value, zero.zero_parts) == (0.0, ("wf_rouge",))
    for bad in (-0.1, float("nan"), 1.5):
        with pytest.raises(ValueError, match="ra_rouge = "):
            model_utility({**parts, "ra_rouge": bad})
    with pytest.raises(ValueError, match=r"missing or unknown: ra_rogue, ra_rouge"):
        model_utility({name.replace("ra_rouge", "ra_rogue"): part for name, part in parts.items()})


def test_bad_arrays_are_refused_with_their_number_61():
    holed = np.array([1.0, np.nan, np.nan])
    for call in (
        lambda: probability(holed),
        lambda: truth_ratio(holed, np.ones((3, 5))),
        lambda: truth_ratio_arithmetic(holed, np.ones((3, 5))),
        lambda: normalised_probability(holed, np.ones((3, 5))),
        lambda: truth_ratio_forget(holed),
        lambda: truth_ratio_retain(holed),
        lambda: forget_quality(holed, np.ones(3)),
        lambda: auc(np.ones(3), holed),
    ):
        with pytest.raises(ValueError, match="2 of 3 entries"):
            call()
    with pytest.raises(ValueError, match="3 of 3 entries of loss_N are negative"):
        probability([-1.0, -2.0, -3.0])
    with pytest.raises(ValueError, match="is empty"):
        forget_quality([], [1.0])
    with pytest.raises(ValueError, match="equal length"):
        truth_ratio([1.0, 2.0], [[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match="2 examples"):
        truth_ratio([1.0, 2.0], [[1.0]])


# Text


def test_token_entropy():
    assert token_entropy([]) == token_entropy([7]) == token_entropy([7] * 50) == 0
    assert token_entropy(list(range(50))) == pytest.approx(1)
    assert token_entropy(list(range(25)) * 2) == pytest.approx(0.823, abs=5e-4)
    with pytest.raises(ValueError, match="letters"):
        token_entropy("one text")


def test_repetition_and_compression_63():
    assert repetition([]) == repetition(["to", "be", "or"]) == repetition(list(range(20))) == 0
    assert repetition(["a"] * 13) == pytest.approx(0.9)
    assert repetition(list("ababa"), n=2) == 0.5
    assert compression_ratio("") == 1
    assert compression_ratio("ha" * 500) < 0.05
    assert compression_ratio("naïve") == len(zlib.compress("naïve".encode())) / 6


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=40))
def test_text_numbers_stay_in_range(tokens):
    assert 0 <= token_entropy(tokens) <= 1 + 1e-12
    assert 0 <= repetition(tokens, n=2) < 1
    assert token_entropy(tokens) == pytest.approx(token_entropy(sorted(tokens)))


# Privacy


@settings(max_examples=40)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_auc_agrees_with_scikit_learn(member, other):
    from sklearn.metrics import roc_auc_score

    judged = roc_auc_score([0] * len(member) + [1] * len(other), member + other)
    assert auc(member, other) == pytest.approx(judged, abs=1e-12)


def test_direction_of_auc_and_privleak():
    assert auc([0.1, 0.2], [3.0, 4.0]) == 1
    assert [privleak(a) for a in (0.0, 0.5, 1.0)] == [100, 0, -100]
    with pytest.raises(ValueError, match="auc_reference is 1"):
        privleak(0.5, 1.0)
    with pytest.raises(ValueError, match="lie in"):
        privleak(50.0)


# Memorisation


def test_extraction_strength_floors():
    match = np.array([True, False, True, True])
    assert extraction_strength(match, floor="1/L") == extraction_strength(match, floor="0") == 0.5
    never = np.zeros(5, dtype=bool)
    assert (extraction_strength(never, floor="1/L"), extraction_strength(never, floor="0")) == (0.2, 0.0)
    assert extraction_strength(never[:1], floor="1/L") == 1
    assert extraction_strength(never[:0], floor="1/L") == 0
    assert extraction_strength(~never, floor="0") == 1
    assert exact_memorisation(match) == 0.75
    with pytest.raises(ValueError, match="no tokens"):
        exact_memorisation(never[:0])


def test_answer_stats_agree_with_hugging_face_row_by_row():
    model, batch = tiny_gpt2(), random_batch(rows=7)
    model.train()
    stats = answer_stats(model, batch, batch_size=3)
    assert model.training
    model.eval()
    for i in range(len(batch)):
        row = batch.select([i])
        labels = row.tokens_BT.masked_fill(~row.target_BT, -100)
        with torch.no_grad():
            output = model(**row.inputs, labels=labels)
            logp_BT = target_logprobs(model, row)
        assert stats.loss_N[i] == pytest.approx(output.loss.item(), rel=1e-6)
        assert stats.n_tokens_N[i] == int(row.target_BT.sum())
        assert stats.probability_N[i] == pytest.approx(math.exp(logp_BT.sum().item() / stats.n_tokens_N[i]), rel=1e-9)
        where = row.target_BT[0].nonzero().flatten()
        expected = output.logits[0].argmax(-1)[where - 1] == row.tokens_BT[0, where]
        np.testing.assert_array_equal(stats.correct[i], expected.numpy())


def test_answer_stats_refuse_what_has_no_loss():
    model, batch = tiny_gpt2(), random_batch()
    target_BT = batch.target_BT.clone()
    target_BT[2] = False
    holed = Batch(batch.tokens_BT, target_BT, batch.attention_BT, batch.group_B, batch.prompt_B)
    with pytest.raises(ValueError, match="first: row 2"):
        answer_stats(model, holed)
    with pytest.raises(ValueError, match="64 positions"):
        answer_stats(model, random_batch(length=70))
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN for 4 of 4"):
        answer_stats(model, batch)


def greedy_ids(model, rows, n):
    """The plainest decoder: rows of one length, no cache, no padding."""
    tokens_BT = torch.tensor(rows)
    with torch.no_grad():
        for _ in range(n):
            next_B = model(input_ids=tokens_BT).logits[:, -1].argmax(-1)
            tokens_BT = torch.cat([tokens_BT, next_B[:, None]], dim=1)
    return tokens_BT.tolist()


def test_extraction_strength_is_what_generation_from_a_prefix_extracts():
    model, generator = tiny_gpt2(), torch.Generator().manual_seed(5)
    prompt, length, rows = 4, 8, []
    for noise in (0, 1, 2, 3, 5, 8):
        start = torch.randint(3, 48, (prompt + noise,), generator=generator).tolist()
        rows += greedy_ids(model, [start], length - noise)
    # Rows that follow the model up to a point and then leave it.
    rows += [[*row[:-1], (row[-1] + 1) % 48] for row in rows[:2]]
    tokens_BT = torch.tensor([[*row, 2] for row in rows])
    target_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    target_BT[:, prompt:] = True
    batch = Batch(
        tokens_BT, target_BT, torch.ones_like(target_BT), torch.arange(len(rows)), torch.full((len(rows),), prompt)
    )
    found = [extraction_strength(match, floor="0") for match in answer_stats(model, batch).matches()]
    continued = [greedy_ids(model, [row[: prompt + k] for row in rows], length - k) for k in range(length + 1)]
    needed = [min(k for k in range(length + 1) if continued[k][i] == row) for i, row in enumerate(rows)]
    assert found == [1 - k / length for k in needed]
    assert {0.0, 1.0} < set(found)


# Generation


PROMPTS = ["", "who is it?", "a", "the name of the third one was 3 or 4", "who is it?", "b c"]


@pytest.mark.parametrize("batch_size", [2, 6])
def test_batched_generation_equals_one_by_one_21_22(batch_size):
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    alone = []
    for prompt in PROMPTS:
        ids = [1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        new = greedy_ids(model, [ids], 20)[0][len(ids) :]
        new = new[: new.index(2)] if 2 in new else new
        alone.append(tokenizer.decode(new, skip_special_tokens=True))
    assert len(set(alone)) > 3
    found = generate(model, tokenizer, PROMPTS, max_new_tokens=20, batch_size=batch_size)
    assert found == alone
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == "right"


def test_generation_is_greedy_whatever_the_model_asks_for_25():
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    plain = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
    wild = {"do_sample": True, "temperature": 3.0, "repetition_penalty": 9.0, "num_beams": 3, "min_new_tokens": 11}
    model.generation_config.update(**wild, suppress_tokens=[5, 6, 7, 8], max_length=3)
    before = model.generation_config.to_dict()
    model.train()
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=12) == plain
    assert model.training
    assert model.generation_config.to_dict() == before


def test_generation_stops_at_any_eos_the_model_lists():
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    (text,) = generate(model, tokenizer, ["who is it?"], max_new_tokens=12)
    stop = text[len(text) // 2]
    model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids(stop)]
    assert generate(model, tokenizer, ["who is it?"], max_new_tokens=12) == [text[: text.index(stop)]]


def test_generation_under_an_edit_is_that_of_the_edited_model():
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    vector_D = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5
    plain = generate(model, tokenizer, PROMPTS, max_new_tokens=10)
    with edited(model, {Site(1): lambda hidden_BTD: hidden_BTD + vector_D}):
        found = generate(model, tokenizer, PROMPTS, max_new_tokens=10, batch_size=6)
        alone = [generate(model, tokenizer, [prompt], max_new_tokens=10)[0] for prompt in PROMPTS]
    assert found == alone != plain
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=10) == plain


def test_generation_refuses_what_it_cannot_do():
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    assert generate(model, tokenizer, [], max_new_tokens=3) == []
    with pytest.raises(ValueError, match="one string"):
        generate(model, tokenizer, "who", max_new_tokens=3)
    with pytest.raises(ValueError, match="at least 1"):
        generate(model, tokenizer, ["who"], max_new_tokens=0)
    with pytest.raises(ValueError, match="128 positions"):
        generate(model, tokenizer, ["who"], max_new_tokens=125)
    with pytest.raises(ValueError, match="two bos"):
        generate(model, tokenizer, ["<s>who"], max_new_tokens=3)
    with pytest.raises(ValueError, match="nothing stands before a text"):
        generate(model, letter_tokenizer(bos_token=None), [""], max_new_tokens=3)


def test_a_real_model_tells_its_story(shared):
    folder = shared / "models" / "stories260K"
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    expected = (folder / "expected_greedy.txt").read_text(encoding="utf-8")
    prompts = ["Once upon a time, there was a", "", "Lily"]
    found = generate(model, tokenizer, prompts, max_new_tokens=200)
    assert found[1] == expected
    assert found[2].startswith(generate(model, tokenizer, prompts[2:], max_new_tokens=30)[0])


# The suite


def test_suite_agrees_with_one_text_at_a_time():
    model, tokenizer, rows = roomy_gpt2(), letter_tokenizer(), rows_for_suite()
    found = answer_suite(model, tokenizer, rows, TEMPLATE, batch_size=5, max_new_tokens=8)

    def loss(question, answer):
        return answer_stats(model, encode(tokenizer, [QA(question, answer)], template=TEMPLATE)).loss_N[0]

    for i, row in enumerate(rows):
        right = loss(row.question, row.paraphrased_answer)
        wrong = np.array([loss(row.question, answer) for answer in row.perturbed_answer])
        assert found.probability_N[i] == pytest.approx(math.exp(-loss(row.question, row.answer)), rel=1e-9)
        paraphrased = math.exp(-loss(row.paraphrased_question, row.answer))
        assert found.paraphrased_probability_N[i] == pytest.approx(paraphrased, rel=1e-9)
        assert found.truth_ratio_N[i] == pytest.approx(math.exp(right - wrong.mean()), rel=1e-9)
        assert found.rank_N[i] == (wrong < right).sum()
    prompts = [TEMPLATE.asked(row.question) for row in rows]
    assert list(found.generations) == generate(model, tokenizer, prompts, max_new_tokens=8)
    assert found.rouge_N.tolist() == [rouge_l_recall(r.answer, g) for r, g in zip(rows, found.generations, strict=True)]
    means = found.means()
    assert means["probability"] == pytest.approx(found.probability_N.mean())
    assert means["choice_accuracy"] == pytest.approx((found.rank_N == 0).mean())
    assert means["truth_ratio_retain"] == truth_ratio_retain(found.truth_ratio_N)
    assert repr(found).startswith(f"SuiteResult(6 rows: probability {means['probability']:.3g}, ")
    assert all(0 <= value <= 1 for value in means.values())


def test_a_suite_that_was_stopped_goes_on_from_what_was_kept():
    model, tokenizer, rows = roomy_gpt2(), letter_tokenizer(), rows_for_suite(7)
    options = {"batch_size": 1, "max_new_tokens": 4, "with_moments": True}
    whole = answer_suite(model, tokenizer, rows, TEMPLATE, **options)
    kept, made, counted = {}, [], []

    def keep(key, make):
        if key not in kept:
            made.append(key)
            kept[key] = json.dumps(make())
        return json.loads(kept[key])

    answer_suite(model, tokenizer, rows, TEMPLATE, **options, keep=keep, progress=counted.append)
    assert sum(counted) == n_texts(rows, with_generation=True)
    assert len(set(made)) == len(made) == len(counted) > 10
    lost = made[2::3]
    for key in lost:
        del kept[key]
    made.clear()
    again = answer_suite(model, tokenizer, rows, TEMPLATE, **options, keep=keep)
    assert made == lost
    assert again.generations == whole.generations
    assert again.means() == whole.means()
    for name in ("logp", "correct", "mean", "variance"):
        for found, expected in zip(getattr(again.tokens, name), getattr(whole.tokens, name), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_paraphrases_that_are_not_asked_for_are_not_run():
    model, tokenizer, rows = roomy_gpt2(), letter_tokenizer(), rows_for_suite(2)
    options = {"with_generation": False, "with_wrong_answers": False, "with_paraphrases": False}
    counted = []
    found = answer_suite(model, tokenizer, rows, TEMPLATE, **options, progress=counted.append)
    assert sum(counted) == 2
    assert set(found.means()) == {"probability", "extraction_strength", "exact_memorisation"}
    with pytest.raises(ValueError, match="leave with_paraphrases at True"):
        found.extraction("0", perturbed=True)


def test_suite_under_a_full_blend_is_the_other_model():
    tokenizer, rows = letter_tokenizer(), rows_for_suite(3)
    model, other = (tiny_llama(seed) for seed in (0, 1))
    kept = answer_suite(model, tokenizer, rows, TEMPLATE, max_new_tokens=5)
    theirs = answer_suite(other, tokenizer, rows, TEMPLATE, max_new_tokens=5)
    with blended(model, other, torch.ones(3), 1.0):
        found = answer_suite(model, tokenizer, rows, TEMPLATE, max_new_tokens=5)
    assert found.means() == theirs.means() != kept.means()
    assert found.generations == theirs.generations


def test_suite_leaves_out_what_the_rows_do_not_have():
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    model.train()
    bare = [QA("who?", "me"), QA("where?", "here")]
    found = answer_suite(model, tokenizer, bare, TEMPLATE, with_generation=False)
    assert model.training
    assert found.truth_ratio_N is found.rank_N is found.rouge_N is found.generations is None
    assert np.isnan(found.paraphrased_probability_N).all()
    assert set(found.means()) == {"probability", "extraction_strength", "exact_memorisation"}
    # Without a paraphrased answer the answer itself is the denominator.
    row = QA("who?", "me", perturbed_answer=("you", "him"))
    asked = answer_suite(model, tokenizer, [row], TEMPLATE, with_generation=False)
    assert asked.right_loss_N[0] == asked.loss_N[0]
    tied = QA("who?", "me", perturbed_answer=("me", "me"))
    assert answer_suite(model, tokenizer, [tied], TEMPLATE, with_generation=False).rank_N.tolist() == [2]


def test_suite_refuses_rows_it_cannot_measure():
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    mixed = [QA("who?", "me"), QA("who?", "you", perturbed_answer=("me",))]
    with pytest.raises(ValueError, match="between 0 and 1 perturbed"):
        answer_suite(model, tokenizer, mixed, TEMPLATE)
    found = answer_suite(model, tokenizer, mixed, TEMPLATE, with_wrong_answers=False, with_generation=False)
    assert len(found) == 2
    with pytest.raises(ValueError, match="first: row 1"):
        answer_suite(model, tokenizer, [QA("who?", "me"), QA("who?", " ")], TEMPLATE)
    with pytest.raises(ValueError, match="0 given"):
        answer_suite(model, tokenizer, [], TEMPLATE)
