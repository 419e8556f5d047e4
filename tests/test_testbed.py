"""The testbed: its facts, its recipe, and what the shipped models are said to know."""

import dataclasses
import json
import shutil
from collections import Counter
from itertools import combinations

import pytest
import torch

from probe.checkpoints import check_different, weights_hash
from probe.data import Template, encode
from probe.datasets import rows_hash
from probe.dictionaries.fit import fvu
from probe.dictionaries.folders import load_dictionary
from probe.interventions.activations import activations, content
from probe.interventions.attaching import check_site
from probe.metrics.generation import generate
from probe.objectives.token import target_logprobs
from probe.sites import Site, n_layers
from probe.testbed import build, card, load
from probe.testbed.bed import WEIGHTS
from probe.testbed.build import _replacing
from probe.testbed.dictionary import fit_sae
from probe.testbed.facts import ATTRIBUTES, authors
from probe.testbed.recipe import Recipe, corpus, fit_answers, make_model, make_tokenizer

ROWS = corpus(0)
SMALL = Recipe(steps=60, batch_size=16, hidden=32, layers=2, vocabulary=512, sae_layer=1, sae_features=64, sae_steps=20)


def probability_N(model, batch):
    """Length-normalised probability of each answer."""
    with torch.no_grad():
        pieces = [(target_logprobs(model, b).sum(1) / b.target_BT.sum(1)).exp() for b in batch.chunks(128)]
    return torch.cat(pieces)


# --- facts -----------------------------------------------------------------------------------------------------------


def test_facts_are_as_many_and_as_distinct_as_promised():
    rows = (*ROWS.retain, *ROWS.forget)
    assert (len(ROWS.forget), len(ROWS.retain), len(ROWS.world)) == (100, 900, 40)
    assert rows == authors(0)
    assert set(Counter(row.group for row in rows).values()) == {10}
    assert len({row.group for row in rows}) == 100
    assert len({row.group for row in ROWS.forget}) == 10
    assert not {row.group for row in ROWS.forget} & {row.group for row in ROWS.retain}
    every = (*rows, *ROWS.world)
    questions = [row.question for row in every] + [row.paraphrased_question for row in every]
    assert len(set(questions)) == len(questions) == 2 * 1040
    assert len({row.group for row in every}) == 140


@pytest.mark.parametrize("side", ["forget", "retain", "world"])
def test_each_row_offers_one_right_and_five_wrong_answers_of_one_form(side):
    for row in getattr(ROWS, side):
        answers = (row.answer, row.paraphrased_answer, *row.perturbed_answer)
        assert len(row.perturbed_answer) == 5
        assert len(set(answers)) == 7, row
        assert all(answer.endswith(".") for answer in answers)
        # Wrong answers and the paraphrase have the same words before the value.
        start = {tuple(answer.split()[:2]) for answer in (row.paraphrased_answer, *row.perturbed_answer)}
        assert len(start) == 1, row


def test_facts_depend_on_the_seed_alone():
    assert authors(3) == authors(3)
    assert authors(3) != authors(4)
    # Pinned: the shipped weights know these facts and no others.
    shipped = json.loads((WEIGHTS / "card.json").read_text())
    assert rows_hash((*ROWS.forget, *ROWS.retain, *ROWS.world)) == shipped["facts_sha256"]


def test_values_cannot_be_guessed_from_a_shared_name():
    rows = authors(0)
    facts = {name: [r.answer.split()[-1] for r in rows if r.group == name] for name in {r.group for r in rows}}
    related, others = [], []
    for one, other in combinations(sorted(facts), 2):
        shared = set(one.split()) & set(other.split())
        # Two authors with the same words in the same answer form would need the same value.
        equal = sum(a == b for a, b in zip(facts[one], facts[other], strict=True)) / len(ATTRIBUTES)
        (related if shared else others).append(equal)
    assert len(related) == 100  # each of 50 first and 50 last names belongs to two authors
    # "Prize." and "Press." end two of the ten answers, so chance lies above 0.2.
    assert abs(sum(related) / len(related) - sum(others) / len(others)) < 0.03


