"""What a model must be before it is measured: its weights loaded, and in evaluation mode for a while."""

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from probe.nesting import nested


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block and give every submodule its own mode back afterwards.

    Args:
        model: warned about if it is in train mode, for what is measured is then not what training sees.

    Raises:
        ValueError: weights that are not loaded, a thread that would switch a model which another one measures, or a
            block left before one inside it.
    """
    check_loaded(model)
    modes = [(module, module.training) for module in model.modules()]
    if model.training:
        warnings.warn("the model is in train mode; it is measured in eval mode and put back", stacklevel=4)

    def put_back() -> None:
        for module, training in modes:
            module.training = training

    with nested(model, "evaluating", put_back, alone=any(training for _, training in modes)):
        model.eval()
        yield


def check_loaded(model: nn.Module) -> None:
    """Refuse a model without weights; weights that accelerate offloaded and brings back in time are fine.

    Raises:
        ValueError: parameters on the meta device.
    """
    # Through the dictionaries: hasattr and parameters() cost milliseconds in deep models, and this runs often.
    kept = [m for m in model.modules() if "_hf_hook" not in vars(m)]
    absent = [p for m in kept for p in m._parameters.values() if p is not None and p.is_meta]
    if absent:
        raise ValueError(
            f"{len(absent)} of the model's parameters lie on the meta device: their weights are not loaded; load the "
            "model with from_pretrained on cpu or a GPU"
        )


def check_runs_once(block: nn.Module, site: str, *, edit: bool) -> None:
    """Refuse a reading or an edit inside a block that gradient checkpointing runs again during backward.

    Args:
        block: where ``site`` lies.
        site: what error messages call the place.
        edit: whether it is edited; a reading is safe unless checkpointing is reentrant.

    Raises:
        ValueError: the block is checkpointed, and the edit may be gone or the states carry no gradient.
    """
    if not (block.training and getattr(block, "gradient_checkpointing", False)):
        return
    if edit:
        raise ValueError(
            f"gradient checkpointing replays the edit at {site} during backward, where it may be gone; "
            "edit block outputs instead or call model.gradient_checkpointing_disable()"
        )
    if getattr(block._gradient_checkpointing_func, "keywords", {}).get("use_reentrant", True):
        raise ValueError(
            f"reentrant gradient checkpointing runs {site} without gradients; capture block outputs, or call "
            'model.gradient_checkpointing_enable({"use_reentrant": False})'
        )


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Have torch use ``n`` threads inside the block, and as many as before after it.

    Raises:
        ValueError: fewer than one.
    """
    if n < 1:
        raise ValueError(f"at least one thread is needed, got {n}")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(n)
        yield
    finally:
        torch.set_num_threads(before)


_LOCK = threading.RLock()
# What ends the eager stance, then one entry for each open block.
_EAGER: list[Any] = []


@contextmanager
def _alone() -> Iterator[None]:
    # What is done under it takes microseconds: after a second, an interrupt has left it locked.
    held = _LOCK.acquire(timeout=1.0)
    try:
        yield
    finally:
        if held:
            _LOCK.release()


@contextmanager
def eager() -> Iterator[None]:
    """Have nothing run compiled code inside: what was compiled before a hook was added does not run the hook.

    Blocks may be left in any order and in any thread; the last one gives back what was there before the first.
    """
    if "torch._dynamo" not in sys.modules:  # no dynamo, no such code
        yield
        return
    mine = object()
    try:
        with _alone():
            if not _EAGER:
                _EAGER.append(torch.compiler.set_stance("force_eager"))
            _EAGER.append(mine)
        yield
    finally:
        with _alone():
            if mine in _EAGER:
                _EAGER.remove(mine)
            if len(_EAGER) == 1:
                _EAGER.pop().__exit__(None, None, None)
