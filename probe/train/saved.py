"""Checkpoints of a run: written whole or not at all, read back only into the run they belong to."""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from probe.checkpoints import file_hash
from probe.train.configuration import configuration_hash, differences
from probe.train.sharding import like, whole
from probe.weights import swapped

_PARTIAL = ".partial"
_VERSIONS = {"torch": torch.__version__, "transformers": version("transformers")}


@dataclass(frozen=True)
class Checkpointing:
    """Where a run leaves itself, and how often. A run that finds its own checkpoints there goes on from the last.

    Args:
        folder: made if needed; one run a folder.
        every: steps between checkpoints.
        keep: how many of the latest are kept.

    Raises:
        ValueError: a number below 1.

    >>> term = probe.Term(1.0, probe.ga, s.split.forget, "forget")
    >>> every = probe.Checkpointing("run", every=1, keep=2)
    >>> model, run = copy.deepcopy(s.original), dict(steps=2, lr=3e-4, batch_size=4, seed=0)
    >>> _ = probe.minimise(model, [term], checkpoint=every, **run)
    >>> from probe.train import checkpoints
    >>> [path.name for path in checkpoints("run")]
    ['step-00000001', 'step-00000002']
    """

    folder: str | Path
    every: int
    keep: int = 1

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ValueError(f"every and keep must be at least 1, got {self.every} and {self.keep}")


@dataclass(frozen=True, eq=False)
class Saved:
    """A run after ``step`` steps: its losses so far, and how many rows each term has drawn."""

    step: int
    losses: tuple[tuple[float, ...], ...]
    drawn: tuple[int, ...]
    average: dict[str, Tensor]


def tensors_of(
    saved: Saved, trained: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """What goes into a checkpoint's files, whole; where weights are split, every process has to ask for it."""
    states = {f"{n}/{key}": v for n, p in trained.items() for key, v in optimiser.state.get(p, {}).items()}
    return {
        "weights": {name: whole(p.detach()) for name, p in trained.items()},
        "optimiser": {name: whole(value) for name, value in states.items()},
        "average": saved.average,
    }


def save_checkpoint(
    checkpointing: Checkpointing,
    saved: Saved,
    tensors: Mapping[str, Mapping[str, Tensor]],
    configuration: Mapping[str, Any],
) -> None:
    """Write one checkpoint under another name, have the disk take it, and rename it; then drop the oldest.

    Args:
        checkpointing: where to.
        saved: how far the run is.
        tensors: what ``tensors_of`` gave.
        configuration: of the run.

    Raises:
        OSError: it could not be written (a full disk, say). The checkpoints before it are as they were.
    """
    folder = Path(checkpointing.folder)
    final = folder / f"step-{saved.step:08d}"
    partial = final.with_suffix(_PARTIAL)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        hashes = {name: _write(partial / f"{name}.safetensors", held) for name, held in tensors.items() if held}
        state = {
            "step": saved.step,
            "losses": saved.losses,
            "drawn": saved.drawn,
            "files": hashes,
            "hash": configuration_hash(configuration),
            "configuration": configuration,
            "versions": _VERSIONS,
        }
        (partial / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False))
        _to_disk(partial / "state.json", partial)
        if final.exists():  # left by a run that was started over
            shutil.rmtree(final)
        partial.rename(final)
        _to_disk(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        left = checkpoints(folder)
        safe = f"the last good one is {left[-1]}" if left else "there is none before it"
        number = error.errno if isinstance(error, OSError) else None
        raise OSError(number, f"the checkpoint of step {saved.step} was not written ({error}); {safe}") from error
    for old in checkpoints(folder)[: -checkpointing.keep]:
        shutil.rmtree(old)


def resume(
    checkpointing: Checkpointing,
    trained: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    configuration: Mapping[str, Any],
) -> Saved | None:
    """Put the last checkpoint's weights and optimiser state in place; None if the folder holds none.

    Raises:
        ValueError: the folder belongs to another configuration (the differences are listed), or a file is damaged.
    """
    folder = Path(checkpointing.folder)
    found = checkpoints(folder)
    if not found:
        return None
    last = found[-1]
    state = json.loads((last / "state.json").read_text())
    now = json.loads(json.dumps(configuration))
    if state["hash"] != configuration_hash(now):
        listed = "; ".join(differences(state["configuration"], now)[:8])
        raise ValueError(
            f"{last} was made by a run of another configuration ({listed}); give it again as it was, with the model "
            "it began from, or take another folder"
        )
    if state["versions"] != _VERSIONS:
        warnings.warn(
            f"{last} was written with {state['versions']}, this is {_VERSIONS}; the rest of the run may differ in its "
            "last bits",
            stacklevel=4,
        )
    held = {name: _read(last / f"{name}.safetensors", digest) for name, digest in state["files"].items()}
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(like(held["weights"][name], p))
    for key, value in held.get("optimiser", {}).items():
        name, _, what = key.rpartition("/")
        # AdamW keeps its step count on the CPU.
        optimiser.state[trained[name]][what] = value if what == "step" else like(value, trained[name])
    average = {name: value.to(trained[name].device) for name, value in held.get("average", {}).items()}
    return Saved(state["step"], tuple(map(tuple, state["losses"])), tuple(state["drawn"]), average)


def checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints of a run, oldest first; half-written ones are left out."""
    folder = Path(folder)
    return sorted(path for path in folder.glob("step-*") if path.suffix != _PARTIAL and (path / "state.json").is_file())


@contextmanager
def at_checkpoint(model: nn.Module, checkpoint: str | Path) -> Iterator[int]:
    """Run ``model`` with the weights of one checkpoint, so that any diagnostic can be asked of a run after it.

    ``for path in checkpoints(folder): with at_checkpoint(model, path) as step: ...``; keep more than one checkpoint
    with ``Checkpointing(keep=...)``.

    Args:
        model: the one the run was made on, with weights that the run did not train as they were; restored on leaving.
        checkpoint: what ``checkpoints`` lists.

    Yields:
        how many steps the run had taken.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: a damaged file, or weights that this model does not have.

    >>> from probe.train import checkpoints
    >>> model, term = copy.deepcopy(s.original), probe.Term(1.0, probe.ga, s.split.forget, "forget")
    >>> every = probe.Checkpointing("run", every=1, keep=2)
    >>> _ = probe.minimise(model, [term], steps=2, lr=3e-4, batch_size=4, seed=0, checkpoint=every)
    >>> with probe.at_checkpoint(model, checkpoints("run")[0]) as step:
    ...     early = probe.nll(model, s.split.forget)
    """
    path = Path(checkpoint)
    if not (path / "state.json").is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; checkpoints() lists those of a run's folder")
    state = json.loads((path / "state.json").read_text())
    held = _read(path / "weights.safetensors", state["files"]["weights"])
    own = dict(model.named_parameters())
    strange = [name for name, value in held.items() if name not in own or own[name].shape != value.shape]
    if strange:
        raise ValueError(
            f"{path} holds weights that this model does not have, {strange[0]} for one; load its own model"
        )
    with swapped(model, lambda name, value: held[name].to(value) if name in held else None):
        yield state["step"]


def _write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    _to_disk(path)
    return file_hash(path)


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    if not path.is_file() or file_hash(path) != digest:
        raise ValueError(f"{path} is missing or not what was written (its sha256 differs); delete {path.parent}")
    return load_file(path)


def _to_disk(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
