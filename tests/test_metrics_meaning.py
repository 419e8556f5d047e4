"""Extraction by generating, MUSE's memorisation, and judges of meaning."""

import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_gpt2
from jaxtyping import TypeCheckError
from rouge_score.rouge_scorer import RougeScorer
from test_metrics import TEMPLATE, greedy_ids, letter_tokenizer, roomy_gpt2, rows_for_suite

from probe.data import QA, Batch
from probe.metrics.extraction import (
    GREEDY_BARS,
    UWC_BARS,
    extraction_by_generation,
    generated_extraction_strength,
    word_extraction_strength,
)
from probe.metrics.generation import generate
from probe.metrics.judges import Embedder, Entailer, nli_judge, rouge_entailer, sentence_embedder, tfidf_embedder
from probe.metrics.meaning import cosine_similarity, entailed, natural_and_similar
from probe.metrics.memorisation import answer_stats, extraction_strength
from probe.metrics.muse import knowledge_memorisation, rouge_l_f1, verbatim_memorisation
from probe.metrics.suite import answer_suite
from probe.metrics.text import distinct, repetition
from probe.readers import Continuation

# Extraction strength


def followed_rows():
    """Texts of 12 tokens that the model follows from some token on, and two whose last token it would not write."""
    model, generator, rows = tiny_gpt2(), torch.Generator().manual_seed(5), []
    for noise in (0, 1, 2, 3, 5, 8):
        start = torch.randint(3, 48, (4 + noise,), generator=generator).tolist()
        rows += greedy_ids(model, [start], 8 - noise)
    rows += [[*row[:-1], (row[-1] + 1) % 48] for row in rows[:2]]
    return model, rows


@pytest.mark.parametrize("max_length", [None, 40])
def test_generated_extraction_strength_equals_the_teacher_forced_form_with_floor_0_exactly(max_length):
    model, rows = followed_rows()
    tokens_BT = torch.tensor([[*row, 2] for row in rows])
    target_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    target_BT[:, 4:] = True
    n = len(rows)
    batch = Batch(tokens_BT, target_BT, torch.ones_like(target_BT), torch.arange(n), torch.full((n,), 4))
    forced = [extraction_strength(match, floor="0") for match in answer_stats(model, batch).matches()]
    prompts, answers = [row[:4] for row in rows], [row[4:] for row in rows]
    ways = {"bars": GREEDY_BARS, "eos": {2}, "max_length": max_length, "batch_size": 3}
    found = generated_extraction_strength(model, prompts, answers, **ways)
    assert found.tolist() == forced
    assert {0.0, 1.0} < set(forced)
    # The other floor is another number where not even the last token comes out.
    floors = [extraction_strength(match, floor="1/L") for match in answer_stats(model, batch).matches()]
    assert floors != forced
    # The published left bar lies within the prompt, which must be reproduced as well.
    published = generated_extraction_strength(model, prompts, answers, bars=UWC_BARS, eos={2}, question_lengths=[2] * n)
    assert ((published >= 0) & (published <= 1)).all()
    assert published.tolist() != forced
    with pytest.raises(ValueError, match="question_lengths"):
        generated_extraction_strength(model, prompts, answers, bars=UWC_BARS, eos={2})


def test_an_output_that_ends_early_counts_only_for_the_published_bars():
    model, prompt = roomy_gpt2(), [5, 9, 30, 7]
    follows = greedy_ids(model, [prompt], 8)[0][4:]
    # Cut before the first token that comes a second time, so that its id can end the text there and nowhere before.
    n = next((i for i, token in enumerate(follows) if token in follows[:i]), 8)
    assert n >= 2
    ends, wrong = {follows[n - 1]}, [*follows[: n - 1], (follows[n - 1] + 1) % 48]
    published = {"bars": UWC_BARS, "question_lengths": [len(prompt)]}
    assert generated_extraction_strength(model, [prompt], [wrong], eos=ends, **published).tolist() == [1.0]
    assert generated_extraction_strength(model, [prompt], [wrong], bars=GREEDY_BARS, eos=ends).tolist() == [0.0]
    assert generated_extraction_strength(model, [prompt], [[]], bars=GREEDY_BARS, eos=ends).tolist() == [0.0]


