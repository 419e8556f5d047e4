"""A folder of results appears complete or not at all."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.commands.data import Data
from probe.commands.manifest import whole_folder


@dataclass(frozen=True)
class _Asked:
    job: Any
    data: Any


def appearing(job: Any, data: Data) -> AbstractContextManager[tuple[Path, dict[str, Any]]]:
    """A folder to write to and the manifest to fill, at ``data.out`` when the block ends (``whole_folder``).

    Args:
        job: what is asked, a dataclass; written into the manifest.
        data: of whom; its ``out`` does not exist, or is empty.
    """
    return whole_folder(data.out, _Asked(job, data))
