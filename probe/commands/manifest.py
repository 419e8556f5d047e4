"""What made a run: versions, seeds, threads, hashes of data and weights, the command line."""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from probe.rows import FULL

_PACKAGES = (
    "torch",
    "transformers",
    "sae-lens",
    "nnsight",
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "safetensors",
    "rouge-score",
)


def open_run(folder: Path, settings: Any) -> dict[str, Any]:
    """Create the run folder and write a first manifest, before any model is loaded.

    Raises:
        ValueError: the folder cannot be written.
        OSError: the disk is full.
    """
    manifest = {
        "status": "running",
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in _PACKAGES},
        "probe": version("unlearn-probe"),
        "threads": None,
        "settings": asdict(settings),
        "data": {},
        "weights": {},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder, manifest)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another --out") from None
    return manifest


@contextmanager
def whole_folder(out: Path, settings: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder to write to and a manifest to fill: both are at ``out`` when the block ends, or nothing is.

    Args:
        out: must not exist, or be empty.
        settings: a dataclass, written into the manifest.

    Yields:
        the folder meanwhile, and the manifest.

    Raises:
        ValueError: the folder cannot be written.
        OSError: the disk is full.
    """
    import torch

    part = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        manifest = open_run(part, settings)
        started = time.monotonic()
        yield part, manifest
        seconds = round(time.monotonic() - started, 1)
        manifest |= {"status": "complete", "threads": torch.get_num_threads(), "seconds": seconds}
        write_manifest(part, manifest)
        if out.exists():
            out.rmdir()
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_report(folder: Path) -> bool:
    """Whether a folder is one that `probe report` wrote, so that it has a page; other commands ask other settings."""
    path = folder / "manifest.json"
    if not path.is_file():
        return False
    settings = json.loads(path.read_text(encoding="utf-8")).get("settings", {})
    return {"training", "editing", "measuring"} <= set(settings)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest in one step.

    Raises:
        OSError: the disk is full, say; an earlier manifest is kept.
    """
    temporary = folder / "manifest.json.tmp"
    try:
        temporary.write_text(json.dumps(manifest, indent=1, default=str, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, folder / "manifest.json")
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