def test_extraction_by_generation_of_exact_and_perturbed_questions():
    model, tokenizer, rows = roomy_gpt2(), letter_tokenizer(), rows_for_suite(3)
    follows = generate(model, tokenizer, [TEMPLATE.asked(rows[0].question)], max_new_tokens=6)[0]
    if follows.startswith(" ") and follows.strip():
        rows[0] = QA(rows[0].question, follows[1:], rows[0].paraphrased_question, "", rows[0].perturbed_answer)
    suite = answer_suite(model, tokenizer, rows, TEMPLATE, with_generation=False, with_wrong_answers=False)
    for perturbed in (False, True):
        found = extraction_by_generation(model, tokenizer, rows, TEMPLATE, bars=GREEDY_BARS, perturbed=perturbed)
        assert found.tolist() == suite.extraction("0", perturbed=perturbed).tolist()
    with pytest.raises(ValueError, match="first: row 0"):
        extraction_by_generation(model, tokenizer, [QA("a", "b")], TEMPLATE, bars=GREEDY_BARS, perturbed=True)


class Says:
    """Stands in for the model in ``generate``: what is written after each prompt."""

    def __init__(self, answers):
        self.answers = answers

    def __call__(self, model, tokenizer, prompts, **settings):
        return [self.answers.get(prompt, "nothing") for prompt in prompts]


def test_word_extraction_strength_by_hand(monkeypatch):
    rows = [QA("q1", "one two three four"), QA("q2", "one two three"), QA("q3", "one two")]
    answers = {
        "Q: q1\nA:": " one five",
        "Q: q1\nA: one": " two three four\nand more",
        "Q: q2\nA:": " one two three",
    }
    monkeypatch.setattr("probe.metrics.extraction.generate", Says(answers))
    model, tokenizer = tiny_gpt2(), letter_tokenizer()
    found = word_extraction_strength(model, tokenizer, rows, TEMPLATE, max_new_tokens=5)
    assert found.tolist() == [0.75, 1.0, 0.0]
    with pytest.raises(ValueError, match="empty answer"):
        word_extraction_strength(model, tokenizer, [QA("q", " ")], TEMPLATE, max_new_tokens=5)


# MUSE


def test_muse_memorisation(monkeypatch):
    says = {"It was": " running slowly", "Q: who?\nA:": " the dogs\nQ: what?"}
    monkeypatch.setattr("probe.metrics.muse.generate", Says(says))
    model, tokenizer = tiny_gpt2(), letter_tokenizer()
    passages = [Continuation("It was", "runs slowly home")]
    stemmed = verbatim_memorisation(model, tokenizer, passages, stemming="stemmed")
    plain = verbatim_memorisation(model, tokenizer, passages, stemming="unstemmed")
    assert stemmed.f1_N.tolist() == pytest.approx([0.8])
    assert plain.f1_N.tolist() == pytest.approx([0.4])
    assert stemmed.outputs == (" running slowly",)
    known = knowledge_memorisation(model, tokenizer, [QA("who?", "the dog")], TEMPLATE, stemming="unstemmed")
    assert known.outputs == (" the dogs",)
    assert known.mean == pytest.approx(0.5)
    for stemming, flag in (("stemmed", True), ("unstemmed", False)):
        judged = RougeScorer(["rougeL"], use_stemmer=flag).score("He was running", "he runs")["rougeL"].fmeasure
        assert rouge_l_f1("He was running", "he runs", stemming) == judged
    with pytest.raises(ValueError, match="first: row 0"):
        verbatim_memorisation(model, tokenizer, [Continuation("a", " ")], stemming="stemmed")


def test_muse_generates_for_real():
    model, tokenizer = roomy_gpt2(), letter_tokenizer()
    passages = [Continuation("who is", " it now")]
    found = verbatim_memorisation(model, tokenizer, passages, stemming="stemmed", max_new_tokens=9)
    assert list(found.outputs) == generate(model, tokenizer, ["who is"], max_new_tokens=9)


# Judges


def test_distinct_n_grams():
    assert distinct([["a", "b", "a"], ["a"]], 1) == 0.5
    assert distinct([["a", "b", "a"], ["a", "b"]], 2) == pytest.approx(2 / 3)
    assert distinct([["a"]], 2) == distinct([], 1) == 0
    words = ["a", "rose", "is", "a", "rose", "is", "a", "rose", "is", "a", "rose"]
    assert distinct([words], 3) == pytest.approx(1 - repetition(words, 3))
    with pytest.raises((ValueError, TypeCheckError)):
        distinct(["a rose"], 1)


def test_cosine_similarity_with_the_plain_embedder_and_a_given_one():
    outputs = ["the cat sat", "a dog", "", "陈 小红"]
    answers = ["the cat sat", "the cat", "the cat", "陈 小红"]
    found = cosine_similarity(outputs, answers, tfidf_embedder())
    assert found.judge == "tfidf"
    assert found.value_N.tolist() == pytest.approx([1, 0, 0, 1])
    opposite = Embedder("mine", lambda texts: np.array([[1.0, 0], [3.0, 4], [-1, 0], [3.0, 0]]))
    given = cosine_similarity(["a", "b"], ["c", "d"], opposite)
    assert given.value_N.tolist() == pytest.approx([0, 0.6])
    assert given.judge == "mine"
    with pytest.raises(ValueError, match="2 outputs and 1 answers"):
        cosine_similarity(["a", "b"], ["c"], opposite)
    with pytest.raises(ValueError, match="expected one finite vector"):
        cosine_similarity(["a"], ["c"], opposite)


