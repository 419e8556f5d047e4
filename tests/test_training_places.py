"""Edits while gradients flow: gradient checkpointing, our training loop, a Hugging Face Trainer."""

import copy

import pytest
import torch
from conftest import random_batch, tiny_llama
from families import family
from torch import nn

from probe.hooks import captured, edited
from probe.interventions.projection import Cap, Project
from probe.interventions.replacement import Scale
from probe.interventions.steering import Steer
from probe.objectives.token import nll
from probe.positions import At, not_first
from probe.sites import Site, blocks
from probe.train import Term, minimise

DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(5))
UNIT_D = DIRECTION / DIRECTION.norm()
EDITS = {
    "steer": Steer(DIRECTION, scale=0.5),
    "project": Project(DIRECTION),
    "scale": Scale(0.5),
    "cap": Cap(DIRECTION, low=-0.01, high=0.01),
}
OUTSIDE = (
    Site(1),
    Site(1, side="in"),
    Site(0, "embedding"),
    Site(0, "norm"),
    Site(0, "norm", "in"),
)
INSIDE = (
    Site(1, "attention"),
    Site(1, "attention", "in"),
    Site(1, "mlp"),
    Site(1, "mlp", "in"),
    Site(1, "heads"),
    Site(1, "heads", head=2),
)
NO_DROPOUT = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]


def trained(name: str):
    return family(name, **NO_DROPOUT.get(name, {})).train()


def checkpoint(model, *, reentrant: bool | None) -> None:
    if reentrant is None:
        model.gradient_checkpointing_disable()
    else:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})


def gradients(model, edits, *, inside: bool = True):
    inputs = random_batch().inputs
    model.zero_grad()
    with edited(model, edits):
        loss = model(**inputs, use_cache=False).logits.square().mean()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def same(one, other) -> bool:
    return all(torch.equal(one[name], g) if g is not None else one[name] is None for name, g in other.items())


