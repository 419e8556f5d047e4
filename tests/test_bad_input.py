"""What a user can do wrong and what is said about it. Numbers that end a test's name are rows of the bad-input list.

Rows that are tested beside what they concern (files in ``test_data``, vectors in ``test_interventions``, ...) are not
tested again here; the last test sees to it that none is forgotten.
"""

import ast
import errno
import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from jaxtyping import TypeCheckError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from probe.checkpoints import check_tokenizer, check_usable, load_tokenizer, weights_hash
from probe.data import Batch, Split, encode_text, make_split
from probe.datasets import read_rows
from probe.diagnostics.fragility import layer_map
from probe.diagnostics.g_effect import g_effect, token_g_effects
from probe.diagnostics.logit_collapse import logit_collapse
from probe.diagnostics.separability import separability
from probe.dictionaries.adapters import check_features
from probe.dictionaries.fit import fvu
from probe.hooks import captured, edited
from probe.interventions.activations import activations, cast, content
from probe.interventions.attaching import check_site
from probe.interventions.features import Clamp
from probe.interventions.steering import Steer, direction
from probe.methods.rmu import rmu
from probe.metrics.generation import generate
from probe.metrics.memorisation import answer_stats
from probe.model_files import check_safetensors
from probe.objectives.representation import hidden_at
from probe.objectives.token import ga, nll
from probe.quantised import quantised
from probe.report.measure import draw_sample
from probe.report.settings import Settings
from probe.rows import Row, append, load
from probe.sites import Site, blocks
from probe.study.study import Study
from probe.train import Term, minimise
from probe.weights import blended, layers, one_layer

ROWS = {1, 2, 4, 5, 6, 12, 13, 14, 15, 17, *range(21, 28), 30, 33, 34, 35, *range(37, 49), *range(52, 64)} | {
    *range(65, 70)
}


def words_tokenizer(order: int = 1, normaliser: object = None, **special):
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *["who", "is", "it", "Who", "when", "a", "b", "c", "d"][::order]]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if normaliser is not None:
        core.normalizer = normaliser
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def without_targets(batch: Batch, *rows: int, first: bool = False) -> Batch:
    target_BT = batch.target_BT.clone()
    target_BT[list(rows)] = False
    target_BT[list(rows), 0] = first
    return replace(batch, target_BT=target_BT)


# --- data -----------------------------------------------------------------------------------------------------


def test_targets_on_first_tokens_alone_are_none_4():
    """Nothing predicts a first token: the loss would be 0 / 0."""
    batch = random_batch()
    with pytest.raises(ValueError, match=r"none of the 4 rows has a target.*choose rows that have some"):
        without_targets(batch, 0, 1, 2, 3, first=True)
    with pytest.warns(UserWarning, match="no target"):
        partly = without_targets(batch, 1, 3)
    with pytest.raises(ValueError, match="none of the 2 rows has a target"):
        partly.select([1, 3])


def test_rows_without_a_target_are_counted_5(recwarn):
    batch, model = random_batch(), tiny_gpt2()
    with pytest.warns(UserWarning, match=r"2 of 4 rows have no target token \(rows 1, 3\).*drop them"):
        holed = without_targets(batch, 1, 3)
    recwarn.clear()
    torch.testing.assert_close(nll(model, holed), nll(model, batch.select([0, 2])))
    list(holed.chunks(2))
    assert not [w for w in recwarn if "no target" in str(w.message)]  # said once, by whoever made the batch
    with pytest.raises(ValueError, match=r"2 of 4 rows have no target token \(first: row 1\)"):
        answer_stats(model, holed)