def test_entailment_follows_the_published_directions_and_the_floor():
    asked = []

    def judge(pairs):
        asked.append(pairs)
        return [0.9 if len(premise) >= len(hypothesis) else 0.2 for premise, hypothesis in pairs]

    outputs = ["the name is x y", "nothing alike", "x", ""]
    answers = ["the name is x", "the name is x", "the name is x", "the name is x"]
    forget = entailed(outputs, answers, Entailer("mine", judge), premise="output")
    # The second output shares no word, the fourth has none: neither is asked about.
    assert asked[-1] == [(outputs[0], answers[0]), (outputs[2], answers[2])]
    assert forget.value_N.tolist() == [1, 0, 0, 0]
    retain = entailed(outputs, answers, Entailer("mine", judge), premise="answer")
    assert asked[-1][0] == (answers[0], outputs[0])
    assert retain.value_N.tolist() == [0, 0, 1, 0]
    assert retain.judge == "mine"
    entailed(outputs, answers, Entailer("mine", judge), premise="output", rouge_floor=0.0)
    assert len(asked[-1]) == 3
    plain = entailed(outputs, answers, rouge_entailer(share=1.0), premise="output")
    assert plain.judge == "rouge-based (ROUGE-L recall >= 1)"
    assert plain.value_N.tolist() == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="expected 2 booleans"):
        entailed(outputs, answers, Entailer("mine", lambda pairs: [True]), premise="output")


def test_natural_and_similar_take_any_judge():
    found = natural_and_similar(["a", "b"], ["c", "d"], lambda pairs: [[1, 0.5], [0, 0.25]], name="model, prompt 1")
    assert found.naturalness_N.tolist() == [1, 0]
    assert found.similarity_N.tolist() == [0.5, 0.25]
    assert found.judge == "model, prompt 1"
    with pytest.raises(ValueError, match="needs a name"):
        natural_and_similar(["a"], ["c"], lambda pairs: [[1, 1]], name=" ")
    with pytest.raises(ValueError, match="two in"):
        natural_and_similar(["a"], ["c"], lambda pairs: [[1, 2]], name="m")


@pytest.fixture
def small_bert(tmp_path):
    """Folders with a tiny encoder and a tiny classifier of pairs."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "sat", "ran"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    for name, labels in (("encoder", None), ("nli", ["contradiction", "Entailment"]), ("other", ["bad", "good"])):
        extra = {} if labels is None else {"id2label": dict(enumerate(labels)), "num_labels": 2}
        config = BertConfig(**sizes, intermediate_size=16, **extra)
        (BertModel(config) if labels is None else BertForSequenceClassification(config)).save_pretrained(
            tmp_path / name
        )
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def test_r1_a_judge_whose_weights_lack_is_refused(small_bert):
    shutil.copy(small_bert / "encoder" / "model.safetensors", small_bert / "nli" / "model.safetensors")
    with pytest.raises(ValueError, match=r"weights are not those of a BertForSequenceClassification .*missing"):
        nli_judge(small_bert / "nli")
    (small_bert / "encoder" / "model.safetensors").rename(small_bert / "encoder" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is a pickle"):
        sentence_embedder(small_bert / "encoder")


def test_models_from_folders_judge_and_give_their_name(small_bert):
    texts = ["the cat sat", "the dog", "ran", "the cat sat"]
    embedder = sentence_embedder(small_bert / "encoder", batch_size=3)
    vector_ND = embedder(texts)
    # Padding does not count: alone or beside longer texts a text has the same vector.
    for i, text in enumerate(texts):
        np.testing.assert_allclose(vector_ND[i], embedder([text])[0], atol=1e-6)
    found = cosine_similarity(texts[:2], [texts[3], texts[2]], embedder)
    assert found.judge == "encoder"
    assert found.value_N[0] == pytest.approx(1)
    judge = nli_judge(small_bert / "nli", batch_size=2)
    verdicts = judge([("the cat sat", "the cat"), ("the dog", "the dog ran"), ("ran", "sat")])
    assert len(verdicts) == 3
    assert entailed(["the cat"], ["the cat"], judge, premise="output").judge == "nli"
    with pytest.raises(ValueError, match="'entailment'"):
        nli_judge(small_bert / "other")
    for loader in (sentence_embedder, nli_judge):
        with pytest.raises(FileNotFoundError, match="from_hub=True"):
            loader("nobody/has-such-a-model")