@pytest.mark.parametrize("name", ["llama", "gpt2", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_edits_around_blocks_have_the_same_gradients_with_and_without_checkpointing(name):
    model = trained(name)
    for site in OUTSIDE:
        for edit in (*EDITS.values(), At(EDITS["project"], not_first)):
            checkpoint(model, reentrant=None)
            expected = gradients(model, {site: edit})
            for reentrant in (True, False):
                checkpoint(model, reentrant=reentrant)
                for inside in (True, False):
                    found = gradients(model, {site: edit}, inside=inside)
                    assert same(found, expected), f"{site}, {edit}, reentrant {reentrant}, backward inside {inside}"


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_edits_inside_a_block_are_refused_where_checkpointing_would_replay_them(name, reentrant):
    model = trained(name)
    checkpoint(model, reentrant=reentrant)
    for site in INSIDE:
        for edit in EDITS.values() if site.head is None else (Scale(0.5),):
            with pytest.raises(ValueError, match=r"replays the edit at .* during backward.*gradient_checkpointing_dis"):
                gradients(model, {Site(0): Scale(0.5), site: edit})
    with pytest.raises(ValueError, match="replays the edit"), edited(model, {Site(1, "mlp"): Scale(0.5)}):
        model.get_decoder()(**random_batch().inputs, use_cache=False)


def test_what_the_refusal_prevents():
    """Left to itself an edit of attention gives another gradient, without a word, once the block has ended."""
    model = trained("llama")
    expected = gradients(model, {Site(1, "attention"): Scale(0.5)})
    checkpoint(model, reentrant=True)
    hook = blocks(model)[1].self_attn.register_forward_hook(lambda m, args, output: (output[0] * 0.5, *output[1:]))
    loss = model(**random_batch().inputs, use_cache=False).logits.square().mean()
    hook.remove()
    model.zero_grad()
    loss.backward()
    largest = max(g.abs().max() for g in expected.values())
    worst = max((p.grad - expected[name]).abs().max() for name, p in model.named_parameters())
    assert worst > 0.1 * largest


def test_edits_inside_a_block_are_allowed_where_nothing_is_replayed():
    model = trained("llama")
    edit = {Site(1, "mlp"): Scale(0.5)}
    expected = gradients(model, edit)
    checkpoint(model, reentrant=False)
    inputs = random_batch().inputs
    with edited(model, edit), torch.no_grad():
        model(**inputs)
    model.eval()
    assert same(gradients(model, edit), expected)  # a model in eval mode does not checkpoint
    model.train()
    blocks(model)[1].gradient_checkpointing = False  # transformers can leave out every other block
    assert same(gradients(model, edit, inside=False), expected)
    with pytest.raises(ValueError, match=r"Site\((layer=)?2"):
        gradients(model, {Site(2, "mlp"): Scale(0.5)})


def test_checkpointing_switched_on_inside_the_block_is_refused_too():
    model = trained("llama")
    with edited(model, {Site(1, "attention"): Scale(0.5)}):
        model(**random_batch().inputs)
        checkpoint(model, reentrant=False)
        with pytest.raises(ValueError, match="replays the edit"):
            model(**random_batch().inputs)


def test_checkpoints_around_the_whole_call_span_the_hooks_of_the_block():
    """So older versions of transformers do it; then an edit of a block's output is replayed like any other."""
    model = trained("llama")
    kind = type(blocks(model)[1])

    class CalledBlock(kind):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    for block in blocks(model):
        block.__class__ = CalledBlock
    checkpoint(model, reentrant=False)
    with pytest.raises(ValueError, match="replays the edit"):
        gradients(model, {Site(1): Scale(0.5)})
    assert gradients(model, {Site(0, "norm"): Scale(0.5)})


@pytest.mark.parametrize("positions", [None, not_first])
@pytest.mark.parametrize("inside", [True, False])
def test_what_is_captured_under_checkpointing_is_what_the_forward_gave_32(positions, inside):
    model, inputs = trained("llama"), random_batch().inputs

    def read(site, stop):
        model.zero_grad()
        with captured(model, [site], positions=positions, stop=stop) as states:
            loss = model(**inputs, use_cache=False).logits.square().mean()
            first = states[site]
            if inside:
                (loss + first.square().mean()).backward()
            assert states[site] is first
        if stop:
            states[site].square().mean().backward()
        elif not inside:
            (loss + states[site].square().mean()).backward()
        return states[site], {n: p.grad for n, p in model.named_parameters()}

    for site in (*OUTSIDE, *INSIDE):
        for stop in (False, True):
            checkpoint(model, reentrant=None)
            expected, slopes = read(site, stop)
            for reentrant in (False, True):
                checkpoint(model, reentrant=reentrant)
                if reentrant and site in INSIDE:
                    with pytest.raises(ValueError, match=r"without gradients.*use_reentrant.*False"):
                        read(site, stop)
                    with torch.no_grad(), captured(model, [site], positions=positions) as states:
                        model(**inputs)
                    assert torch.equal(states[site], expected)
                    continue
                found, found_slopes = read(site, stop)
                assert torch.equal(found, expected)
                assert found.requires_grad
                torch.testing.assert_close(found_slopes, slopes, rtol=1e-5, atol=1e-8)


class Written(nn.Module):
    """An edit written into the model by hand: what the wrapped module returns, changed."""

    def __init__(self, inner: nn.Module, change) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *args, **kwargs):
        output = self.inner(*args, **kwargs)
        return (self.change(output[0]), *output[1:]) if isinstance(output, tuple) else self.change(output)


def projected(hidden_BTD):
    unit_D = UNIT_D
    return hidden_BTD - (hidden_BTD @ unit_D)[..., None] * unit_D


PAIRS = (
    ({Site(1): EDITS["steer"]}, 1, "", lambda h: h + 0.5 * DIRECTION),
    ({Site(1): EDITS["project"]}, 1, "", projected),
    ({Site(2, "mlp"): EDITS["scale"]}, 2, "mlp", lambda h: h * 0.5),
    ({Site(0, "attention"): EDITS["cap"]}, 0, "self_attn", lambda h: projected(h) + capped(h)),
)
NAMES = ["steer block", "project block", "scale mlp", "cap attention"]


def capped(hidden_BTD):
    unit_D = UNIT_D
    return (hidden_BTD @ unit_D).clamp(-0.01, 0.01)[..., None] * unit_D


def written(model, layer, part, change):
    """A copy of the model with the edit in it; the names of its weights gain an ``inner``."""
    model = copy.deepcopy(model)
    if part:
        setattr(blocks(model)[layer], part, Written(getattr(blocks(model)[layer], part), change))
    else:
        plain = blocks(model)[layer].forward
        blocks(model)[layer].forward = lambda *args, **kwargs: change(plain(*args, **kwargs))
    return model


def weights_of(model):
    return {name.replace(".inner", ""): p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("edits", "layer", "part", "change"), PAIRS, ids=NAMES)
def test_minimise_inside_an_edit_trains_the_edited_model(edits, layer, part, change):
    def train(model):
        return minimise(model, [Term(1.0, nll, batch)], steps=4, lr=1e-2, batch_size=3, seed=0).losses

    batch, plain = random_batch(), family("llama")
    by_hand, by_hook, without = written(plain, layer, part, change), copy.deepcopy(plain), copy.deepcopy(plain)
    expected = train(by_hand)
    with edited(by_hook, edits):
        found = train(by_hook)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # Adam divides by the root of a gradient's square: the last bit of a small gradient moves its weight, here by 1e-2.
    torch.testing.assert_close(weights_of(by_hook), weights_of(by_hand), rtol=1e-3, atol=1e-4)
    assert abs(train(without)[0][0] - expected[0][0]) > 1e-5


def trainer_of(model, folder, **settings):
    from transformers import Trainer, TrainingArguments

    batch = random_batch()
    rows = [
        {
            "input_ids": batch.tokens_BT[i],
            "attention_mask": batch.attention_BT[i].long(),
            "labels": batch.tokens_BT[i].masked_fill(~batch.target_BT[i], -100),
        }
        for i in range(len(batch))
    ]
    arguments = TrainingArguments(
        output_dir=str(folder),
        report_to=[],
        use_cpu=True,
        max_steps=4,
        per_device_train_batch_size=len(rows),
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        **settings,
    )
    return Trainer(model=model, args=arguments, train_dataset=rows)


def train_with_trainer(model, folder, **settings):
    trainer = trainer_of(model, folder, **settings)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train_by_hand(model):
    """The same steps without a Trainer; every batch holds all rows, whose order changes a mean by rounding only."""
    batch = random_batch()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    model.train()
    for _ in range(4):
        loss = nll(model, batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    model = family("llama")
    train_with_trainer(model, tmp_path_factory.mktemp("without"))
    return model


@pytest.mark.parametrize(("edits", "layer", "part", "change"), PAIRS, ids=NAMES)
def test_a_trainer_inside_an_edit_trains_the_edited_model(edits, layer, part, change, without, tmp_path, capfd):
    plain = family("llama")
    by_hand, by_hook = written(plain, layer, part, change), copy.deepcopy(plain)
    expected = train_by_hand(by_hand)
    with edited(by_hook, edits):
        found = train_with_trainer(by_hook, tmp_path)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(weights_of(by_hook), weights_of(by_hand), rtol=1e-3, atol=1e-4)
    apart = max((weights_of(without)[n] - w).abs().max() for n, w in weights_of(by_hand).items())
    assert apart > 1e-3


def test_a_trainer_that_checkpoints_keeps_block_edits_and_refuses_the_others(tmp_path, capfd):
    edits, layer, part, change = PAIRS[1]
    plain = family("llama")
    by_hand, by_hook = written(plain, layer, part, change), copy.deepcopy(plain)
    train_by_hand(by_hand)
    with edited(by_hook, edits):
        train_with_trainer(by_hook, tmp_path, gradient_checkpointing=True)
    assert by_hook.is_gradient_checkpointing
    torch.testing.assert_close(weights_of(by_hook), weights_of(by_hand), rtol=1e-3, atol=1e-4)
    with edited(plain, {Site(2, "mlp"): Scale(0.5)}), pytest.raises(ValueError, match="replays the edit"):
        train_with_trainer(plain, tmp_path, gradient_checkpointing=True)


def test_gradients_of_an_edit_at_some_positions_pass_by_the_others():
    model, batch = tiny_llama(dtype=torch.float64), random_batch()
    with captured(model, [Site(1)]) as states, edited(model, {Site(1): At(Scale(0.0), not_first)}):
        logits_BTV = model(**batch.inputs).logits
    slope_BTD = torch.autograd.grad(logits_BTV.sum(), states[Site(1)])[0]
    assert (slope_BTD[:, 1:][batch.attention_BT[:, 1:]] == 0).all()
    assert (slope_BTD[:, 0] != 0).all()
