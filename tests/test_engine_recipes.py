"""ELM's third term and TAR's start: text drawn by guidance, and activations mapped to random directions."""

import copy

import pytest
import torch
from conftest import random_batch, tiny_llama
from torch.nn.functional import cosine_similarity

from probe.data import Split
from probe.hooks import captured
from probe.methods.adversarial import TowardsRandom, tar
from probe.methods.elm import elm, fluent_text
from probe.objectives.token import nll
from probe.sites import Site

EXPERT, NOVICE, AWAY = (5, 6, 7), (8, 9), (10, 11)
HOW = {"expert_ids": EXPERT, "novice_ids": NOVICE, "diversion_ids": AWAY, "leading": 1, "seed": 0}


def lively():
    """Distributions far from uniform, so that guidance has something to act on."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
        for p in model.model.layers.parameters():
            p.mul_(4)
    return model


def last(model, ids):
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1], -1)


def test_fluent_text_is_drawn_from_the_guided_distribution():
    model, batch = lively(), random_batch()
    found = fluent_text(model, batch, gamma=3.0, tokens=6, **HOW)
    generator = torch.Generator().manual_seed(0)
    for b in range(len(batch)):
        row = batch.tokens_BT[b, : int(batch.prompt_B[b])].tolist()
        drawn: list[int] = []
        for _ in range(6):  # without a cache
            expert, novice = (last(model, [row[0], *ids, *drawn]) for ids in (EXPERT, NOVICE))
            guided = last(model, [*row, *AWAY, *drawn]) - 3.0 * (expert - novice)
            drawn.append(int(torch.multinomial(guided.softmax(-1), 1, generator=generator)))
        assert found.tokens_BT[b].tolist() == [*row, *AWAY, *drawn]
        assert found.target_BT[b].tolist() == [False] * len(row) + [True] * 8
    assert torch.equal(found.tokens_BT, fluent_text(model, batch, gamma=3.0, tokens=6, **HOW).tokens_BT)


def test_guidance_leads_away_from_the_expert():
    model, batch = lively(), random_batch(rows=8)

    def leaning(gamma):
        found = fluent_text(model, batch, gamma=gamma, tokens=8, **HOW)
        total = 0.0
        for b in range(len(batch)):
            drawn = found.tokens_BT[b, int(batch.prompt_B[b]) + 2 :].tolist()
            for t, token in enumerate(drawn):
                first = int(batch.tokens_BT[b, 0])
                expert, novice = (last(model, [first, *ids, *drawn[:t]]) for ids in (EXPERT, NOVICE))
                total += (expert[token] - novice[token]).item() / len(drawn) / len(batch)
        return total

    assert leaning(3.0) < leaning(0.0) - 0.5


def test_text_ends_at_eos():
    model, batch = lively(), random_batch()
    whole = fluent_text(model, batch, gamma=1.0, tokens=8, **HOW)
    eos = int(whole.tokens_BT[0, int(batch.prompt_B[0]) + 4])
    found = fluent_text(model, batch, gamma=1.0, tokens=8, eos_id=eos, **HOW)
    rows = [ids[real].tolist() for ids, real in zip(found.tokens_BT, found.attention_BT, strict=True)]
    assert rows[0] == whole.tokens_BT[0, : len(rows[0])].tolist()
    for row in rows:
        text = row[int(batch.prompt_B[0]) + 2 :]
        assert eos not in text[:-1]
        assert len(text) == 8 or text[-1] == eos


def test_elm_trains_on_what_the_guided_original_wrote():
    original, split = lively(), Split(random_batch(0), random_batch(1))
    text = fluent_text(original, split.forget, gamma=3.0, tokens=6, **HOW)
    ways = {"without": {}, "given": {"fluency": text}, "made": {"fluent_tokens": 6, "diversion_ids": AWAY}}
    models, histories = {}, {}
    for name, how in ways.items():
        models[name] = copy.deepcopy(original)
        histories[name] = elm(
            models[name],
            split,
            original=original,
            expert_ids=EXPERT,
            novice_ids=NOVICE,
            eta=2.0,
            leading=1,
            retain_weight=1.0,
            seed=0,
            steps=8,
            lr=1e-3,
            batch_size=4,
            **how,
        )
    assert histories["made"] == histories["given"]
    assert histories["made"].names == ("forget", "retain", "fluency")
    before, without, made = (nll(m, text).item() for m in (original, models["without"], models["made"]))
    assert made < min(before, without) - 0.1
    with pytest.raises(ValueError, match="give fluency or fluent_tokens, not both"):
        elm(
            models["made"],
            split,
            original=original,
            expert_ids=EXPERT,
            novice_ids=NOVICE,
            eta=2.0,
            leading=1,
            retain_weight=1.0,
            seed=0,
            steps=1,
            lr=1e-3,
            batch_size=4,
            fluency=text,
            fluent_tokens=3,
        )


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"gamma": -1.0}, "gamma must be"),
        ({"tokens": 0}, "tokens at least 1"),
        ({"leading": 0, "expert_ids": ()}, "empty"),
    ],
)
def test_text_that_cannot_be_drawn_is_refused(how, told):
    with pytest.raises(ValueError, match=told):
        fluent_text(tiny_llama(), random_batch(), **{**HOW, "gamma": 3.0, "tokens": 2} | how)


def test_random_mapping_is_one_minus_the_cosine_to_a_tokens_direction():
    model, batch, sites = tiny_llama(), random_batch(), (Site(0), Site(2))
    directions_VD = torch.randn(48, 16, generator=torch.Generator().manual_seed(1))
    with captured(model, sites) as states:
        model(**batch.inputs)
    values = []
    for site in sites:
        for b, t in batch.attention_BT.nonzero().tolist():
            cosine = cosine_similarity(states[site][b, t], directions_VD[batch.tokens_BT[b, t]], dim=0)
            values.append(1 - cosine.abs())
    torch.testing.assert_close(TowardsRandom(directions_VD, sites)(model, batch), torch.stack(values).mean())


def test_tar_can_start_from_a_random_mapping():
    original, split = tiny_llama(), Split(random_batch(0), random_batch(1))
    how = {
        "original": original,
        "attack_lrs": (1e-3,),
        "attack_batch_size": 2,
        "attack_steps": 2,
        "every": 1,
        "growth": 0.1,
        "forget_weight": 1.0,
        "retain_weight": 1.0,
        "distance_weight": 0.1,
        "steps": 1,
        "lr": 1e-6,
        "batch_size": 4,
        "seed": 5,
    }
    directions_VD = torch.randn(48, 16, generator=torch.Generator().manual_seed(5))
    mapping = TowardsRandom(directions_VD, (Site(0), Site(1), Site(2)))
    away = []
    for more in ({}, {"mapping_steps": 30, "mapping_lr": 1e-2}):
        model = copy.deepcopy(original)
        history = tar(model, split, **how, **more)
        assert history.names == ("forget", "retain", "distance")
        away.append(mapping(model, split.forget).item())
    assert away[1] < away[0] - 0.1
    with pytest.raises(ValueError, match="needs a mapping_lr"):
        tar(copy.deepcopy(original), split, **how, mapping_steps=3)
