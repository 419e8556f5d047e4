"""Hashes of what a cell reads: files, folders, and models by their weights."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from probe.sweep.fields import OUT, Field

# What a model is made of; a manifest that lies beside it holds the time of its making.
_MODEL = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "*.model",
)


def hashes(known: Mapping[str, Field], values: Mapping[str, Any]) -> dict[str, str]:
    """sha256 by field of every file and model that is named.

    Args:
        known: fields of the function; those of type ``Path`` name files or folders, ``ModelName`` models.
        values: JSON values of fields.

    Raises:
        ValueError: nothing there, or a hub's model that has not been downloaded.
    """
    found: dict[str, str] = {}
    for name, value in values.items():
        if value is None or name == OUT:
            continue
        if known[name].is_model:
            models = value if isinstance(value, list) else [value]
            found |= {name if len(models) == 1 else f"{name} {i}": model_hash(str(one)) for i, one in enumerate(models)}
        elif known[name].is_path:
            path = Path(value)
            if not path.exists():
                raise ValueError(f"{name} = {value!r}: no such file (resolved to {path.resolve()})")
            found[name] = content_hash(path.resolve())
    return found


@cache
def content_hash(path: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """sha256 of a file, or over names and contents of the files of a folder.

    Args:
        path: the file or folder.
        patterns: of the names that count in a folder.
    """
    if not path.is_dir():
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    digest = hashlib.sha256()
    for one in sorted({one for pattern in patterns for one in path.rglob(pattern) if one.is_file()}):
        digest.update(f"{one.relative_to(path).as_posix()} {content_hash(one)}\n".encode())
    return digest.hexdigest()


@cache
def model_hash(name: str) -> str:
    """sha256 over weights, configuration and tokenizer of a model.

    Args:
        name: its folder, or its name on the hub, if it has been downloaded.

    Raises:
        ValueError: no such folder, and no such model on this machine.
    """
    path = Path(name)
    if path.is_file():
        return content_hash(path.resolve())
    if not path.is_dir():
        path = _downloaded(name)
    return content_hash(path.resolve(), _MODEL)


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise ValueError(
            f"no model at {name} (resolved to {Path(name).resolve()}) nor in the hub's cache on this machine; the "
            "weights are part of what a cell is, so download it first"
        ) from None
