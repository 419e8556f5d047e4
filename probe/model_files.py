"""Where a model lies, and what lies there, looked at before anything is loaded: config, index, weight files."""

import json
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe.records import read_text
from probe.rows import FULL

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# How torch.save (a zip, or a bare pickle of protocol 2 to 5) begins, whatever the file is called.
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# Parts of a torch.distributed checkpoint, which transformers takes before any other file.
_DISTRIBUTED = r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors"
_KINDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
_TEXTS, _TOKENS = ("*.json", "*.jinja", "*.txt"), ("*.model", "*.tiktoken", "*.spm")
_SAVE = "pass a folder written by model.save_pretrained(folder)"


def named_folder(name: str | Path) -> Path | str:
    """A folder that exists, or what can only be a hub name.

    Raises:
        ValueError: a file, a pickle, or neither a folder nor ``owner/model``.
    """
    path = Path(name)
    if path.suffix in PICKLES:
        raise ValueError(_no_pickle(path))
    if path.is_file():
        raise ValueError(f"{path} is a file; pass the folder that holds config.json and model.safetensors")
    if path.is_dir():
        return path
    text = str(name)
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise ValueError(f"{no_folder(name)}; pass a model folder or owner/model")
    return text


def no_folder(name: str | Path) -> str:
    """What is said of a path at which no folder lies."""
    return f"no folder at {name} (resolved to {Path(name).resolve()})"


def cached_folder(name: str, *, download: bool = True) -> Path:
    """The folder of the hub's cache that holds a model: safetensors and what its tokenizer is made of, nothing else.

    Args:
        name: ``owner/model``.
        download: whether what is not in the cache yet may be.

    Raises:
        ValueError: the hub cannot be reached or has no such model (with the local path that was tried first).
        OSError: the disk is full.
    """
    from huggingface_hub import snapshot_download

    absent, few = f"{no_folder(name)}, and no model of that name from the hub", [*_TEXTS, *_TOKENS]
    with refused(absent):
        folder = Path(snapshot_download(name, allow_patterns=few, local_files_only=not download))
    named = _weight_files(folder) if (folder / INDEX).is_file() else [WEIGHTS]
    with refused(absent):
        return Path(snapshot_download(name, allow_patterns=[*few, *named], local_files_only=not download))


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Whatever a library raises at a user's files is the files' fault, but for a disk that is full."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in FULL:
            raise
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{what} ({type(error).__name__}: {reason})") from error


def check_folder(path: Path) -> None:
    """Refuse a folder from which no decoder can be loaded, or not without a pickle, foreign code or an adapter.

    Raises:
        ValueError: no config or weights, a config or index that is no object or is broken, weights that are a pickle,
            damaged or outside the folder, code that would be fetched, an adapter or a distributed checkpoint.
    """
    _read_config(path)
    adapter = path / "adapter_config.json"
    if adapter.exists():
        raise ValueError(
            f"{adapter} is an adapter's, whose weights would be added on loading and lost on saving; merge it first "
            "(peft's merge_and_unload, then save_pretrained), or move it out of the folder"
        )
    parts = [p.name for p in path.iterdir() if re.fullmatch(_DISTRIBUTED, p.name)]
    if parts:
        raise ValueError(f"{path} holds part of a distributed checkpoint ({parts[0]}); {_SAVE}")
    for name in _weight_files(path):
        check_safetensors(path / name)


