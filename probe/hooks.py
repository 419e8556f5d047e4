"""Read and change activations of an unchanged model: the only file that registers a hook.

Both verbs are context managers. Whatever happens inside, their hooks, and only theirs, are gone afterwards.
Neither switches gradients off: that is the caller's decision.
"""

import inspect
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from probe.modes import check_loaded, check_runs_once, eager
from probe.nesting import check_thread, nested
from probe.outputs import check_axes, first_given, hidden_in, with_hidden
from probe.positions import At, Counter, Intervention, Positions, mask_of
from probe.sites import Place, Site, check_hookable, inside_blocks, place_of, trunk, unwrapped

# Hooks registered here carry the module they were made for, to tell them from foreign ones and those of a copy, and
# whether they edit.
_OURS = "_probe_hook"
_RECORDER = "transformers.utils.output_capturing"
_LIBRARIES = ("transformers.", "accelerate.", "nnsight.", "torch.distributed.")


class _Enough(BaseException):
    """Raised by the last capturing hook to leave a forward that nobody needs to finish."""


@contextmanager
def captured(
    model: nn.Module, sites: Sequence[Site], *, positions: Positions | None = None, stop: bool = False
) -> Iterator[dict[Site, Tensor]]:
    """Collect the activations at ``sites``; each forward pass overwrites the dictionary.

    Args:
        model: any Hugging Face decoder.
        sites: where to read.
        positions: which tokens to keep (``probe.positions``); None keeps all, padding included.
        stop: leave the ``with`` block as soon as every site was seen once. The forward that was under way
            returns nothing, and code after it inside the block does not run.

    Yields:
        a dictionary, site -> hidden states (batch, position, width), attached to the autograd graph; with
        ``positions`` the chosen tokens of all rows one after another, (token, width).

    Raises:
        ValueError: a site outside the model, a compiled model, weights that are not loaded (meta device), or a site
            inside a block under reentrant gradient checkpointing, where states carry no gradient.

    >>> with torch.no_grad(), probe.captured(s.original, [probe.Site(4)]) as hidden:
    ...     _ = s.original(**s.split.forget.inputs)
    >>> tuple(hidden[probe.Site(4)].shape)
    (20, 27, 128)
    """
    _check(model)
    states: dict[Site, Tensor] = {}
    counter, mine = Counter(), object()

    def reader(site: Site) -> Callable[[Tensor, Tensor | None], None]:
        def read(hidden_BTD: Tensor, entering: Tensor | None) -> None:
            # During backward checkpointing runs a block again; what counts is what the forward gave.
            if torch._C._current_graph_task_id() != -1:
                return
            if positions is not None:
                assert counter.tokens is not None
                # Checkpointing counts what is saved for backward and would miss it in the second run.
                with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, Tensor.detach):
                    hidden_BTD = hidden_BTD[mask_of(positions, counter.tokens, hidden_BTD)]
            states[site] = hidden_BTD
            if stop and len(states) == len(set(sites)):
                raise _Enough(mine)

        return read

    with nested(unwrapped(model), "captured"), eager(), ExitStack() as stack:
        if positions is not None:
            _count(stack, model, counter)
        for site in sites:
            _register(stack, place_of(model, site), reader(site))
        _refuse_checkpointing(stack, model, sites, edit=False)
        try:
            yield states
        except _Enough as enough:
            # That of an enclosing block is not ours to catch.
            if enough.args[0] is not mine:
                raise


