"""Activations of corpora larger than memory, on disk: one ``.npy`` file a site, and a card that says what they are."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probe.axes import HiddenND
from probe.checkpoints import weights_hash
from probe.data import Batch
from probe.harvest import narrowed, visit
from probe.hooks import foreign_hooks, open_edits
from probe.positions import Positions, everywhere
from probe.sites import Site, unwrapped

_CARD = "harvest.json"
# numpy has no bfloat16; its bits are stored as uint16, and the card says what they are.
_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float64: np.dtype("<f8"),
    torch.float32: np.dtype("<f4"),
    torch.float16: np.dtype("<f2"),
    torch.bfloat16: np.dtype("<u2"),
}


def harvest_to_files(
    model: nn.Module,
    batches: Iterable[Batch],
    sites: Sequence[Site],
    folder: str | Path,
    *,
    dtype: torch.dtype,
    positions: Positions = everywhere,
    note: str = "",
    progress: bool = False,
) -> dict[Site, HiddenND]:
    """Hidden states of a corpus larger than memory: one ``.npy`` file a site and a card that says what they are.

    All is written to a folder beside the one asked for and renamed when it is complete, so ``folder`` either holds
    a whole harvest or does not exist.

    Args:
        model: any Hugging Face decoder.
        batches: the corpus, which may be a generator.
        sites: where to read.
        folder: where the files go; must not exist yet.
        dtype: what is stored, float64, float32, float16 or bfloat16 (as its bits in uint16).
        positions: which tokens.
        note: put on the card, which names the modules under open edits but not what the edits do.
        progress: show a bar.

    Returns:
        the files, mapped into memory: site -> (token, width).

    Raises:
        ValueError: ``folder`` exists, another dtype, no token is chosen, NaN or infinity, or states beyond the dtype.
        OSError: the disk is full, say; nothing is left behind.

    >>> _ = probe.harvest_to_files(s.original, [s.split.forget], [probe.Site(4)], "states", dtype=torch.float16)
    >>> probe.mapped("states")[probe.Site(4)].shape[1]
    128
    """
    if dtype not in _NUMPY:
        raise ValueError(f"{dtype} cannot be stored; choose float64, float32, float16 or bfloat16")
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; name a new folder, harvests are not overwritten")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        rows, width = _write(model, batches, sites, partial, dtype, positions, progress)
        card = {
            "architecture": type(unwrapped(model)).__name__,
            "weights_sha256": weights_hash(unwrapped(model)),
            "positions": getattr(positions, "__qualname__", repr(positions)),
            "rows": rows,
            "dtype": str(dtype).removeprefix("torch."),
            "edited_at": open_edits(model),
            "foreign_hooks_at": foreign_hooks(model),
            "note": note,
            "sites": [{**asdict(site), "file": _file(site), "width": width[site]} for site in width],
        }
        with _writing(folder), (partial / _CARD).open("x") as handle:
            handle.write(json.dumps(card, indent=1) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return mapped(folder)


def mapped(folder: str | Path) -> dict[Site, HiddenND]:
    """The activations in a folder that ``harvest_to_files`` wrote, read from disk as they are touched.

    Writing to the tensors changes memory only, never the files.

    Raises:
        ValueError: no harvest, or files that are not what the card says.

    >>> _ = probe.harvest_to_files(s.original, [s.split.forget], [probe.Site(4)], "states", dtype=torch.float16)
    >>> probe.mapped("states")[probe.Site(4)].shape[1]
    128
    """
    folder = Path(folder)
    if not (folder / _CARD).is_file():
        raise ValueError(f"{folder.resolve()} holds no {_CARD}; give a folder that harvest_to_files wrote")
    card = json.loads((folder / _CARD).read_text())
    dtype = getattr(torch, card["dtype"])
    found = {}
    for entry in card["sites"]:
        site = Site(entry["layer"], entry["part"], entry["side"], entry["head"])
        array: Any = np.load(folder / entry["file"], mmap_mode="c", allow_pickle=False)
        expected = (card["rows"], entry["width"])
        if array.shape != expected or array.dtype != _NUMPY[dtype]:
            raise ValueError(
                f"{folder / entry['file']} holds {array.shape} {array.dtype}, its card says {expected} {_NUMPY[dtype]}"
            )
        found[site] = torch.from_numpy(array).view(dtype)
    return found


def _write(
    model: nn.Module,
    batches: Iterable[Batch],
    sites: Sequence[Site],
    folder: Path,
    dtype: torch.dtype,
    positions: Positions,
    progress: bool,
) -> tuple[int, dict[Site, int]]:
    """Append each site's states to its file; how many rows there are, and how wide each site is."""
    rows, width = 0, {}

    with ExitStack() as stack:
        handle = {
            site: stack.enter_context((folder / _file(site)).open("xb", buffering=0)) for site in dict.fromkeys(sites)
        }

        def take(batch: Batch, states: dict[Site, Tensor]) -> None:
            nonlocal rows
            for site, file in handle.items():
                kept_ND = narrowed(states[site], dtype, site).contiguous().cpu()
                with _writing(folder):
                    if site not in width:
                        width[site] = kept_ND.shape[1]
                        _header(file, dtype, 0, width[site])
                    _append(file, kept_ND)
            rows += len(states[sites[0]])

        visit(model, batches, sites, take, positions=positions, progress=progress)
        if rows == 0:
            raise ValueError("no token is chosen; check the batches and the positions")
        for site, file in handle.items():
            with _writing(folder):
                file.seek(0)
                # numpy leaves room in a header for the number of rows to grow.
                _header(file, dtype, rows, width[site])
                os.fsync(file.fileno())
    return rows, width


def _header(file: FileIO, dtype: torch.dtype, rows: int, width: int) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(_NUMPY[dtype]), "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, described)


def _append(file: FileIO, kept_ND: HiddenND) -> None:
    left = kept_ND.reshape(-1).view(torch.uint8).numpy().data
    while left:
        # A disk that is nearly full takes a part without an error; only the next write fails.
        left = left[file.write(left) :]


def _file(site: Site) -> str:
    head = "" if site.head is None else f".head_{site.head}"
    return f"layer_{site.layer:03d}.{site.part}.{site.side}{head}.npy"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write activations to {folder.parent} ({error.strerror}); nothing is left behind"
        ) from error
