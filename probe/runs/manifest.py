"""What made a run: versions, seeds, threads, hashes of data and weights, the command line."""

import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from probe.rows import read_manifest

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


def new_manifest(settings: Any) -> dict[str, Any]:
    """What is known before anything is loaded.

    Args:
        settings: a dataclass: all that was asked for.
    """
    return {
        "status": "unfinished",
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


def is_report(folder: Path) -> bool:
    """Whether a folder is one that `probe report` wrote, so that it has a page; no other command has conditions."""
    if not (folder / "manifest.json").is_file():
        return False
    return "conditions" in read_manifest(folder)


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