def test_texts_too_short_to_predict_are_counted_5():
    tokenizer = words_tokenizer()
    with pytest.warns(UserWarning, match=r"2 of 3 texts have fewer than two tokens and are left out \(first: text 0\)"):
        assert len(encode_text(tokenizer, ["who", "who is it", ""])) == 1
    for texts in (["who", ""], []):
        with pytest.raises(ValueError, match=f"none of the {len(texts)} texts has two tokens"):
            encode_text(tokenizer, texts)
    with pytest.raises(ValueError, match=r"max_length must be at least 2.*got 1"):
        encode_text(tokenizer, ["who is it"], max_length=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "a", "answer": "b"}'.encode("utf-16-le"), r"byte 1 is not UTF-8 \(perhaps UTF-16\); convert"),
        (b'{"question": "caf\xe9", "answer": "b"}', r"byte 17 is not UTF-8 \(perhaps Latin-1\); convert"),
        (b"PAR1\x15\x04\x15", "is a Parquet file; write the rows as JSON lines"),
        (b"\x1f\x8b\x08\x00", "is gzipped; write the rows as JSON lines"),
        (b"\x80\x04\x95", "is a pickle, which can run code when loaded; write the rows as JSON lines"),
    ],
)
def test_files_that_are_not_text_are_named_15(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"rows\.jsonl.*{message}"):
        read_rows(path)


def test_too_few_retain_rows_for_choosing_are_said(bed):
    """Features and layers are chosen on retain rows that are not reported, as long as there are enough."""
    split = make_split(bed.tokenizer, bed.split.forget_rows[:6], bed.split.retain_rows[:6], template=bed.split.template)
    study = Study(bed.original, bed.tokenizer, split)
    with pytest.warns(UserWarning, match=r"only 2 retain rows are left for choosing.*lower --sample"):
        sample = draw_sample(study, Settings(sample=4))
    assert len(sample.choosing.retain_rows) == 4
    assert not set(sample.training.retain_rows) & set(sample.split.retain_rows)
    with pytest.warns(UserWarning, match="only 1 of 6 retain rows are not reported, so methods are trained on"):
        assert len(draw_sample(study, Settings(sample=5)).training.retain_rows) == 6
    enough = draw_sample(study, Settings(sample=3))
    assert not set(enough.choosing.retain_rows) & set(enough.split.retain_rows)


# --- tokenizers and generation --------------------------------------------------------------------------------


def test_padding_on_the_left_is_masked_and_takes_no_position_22_23():
    model, tokenizer, seen = tiny_llama(dtype=torch.bfloat16), words_tokenizer(), []
    prompts = ["who is it", "a", "when is a b c d"]
    handle = model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    generate(model, tokenizer, prompts, max_new_tokens=3)
    handle.remove()
    first = seen[0]
    for row, length in enumerate([2, 4, 7]):  # shortest first; bos included
        assert first["attention_mask"][row].tolist() == [0] * (7 - length) + [1] * length
        assert first["position_ids"][row, 7 - length :].tolist() == list(range(length))
        assert first["input_ids"][row, 7 - length] == tokenizer.bos_token_id
    for step, later in enumerate(seen[1:], 1):
        assert later["position_ids"].flatten().tolist() == [n - 1 + step for n in (2, 4, 7)]
        assert later["attention_mask"].shape == (3, 7 + step)
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == "right"


def test_tokenizers_of_one_size_are_told_apart_45():
    ours = words_tokenizer()
    check_tokenizer(ours, words_tokenizer())
    with pytest.raises(ValueError, match=r"differ \(13 and 13 entries, for example .*pass models of one family"):
        check_tokenizer(ours, words_tokenizer(order=-1))
    with pytest.raises(ValueError, match="eos_token_id differ: 2 and 0"):
        check_tokenizer(ours, words_tokenizer(eos_token="<pad>"))
    with pytest.raises(ValueError, match="same vocabulary but cut a sample into"):
        check_tokenizer(ours, words_tokenizer(normaliser=normalizers.Lowercase()))
    chatty = words_tokenizer()
    chatty.chat_template = "{{ messages }}"
    with pytest.warns(UserWarning, match="chat templates differ"):
        check_tokenizer(ours, chatty)


# --- models ---------------------------------------------------------------------------------------------------


