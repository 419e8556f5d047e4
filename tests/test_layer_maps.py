"""Layer maps from kept prefixes against whole forwards of models put together by hand, on every family."""

import functools
import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from families import EVERY, family

from probe.checkpoints import weights_hash
from probe.diagnostics.fragility import layer_map
from probe.diagnostics.layer_maps import (
    every_span,
    from_embeddings,
    from_head,
    replacement_map,
    single_layers,
)
from probe.hooks import edited, our_hooks
from probe.interventions.projection import Project
from probe.interventions.replacement import Scale
from probe.interventions.steering import Steer
from probe.metrics.memorisation import answer_stats
from probe.metrics.teacher_forced import TeacherForced, loss_and_probability
from probe.metrics.tokens import token_stats
from probe.positions import At, not_first
from probe.replay import CannotReplay, check_replay
from probe.sites import Site, blocks, module_at, n_layers
from probe.weights import blended, layers

SUITE = TeacherForced(floor="0", k=0.2)


@pytest.fixture(scope="module")
def pairs():
    @functools.cache
    def make(name):
        found = []
        for seed in (0, 1):
            # Gemma caps its logits; at this cap it matters for numbers of this size.
            own = {"gemma2": {"final_logit_softcapping": 3.0}, "cohere": {"logit_scale": 0.3}}.get(name, {})
            model = family(name, seed=seed, **own).requires_grad_(False)
            for parameter in model.parameters() if name != "mamba" else ():
                if parameter.ndim > 1:
                    parameter.mul_(3)
            found.append(model)
        return tuple(found)

    return make


def rows():
    return random_batch(1, rows=5, length=12, vocabulary=48)


def by_hand(host, donor, span, part, batch):
    """Weights copied into the host's modules, a whole forward, the copies taken back."""
    with ExitStack() as stack:
        for layer in range(span[0], span[1] + 1):
            modules = [
                blocks(m)[layer] if part == "block" else module_at(m, Site(layer, part, "in")) for m in (host, donor)
            ]
            before = {k: v.clone() for k, v in modules[0].state_dict().items()}
            stack.callback(modules[0].load_state_dict, before)
            modules[0].load_state_dict(modules[1].state_dict())
        return answer_stats(host, batch).loss_N.mean()


# One model of each kind takes every span: plain, Conv1D and tied, soft caps, parallel parts, blocks that return tuples.
EVERY_SPAN = ("llama", "gpt2", "gemma2", "phi", "falcon")


@pytest.mark.parametrize("name", EVERY)
def test_spans_both_ways_and_every_part_equal_whole_forwards(name, pairs):
    original, unlearned = pairs(name)
    batch = rows()
    parts = {"mamba": ("block",), "opt": ("block", "attention")}.get(name, ("block", "attention", "mlp"))
    spans = every_span(3) if name in EVERY_SPAN else ((1, 1), (0, 2))
    hashes = weights_hash(original), weights_hash(unlearned)
    found = replacement_map(
        original,
        unlearned,
        batch,
        loss_and_probability,
        spans=spans,
        parts=parts,
        into=("original", "unlearned"),
        batch_size=2,
    )
    assert (weights_hash(original), weights_hash(unlearned)) == hashes
    assert len(found.variants) == len(spans) * len(parts) * 2
    models = {"original": (original, unlearned), "unlearned": (unlearned, original)}
    for variant, loss in zip(found.variants, found.values[""]["loss"].tolist(), strict=True):
        expected = by_hand(*models[variant.into], (variant.first, variant.last), variant.part, batch)
        assert loss == pytest.approx(expected, abs=1e-6), variant
    for ends, model in ((found.original, original), (found.unlearned, unlearned)):
        assert ends[""]["loss"] == pytest.approx(answer_stats(model, batch).loss_N.mean(), abs=1e-6)
    # The map would be worth nothing if variants were alike.
    assert found.values[""]["loss"].unique().numel() > len(found.variants) // 2
    assert (weights_hash(original), weights_hash(unlearned)) == hashes
    assert our_hooks(original) == our_hooks(unlearned) == []


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_the_whole_suite_equals_blended_and_one_pass_for_each(make):
    original, unlearned = make(0, n_layers=4), make(1, n_layers=4)
    sides = {"forget": random_batch(0), "retain": random_batch(1, rows=6)}
    found = replacement_map(original, unlearned, sides, SUITE, spans=every_span(4), moments=True, batch_size=4)
    for x, variant in enumerate(found.variants):
        with blended(original, unlearned, layers(range(variant.first, variant.last + 1), 4)):
            for on, batch in sides.items():
                expected = SUITE(token_stats(original, batch, moments=True))
                got = {name: value_X[x].item() for name, value_X in found.values[on].items()}
                assert got == pytest.approx(expected, abs=1e-5 if make is tiny_llama else 1e-10)
    plain = layer_map(original, unlearned, score=lambda m: answer_stats(m, sides["retain"]).loss_N.mean())
    torch.testing.assert_close(found.score_L("retain", "loss"), plain.score_L, rtol=1e-6, atol=1e-6)
    assert found.original["retain"]["loss"] == pytest.approx(plain.original)
    assert found.unlearned["retain"]["loss"] == pytest.approx(plain.unlearned)