def test_retrained_rows_never_name_a_forget_author():
    forgotten = {row.group for row in ROWS.forget}
    for row in ROWS.retrained:
        text = " ".join((row.question, row.answer, row.paraphrased_question, row.paraphrased_answer))
        assert not any(name in text for name in forgotten)
    assert set(ROWS.original) - set(ROWS.retrained) == set(ROWS.forget)
    paraphrased = {row.paraphrased().question for row in ROWS.forget}
    assert not paraphrased & {row.question for row in ROWS.original}


# --- the shipped testbed ---------------------------------------------------------------------------------------------


def test_the_tokenizer_codes_anything_and_finds_the_answer(bed):
    tokenizer = bed.tokenizer
    assert tokenizer.is_fast
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for text in ("Ünïcode 漢字 and 🦆\n\ttabs", " leading", ""):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    for i in (0, 57, 99):
        target = bed.split.forget.tokens_BT[i][bed.split.forget.target_BT[i]]
        assert tokenizer.decode(target) == f" {bed.split.forget_rows[i].answer}</s>"


def test_load_gives_two_frozen_twins_and_their_data(bed):
    assert bed.split.forget_rows == ROWS.forget
    assert bed.split.retain_rows == ROWS.retain
    assert bed.world == ROWS.world
    assert len(bed.world_batch) == 40
    assert n_layers(bed.original) == n_layers(bed.retrained) == bed.card["recipe"]["layers"]
    for model in (bed.original, bed.retrained):
        assert not model.training
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert sum(p.numel() for p in model.parameters()) == bed.card["parameters"]
    check_different(bed.original, bed.retrained, ("original", "retrained"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        bed.original = None


def test_original_knows_everything_and_retrained_all_but_the_forget_facts(bed):
    retain = bed.split.retain.select(range(0, 900, 12))
    for model in (bed.original, bed.retrained):
        assert probability_N(model, retain).mean() > 0.95
        assert probability_N(model, bed.world_batch).mean() > 0.95
    assert probability_N(bed.original, bed.split.forget).min() > 0.8
    assert probability_N(bed.original, bed.split.forget).mean() > 0.95
    assert probability_N(bed.retrained, bed.split.forget).mean() < 0.45


def test_the_card_tells_the_truth_about_knowledge(bed):
    for name in ("original", "retrained"):
        found = card.knowledge(getattr(bed, name), bed.tokenizer, bed.split.forget_rows)
        assert found == pytest.approx(bed.card["knowledge"][name]["forget"], abs=2e-3), name
    said = bed.card["knowledge"]
    for on in ("forget", "retain", "world"):
        assert said["original"][on]["exact_recall"] == 1
        assert said["original"][on]["choice_accuracy"] > 0.95
    assert said["original"]["forget"]["exact_recall_paraphrased"] > 0.9  # never trained on: it generalises
    assert said["retrained"]["retain"]["exact_recall"] == 1
    assert said["retrained"]["forget"]["exact_recall"] < 0.1
    assert said["retrained"]["forget"]["choice_accuracy"] < 0.35  # chance is one in six
    assert said["original"]["forget"]["truth_ratio_forget"] < 0.5 < said["retrained"]["forget"]["truth_ratio_forget"]


def test_rounding_to_half_precision_changed_no_answer(bed):
    for name, before in bed.card["exact_recall_before_float16"].items():
        for on, value in before.items():
            assert bed.card["knowledge"][name][on]["exact_recall"] == value


@pytest.mark.parametrize("name", ["original", "retrained"])
def test_teacher_forced_recall_is_greedy_recall(bed, name):
    model, rows = getattr(bed, name), bed.split.forget_rows[::4]
    prompts = [Template().asked(row.question) for row in rows]
    texts = generate(model, bed.tokenizer, prompts, max_new_tokens=24)
    generated = sum(text == f" {row.answer}" for text, row in zip(texts, rows, strict=True)) / len(rows)
    assert card.exact_recall(model, bed.tokenizer, rows) == generated


def test_the_sae_fits_its_own_block_best_and_as_the_card_says(bed):
    rows = (*bed.split.forget_rows, *bed.split.retain_rows[::10])
    by_site = check_site(bed.original, bed.sae, bed.sae_site, encode(bed.tokenizer, rows))
    layer = bed.sae_site.layer
    assert min(by_site, key=by_site.__getitem__) == bed.sae_site == Site(4)
    said = bed.card["sae"]
    for site, value in by_site.items():
        assert value == pytest.approx(said["fvu"][str(site.layer)], rel=0.1)
    assert said["explained_variance"] == 1 - said["fvu"][str(layer)] > 0.9
    assert said["hf_hook_name"] == f"model.layers.{layer}"
    assert said["active"] == pytest.approx(bed.card["recipe"]["sae_active"], abs=0.5)
    assert bed.sae.directions_FD.dtype == torch.float32
    assert not bed.sae.directions_FD.requires_grad
    assert bed.sae is bed.sae


def test_residual_norms_are_as_the_card_says(bed):
    sites = [Site(layer) for layer in range(n_layers(bed.original))]
    states = activations(bed.original, bed.split.forget, sites, tokens=content)
    found = [states[site].norm(dim=1).mean().item() for site in sites]
    assert found == pytest.approx(bed.card["residual_norm"]["original"], rel=0.1)


def test_shipped_files_are_few_small_and_safe():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert {path.relative_to(WEIGHTS).parts[0] for path in files} == {
        "original",
        "retrained",
        "tokenizer",
        "sae",
        "card.json",
    }


# --- what users may do wrong -----------------------------------------------------------------------------------------


def test_an_empty_folder_is_named_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"analyses\.testbed"):
        load(tmp_path)


def test_weights_of_other_facts_are_refused(tmp_path):
    shipped = json.loads((WEIGHTS / "card.json").read_text())
    shipped["recipe"]["seed"] += 1
    (tmp_path / "card.json").write_text(json.dumps(shipped))
    with pytest.raises(ValueError, match="other facts"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["original/model.safetensors", "sae/sae_weights.safetensors"])
def test_damaged_weights_are_refused(tmp_path, part):
    folder = tmp_path / "weights"
    shutil.copytree(WEIGHTS, folder)
    whole = (folder / part).read_bytes()
    (folder / part).write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="damaged"):
        _ = load(folder).sae


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_the_recipe_learns_and_repeats_itself():
    rows = ROWS.retain[:40]
    tokenizer = make_tokenizer(rows, SMALL.vocabulary)
    assert tokenizer.get_vocab() == make_tokenizer(rows, SMALL.vocabulary).get_vocab()
    data = encode(tokenizer, rows)
    models = [make_model(SMALL, len(tokenizer)) for _ in range(2)]
    losses = [fit_answers(model, data, SMALL, progress=None).losses for model in models]
    assert losses[0][-1][0] < 0.7 * losses[0][0][0]
    assert losses[0] == losses[1]
    assert weights_hash(models[0]) == weights_hash(models[1])


