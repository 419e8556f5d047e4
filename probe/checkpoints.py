"""Load and save models: safetensors only, no remote code, no network unless a hub name is given."""

import errno
import hashlib
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from probe.model_files import cached_folder, check_folder, check_objects, named_folder, no_folder, put_in_place, refused
from probe.modes import check_loaded
from probe.quantised import beside_parameters, parts

# Tokenizers that cut this alike and share their vocabulary are taken for the same.
_SAMPLE = "  Who wrote “Ünïcode 1234”, and when?\n\tIt's don't-know O'Neil; naïve façade №5.\n\n"


def load_model(name: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """A Hugging Face decoder from a folder (or, if no such folder exists and it looks like one, a hub name).

    Every weight of the model comes from the files, and every weight in the files goes into the model; what the family
    itself declares tied or to be ignored is left aside.

    Args:
        name: folder with ``config.json`` and ``*.safetensors``, or ``owner/model``.
        dtype: what weights are cast to; half precision is slow on CPUs.
        device: where the model goes; "auto" spreads one that does not fit a GPU over all (accelerate's device map).

    Returns:
        the model in eval mode.

    Raises:
        ValueError: a path that does not exist, what ``check_folder`` refuses, a config of which no model can be made,
            weights that are missing, unexpected or of another shape than the config says, a device that is not here.
        OSError: the disk is full.

    >>> probe.save_model(s.original, "my-model", tokenizer=s.tokenizer)
    >>> model = probe.load_model("my-model")
    >>> probe.weights_hash(model) == probe.weights_hash(s.original)
    True
    """
    check_device(device)
    source = named_folder(name)
    folder = source if isinstance(source, Path) else cached_folder(source)
    check_folder(folder)
    from transformers import AutoModelForCausalLM

    spread = device == "auto"
    model = load_whole(AutoModelForCausalLM, folder, dtype=dtype, device_map="auto" if spread else None)
    return model.eval() if spread else model.to(device).eval()


def load_whole(family: Any, folder: Path, **how: Any) -> Any:
    """A model of one of transformers' families, with all of its weights from a folder that ``check_folder`` let pass.

    Args:
        family: ``AutoModelForCausalLM``, say.
        folder: with config and weights.
        how: keyword arguments of its ``from_pretrained``.

    Raises:
        ValueError: a config of which no model can be made, or weights that are missing, unexpected or of another shape.
    """
    # Which weights are missing is told by the error, not by a table above it.
    with refused(f"{folder}: no model can be made of what lies there; save it anew with save_pretrained"), _no_report():
        model, info = family.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **how,
        )
    _check_names(folder, model, info)
    return model


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer that lies beside a model.

    Raises:
        ValueError: a path that does not exist, a file, or a tokenizer that cannot be read.

    >>> probe.save_model(s.original, "my-model", tokenizer=s.tokenizer)
    >>> len(probe.load_tokenizer("my-model")) == len(s.tokenizer)
    True
    """
    source = named_folder(name)
    from transformers import AutoTokenizer

    if not isinstance(source, Path):
        with refused(f"{no_folder(name)}, and no tokenizer of that name from the hub"):
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    check_objects(source)
    with refused(f"{source} has no tokenizer that can be read; copy it from the model it belongs to"):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)


def save_model(model: Any, folder: str | Path, *, tokenizer: Any = None) -> None:
    """Save weights as safetensors, with the tokenizer if one is given: all of it or nothing.

    A model that was there before is replaced. Whatever interrupts it, the folder holds no weights that can be loaded
    until all have been written. Inside ``probe.hooks.edited`` it warns: the saved weights lack the edit.

    Raises:
        ValueError: the model carries hooks that are not ours, or adapters.
        OSError: the disk is full.

    >>> probe.save_model(s.original, "saved", tokenizer=s.tokenizer)
    >>> probe.load_model("saved").config.num_hidden_layers
    8
    """
    from safetensors import SafetensorError

    from probe.hooks import foreign_hooks, open_edits

    left = foreign_hooks(model)
    if left:
        raise ValueError(f"the model carries hooks (at {left[0]}), which a saved model would lack; remove them first")
    adapted = next((name for name, m in model.named_modules() if "base_layer" in m._modules), None)
    if adapted is not None:
        raise ValueError(
            f"the model carries adapters (at {adapted}); call its merge_and_unload() and save what it returns"
        )
    edits = open_edits(model)
    if edits:
        warnings.warn(
            f"an edit is active at {edits[0]}; only weights are saved, so the saved model lacks it",
            stacklevel=2,
        )
    part = Path(folder) / f".{uuid4().hex}.part"
    try:
        part.mkdir(parents=True)
        model.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        put_in_place(part, Path(folder))
    except SafetensorError as error:
        # The writer reports a full disk in words only.
        if "os error 28" in str(error):
            raise OSError(errno.ENOSPC, f"no space left for the model in {folder}") from None
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def weights_hash(model: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of all weights; equal iff the weights are bit-identical.

    Weights are the parameters, whatever they hold inside, and what quantised modules keep beside them.

    Raises:
        ValueError: a weight on the meta device.

    >>> before = probe.weights_hash(s.original)
    >>> with probe.blended(s.original, s.retrained, probe.one_layer(3, 8)):
    ...     inside = probe.weights_hash(s.original)
    >>> inside == before, probe.weights_hash(s.original) == before
    (False, True)
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

    Texts are the same for all models, so another chat template is only warned about.

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
            "the tokenizers' chat templates differ, and all models are asked with one template; make sure that it is "
            "what they were trained on",
            stacklevel=2,
        )


def check_usable(model: Any, tokenizer: Any) -> None:
    """Refuse a model that could only give nonsense.

    Raises:
        ValueError: weights that are not loaded, a NaN or infinity in a weight, a tokenizer without an eos token, or one
            whose ids exceed the embedding.
    """
    check_loaded(model)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"parameter {name} holds NaN or infinity; the checkpoint is broken")
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos token, so no answer would have an end; name one in its config")
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(f"the tokenizer has ids up to {largest}, the model embeds {rows}; they do not belong together")


@contextmanager
def _no_report() -> Iterator[None]:
    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def _check_names(folder: Path, model: nn.Module, info: Mapping[str, Any]) -> None:
    found = {
        "missing": sorted(info["missing_keys"]),
        "not of this model": sorted(info["unexpected_keys"]),
        "of another shape": [f"{n} {tuple(a)} for {tuple(b)}" for n, a, b in sorted(info["mismatched_keys"])],
    }
    odd = "; ".join(f"{len(names)} {what}, {names[0]} for one" for what, names in found.items() if names)
    if odd:
        raise ValueError(
            f"{folder}: the weights are not those of a {type(model).__name__} as config.json describes it: {odd}. Save "
            "the model whole with save_pretrained, or mend config.json"
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
        reason = "no such device" if reason.startswith("Expected one of") else reason
        raise ValueError(f"device {device!r} cannot be used here ({reason}); pass cpu or a GPU") from None
