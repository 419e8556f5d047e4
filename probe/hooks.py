"""Read and change activations of an unchanged model: the only file that registers a hook.

Both verbs are context managers. Whatever happens inside, their hooks, and only theirs, are gone afterwards.
Neither switches gradients off: that is the caller's decision.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probe.axes import HiddenBTD
from probe.sites import Site, blocks, module_at

Intervention = Callable[[HiddenBTD], HiddenBTD]

# Hooks registered here carry this attribute, so that foreign ones can be told apart.
_OURS = "_probe_hook"


class _Enough(BaseException):
    """Raised by the last capturing hook to leave a forward that nobody needs to finish."""


@contextmanager
def captured(model: nn.Module, sites: Sequence[Site], *, stop: bool = False) -> Iterator[dict[Site, HiddenBTD]]:
    """Collect the activations at ``sites``; each forward pass overwrites the dictionary.

    Args:
        model: any Hugging Face decoder.
        sites: where to read.
        stop: leave the ``with`` block as soon as every site was seen once. The forward that was under way
            returns nothing, and code after it inside the block does not run.

    Yields:
        a dictionary, site -> hidden states (batch, position, width), attached to the autograd graph.

    Raises:
        ValueError: a site outside the model, or weights that are not loaded (meta device).
    """
    _check(model)
    states: dict[Site, HiddenBTD] = {}

    def reader(site: Site) -> Callable[..., None]:
        def read(module: nn.Module, inputs: Any, output: Any) -> None:
            states[site] = _hidden(output)
            if stop and len(states) == len(set(sites)):
                raise _Enough

        return read

    with ExitStack() as stack:
        for site in sites:
            _register(stack, module_at(model, site), reader(site))
        try:
            yield states
        except _Enough:
            return


@contextmanager
def edited(model: nn.Module, edits: Mapping[Site, Intervention | Sequence[Intervention]]) -> Iterator[None]:
    """Apply interventions at sites in every forward pass inside the block, generation included.

    Several interventions at one site run in the order given; nested blocks run outermost first.

    Args:
        model: any Hugging Face decoder.
        edits: what to do where.

    Raises:
        ValueError: a site outside the model, an edit whose vector has another width than the model, or
            gradient checkpointing together with an edit below block level (its gradients would be wrong).
    """
    _check(model)
    _refuse_checkpointing(model, edits)

    def writer(site: Site, intervention: Intervention) -> Callable[..., Any]:
        def write(module: nn.Module, inputs: Any, output: Any) -> Any:
            before_BTD = _hidden(output)
            after_BTD = intervention(before_BTD)
            if after_BTD is before_BTD:
                return None
            if after_BTD.shape != before_BTD.shape or after_BTD.dtype != before_BTD.dtype:
                raise ValueError(
                    f"the intervention at {site} returned {tuple(after_BTD.shape)} {after_BTD.dtype}; "
                    f"expected {tuple(before_BTD.shape)} {before_BTD.dtype}"
                )
            return _replaced(output, after_BTD)

        return write

    with ExitStack() as stack:
        for site, given in edits.items():
            for intervention in given if isinstance(given, Sequence) else (given,):
                _register(stack, module_at(model, site), writer(site, intervention))
        yield


def foreign_hooks(model: nn.Module) -> list[str]:
    """Names of modules that carry a forward hook or pre-hook which this file did not register."""
    found = []
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if any(not hasattr(hook, _OURS) and not _is_library_hook(hook) for hook in hooks):
            found.append(name or type(module).__name__)
    return found


def _is_library_hook(hook: Callable[..., Any]) -> bool:
    """Hooks that transformers and accelerate install for their own bookkeeping."""
    return (getattr(hook, "__module__", "") or "").split(".")[0] in ("transformers", "accelerate", "nnsight")


def _register(stack: ExitStack, module: nn.Module, hook: Callable[..., Any]) -> None:
    setattr(hook, _OURS, True)
    stack.callback(module.register_forward_hook(hook).remove)


def _hidden(output: Any) -> Tensor:
    """Blocks return a Tensor in most families and a tuple in others; ``output[0]`` alone would take a row."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise ValueError(f"expected a module output that is a Tensor or a tuple led by one, got {type(output).__name__}")


def _replaced(output: Any, hidden_BTD: Tensor) -> Any:
    return hidden_BTD if isinstance(output, Tensor) else (hidden_BTD, *output[1:])


def _check(model: nn.Module) -> None:
    blocks(model)  # refuses compiled models and models without decoder blocks
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("the model lies on the meta device: its weights are not loaded; load it on cpu or a GPU")
    foreign = foreign_hooks(model)
    if foreign:
        warnings.warn(
            f"the model already carries hooks that are not ours, at {', '.join(foreign[:3])}; "
            "they stay in place and act on what is measured",
            stacklevel=4,
        )


def _refuse_checkpointing(model: nn.Module, edits: Mapping[Site, Any]) -> None:
    inner = [site for site in edits if site.part != "block"]
    if inner and torch.is_grad_enabled() and getattr(model, "is_gradient_checkpointing", False) and model.training:
        raise ValueError(
            f"gradient checkpointing replays the edit at {inner[0]} during backward, where it may be gone; "
            "edit block outputs instead or call model.gradient_checkpointing_disable()"
        )