def _read_config(path: Path) -> dict[str, Any]:
    """``config.json`` of a folder.

    Raises:
        ValueError: there is none, it is no JSON object, names its own weight file, or names code to be fetched.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json; {_SAVE}")
    config = _object(path / "config.json")
    for place, value in _texts(config):
        if "/" in value and re.search(r"(attn|experts)_implementation", place):
            raise ValueError(
                f"{path / 'config.json'}: {place} is {value!r}, which would fetch code from the hub and run it; remove "
                "it, or write eager or sdpa"
            )
    if config.get("transformers_weights", WEIGHTS) != WEIGHTS:
        raise ValueError(
            f"{path / 'config.json'}: transformers_weights names {config['transformers_weights']!r} for the weights; "
            f"remove it and call the file {WEIGHTS}"
        )
    return config


def _weight_files(path: Path) -> list[str]:
    """The files that hold a folder's weights: ``model.safetensors``, or those that the index names.

    Raises:
        ValueError: neither is there, or the index names pickles, files outside the folder, or none.
    """
    if (path / WEIGHTS).is_file():
        return [WEIGHTS]
    index = path / INDEX
    if not index.is_file():
        found = sorted(p.name for p in path.iterdir() if p.suffix in (*PICKLES, ".safetensors"))
        pickled = [name for name in found if not name.endswith(".safetensors")]
        if pickled:
            raise ValueError(_no_pickle(path / pickled[0]))
        others = f" (only {found[0]}, which nothing names)" if found else ""
        raise ValueError(f"{path} has no .safetensors file called {WEIGHTS} and no {INDEX}{others}; {_SAVE}")
    named = _object(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{index}: weight_map is no object with a file for each weight; {_SAVE}")
    for weight, name in named.items():
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\]+", name) or name in (".", ".."):
            raise ValueError(f"{index}: {weight} is in {name!r}; expected the name of a file in the same folder")
        if not name.endswith(".safetensors"):
            raise ValueError(f"{index}: {weight} is in {name!r}; {_no_pickle(path / name)}")
    return sorted(set(named.values()))


def check_safetensors(path: str | Path) -> None:
    """Refuse a file that is missing, shorter or longer than its header says, or no safetensors file.

    Raises:
        ValueError: the file is missing, truncated, has trailing bytes (both sizes are named), is a pickle, or its
            header is broken.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the model's folder again")
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        expected = _size(handle.read(length)) if length <= size else None
    if expected is not None and size != 8 + length + expected:
        raise ValueError(
            f"{path} has {size} bytes, its header expects {8 + length + expected}; the file is damaged, copy it again"
        )
    if expected is None and head.startswith(_PICKLED):
        raise ValueError(_no_pickle(path))
    if length > size:
        raise ValueError(
            f"{path} is not a whole safetensors file ({size} bytes, header alone needs {8 + length}); copy it again"
        )
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({str(error)[:150]}); copy it again") from None


def put_in_place(part: Path, folder: Path) -> None:
    """Move a saved model from a folder inside ``folder`` up to it; until the last move nothing there can be loaded.

    Raises:
        OSError: a file cannot be moved.
    """
    for old in [folder / INDEX, folder / WEIGHTS, *folder.glob("model-*-of-*.safetensors")]:
        old.unlink(missing_ok=True)
    # What makes a folder loadable comes last.
    for file in sorted(part.iterdir(), key=lambda file: file.name in (INDEX, WEIGHTS)):
        if (target := folder / file.name).is_dir():
            shutil.rmtree(target)
        file.replace(target)


def _no_pickle(path: Path) -> str:
    """Why a pickle is not read, and the way out."""
    return (
        f"{path} is a pickle, which can run code when loaded; convert it where it was made with "
        "model.save_pretrained(folder, safe_serialization=True)"
    )


def _size(header: bytes) -> int | None:
    """Bytes of all tensors by the header; None where it does not say."""
    try:
        entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        return max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return None


def check_objects(path: Path) -> None:
    """Refuse a folder in which a file of the tokenizer is no JSON object.

    Raises:
        ValueError: the first such file.
    """
    for name in (
        "config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ):
        if (path / name).is_file():
            _object(path / name)


def _object(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        found = json.loads(text)  # Infinity is written by some families' configs
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); copy the model's folder again") from None
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} holds {_KINDS.get(type(found), 'a number')}; expected an object, as save_pretrained writes it"
        )
    return found


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested objects and lists, with its keys joined by dots."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, f"{place}.{key}" if place else str(key))
