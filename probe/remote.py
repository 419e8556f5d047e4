"""A plan run through nnsight: on a model in this process, or on one that a server of NDIF holds.

The only file that imports nnsight. What travels to a server is the source of two functions that import nothing but
torch, and tensors, numbers and strings; no class of this package, since a server knows only a short list of modules.
"""

import inspect
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probe.axes import LogitsBTV, TokensBT
from probe.interventions.fit import check_tensors
from probe.interventions.operations import operate
from probe.interventions.plan import Plan, PlanStep
from probe.positions import Counter, NotIds, Tokens
from probe.sites import unwrapped

# (module path, side, whether its input is kept for a skip, the steps there)
Event = tuple[str, str, bool, list[tuple[Any, ...]]]


def traced(model: Any, plan: Plan, inputs: Mapping[str, Tensor], *, remote: bool | str = False) -> LogitsBTV:
    """Logits of one forward pass under a plan; those of ``probe.hooks.edited``, bit for bit where the machine is one.

    Args:
        model: any Hugging Face decoder, or an ``nnsight.TransformersModel`` (needed to run remotely).
        plan: what to do.
        inputs: ``input_ids`` and perhaps ``attention_mask``, as for the model.
        remote: False runs here; True on NDIF (with its key configured in nnsight), a URL on the server there.

    Raises:
        ValueError: the plan does not fit the model, ``remote`` for a model that has no name on a server, or
            left-padded rows in a wrapper of nnsight, which would number their tokens otherwise than the model does.

    >>> plan = probe.compile_plan(s.original, {probe.Site(4): probe.Scale(0.5)})
    >>> tuple(probe.traced(s.original, plan, s.split.forget.inputs).shape)
    (20, 27, 1024)
    """
    from nnsight import save

    plan.edits(_module(model))  # refuses a model that it does not fit
    _check_padding(model, inputs)
    events = _events(plan, inputs, 0)
    applied, operation = _portable(applied_here), _portable(operate)
    ends = int(inputs["input_ids"].shape[1])
    with _wrapped(model, remote) as wrapper, torch.no_grad():
        given = {**inputs, "use_cache": False}
        options = {"remote": remote} if remote else {}
        with wrapper.trace(**given, **options):
            applied(wrapper, events, operation, ends)
            logits = save(wrapper.output.logits)
    return logits


def generate_under(
    model: Any,
    plan: Plan,
    inputs: Mapping[str, Tensor],
    *,
    max_new_tokens: int,
    remote: bool | str = False,
    **settings: Any,
) -> TokensBT:
    """Prompt and continuation as token ids, generated under a plan that acts on every decoding step.

    Positions mean what they mean in ``probe.hooks.edited``: tokens are counted from each row's first real one, and
    the prompt is ``inputs``.

    Args:
        model: as for ``traced``.
        plan: what to do.
        inputs: as for ``traced``; rows of different length are padded on the left.
        max_new_tokens: how many tokens to add at most.
        remote: as for ``traced``.
        settings: further arguments of the model's ``generate``.

    Raises:
        ValueError: as for ``traced``.

    >>> plan = probe.compile_plan(s.original, {probe.Site(4): probe.Scale(0.5)})
    >>> inputs = {name: tensor[:1, :8] for name, tensor in s.split.forget.inputs.items()}
    >>> tuple(probe.generate_under(s.original, plan, inputs, max_new_tokens=3).shape)
    (1, 11)
    """
    from nnsight import TransformersModel, save

    plan.edits(_module(model))
    events = _events(plan, inputs, max_new_tokens)
    applied, operation = _portable(applied_here), _portable(operate)
    ends = int(inputs["input_ids"].shape[1])
    with _wrapped(model, remote) as wrapper, torch.no_grad(), warnings.catch_warnings():
        # Rows that end early leave the loop waiting for steps that never come; that is no mistake here.
        warnings.filterwarnings("ignore", message=".*was never reached: the loop asked for a step")
        given = {**inputs, **settings, "max_new_tokens": max_new_tokens}
        options: dict[str, Any] = {"remote": remote} if remote else {}
        opened = wrapper.generate
        if not isinstance(wrapper, TransformersModel):
            opened, options["fn"] = wrapper.trace, wrapper._module.generate
        with opened(**options) as tracer:
            with tracer.invoke(**given):
                for step in tracer.iter[:max_new_tokens]:
                    applied(wrapper, events, operation, ends + step)
            with tracer.invoke():
                token_BT = save(tracer.result)
    return token_BT