@contextmanager
def edited(model: nn.Module, edits: Mapping[Site, Intervention | Sequence[Intervention]]) -> Iterator[None]:
    """Apply interventions at sites in every forward pass inside the block, generation and training included.

    Several interventions at one site run in the order given; nested blocks run outermost first. ``At`` limits an
    intervention to some positions. Weights do not change: what ``save_pretrained`` writes here lacks the edit, and a
    copy of the model made here cannot run.

    Args:
        model: any Hugging Face decoder.
        edits: what to do where.

    Raises:
        ValueError: a site outside the model, an edit whose vector has another width than the model, a compiled
            model, or gradient checkpointing together with an edit inside a block (its gradients would be wrong).

    >>> with probe.edited(s.original, {probe.Site(4): probe.Scale(0.0)}):
    ...     without = probe.nll(s.original, s.split.retain)
    >>> bool(without > probe.nll(s.original, s.split.retain))
    True
    """
    _check(model)
    listed = [(site, one) for site, some in edits.items() for one in (some if isinstance(some, Sequence) else (some,))]
    counter = Counter()

    def writer(site: Site, given: Intervention) -> Callable[[Tensor, Tensor | None], Tensor]:
        inner: Any = given.intervention if isinstance(given, At) else given
        reads_input, reads_tokens = (bool(getattr(inner, name, False)) for name in ("reads_input", "reads_tokens"))
        act = inner.following() if reads_tokens else inner
        if reads_input and (site.part != "block" or site.side == "in"):
            raise ValueError(f"{type(inner).__name__} needs what enters a block; {site} is not a block output")

        def write(before_BTD: Tensor, entering: Tensor | None) -> Tensor:
            mask_BT = None
            if isinstance(given, At):
                assert counter.tokens is not None
                mask_BT = mask_of(given.positions, counter.tokens, before_BTD)
                if not reads_tokens and not bool(mask_BT.any()):
                    return before_BTD
            try:
                after_BTD = act(before_BTD, *[entering] * reads_input, *[counter.tokens] * reads_tokens)
            except ValueError as error:
                raise ValueError(f"at {site}: {error}") from error
            if _kind(after_BTD) != _kind(before_BTD):
                raise ValueError(
                    f"the intervention at {site} returned {_kind(after_BTD)}; expected {_kind(before_BTD)}"
                )
            if mask_BT is None or after_BTD is before_BTD:
                return after_BTD
            return torch.where(mask_BT[..., None], after_BTD, before_BTD)

        return write

    with nested(unwrapped(model), "edited"), eager(), ExitStack() as stack:
        if any(isinstance(one, At) or getattr(one, "reads_tokens", False) for _, one in listed):
            _count(stack, model, counter)
        for site, one in listed:
            _register(stack, place_of(model, site), writer(site, one), edit=True)
        _refuse_checkpointing(stack, model, edits, edit=True)
        yield


@contextmanager
def calls_of(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, tuple[Any, Any]]]:
    """Collect what each module is called with, (args, kwargs), as it is before edits of its input; see ``captured``."""
    _check(model)
    given: dict[nn.Module, tuple[Any, Any]] = {}
    with nested(unwrapped(model), "calls_of"), eager(), ExitStack() as stack:
        for module in modules:
            # A function for each module: the mark that a hook carries names its module.
            _add(stack, module, lambda m, args, kwargs: given.update({m: (args, kwargs)}), "before")
        yield given