def test_negative_layers_are_refused_everywhere_26():
    model, other, batch = tiny_gpt2(), tiny_gpt2(1), random_batch()
    split = Split(batch, batch)
    for ask in (
        lambda: Site(-1),
        lambda: layers([-1], 3),
        lambda: one_layer(-1, 3),
        lambda: layer_map(model, other, score=lambda m: 0.0, layers=[-1]),
        lambda: separability(model, split, layers=[-1]),
        lambda: rmu(model, split, original=other, layer=-1, coefficient=1.0, alpha=1.0, seed=0, steps=1, lr=1e-3),
    ):
        with pytest.raises(ValueError, match=r"layer -1 (is negative; count from 0|does not exist; .* layers 0\.\.2)"):
            ask()


def test_layers_beyond_the_model_are_refused_with_the_range_27():
    model, other, batch = tiny_gpt2(), tiny_gpt2(1), random_batch()
    for ask in (
        lambda: hidden_at(model, batch, Site(3)),
        lambda: edited(model, {Site(3): lambda h: h}).__enter__(),
        lambda: separability(model, Split(batch, batch), layers=[3]),
        lambda: layer_map(model, other, score=lambda m: 0.0, layers=[3]),
    ):
        with pytest.raises(ValueError, match=r"layer 3 does not exist; the model has layers 0\.\.2"):
            ask()


