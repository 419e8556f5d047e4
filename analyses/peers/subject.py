"""The model and batches on which both sides are computed, and what is said of the difference."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probe.data import Batch
from probe.objectives.token import nll

# A label of -100, which one peer counts from the end of the vocabulary, must be in it.
VOCABULARY, WIDTH, LAYERS = 103, 32, 3
IGNORED = -100


@dataclass(frozen=True)
class Sides:
    """What an objective may ask for, as batches of this package.

    Args:
        forget: rows to forget.
        retain: rows to keep.
        refusals: other answers to the forget questions.
        retain_refusals: other answers to the retain questions.
    """

    forget: Batch
    retain: Batch
    refusals: Batch
    retain_refusals: Batch


@dataclass(frozen=True)
class Subject:
    """A random Llama in float64, the model it came from, and two sets of batches: without padding, and padded right."""

    model: nn.Module
    original: nn.Module
    even: Sides
    padded: Sides


@dataclass(frozen=True)
class Comparison:
    """One objective on both sides.

    Args:
        method: its name here.
        settings: under which the two are compared.
        loss: relative difference of the two losses, the larger of both sets of batches; None where a side gives its
            gradient alone.
        even, padded: largest absolute difference of a gradient, or of what else is computed, over the largest entry.
    """

    method: str
    settings: str
    loss: float | None
    even: float
    padded: float

    def __str__(self) -> str:
        loss = "" if self.loss is None else f"{self.loss:.1e}"
        return f"| {self.method} | {self.settings} | {loss} | {self.even:.1e} | {self.padded:.1e} |"


HEADER = "| method | settings | loss | gradient, even | gradient, padded |\n|---|---|---|---|---|"

Side = Callable[[nn.Module, Sides], Tensor]
# Gradients of ``parameters``, scores of rows, perturbations: what is no loss.
Values = Callable[[nn.Module, Sides], Sequence[Tensor]]


def subject(seed: int = 0) -> Subject:
    """The random model after 25 steps, which spread its probabilities, and as it was before the last five."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).double().eval()
    model.config.use_cache = False
    batch = _batch(seed, even=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    original = model
    for step in range(25):
        if step == 20:
            original = copy.deepcopy(model).requires_grad_(False)
        optimizer.zero_grad()
        nll(model, batch).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return Subject(model, original, _sides(seed, even=True), _sides(seed, even=False))


def compared(of: Subject, method: str, settings: str, theirs: Side, ours: Side) -> Comparison:
    """Both losses and gradients on both sets of batches."""
    found = [_differences(of.model, sides, theirs, ours) for sides in (of.even, of.padded)]
    return Comparison(method, settings, max(loss for loss, _ in found), found[0][1], found[1][1])


def alike(of: Subject, method: str, settings: str, theirs: Values, ours: Values) -> Comparison:
    """Gradients, scores or whatever the two sides compute that is no loss, on both sets of batches."""
    apart = []
    for sides in (of.even, of.padded):
        found = []
        for side in (theirs, ours):
            with _same_start(of.model):
                found.append(side(of.model, sides))
        apart.append(_apart(*found))
    return Comparison(method, settings, None, *apart)


def stored_gradients(model: nn.Module) -> list[Tensor]:
    """What a backward pass left in ``.grad``, which is emptied."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters(model)]
    model.zero_grad(set_to_none=True)
    return found


def hugging_face(batch: Batch) -> dict[str, Any]:
    """The batch as peers take it: input_ids, attention_mask and labels, which are -100 where nothing is a target."""
    labels_BT = torch.where(batch.target_BT, batch.tokens_BT, torch.full_like(batch.tokens_BT, IGNORED))
    return {"input_ids": batch.tokens_BT, "attention_mask": batch.attention_BT.long(), "labels": labels_BT}


def triple(batch: Batch) -> tuple[Any, Any, Any]:
    """The same in the order of TOFU's code: token ids, labels, attention mask."""
    given = hugging_face(batch)
    return given["input_ids"], given["labels"], given["attention_mask"]


def parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights whose gradients are compared."""
    return (p for p in model.parameters() if p.requires_grad)


def _differences(model: nn.Module, sides: Sides, theirs: Side, ours: Side) -> tuple[float, float]:
    losses, gradients = [], []
    for side in (theirs, ours):
        with _same_start(model):
            loss = side(model, sides)
        found = torch.autograd.grad(loss, list(parameters(model)), allow_unused=True)
        losses.append(float(loss.detach()))
        gradients.append(
            [torch.zeros_like(p) if g is None else g for p, g in zip(parameters(model), found, strict=True)]
        )
    return abs(losses[0] - losses[1]) / max(abs(losses[0]), 1e-12), _apart(*gradients)


def _apart(theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> float:
    largest = max(float(values.abs().max()) for values in theirs)
    apart = max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True))
    return apart / largest if largest else apart


@contextmanager
def _same_start(model: nn.Module) -> Iterator[None]:
    # Some objectives draw: both sides from the same state.
    torch.manual_seed(0)
    # Tensors that a peer makes by itself are to match the model.
    torch.set_default_dtype(next(parameters(model)).dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _sides(seed: int, *, even: bool) -> Sides:
    return Sides(*(_batch(seed + i, even=even) for i in range(1, 5)))


def _batch(seed: int, *, even: bool, rows: int = 4, length: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    tokens_BT[:, 0] = 1
    length_B = torch.full((rows,), length)
    if not even:
        length_B[1:] = torch.randint(8, length, (rows - 1,), generator=generator)
    position_T = torch.arange(length)
    attention_BT = position_T[None] < length_B[:, None]
    prompt_B = torch.randint(3, 6, (rows,), generator=generator)
    target_BT = attention_BT & (position_T[None] >= prompt_B[:, None])
    return Batch(tokens_BT.masked_fill(~attention_BT, 0), target_BT, attention_BT, torch.arange(rows), prompt_B)