def _kind(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def foreign_hooks(model: nn.Module) -> list[str]:
    """Names of modules that carry a forward hook or pre-hook which no open block of ours put there.

    Hooks of ours that came along when a model was copied inside a block count as foreign.
    """
    return [n or type(m).__name__ for n, m in model.named_modules() if any(_is_foreign(h, m) for h in _hooks_on(m))]


def open_edits(model: nn.Module) -> list[str]:
    """Names of modules where an open ``edited`` block changes hidden states; a saved model lacks the change."""
    return [name for name, m in model.named_modules() if any(getattr(h, _OURS, (None, False))[1] for h in _hooks_on(m))]


def our_hooks(model: nn.Module) -> list[str]:
    """Names of modules that carry a hook of an open block; none outside of one."""
    return [name for name, m in model.named_modules() if any(hasattr(hook, _OURS) for hook in _hooks_on(m))]


def _hooks_on(module: nn.Module) -> list[Callable[..., Any]]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _is_foreign(hook: Callable[..., Any], module: nn.Module) -> bool:
    return getattr(hook, _OURS)[0]() is not module if hasattr(hook, _OURS) else not _is_library_hook(hook)


def _is_library_hook(hook: Callable[..., Any]) -> bool:
    """Hooks that libraries install for their own bookkeeping: records, offloading, shards."""
    return f"{getattr(hook, '__module__', '')}.".startswith(_LIBRARIES)


def _register(
    stack: ExitStack, place: Place, act: Callable[[Tensor, Tensor | None], Tensor | None], *, edit: bool = False
) -> None:
    """Have ``act(hidden, entering)`` see, and perhaps replace, the hidden states at ``place``."""

    def acted(module: nn.Module, whole: Tensor, entering: Tensor | None) -> Tensor | None:
        """The whole tensor after the act, or None if nothing changed."""
        if module is not place.module:
            raise ValueError(
                f"this {type(module).__name__} belongs to a copy of the model (copy.deepcopy, nn.DataParallel) made "
                f"inside a with block, and still carries the hook at {place.name}; copy the model outside the block"
            )
        check_axes(whole, place.name, place.side)
        if place.width is None:
            after = act(whole, entering)
            return None if after is whole else after
        part = whole[..., place.width]
        after = act(part, entering)
        if after is None or after is part:
            return None
        changed = whole.clone()
        changed[..., place.width] = after
        return changed

    def leaving(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        after = acted(module, hidden_in(output), first_given(args, kwargs))
        return None if after is None else with_hidden(output, after)

    def arriving(module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = first_given(args, kwargs)
        if hidden is None:
            raise ValueError(f"{type(module).__name__} is not given hidden states first; its input cannot be read")
        after = acted(module, hidden, None)
        if after is None:
            return None
        return ((after, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": after})

    _add(stack, place.module, arriving if place.side == "in" else leaving, place.side, edit=edit)


def _add(stack: ExitStack, module: nn.Module, act: Callable[..., Any], side: str, *, edit: bool = False) -> None:
    owner, name = threading.get_ident(), type(module).__name__

    def hook(*given: Any) -> Any:
        # Backward runs a checkpointed block again in a thread of its own.
        if torch._C._current_graph_task_id() == -1:
            check_thread(owner, name)
        return act(*given)

    setattr(hook, _OURS, (weakref.ref(module), edit))
    # Removal is promised before the hook is there, and twice: an interrupt in between, or during it, leaves none.
    for _ in range(2):
        stack.callback(_remove, module, hook)
    if side != "out":
        module.register_forward_pre_hook(hook, with_kwargs=True, prepend=side == "before")
        return
    module.register_forward_hook(hook, with_kwargs=True)
    # transformers records hidden_states in hooks that it adds once and keeps; they must see what leaves an edit.
    kept: Any = module._forward_hooks
    recorders = takewhile(lambda key: getattr(kept[key], "__module__", "") == _RECORDER, list(kept)[-2::-1])
    for key in recorders:
        kept.move_to_end(key)


def _remove(module: nn.Module, hook: Callable[..., Any]) -> None:
    for hooks, flags in (
        (module._forward_hooks, module._forward_hooks_with_kwargs),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ):
        for key in [key for key, kept in hooks.items() if kept is hook]:
            flags.pop(key, None)  # first: by the hook a second attempt finds the flag
            hooks.pop(key, None)


def _count(stack: ExitStack, model: nn.Module, counter: Counter) -> None:
    """Have ``counter`` see what every forward is given, before any other hook runs, and what it leaves in a cache."""
    names = tuple(inspect.signature(unwrapped(model).forward).parameters)

    def see(module: nn.Module, args: Any, kwargs: Any) -> None:
        counter.see({**dict(zip(names, args, strict=False)), **kwargs})

    _add(stack, unwrapped(model), see, "in")
    _add(stack, unwrapped(model), lambda m, args, kwargs, output: counter.leave(output), "out")


def _check(model: nn.Module) -> None:
    check_hookable(model)
    check_loaded(model)
    if foreign := foreign_hooks(model):
        warnings.warn(
            f"the model already carries hooks that are not ours, at {', '.join(foreign[:3])}; "
            "they stay in place and act on what is measured",
            stacklevel=4,
        )


def _refuse_checkpointing(stack: ExitStack, model: nn.Module, sites: Iterable[Site], *, edit: bool) -> None:
    """Refuse, in every forward, sites inside a block that backward will run again, perhaps without us."""
    inner = inside_blocks(model, sites)

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        for site, block in inner.items() if torch.is_grad_enabled() else ():
            check_runs_once(block, str(site), edit=edit)

    if inner:
        _add(stack, trunk(model), look, "in")
