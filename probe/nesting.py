"""Blocks that change a model: one thread's at a time, and left in the reverse order in which they were entered."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from torch import nn


@dataclass(eq=False)
class _Block:
    """An open block: what puts back its change, and then the changes of blocks that were left before it."""

    name: str
    undo: list[Callable[[], None]]
    alone: bool
    thread: int = field(default_factory=threading.get_ident)
    outlived_by: str = ""


# Weak on both ends: neither a model nor a block that an interrupt cut short is kept alive. There is no lock, which an
# interrupt could leave locked: lists are appended to and removed from in one step.
_OPEN: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[_Block]]] = weakref.WeakKeyDictionary()


@contextmanager
def nested(
    model: nn.Module, name: str, undo: Callable[[], None] | None = None, *, alone: bool = True
) -> Iterator[None]:
    """Count a block among the open ones of a model.

    Args:
        model: what the block changes or reads.
        name: what messages call the block.
        undo: puts back what the block changed, and may run twice; None where nothing depends on the order of leaving.
            A block that is left before one inside it hands it over, so that the first state comes back in the end.
        alone: whether no other thread may have a block open on this model.

    Raises:
        ValueError: another thread has a block open on this model; or, on leaving, one entered later is still open.
    """
    block = _Block(name, [] if undo is None else [undo], alone)
    # Noted first and checked then: of two threads that enter at once, one sees the other at least.
    _OPEN.setdefault(model, []).append(weakref.ref(block))
    try:
        try:
            _check_alone(model, block)
            yield
        finally:
            try:
                _leave(model, block)
            finally:  # once more, should a Ctrl-C have come in between
                _leave(model, block)
    except GeneratorExit:
        if block.outlived_by:
            raise ValueError(_too_early(block)) from None
        raise
    if block.outlived_by:
        raise ValueError(_too_early(block))


def _check_alone(model: nn.Module, block: _Block) -> None:
    for held in _open(model):
        if held.thread != block.thread and (held.alone or block.alone):
            # What was noted is taken back without an undo: nothing was changed yet.
            block.undo.clear()
            raise ValueError(
                f"{block.name} was entered while another thread is inside {held.name} of the same model; each would "
                "see what the other does. Run them one after the other, or give each thread a model of its own"
            )


def check_thread(owner: int, name: str) -> None:
    """Refuse to act in a forward of another thread than the one that entered the block.

    Raises:
        ValueError: this thread is another.
    """
    if threading.get_ident() != owner:
        raise ValueError(
            f"a forward in one thread ran into a hook at {name} of a block that another thread entered; enter the "
            "block in the thread that runs the model, or give each thread a model of its own"
        )


def _open(model: nn.Module) -> list[_Block]:
    return [block for kept in _OPEN.get(model, ()) if (block := kept()) is not None]


def _leave(model: nn.Module, block: _Block) -> None:
    """Put back what the block changed, unless one inside it still has to."""
    stack = _open(model)
    if block not in stack:
        return
    above = [held for held in stack[stack.index(block) + 1 :] if held.undo] if block.undo else []
    if above:
        above[0].undo += [step for step in block.undo if step not in above[0].undo]
        block.outlived_by = above[0].name
    else:
        for step in block.undo:
            step()
    kept = _OPEN[model]
    for one in [one for one in kept if one() in (None, block)]:
        with suppress(ValueError):  # another thread took it out
            kept.remove(one)


def _too_early(block: _Block) -> str:
    return (
        f"{block.name} was left while {block.outlived_by}, entered after it on the same model, is still open; what it "
        "changed is put back when that is left. Leave blocks in the reverse order: close the later generator first"
    )
