"""One batch's forward, kept block by block, so that a change at block l need not run the blocks below it again."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from probe.axes import HiddenBTD, HiddenND, LogitsBTV
from probe.context import check_rows
from probe.data import Batch
from probe.hooks import calls_of, captured
from probe.objectives.logprobs import LogpNV, TokensN, before_targets, next_tokens
from probe.outputs import first_given, hidden_in
from probe.sites import Site, blocks, place_of, trunk, unwrapped
from probe.weights import with_weights_of

_WAY_OUT = "use fragility.layer_map, which runs whole forwards"
# How far the log-probabilities of a replay may lie from the model's own, in units of rounding at their size.
_ROUNDINGS = 8
# Tokens of the self-check; the longer of its two rows has as many at most.
_CHECKED = 8


class CannotReplay(ValueError):
    """A model whose blocks, called one by one, do not give what its forward gives."""


@dataclass(frozen=True, eq=False)
class Replay:
    """A forward that can be taken up again before any block.

    Args:
        model: what was run; its open edits act in replayed blocks, too.
        calls: what each block was called with, (args, kwargs), before edits of its input.
        final_BTD: what left the last block.
        positions_BT: where a target is predicted.
        target_N: the targets, in the order of ``positions_BT``.
    """

    model: nn.Module
    calls: tuple[tuple[Any, Any], ...]
    final_BTD: HiddenBTD
    positions_BT: Tensor
    target_N: TokensN

    def entering(self, layer: int) -> HiddenBTD:
        """What entered block ``layer``; what left the last one for ``layer`` = number of blocks."""
        if layer == len(self.calls):
            return self.final_BTD
        return _given_to(*self.calls[layer])

    def run(self, layer: int, hidden_BTD: HiddenBTD) -> HiddenBTD:
        """What block ``layer``, as it is now, makes of ``hidden_BTD``."""
        return _run(blocks(self.model)[layer], self.calls[layer], hidden_BTD)

    def onward(self, layer: int, hidden_BTD: HiddenBTD) -> HiddenBTD:
        """What leaves the last block if ``hidden_BTD`` enters block ``layer``."""
        stack = blocks(self.model)
        for block, call in list(zip(stack, self.calls, strict=True))[layer:]:
            hidden_BTD = _run(block, call, hidden_BTD)
        return hidden_BTD

    def logits(self, final_BTD: HiddenBTD) -> LogpNV:
        """The model's logits where targets are predicted, in float32 at least, from what leaves the last block."""
        normed_BTD = hidden_in(place_of(self.model, Site(0, "norm")).module(final_BTD))
        logits_NV = _head(self.model, normed_BTD[self.positions_BT.to(normed_BTD.device)])
        return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


def replayable(model: nn.Module, batch: Batch) -> Replay:
    """Run the model once up to its last block's input, and that block.

    The caller sees to eval mode and gradients. Memory: one hidden state a block and token.

    Args:
        model: any Hugging Face decoder on which ``check_replay`` passes.
        batch: rows on the device of the model's first parameter.

    Raises:
        CannotReplay: a block that is not given hidden states first, or blocks that did not run.
    """
    check_rows(model, batch)
    stack = blocks(model)
    with calls_of(model, list(stack)) as given, captured(model, [Site(len(stack) - 1, side="in")], stop=True):
        model(**batch.inputs, use_cache=False)
    return _kept(model, batch, given)


def _kept(model: nn.Module, batch: Batch, given: Mapping[nn.Module, tuple[Any, Any]]) -> Replay:
    stack = blocks(model)
    if len(given) != len(stack):
        raise CannotReplay(f"{len(given)} of {len(stack)} blocks were called in a forward; {_WAY_OUT}")
    calls = tuple(given[block] for block in stack)
    final_BTD = _run(stack[-1], calls[-1], _given_to(*calls[-1]))
    positions_BT = before_targets(batch)
    return Replay(model, calls, final_BTD, positions_BT, next_tokens(batch, positions_BT))


