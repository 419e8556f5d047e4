"""Interventions as a plan: what is done where, in the order in which a forward pass gets there, as plain data.

A plan can be saved, loaded into another process, and run through other libraries (``probe.remote``). It is made of
module paths, names of operations, numbers and tensors; no code and no pickle.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probe.checkpoints import file_hash
from probe.interventions.fit import MODEL_KEYS, check_same, check_tensors, fingerprint, width_at
from probe.interventions.operations import Compilable, Operation
from probe.interventions.written import (
    check_keys,
    check_operation,
    positions_as_json,
    read_json,
    read_step,
    step_as_json,
)
from probe.model_files import check_safetensors
from probe.positions import At, Intervention, Mask, Positions
from probe.sites import Part, Place, Side, Site, layer_of, place_of, unwrapped

FORMAT, VERSION = "probe-plan", 1
_SIDES: tuple[Side, ...] = ("in", "out")
# Parts of a block in the order in which a forward pass enters and leaves them.
_ORDER = [
    *(("block", "in"), ("attention", "in"), ("heads", "out"), ("attention", "out")),
    *(("mlp", "in"), ("mlp", "out"), ("block", "out")),
]


@dataclass(frozen=True, eq=False)
class PlanStep:
    """One operation at one place.

    Args:
        module: path inside the unwrapped model.
        side: what the module returns (``out``) or is given (``in``).
        operation: what to do.
        columns: first and one past the last entry of the last axis (one attention head, say); None is all of it.
        positions: one of the choices in ``probe.positions``; None is every token, padding included.

    Raises:
        ValueError: an unknown operation, tensors or numbers that it does not take, NaN or infinity, or positions of
            the caller's own making, which cannot be written down.
    """

    module: str
    side: Side
    operation: Operation
    columns: tuple[int, int] | None = None
    positions: Positions | None = None

    def __post_init__(self) -> None:
        check_operation(self.operation, f"the operation at {self.module}")
        positions_as_json(self.positions)

    @property
    def where(self) -> str:
        """The place in words."""
        columns = "" if self.columns is None else f", columns {self.columns[0]} to {self.columns[1]}"
        return f"{self.module} ({self.side}{columns})"


@dataclass(frozen=True, eq=False)
class Plan:
    """Steps in the order of execution, and the model that they were compiled for.

    Args:
        steps: what is done where.
        model: class, number of layers, width, dtype, and a checksum of the weights (None: they were not loaded).
    """

    steps: tuple[PlanStep, ...]
    model: dict[str, Any]

    def edits(self, model: nn.Module) -> dict[Site, Sequence[Intervention]]:
        """What ``probe.hooks.edited`` takes; the logits are those of the compiled edits, bit for bit.

        Raises:
            ValueError: the model has no such module, or another width there.
        """
        found: dict[Site, list[Intervention]] = {}
        for step in self.steps:
            site = _site_of(model, step)
            check_tensors(step.operation, step.where, width_at(model, place_of(model, site)))
            chosen = step.operation if step.positions is None else At(step.operation, step.positions)
            found.setdefault(site, []).append(chosen)
        return dict(found)

    def save(self, folder: str | Path) -> None:
        """Write ``plan.json`` and ``plan.safetensors`` into a new folder, which appears whole or not at all.

        Raises:
            ValueError: the folder exists already.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        if folder.exists():
            raise ValueError(f"{folder} exists already; a plan is saved into a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        sibling = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            tensors = {f"{i}.{name}": t for i, step in enumerate(self.steps) for name, t in _tensors(step).items()}
            save_file(tensors, sibling / "plan.safetensors", metadata={"format": FORMAT})
            whole = {
                "format": FORMAT,
                "version": VERSION,
                "model": self.model,
                "tensors": file_hash(sibling / "plan.safetensors"),
                "steps": [step_as_json(s.module, s.side, s.columns, s.operation, s.positions) for s in self.steps],
            }
            (sibling / "plan.json").write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")
            sibling.chmod(0o755)
            os.rename(sibling, folder)
        except BaseException:
            shutil.rmtree(sibling, ignore_errors=True)
            raise


def compile_plan(model: nn.Module, edits: Mapping[Site, Any]) -> Plan:
    """Edits as ``probe.hooks.edited`` takes them, written down as a plan.

    Tensors are copied; gradients do not flow back into the edits. Edits at one site keep their order.

    Args:
        model: the model that they are meant for; on the meta device the plan holds no checksum of its weights.
        edits: one intervention or a sequence of them by site, each perhaps within ``At``.

    Raises:
        ValueError: an intervention without ``operation()`` (a function, say), a site outside the model, or a tensor
            of another width than the hidden states at its site.

    >>> plan = probe.compile_plan(s.original, {probe.Site(4): probe.Scale(0.5)})
    >>> plan.save("plan")
    >>> len(probe.load_plan("plan", s.original).steps)
    1
    """
    listed = []
    for site, given in edits.items():
        place = place_of(model, site)
        for one in given if isinstance(given, Sequence) else (given,):
            step = _step(site, place, one)
            check_tensors(step.operation, step.where, width_at(model, place))
            listed.append((_moment(site), step))
    listed.sort(key=lambda pair: pair[0])
    return Plan(tuple(step for _, step in listed), fingerprint(model))


def load_plan(folder: str | Path, model: nn.Module | None = None, *, allow_other_model: bool = False) -> Plan:
    """Read a plan and refuse whatever is not exactly one.

    Args:
        folder: written by ``Plan.save``.
        model: the model that it will be used with; None compares nothing with a model.
        allow_other_model: accept a model with other weights (an unlearned twin, say). Its modules and widths must
            fit all the same.

    Raises:
        ValueError: a file is missing or damaged, an unknown format version, key or operation, a missing or extra
            tensor, NaN or infinity, or a plan made for another model.

    >>> probe.compile_plan(s.original, {probe.Site(4): probe.Scale(0.5)}).save("plan")
    >>> len(probe.load_plan("plan", s.original).steps)
    1
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    json_path, tensor_path = folder / "plan.json", folder / "plan.safetensors"
    for path in (json_path, tensor_path):
        if not path.is_file():
            raise ValueError(f"no file {path}; pass a folder written by Plan.save")
    found = read_json(json_path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{json_path} is not a plan (its format is not {FORMAT!r})")
    if found.get("version") != VERSION:
        raise ValueError(f"{json_path} has format version {found.get('version')!r}; this release reads {VERSION}")
    check_keys(found, ("format", "version", "model", "tensors", "steps"), "plan.json")
    check_safetensors(tensor_path)
    if file_hash(tensor_path) != found["tensors"]:
        raise ValueError(f"{tensor_path} is not the file that {json_path.name} was written with; copy both again")
    check_keys(found["model"], MODEL_KEYS, "model")
    if not isinstance(found["steps"], list):
        raise ValueError(f"steps must be a list, got {type(found['steps']).__name__}")
    tensors = load_file(tensor_path)
    steps = tuple(PlanStep(**read_step(i, entry, tensors)) for i, entry in enumerate(found["steps"]))
    if tensors:
        raise ValueError(f"{tensor_path.name} holds tensors that no step uses: {', '.join(sorted(tensors)[:4])}")
    plan = Plan(steps, found["model"])
    if model is not None:
        if not allow_other_model:
            check_same(plan.model, fingerprint(model))
        plan.edits(model)
    return plan


def _step(site: Site, place: Place, given: Any) -> PlanStep:
    inner, positions = (given.intervention, given.positions) if isinstance(given, At) else (given, None)
    if not isinstance(inner, Operation | Compilable):
        raise ValueError(
            f"{_called(inner)} at {site} has no operation(), so it cannot be written down as a plan; use the edits in "
            "probe.interventions, or use it without a plan"
        )
    operation = inner if isinstance(inner, Operation) else inner.operation()
    if operation.reads_input and (site.part != "block" or site.side == "in"):
        raise ValueError(f"{_called(inner)} needs what enters a block; {site} is not a block output")
    kept = {name: _own(tensor) for name, tensor in operation.tensors.items()}
    if isinstance(positions, Mask):
        positions = Mask(_own(positions.mask_BT))
    columns = None if place.width is None else (place.width.start, place.width.stop)
    return PlanStep(
        place.name, place.side, Operation(operation.name, kept, dict(operation.numbers)), columns, positions
    )


def _moment(site: Site) -> tuple[int, int, int]:
    """When a forward pass gets there."""
    if site.part in ("embedding", "norm"):
        return (0 if site.part == "embedding" else 2, 0, int(site.side == "out"))
    return (1, site.layer, _ORDER.index((site.part, site.side)))


def _site_of(model: nn.Module, step: PlanStep) -> Site:
    """The site at which a step's module, side and columns lie in this model."""
    layer = layer_of(model, f"{step.module}.")
    parts: tuple[Part, ...] = ("embedding", "norm") if layer is None else ("block", "attention", "mlp")
    sites = [Site(layer or 0, part, side) for part in parts for side in _SIDES if (part, side) != ("embedding", "in")]
    if layer is not None:
        first, end = step.columns or (0, 0)
        sites.append(Site(layer, "heads", head=first // (end - first) if step.columns else None))
    asked = (step.module, step.side, None if step.columns is None else slice(*step.columns))
    for site in sites:
        try:
            place = place_of(model, site)
        except ValueError:
            continue  # the family has no such part, or the model no such layer
        if (place.name, place.side, place.width) == asked:
            return site
    raise ValueError(
        f"{type(unwrapped(model)).__name__} has no site at {step.where}; the plan was made for another model"
    )


def _tensors(step: PlanStep) -> dict[str, Tensor]:
    mask = {"mask": step.positions.mask_BT} if isinstance(step.positions, Mask) else {}
    # safetensors refuses tensors that share memory.
    return {name: _own(tensor) for name, tensor in {**step.operation.tensors, **mask}.items()}


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _called(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", type(thing).__name__))