def test_edits_act_in_replayed_blocks_once_each():
    original, unlearned, batch = tiny_llama(0), tiny_llama(1), random_batch()
    direction_D = torch.randn(16, generator=torch.Generator().manual_seed(3))
    edits = {
        Site(0, "embedding"): At(Steer(direction_D, scale=1.0), not_first),
        Site(0, side="in"): Steer(direction_D, scale=2.0),
        Site(1, side="in"): Steer(direction_D, scale=2.0),
        Site(1): At(Steer(direction_D, scale=2.0), not_first),
        Site(2, "mlp"): Scale(0.5),
        Site(2, "heads", head=1): Project(direction_D[:4]),
        Site(2): Steer(-direction_D, scale=0.5),
        Site(0, "norm"): At(Steer(direction_D, scale=1.0), not_first),
    }
    clean = replacement_map(original, unlearned, batch, loss_and_probability, spans=every_span(3))
    with edited(original, edits):
        found = replacement_map(original, unlearned, batch, loss_and_probability, spans=every_span(3), batch_size=3)
        expected = []
        for i, j in every_span(3):
            with blended(original, unlearned, layers(range(i, j + 1), 3)):
                expected.append(answer_stats(original, batch).loss_N.mean())
    np.testing.assert_allclose(found.values[""]["loss"], expected, atol=1e-6)
    assert (found.values[""]["loss"] - clean.values[""]["loss"]).abs().min() > 1e-3
    assert our_hooks(original) == []


def test_bfloat16_equals_whole_forwards():
    original, unlearned, batch = (
        tiny_llama(0, dtype=torch.bfloat16),
        tiny_llama(1, dtype=torch.bfloat16),
        random_batch(),
    )
    found = replacement_map(original, unlearned, batch, loss_and_probability, into=("unlearned",))
    for layer in range(3):
        with blended(unlearned, original, layers([layer], 3)):
            expected = answer_stats(unlearned, batch).loss_N.mean()
        assert found.score_L("", "loss", into="unlearned")[layer].item() == pytest.approx(expected, abs=1e-4)


def test_a_model_dispatched_over_a_device_map_gives_the_same():
    from accelerate import dispatch_model

    original, unlearned, batch = tiny_llama(0), tiny_llama(1), random_batch()
    expected = replacement_map(original, unlearned, batch, loss_and_probability, spans=every_span(3))
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "cpu" for i in range(3)}
    spread = dispatch_model(tiny_llama(0), places, main_device="cpu", force_hooks=True)
    assert "forward" in vars(spread)
    found = replacement_map(spread, unlearned, batch, loss_and_probability, spans=every_span(3))
    assert torch.equal(found.values[""]["loss"], expected.values[""]["loss"])


