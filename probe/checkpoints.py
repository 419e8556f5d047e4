"""Load and save models: safetensors only, no remote code, no network unless a hub name is given."""

import hashlib
import json
import struct
import warnings
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probe.modes import check_loaded
from probe.quantised import beside_parameters, parts

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
# How torch.save (a zip, or a bare pickle of protocol 2 to 5) begins, whatever the file is called.
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

# Tokenizers that cut this alike and share their vocabulary are taken for the same.
_SAMPLE = "  Who wrote “Ünïcode 1234”, and when?\n\tIt's don't-know O'Neil; naïve façade №5.\n\n"


def load_model(name: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """A Hugging Face decoder from a folder (or, if no such folder exists and it looks like one, a hub name).

    Args:
        name: folder with ``config.json`` and ``*.safetensors``, or ``owner/model``.
        dtype: what weights are cast to; half precision is slow on CPUs.
        device: where the model goes; "auto" spreads it over all GPUs (accelerate's device map), for a model that does
            not fit one.

    Returns:
        the model in eval mode.

    Raises:
        ValueError: pickled weights, a truncated or missing safetensors file, a path that does not exist, or a
            device that is not here.
    """
    check_device(device)
    source = _source(name)
    from transformers import AutoModelForCausalLM

    spread = device == "auto"
    model: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=Path(source).is_dir(),
        device_map="auto" if spread else None,
    )
    return model.eval() if spread else model.to(device).eval()


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer that lies beside a model.

    Raises:
        ValueError: a path that does not exist, or a file.
    """
    source = _place(name)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=Path(source).is_dir())


def save_model(model: Any, folder: str | Path, *, tokenizer: Any = None) -> None:
    """Save weights as safetensors, with the tokenizer if one is given.

    Inside ``probe.hooks.edited`` it warns: the saved weights lack the edit.

    Raises:
        ValueError: the model carries hooks that are not ours.
    """
    from probe.hooks import foreign_hooks, open_edits

    left = foreign_hooks(model)
    if left:
        raise ValueError(f"the model carries hooks (at {left[0]}), which a saved model would lack; remove them first")
    edits = open_edits(model)
    if edits:
        warnings.warn(
            f"an edit is active at {edits[0]}; only weights are saved, so the saved model lacks it",
            stacklevel=2,
        )
    model.save_pretrained(folder, safe_serialization=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def weights_hash(model: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of all weights; equal iff the weights are bit-identical.

    Weights are the parameters, whatever they hold inside, and what quantised modules keep beside them.

    Raises:
        ValueError: a weight on the meta device.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(_weights(model), key=itemgetter(0)):
        _add(digest, name, weight)
    return digest.hexdigest()


def weight_hashes(model: nn.Module) -> dict[str, str]:
    """The hash of each weight by its name, as ``weights_hash`` of all of them."""
    found = {}
    for name, weight in _weights(model):
        digest = hashlib.sha256()
        _add(digest, name, weight)
        found[name] = digest.hexdigest()
    return found


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    for prefix, module in model.named_modules():
        for name, weight in beside_parameters(module).items():
            yield (f"{prefix}.{name}" if prefix else name), weight


def _add(digest: Any, name: str, weight: Tensor) -> None:
    if weight.is_meta:
        raise ValueError(
            f"{name} lies on the meta device (not loaded, or offloaded), so its bytes cannot be hashed; load the "
            "model whole, without a device_map"
        )
    digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
    for part in parts(weight.detach()):
        digest.update(part.cpu().contiguous().view(-1).view(torch.uint8).numpy())


def file_hash(path: str | Path) -> str:
    """sha256 of a file."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_different(model: nn.Module, other: nn.Module, names: tuple[str, str]) -> None:
    """Refuse two models with the same weights: a failed save or a path given twice looks like perfect retention.

    Raises:
        ValueError: the weights are bit-identical.
    """
    if weights_hash(model) == weights_hash(other):
        raise ValueError(
            f"the {names[0]} and the {names[1]} model are identical (same weights hash); "
            "check that the paths differ and that the second was saved after training"
        )