def check_shapes(model: Any, plan: Plan) -> dict[str, int]:
    """Run a plan on a model without weights, so that a misfit shows before anything is downloaded.

    Args:
        model: a config of transformers, or a model (only its config is used).
        plan: what to try.

    Returns:
        width of the hidden states at each place of the plan.

    Raises:
        ValueError: a module that the model lacks, or a vector of another width than the hidden states (both widths).

    >>> plan = probe.compile_plan(s.original, {probe.Site(4): probe.Scale(0.5)})
    >>> probe.check_shapes(s.original, plan)
    {'model.layers.4 (out)': 128}
    """
    from nnsight import NNsight
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM, PretrainedConfig

    config = model if isinstance(model, PretrainedConfig) else unwrapped(_module(model)).config
    with torch.device("meta"):
        # Mixtures of experts multiply in bfloat16 only, where nothing is calculated.
        empty = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    known = dict(empty.named_modules())
    for step in plan.steps:
        if step.module not in known:
            raise ValueError(f"{type(empty).__name__} has no {step.module}; the plan was made for another model")
    whole = [t.shape[:2] for s in plan.steps for t in s.operation.tensors.values() if t.ndim == 3]
    shape = whole[0] if whole else (1, 2)  # activations of a whole batch replace those of such a batch only
    events = _events(plan, None, 0)
    widths: dict[str, int] = {}

    def checked(name: str, hidden: Tensor, tensors: Any, numbers: Any, entering: Any) -> Tensor:
        step = plan.steps[len(seen)]
        seen.append(step)
        widths[step.where] = hidden.shape[-1]
        check_tensors(step.operation, step.where, hidden.shape[-1])
        return operate(name, hidden, tensors, numbers, entering)

    seen: list[PlanStep] = []
    wrapper = NNsight(empty)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        ids_BT = torch.zeros(*shape, dtype=torch.long, device="meta")
        with wrapper.trace(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False):
            applied_here(wrapper, events, checked, 0)
    return widths