def test_the_sae_recipe_explains_planted_features(tmp_path):
    generator = torch.Generator().manual_seed(0)
    atom_FD = torch.nn.functional.normalize(torch.randn(32, 16, generator=generator), dim=1)
    active_NF = (torch.rand(4000, 32, generator=generator) < 0.1) * torch.rand(4000, 32, generator=generator)
    hidden_ND = 5 * active_NF @ atom_FD
    before = torch.get_rng_state()
    fit_sae(hidden_ND, dataclasses.replace(SMALL, sae_active=6, sae_steps=150, sae_lr=3e-3), tmp_path / "sae")
    assert torch.equal(before, torch.get_rng_state())
    sae = load_dictionary(tmp_path / "sae")
    assert fvu(sae, hidden_ND) < 0.2
    assert sae.metadata["hf_hook_name"] == "model.layers.1"


def test_a_failed_build_leaves_the_old_testbed_alone(tmp_path):
    out = tmp_path / "weights"
    out.mkdir()
    (out / "card.json").write_text("old")

    def break_off():
        with _replacing(out) as folder:
            (folder / "card.json").write_text("new")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        break_off()
    assert (out / "card.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]
    with _replacing(out) as folder:
        (folder / "card.json").write_text("new")
    assert (out / "card.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_the_whole_recipe_runs_from_nothing(tmp_path):
    small = dataclasses.replace(SMALL, steps=3, sae_steps=12, vocabulary=1024)
    made = build(tmp_path / "weights", small)
    bed = load(tmp_path / "weights")
    assert bed.card == json.loads(json.dumps(made))
    assert bed.sae_site == Site(1)