def forgetful_gpt2():
    """A model in train mode whose every forward pass differs."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_positions=64, n_embd=16, n_layer=3, n_head=2, bos_token_id=1, eos_token_id=2)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.5
    return GPT2LMHeadModel(config).double().train()


def test_dropout_is_off_while_measuring_and_on_again_after_30():
    model, batch, tokenizer = forgetful_gpt2(), random_batch(rows=12), words_tokenizer()
    split = Split(batch, random_batch(1, rows=12))
    blocks(model)[1].eval()  # a mode of its own, which must come back too
    assert nll(model, batch) != nll(model, batch)
    for measure in (
        lambda: answer_stats(model, batch).loss_N.tolist(),
        lambda: generate(model, tokenizer, ["who is"], max_new_tokens=4),
        lambda: activations(model, batch, [Site(2)], tokens=content)[Site(2)].tolist(),
        lambda: direction(model, split, Site(1)).tolist(),
        lambda: g_effect(model, ga, batch, over=batch).total,
        lambda: logit_collapse(model, batch).entropy_N.tolist(),
    ):
        with pytest.warns(UserWarning, match="the model is in train mode; it is measured in eval mode and put back"):
            assert measure() == measure()
        assert model.training
        assert not blocks(model)[1].training
        assert blocks(model)[0].attn.training


def test_weights_that_are_not_loaded_are_refused_35():
    with torch.device("meta"):
        model = tiny_llama()
    loaded, batch, tokenizer = tiny_llama(), random_batch(), words_tokenizer()
    for use in (
        lambda: captured(model, [Site(0)]).__enter__(),
        lambda: edited(model, {Site(0): lambda h: h}).__enter__(),
        lambda: activations(model, batch, [Site(0)], tokens=content),
        lambda: answer_stats(model, batch),
        lambda: generate(model, tokenizer, ["who"], max_new_tokens=2),
        lambda: g_effect(model, ga, batch, over=batch),
        lambda: token_g_effects(model, batch, over=batch),
        lambda: logit_collapse(model, batch),
        lambda: minimise(model, [Term(1.0, nll, batch)], steps=1, lr=1e-3, batch_size=2, seed=0),
        lambda: check_usable(model, tokenizer),
    ):
        with pytest.raises(ValueError, match=r"meta device: (its|their) weights are not loaded; load"):
            use()
    for pair in ((model, loaded), (loaded, model)):
        with pytest.raises(ValueError, match=r"lie on the meta device .*not loaded, or offloaded.*load it whole"):
            blended(*pair, [1.0, 0.0, 0.0]).__enter__()
        with pytest.raises(ValueError, match=r"lies on the meta device .*cannot be hashed; load"):
            layer_map(*pair, score=lambda m: 0.0)


class Coded(nn.Module):
    """A linear map whose weights are whole numbers, two to a byte, as 4-bit formats keep them."""

    def __init__(self, linear: nn.Linear, *, as_buffer: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.abs().max().item() / 7
        number = (linear.weight.detach() / self.scale).round().clamp(-7, 7).to(torch.int16).flatten() + 8
        packed = (number[0::2] * 16 + number[1::2]).to(torch.uint8)[:, None]
        if as_buffer:
            self.register_buffer("qweight", packed)
        else:
            self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        packed = (self.qweight if hasattr(self, "qweight") else self.weight)[:, 0]
        number = torch.stack([packed // 16, packed % 16], 1).to(x.dtype) - 8
        return nn.functional.linear(x, self.scale * number.reshape(self.out_features, self.in_features))


def four_bit_llama(seed: int = 0, *, as_buffer: bool = False):
    model = tiny_llama(seed)
    for block in blocks(model):
        block.mlp.up_proj = Coded(block.mlp.up_proj, as_buffer=as_buffer)
        block.mlp.down_proj = Coded(block.mlp.down_proj, as_buffer=as_buffer)
    return model


@pytest.mark.parametrize("as_buffer", [False, True])
def test_quantised_weights_have_no_g_effect_37(as_buffer):
    plain, model, batch = tiny_llama(), four_bit_llama(as_buffer=as_buffer), random_batch()
    # The rest of the model does get gradients, so a backward pass says nothing.
    nll(model, batch).backward()
    assert sum(p.grad is not None for p in model.parameters()) == len(list(plain.parameters())) - 6
    coded = sum(p.numel() for name, p in plain.named_parameters() if re.search(r"up_proj|down_proj", name))
    assert sum(quantised(model).values()) == coded
    share = f"{coded / sum(p.numel() for p in plain.parameters()):.0%}"
    name = "qweight" if as_buffer else "weight"
    message = (
        rf"6 of 30 parameters \({share} of the weights; the first is model\.layers\.0\.mlp\.up_proj\.{name}\) are "
    )
    for effect in (g_effect, lambda m, *args, **more: token_g_effects(m, batch, **more)):
        with pytest.raises(ValueError, match=message + "quantised .*load the model without a quantization_config"):
            effect(model, ga, batch, over=batch)
    assert quantised(plain) == {}


def test_quantised_weights_are_not_trained_37():
    model, batch = four_bit_llama(), random_batch()
    terms, how = [Term(1.0, nll, batch)], {"steps": 1, "lr": 1e-3, "batch_size": 2, "seed": 0}
    with pytest.raises(ValueError, match=r"6 of the 30 parameters to be trained are quantised.*name others"):
        minimise(model, terms, **how)
    assert all(p.requires_grad == p.is_floating_point() for p in model.parameters())
    minimise(model, terms, parameters="self_attn", **how)  # what adapters on a quantised model need


@pytest.mark.parametrize("as_buffer", [False, True])
def test_quantised_layers_are_not_replaced_38(as_buffer):
    model, other = four_bit_llama(0, as_buffer=as_buffer), four_bit_llama(1, as_buffer=as_buffer)
    before = weights_hash(model)
    message = r"holds 6 quantised weights \(the first is model\.layers\.0.*dequantise both \(model\.dequantize\(\)\)"
    for pair, which in (((model, other), "the model"), ((tiny_llama(), other), "the other model")):
        with pytest.raises(ValueError, match=f"{which} {message}"):
            blended(*pair, [1.0, 0.0, 0.0]).__enter__()
    assert weights_hash(model) == before


def test_vectors_that_lose_their_length_are_said_39(recwarn):
    hidden = {dtype: torch.ones(1, 2, 512, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32)}
    direction_D = torch.randn(512, generator=torch.Generator().manual_seed(0))
    for hidden_BTD in hidden.values():
        narrow_D = cast(direction_D, hidden_BTD)
        assert narrow_D.dtype == hidden_BTD.dtype
        assert narrow_D.double().norm().item() == pytest.approx(direction_D.double().norm().item(), rel=4e-3)
    assert not [w for w in recwarn if "norm" in str(w.message)]
    with pytest.warns(UserWarning, match=r"norm is 2\.\de-08 in float32 and 0 in float16.*too small.*wider dtype"):
        cast(1e-9 * direction_D, hidden[torch.float16])
    with pytest.warns(UserWarning, match="norm is .* in float64 and 0 in bfloat16"):
        cast(1e-60 * direction_D.double(), hidden[torch.bfloat16])
    with pytest.raises(ValueError, match="beyond float32, the dtype of the hidden states; run in float64"):
        cast(1e60 * direction_D.double(), hidden[torch.float32])
    with pytest.warns(UserWarning, match="the vector's norm"):
        Steer(1e-9 * direction_D, scale=1.0)(hidden[torch.float16])


def test_a_model_frozen_throughout_is_refused_or_trained_as_told_40():
    model, batch = tiny_gpt2().requires_grad_(False), random_batch()
    with pytest.raises(ValueError, match=r"40 of 40 parameters \(100%.* are frozen.*model\.requires_grad_\(True\)"):
        g_effect(model, ga, batch, over=batch)
    before = weights_hash(model)
    minimise(model, [Term(1.0, nll, batch)], steps=2, lr=1e-3, batch_size=2, seed=0)
    assert weights_hash(model) != before
    assert not any(p.requires_grad for p in model.parameters())


def test_a_term_that_no_trained_parameter_acts_on_is_named_40():
    model, batch = tiny_gpt2(), random_batch()
    how = {"steps": 1, "lr": 1e-3, "batch_size": 2, "seed": 0}

    def early(model, batch):
        return hidden_at(model, batch, Site(0)).square().mean()

    terms = [Term(1.0, nll, batch, "retain"), Term(1.0, early, batch, "forget")]
    with pytest.raises(
        ValueError, match=r"step 0: forget depends on none of the 12 trained parameters \(the first is "
    ):
        minimise(model, terms, parameters=r"h\.2\.", **how)
    with pytest.raises(ValueError, match=r"step 0: retain depends on none of the 40 trained.*torch\.no_grad"):
        with torch.no_grad():
            minimise(model, terms, **how)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_gradients_left_over_are_not_trained_on_41():
    batch, hashes = random_batch(), []
    for left_over in (False, True):
        model = tiny_gpt2()
        if left_over:
            (1e3 * nll(model, batch)).backward()
        minimise(model, [Term(1.0, nll, batch)], steps=2, lr=1e-3, batch_size=2, seed=0)
        hashes.append(weights_hash(model))
    assert hashes[0] == hashes[1]


def test_activations_may_take_part_in_a_graph_later_42():
    model, batch = tiny_gpt2(), random_batch()
    hidden_ND = activations(model, batch, [Site(1)], tokens=content)[Site(1)]
    assert not hidden_ND.is_inference()
    assert not hidden_ND.requires_grad
    weight_D = torch.ones(16, dtype=torch.float64, requires_grad=True)
    (hidden_ND @ weight_D).sum().backward()
    torch.testing.assert_close(weight_D.grad, hidden_ND.sum(0))
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch\.inference_mode"):
        g_effect(model, ga, batch, over=batch)


def test_a_replaced_layer_keeps_its_module_and_the_cache_works_47():
    model, other = tiny_llama(0, initializer_range=0.4), tiny_llama(1, initializer_range=0.4)
    modules = [id(m) for m in model.modules()]
    prompt_BT = random_batch().tokens_BT[:1, :5]
    how = {"attention_mask": torch.ones_like(prompt_BT), "max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    plain_BT = model.generate(prompt_BT, **how)
    with blended(model, other, one_layer(1, 3)):
        assert [id(m) for m in model.modules()] == modules
        assert [block.self_attn.layer_idx for block in blocks(model)] == [0, 1, 2]
        cached_BT, plainly_BT = (model.generate(prompt_BT, use_cache=use, **how) for use in (True, False))
    assert torch.equal(cached_BT, plainly_BT)
    assert not torch.equal(cached_BT, plain_BT)
    assert torch.equal(model.generate(prompt_BT, **how), plain_BT)


# --- dictionaries and text ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Components:
    """The first principal components of some activations, about their mean."""

    W_dec: Tensor
    mean_D: Tensor

    def encode(self, x: Tensor) -> Tensor:
        return ((x - self.mean_D) @ self.W_dec.T).relu()

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts @ self.W_dec + self.mean_D


def components(hidden_ND: Tensor, k: int) -> Components:
    rows_KD = torch.linalg.svd(hidden_ND - hidden_ND.mean(0)).Vh[:k]
    return Components(torch.cat([rows_KD, -rows_KD]), hidden_ND.mean(0))


def test_a_dictionary_of_another_model_or_of_little_use_is_said_57():
    model, other, batch = tiny_gpt2(), tiny_gpt2(1), random_batch(rows=32)
    ours_ND, theirs_ND = (activations(m, batch, [Site(1)], tokens=content)[Site(1)] for m in (model, other))
    foreign, poor = components(10 * theirs_ND, 8), components(ours_ND, 2)
    with pytest.raises(ValueError, match=r"does not fit .*unexplained .* at layer 1.*another model or site"):
        check_site(model, foreign, Site(1), batch)
    assert 0.5 < fvu(poor, ours_ND) < 1
    with pytest.warns(UserWarning, match="explains less than half of the variance at .*: FVU 0"):
        check_site(model, poor, Site(1), batch)


@pytest.mark.parametrize(
    "features", [(2.7,), (True, False), torch.tensor([True, False]), torch.tensor([1.0, 2.0])], ids=repr
)
def test_features_that_are_no_whole_numbers_are_refused_58(features):
    """A mask over the features would otherwise name features 0 and 1."""
    sae = components(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)), 4)
    # As users have it: where types are checked at run time, the annotation objects before the message is made.
    plainly = inspect.unwrap(check_features)
    with pytest.raises(ValueError, match=r"named by a whole number, got .*; turn a mask into ids with nonzero\(\)"):
        plainly(sae, features)
    with pytest.raises((ValueError, TypeCheckError)):
        Clamp(sae, features, 0.0)
    assert plainly(sae, torch.tensor([3, 1])) == (3, 1)


def test_a_model_that_says_nothing_is_collapsed_63():
    model, tokenizer, batch = tiny_llama(), words_tokenizer(), random_batch(rows=8)
    with torch.no_grad():
        states_BTD = model.model(batch.tokens_BT).last_hidden_state
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = states_BTD.mean((0, 1))
        model.lm_head.weight[0] = -states_BTD.mean((0, 1))

    @dataclass(frozen=True)
    class AlwaysEnds:
        """Whatever the state, the text ends."""

        def __call__(self, hidden_BTD: Tensor) -> Tensor:
            return states_BTD.mean((0, 1)).expand_as(hidden_BTD)

    with edited(model, {Site(2): AlwaysEnds()}):
        found = logit_collapse(model, batch, tokenizer=tokenizer, prompts=["who is", "a"])
    assert found.texts == ("", "")
    assert found.repetition == 0
    assert found.verdict == "collapsed"
    assert any("nothing is generated: 2 of 2 texts are empty" in reason for reason in found.reasons)


# --- files and runs -------------------------------------------------------------------------------------------


def test_a_pickle_in_disguise_is_named_67(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"model\.safetensors is a pickle, which can run code.*save_pretrained"):
        check_safetensors(path)
    path.write_bytes(b"\x80\x04" + b"a" * 100)
    with pytest.raises(ValueError, match="is a pickle"):
        check_safetensors(path)
    # A true header may be as long as those bytes say.
    entry = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps(entry).encode().ljust(0x0480)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert path.read_bytes().startswith(b"\x80\x04")
    check_safetensors(path)


@pytest.mark.parametrize(
    ("name", "message"), [("model.bin", "is a pickle"), ("./absent", r"no folder at \./absent .resolved to /")]
)
def test_tokenizers_are_loaded_from_folders_only_67(name, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(name)


@pytest.mark.parametrize("taken", [0, 40])
def test_a_full_disk_leaves_the_rows_as_they_were_68(tmp_path, monkeypatch, taken):
    path = tmp_path / "rows.jsonl"
    rows = [Row("RMU", "g_effect", "effect", 0.5, layer=layer) for layer in range(3)]
    append(path, rows)
    before, write = path.read_bytes(), os.write

    def nearly_full(descriptor, data):
        """A disk with ``taken`` bytes left takes these without an error; only the next write fails."""
        left = taken - (path.stat().st_size - len(before))
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, bytes(data)[:left])

    with monkeypatch.context() as patched:
        patched.setattr("probe.rows.os.write", nearly_full)
        message = r"cannot append to .*rows\.jsonl \(No space left on device\); the 3 rows already there are safe"
        with pytest.raises(OSError, match=message) as caught:
            append(path, rows)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    append(path, rows[:1])
    assert load(path) == [*rows, rows[0]]


def limited(size: int, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``code`` where no file may grow beyond ``size`` bytes: a write is cut short there, and the next one fails."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    return subprocess.run(
        # Without -B the limit would cut compiled modules short.
        [sys.executable, "-B", "-c", f"import sys\nimport probe.cli\n{limit}\n{code}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_in_a_run_exits_with_74_and_valid_rows_68(tmp_path):
    code = """