def check_replay(model: nn.Module, donor: nn.Module, batch: Batch, *, layer: int) -> None:
    """Compare replays with the model's own forwards on a few tokens: as it is, and with one block of ``donor``.

    The second finds models whose blocks tell each other more than their hidden states. The caller sees to eval mode
    and gradients.

    Args:
        model, donor: of the same architecture; both are left as found.
        batch: two rows of it, cut short and padded, are run twice and replayed once.
        layer: the block that is exchanged; what lies below the first block that differs is never replayed.

    Raises:
        CannotReplay: log-probabilities differ by more than rounding, or the model's head cannot be called alone.
    """
    stack, others = blocks(model), blocks(donor)
    weights = [id(p) for block in stack for p in block.parameters()]
    if len(set(weights)) != len(weights):
        raise CannotReplay(f"blocks of {type(unwrapped(model)).__name__} share weights; {_WAY_OUT}")
    few = _few(batch)
    try:
        with with_weights_of(stack[layer], others[layer]), captured(model, [Site(layer)]) as states:
            other_BTV = model(**few.inputs, use_cache=False).logits
        # After the other, so that what a block may leave to later ones outside of its output is not the other's.
        with calls_of(model, list(stack)) as given:
            own_BTV = model(**few.inputs, use_cache=False).logits
        replay = _kept(model, few, given)
        _agree(replay, replay.final_BTD, own_BTV, "the unmodified model")
        changed_BTD = replay.onward(layer + 1, states[Site(layer)])
        _agree(replay, changed_BTD, other_BTV, f"the model with another block {layer}")
    except (AttributeError, IndexError, KeyError, TypeError, RuntimeError) as error:
        raise CannotReplay(
            f"the blocks or the head of {type(unwrapped(model)).__name__} cannot be called alone ({error}); {_WAY_OUT}"
        ) from error


def _agree(replay: Replay, final_BTD: HiddenBTD, expected_BTV: LogitsBTV, what: str) -> None:
    inner = unwrapped(replay.model)
    expected_NV = expected_BTV[replay.positions_BT.to(expected_BTV.device)]
    found_NV = replay.logits(final_BTD).to(expected_NV.device)
    found_NV, expected_NV = (torch.log_softmax(x_NV.detach().double(), -1) for x_NV in (found_NV, expected_NV))
    apart = float((found_NV - expected_NV).abs().max())
    eps = torch.finfo(next(inner.parameters()).dtype).eps
    allowed = _ROUNDINGS * eps * max(1.0, float(expected_NV.abs().max()))
    if not apart <= allowed:
        raise CannotReplay(
            f"a replay of {what} is up to {apart:.1e} away from its own log-probabilities (rounding allows "
            f"{allowed:.1e}): {type(inner).__name__} does something between its blocks that a replay leaves out; "
            f"{_WAY_OUT}"
        )


def _few(batch: Batch) -> Batch:
    """The longest row cut short, and the same length again with half of it padding; every token is a target."""
    length_B = batch.attention_BT.sum(1)
    rows = batch.select([int(length_B.argmax()), int(length_B.argmin())])
    n = min(_CHECKED, int(length_B.max()))
    real_BT = rows.attention_BT[:, :n].clone()
    real_BT[1, max(2, n // 2) :] = False
    return replace(
        rows, tokens_BT=rows.tokens_BT[:, :n], target_BT=real_BT, attention_BT=real_BT, warn=False, preferred=None
    )


def _given_to(args: Any, kwargs: Any) -> HiddenBTD:
    hidden_BTD = first_given(args, kwargs)
    if hidden_BTD is None:
        raise CannotReplay(f"a block is not given hidden states first; {_WAY_OUT}")
    return hidden_BTD


def _run(block: nn.Module, call: tuple[Any, Any], hidden_BTD: HiddenBTD) -> HiddenBTD:
    args, kwargs = call
    if args:
        return hidden_in(block(hidden_BTD, *args[1:], **kwargs))
    return hidden_in(block(**{**kwargs, "hidden_states": hidden_BTD}))


@dataclass(frozen=True, eq=False)
class _Given:
    """What a trunk returns, as far as a head asks for it: an attribute, the first entry, or nothing."""

    last_hidden_state: Tensor

    def __getitem__(self, i: int) -> Tensor:
        return (self.last_hidden_state,)[i]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _head(model: nn.Module, normed_ND: HiddenND) -> LogpNV:
    """The model's own way from normed hidden states to logits, soft caps and scales included.

    Its forward runs on a shallow copy whose trunk is a function that returns the states; the model is not touched.
    """
    inner: Any = unwrapped(model)
    stem = trunk(model)
    path = next(name for name, module in inner.named_modules() if module is stem).split(".")
    if path == [""]:
        raise CannotReplay(f"{type(inner).__name__} has no head; pass a causal language model")
    given = _Given(normed_ND[:, None])
    shell = _with_instead(inner, path, lambda *args, **kwargs: given)
    tokens_N1 = torch.zeros(len(normed_ND), 1, dtype=torch.long, device=normed_ND.device)
    # The class's forward, for accelerate and others put one into the instance that is bound to the true model.
    return type(inner).forward(shell, input_ids=tokens_N1, use_cache=False).logits[:, 0]


def _with_instead(module: nn.Module, path: list[str], put: Callable[..., Any]) -> Any:
    shell = copy.copy(module)
    name, *rest = path
    child = module._modules[name]
    assert child is not None
    vars(shell)["_modules"] = {**module._modules, name: _with_instead(child, rest, put) if rest else put}
    return shell