def applied_here(root: Any, events: list[Any], operation: Any, ends: int) -> None:
    """Run the steps of one forward pass inside a trace. It travels: torch, tensors and plain values only.

    Args:
        root: the model as nnsight shows it.
        events: where, and what to do there, in order of execution.
        operation: ``operate``.
        ends: how many columns the padded sequence has after this forward.
    """
    import torch

    entered: dict[str, torch.Tensor] = {}
    ids = torch.empty(0)
    if any(step[5] is not None for _, _, _, steps in events for step in steps):
        arguments, named = root.inputs
        ids = arguments[0] if arguments else named["input_ids"]
    for path, side, kept, steps in events:
        module = root.get(path)
        if side == "in":
            arguments, named = module.inputs
            whole = arguments[0] if arguments else named["hidden_states"]
        else:
            output = module.output
            whole = output if isinstance(output, torch.Tensor) else output[0]
        after = whole
        for columns, name, tensors, numbers, mask, excluded in steps:
            part = after if columns is None else after[..., columns[0] : columns[1]]
            rows = None
            if mask is not None:
                rows = mask.to(part.device)[:, ends - part.shape[1] : ends]
                # Beams of one prompt lie next to one another.
                rows = rows.repeat_interleave(len(part) // len(rows), 0)
                if excluded is not None:
                    rows = rows & ~torch.isin(ids.to(part.device), excluded.to(part.device))
                if not bool(rows.any()):
                    continue
            changed = operation(name, part, tensors, numbers, entered.get(path))
            if rows is not None:
                changed = torch.where(rows[..., None], changed, part)
            if columns is not None:
                part, changed = changed, after.clone()
                changed[..., columns[0] : columns[1]] = part
            after = changed
        if kept:
            entered[path] = after
        if after is whole:
            continue
        if side == "in":
            module.inputs = (
                ((after, *arguments[1:]), named) if arguments else (arguments, {**named, "hidden_states": after})
            )
        else:
            module.output = after if isinstance(output, torch.Tensor) else (after, *output[1:])


def _events(plan: Plan, inputs: Mapping[str, Tensor] | None, new: int) -> list[Event]:
    """The plan as plain values, steps at one place together, with the masks of a forward or of a whole generation."""
    tokens = None if inputs is None else _tokens(inputs, new)
    events: list[Event] = []
    for step in plan.steps:
        mask, excluded = None, None
        if step.positions is not None and tokens is not None:
            mask = step.positions(tokens).cpu()
            if isinstance(step.positions, NotIds):
                excluded = torch.tensor(step.positions.ids)
        operation = step.operation
        one = (step.columns, operation.name, operation.tensors, operation.numbers, mask, excluded)
        if not events or events[-1][:2] != (step.module, step.side):
            events.append((step.module, step.side, False, []))
        events[-1][3].append(one)
    for path in {step.module for step in plan.steps if step.operation.reads_input}:
        # What enters is read before anything inside the module runs.
        at = next(i for i, event in enumerate(events) if f"{event[0]}.".startswith(f"{path}."))
        if events[at][:2] != (path, "in"):
            events.insert(at, (path, "in", True, []))
        events[at] = (path, "in", True, events[at][3])
    return events


def _tokens(inputs: Mapping[str, Tensor], new: int) -> Tokens:
    """The tokens of a prompt and of ``new`` more, whose ids are not known yet (-1)."""
    counter = Counter()
    counter.see(dict(inputs))
    seen = counter.tokens
    assert seen is not None
    if new == 0:
        return seen
    n_rows, length = seen.index_BT.shape
    more = torch.arange(new, device=seen.index_BT.device).expand(n_rows, new)
    unknown = torch.full_like(more, -1)
    return Tokens(
        torch.cat([seen.index_BT, seen.prompt_B[:, None] + more], 1),
        torch.cat([seen.column_BT, length + more], 1),
        torch.cat([seen.real_BT, torch.ones_like(more, dtype=torch.bool)], 1),
        seen.prompt_B,
        None if seen.id_BT is None else torch.cat([seen.id_BT, unknown], 1),
    )


def _portable(function: Any) -> Any:
    """The function as one that nnsight sends by its source, whether or not this package is installed over there."""
    raw = inspect.unwrap(function)
    copy = types.FunctionType(raw.__code__, {"__builtins__": __builtins__}, raw.__name__, raw.__defaults__)
    # What belongs to __main__ is never looked up by name on the other side.
    copy.__module__, copy.__kwdefaults__ = "__main__", raw.__kwdefaults__
    return copy


@contextmanager
def _wrapped(model: Any, remote: bool | str) -> Iterator[Any]:
    """nnsight's view of the model; a plain model is left without it afterwards."""
    from nnsight import Envoy, NNsight
    from nnsight.intervention.source import STATE

    if isinstance(model, Envoy):
        if remote and not hasattr(model, "to_model_key"):
            raise ValueError(f"{type(model).__name__} has no name on a server; pass an nnsight.TransformersModel")
        yield model
        return
    if remote:
        raise ValueError("a model of this process cannot run remotely; pass an nnsight.TransformersModel")
    inner = unwrapped(model)
    fresh = [(module, module.__dict__.get("forward")) for module in inner.modules() if STATE not in module.__dict__]
    try:
        yield NNsight(inner)
    finally:
        for module, forward in fresh:
            module.__dict__.pop(STATE, None)
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward


def _module(model: Any) -> nn.Module:
    """The torch module, inside nnsight's view if it is given in one."""
    from nnsight import Envoy

    return model._module if isinstance(model, Envoy) else model


def _check_padding(model: Any, inputs: Mapping[str, Tensor]) -> None:
    from nnsight import Envoy

    mask_BT = inputs.get("attention_mask")
    if isinstance(model, Envoy) and mask_BT is not None and not bool(mask_BT[:, 0].all()):
        raise ValueError(
            "rows are padded on the left, where nnsight numbers positions from the first real token and a plain "
            "forward pass does not; pad on the right"
        )