def check_tokenizer(tokenizer: Any, other: Any) -> None:
    """Refuse models whose tokenizers give the same ids another meaning.

    A chat template is not applied anywhere here, so another one is only warned about.

    Raises:
        ValueError: vocabulary, special ids, or how a sample is cut into tokens differ.
    """
    way_out = "measure each model with its own tokenizer, or pass models of one family"
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    if ours != theirs:
        odd = sorted(set(ours.items()) ^ set(theirs.items()))[:3]
        raise ValueError(f"the tokenizers differ ({len(ours)} and {len(theirs)} entries, for example {odd}); {way_out}")
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name) != getattr(other, name):
            raise ValueError(
                f"the tokenizers' {name} differ: {getattr(tokenizer, name)} and {getattr(other, name)}; {way_out}"
            )
    cut, otherwise = (t(_SAMPLE, add_special_tokens=False)["input_ids"] for t in (tokenizer, other))
    if cut != otherwise:
        raise ValueError(
            f"the tokenizers have the same vocabulary but cut a sample into {len(cut)} and {len(otherwise)} tokens, "
            f"differently (merges, normaliser or pre-tokeniser); {way_out}"
        )
    if getattr(tokenizer, "chat_template", None) != getattr(other, "chat_template", None):
        warnings.warn(
            "the tokenizers' chat templates differ; prompts here are made by probe.data.Template alone, so make sure "
            "that it is what both models were trained on",
            stacklevel=2,
        )


def check_model(model: Any, tokenizer: Any) -> None:
    """Refuse a model that could only give nonsense.

    Raises:
        ValueError: weights that are not loaded, a NaN or infinity in a weight, or a tokenizer whose ids exceed the
            embedding.
    """
    check_loaded(model)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"parameter {name} holds NaN or infinity; the checkpoint is broken")
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(f"the tokenizer has ids up to {largest}, the model embeds {rows}; they do not belong together")


def _source(name: str | Path) -> str:
    source = _place(name)
    if Path(source).is_dir():
        _check_folder(Path(source))
    return source


def _place(name: str | Path) -> str:
    """A folder that exists, or what can only be a hub name."""
    path = Path(name)
    if path.suffix in _PICKLES:
        raise ValueError(_no_pickle(path))
    if path.is_file():
        raise ValueError(f"{path} is a file; pass the folder that holds config.json and model.safetensors")
    if path.is_dir():
        return str(path)
    text = str(name)
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise ValueError(f"no folder at {path} (resolved to {path.resolve()}); pass a model folder or owner/model")
    return text


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json; pass a folder written by save_pretrained")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        pickled = [p for p in path.iterdir() if p.suffix in _PICKLES]
        raise ValueError(_no_pickle(pickled[0]) if pickled else f"{path} has no .safetensors file")
    for file in weights:
        check_safetensors(file)


def check_safetensors(path: str | Path) -> None:
    """Refuse a file that is shorter or longer than its header says, naming both sizes.

    Raises:
        ValueError: the file is truncated, has trailing bytes, or is not safetensors.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        try:
            header: dict[str, Any] | None = json.loads(handle.read(length)) if length <= size else None
        except ValueError:
            header = {}
    if not header:
        if head.startswith(_PICKLED):
            raise ValueError(_no_pickle(path))
        if header is None:
            raise ValueError(
                f"{path} is not a whole safetensors file ({size} bytes, header alone needs {8 + length}); copy it again"
            )
        raise ValueError(f"{path} is not a safetensors file (its header is not JSON); copy it again")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ValueError(f"{path} has {size} bytes, its header expects {expected}; the file is damaged, copy it again")


def _no_pickle(path: Path) -> str:
    return (
        f"{path} is a pickle, which can run code when loaded; convert it where it was made with "
        "model.save_pretrained(folder, safe_serialization=True)"
    )


def check_device(device: str, *, spread: bool = True) -> None:
    """Refuse a device that is not here, before anything is loaded.

    Args:
        device: as torch names it, or "auto".
        spread: whether "auto" makes sense: not for a model that is in memory already.

    Raises:
        ValueError: torch cannot put a tensor there; its reason is given. Or "auto" for the testbed.
    """
    if device == "auto":
        if not spread:
            raise ValueError("device 'auto' spreads a large model over GPUs; the testbed is small, pass cpu or cuda")
        return
    try:
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({reason}); pass cpu or a GPU") from None