from probe.rows import Row, append
def report(command):
    for k in range(100):
        append(command.out / "rows.jsonl", [Row("RMU", "pca", "pc1", 0.5, item=k, layer=layer) for layer in range(7)])
from probe.commands.report import Report
Report.run = report
probe.cli.main(["report", "--out", sys.argv[1]])
"""
    done = limited(20_000, code, tmp_path)
    assert done.returncode == 74, done.stderr
    rows = load(tmp_path / "rows.jsonl")
    assert len(rows) > 0
    assert len(rows) % 7 == 0  # what was appended together is there together
    assert (tmp_path / "rows.jsonl").read_bytes().endswith(b"\n")
    assert f"the {len(rows)} rows already there are safe; free some space and run again" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_disk_full_from_the_start_is_no_user_mistake_68(tmp_path):
    done = limited(100, 'probe.cli.main(["report", "--out", sys.argv[1]])', tmp_path)
    assert done.returncode == 74, done.stderr
    assert "free some space and run again" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- the list -------------------------------------------------------------------------------------------------


def rows_of(name: str) -> set[int]:
    """``test_x_37_40`` names rows 37 and 40, ``test_x_12_to_17`` rows 12 to 17, ``test_x_exits_0`` none."""
    if found := re.search(r"_(\d+)_to_(\d+)$", name):
        return set(range(int(found[1]), int(found[2]) + 1))
    found = re.search(r"(?<!_exits)(?<!_code)((?:_\d+)+)$", name)
    return {int(number) for number in found[1].strip("_").split("_")} if found else set()


def test_every_row_has_a_test():
    assert rows_of("test_x_37_40") == {37, 40}
    assert rows_of("test_x_12_to_14") == {12, 13, 14}
    assert rows_of("test_float64") == rows_of("test_of_2_models") == rows_of("test_x_exits_0") == set()
    named: dict[int, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for row in rows_of(node.name):
                    named.setdefault(row, []).append(node.name)
    assert set(named) <= set(range(1, 79)), "a test's name ends in a number that is no row of the list"
    assert set(named) >= ROWS, f"no test for rows {sorted(ROWS - set(named))}"


def test_an_intervention_that_returns_no_tensor_is_named_34():
    model = tiny_llama()
    with (
        edited(model, {Site(1): lambda hidden_BTD: None}),
        pytest.raises(ValueError, match=r"Site\(1\) returned NoneT"),
    ):
        model(torch.ones(1, 3, dtype=torch.long))


def test_a_vector_of_another_width_is_named_with_its_site_52():
    model = tiny_llama()
    with (
        edited(model, {Site(2): Steer(torch.ones(9), scale=1.0)}),
        pytest.raises(ValueError, match=r"at Site\(2\): .*9"),
    ):
        model(torch.ones(1, 3, dtype=torch.long))


def test_a_flag_given_twice_is_refused_rather_than_read_once(capsys):
    from probe.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["unlearn", "npo", "--out", "x", "--set", "beta=0.1", "--set", "retain_weight=2"])
    assert stopped.value.code == 2
    assert "--set is given 2 times" in capsys.readouterr().err