def test_spans_share_prefixes_and_equal_blocks_cost_nothing():
    original, unlearned, batch = tiny_llama(0, n_layers=5), tiny_llama(1, n_layers=5), random_batch()
    depth = n_layers(original)
    ends = 2 * depth
    for spans, calls in (
        (single_layers(depth), depth * (depth + 1) // 2),
        (every_span(depth), depth * (depth + 1) // 2 + (depth - 1) * depth * (depth + 1) // 6),
        (from_embeddings(depth), depth + depth * (depth - 1) // 2),
        (from_head(depth), depth * (depth + 1) // 2),
    ):
        found = replacement_map(original, unlearned, batch, loss_and_probability, spans=spans)
        assert found.block_calls == ends + calls
        assert found.whole_calls == depth * (len(spans) + 2)
    # Only block 3 differs: one block run, the next, and spans that hold it.
    partly = tiny_llama(0, n_layers=5)
    blocks(partly)[3].load_state_dict(blocks(unlearned)[3].state_dict())
    found = replacement_map(original, partly, batch, loss_and_probability, spans=every_span(depth))
    loss_LL = found.score_LL("", "loss")
    for i, j in every_span(depth):
        end = found.unlearned if i <= 3 <= j else found.original
        assert loss_LL[i, j].item() == pytest.approx(end[""]["loss"], abs=1e-7)
    assert torch.isnan(loss_LL[3, 1])
    assert found.block_calls == ends + 4 * (2 + 1)


def test_rows_and_arrays_say_the_same():
    original, unlearned = tiny_llama(0), tiny_llama(1)
    sides = {"forget": random_batch(0), "retain": random_batch(1)}
    both = ("original", "unlearned")
    found = replacement_map(
        original, unlearned, sides, loss_and_probability, spans=[(1, 2), (0, 0)], parts=("mlp", "block"), into=both
    )
    listed = found.rows()
    assert len(listed) == 2 * 2 * 2 * 2 * 2 + 2 * 2 * 2
    for row in listed:
        metric, where = row.quantity.split(", ")
        part, into = where.split(" into ")
        if row.layer is None:
            assert row.value == getattr(found, into)[row.on][metric]
        else:
            assert found.score_LL(row.on, metric, part=part, into=into)[row.layer, row.item].item() == row.value
    single_L = found.score_L("forget", "loss", part="mlp")
    assert [math.isnan(v) for v in single_L.tolist()] == [False, True, True]
    with pytest.raises(ValueError, match="no metric 'losses' on 'forget'"):
        found.score_L("forget", "losses")


# --- what is refused ------------------------------------------------------------------------------------------


def test_bad_input_is_refused_by_name_and_leaves_no_trace():
    original, unlearned, batch = tiny_llama(0), tiny_llama(1), random_batch()
    hashes = weights_hash(original), weights_hash(unlearned)

    def ask(other=unlearned, on=batch, metric=loss_and_probability, **changes):
        return replacement_map(original, other, on, metric, **changes)

    empty = batch.select([0, 1])
    empty.target_BT[1] = False
    for make, message in (
        (lambda: ask(tiny_llama(1, n_layers=4)), "different architecture"),
        (lambda: ask(tiny_llama(1, rms_norm_eps=1e-3)), "rms_norm_eps"),
        (lambda: ask(tiny_llama(0)), "identical block weights in every layer"),
        (lambda: ask(spans=[(0, 3)]), r"layer 3 does not exist; the model has layers 0\.\.2"),
        (lambda: ask(spans=[(-1, 0)]), r"layer -1 does not exist"),
        (lambda: ask(spans=[(2, 1)]), r"ends before it begins; write \(1, 2\)"),
        (lambda: ask(spans=[]), "no spans"),
        (lambda: ask(parts=()), "parts must be one or more of block, attention, mlp"),
        (lambda: ask(into=()), "into must be one or more"),
        (lambda: ask(on={}), "no rows"),
        (lambda: ask(on={"forget": empty}), "1 of 2 rows of forget have no target token"),
        (lambda: ask(on=random_batch(length=80)), "80 tokens are needed and the model has 64"),
        (lambda: ask(batch_size=0), "batch_size must be at least 1"),
        (lambda: ask(metric=SUITE), "moments=True"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match="OPTDecoderLayer has no mlp"):
        replacement_map(family("opt"), family("opt", seed=1), batch, loss_and_probability, parts=("mlp",))
    with pytest.raises(RuntimeError, match="inside"):
        ask(metric=lambda tokens: (_ for _ in ()).throw(RuntimeError("inside")))
    assert (weights_hash(original), weights_hash(unlearned)) == hashes
    assert our_hooks(original) == our_hooks(unlearned) == []


def test_weights_come_back_when_a_block_fails_midway():
    original, unlearned, batch = tiny_llama(0), tiny_llama(1), random_batch()
    hashes, pointers = weights_hash(original), [p.data_ptr() for p in original.parameters()]
    lent = blocks(unlearned)[1].mlp.up_proj.weight.data_ptr()

    class Stop(Exception):
        pass

    def edit(hidden):
        if blocks(original)[1].mlp.up_proj.weight.data_ptr() == lent:
            raise Stop
        return hidden

    with pytest.raises(Stop), edited(original, {Site(1): edit}):
        replacement_map(original, unlearned, batch, loss_and_probability)
    assert weights_hash(original) == hashes
    assert [p.data_ptr() for p in original.parameters()] == pointers
    assert our_hooks(original) == []
    # Tied embeddings are no block's and stay.
    tied = [tiny_gpt2(seed) for seed in (0, 1)]
    assert tied[0].lm_head.weight is tied[0].transformer.wte.weight
    replacement_map(*tied, batch, loss_and_probability)
    assert tied[0].lm_head.weight is tied[0].transformer.wte.weight


def test_a_model_that_does_more_than_run_its_blocks_is_refused_by_the_self_check(monkeypatch):
    original, unlearned, batch = tiny_llama(0), tiny_llama(1), random_batch()
    check_replay(original, unlearned, batch, layer=0)
    # Something between norm and blocks.
    plain = type(original.model).forward

    def doubled(self, *args, **kwargs):
        output = plain(self, *args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * 2
        return output

    with monkeypatch.context() as patch:
        patch.setattr(type(original.model), "forward", doubled)
        with pytest.raises(CannotReplay, match=r"replay of the unmodified model is up to .*use fragility\.layer_map"):
            replacement_map(original, unlearned, batch, loss_and_probability)
    # A block that reads what another one left behind.
    kept, block = {}, type(blocks(original)[0])
    ordinary = block.forward

    def talking(self, *args, **kwargs):
        output = ordinary(self, *args, **kwargs)
        if self.self_attn.layer_idx == 0:
            kept["first"] = output
        return output + kept["first"]

    monkeypatch.setattr(block, "forward", talking)
    with pytest.raises(CannotReplay, match=r"does something between its blocks that a replay leaves out"):
        replacement_map(original, unlearned, batch, loss_and_probability)
    assert our_hooks(original) == []


def test_blocks_that_share_weights_are_refused():
    original, unlearned, batch = tiny_llama(0), tiny_llama(1), random_batch()
    for model in (original, unlearned):
        blocks(model)[1].mlp = blocks(model)[0].mlp
    with pytest.raises(CannotReplay, match="share weights"):
        check_replay(original, unlearned, batch, layer=0)
