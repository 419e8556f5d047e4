"""Load a dictionary from a folder, in the layouts they are published in, or from sae-lens's registry."""

import json
from pathlib import Path
from typing import Any

import torch

from probe.checkpoints import check_device
from probe.dictionaries.adapters import dictionary
from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.published import gemma_scope, llama_scope, read_settings, sparsify
from probe.model_files import check_safetensors

_WEIGHTS, _SPARSIFY = "sae_weights.safetensors", "sae.safetensors"
_GEMMA = ("params.npz", "params.safetensors")
_LLAMA = "checkpoints/final.safetensors"
_LAYOUTS = (
    f"sae-lens (cfg.json, {_WEIGHTS}), sparsify (cfg.json, {_SPARSIFY}), Gemma Scope (params.npz or "
    f"params.safetensors) and Llama Scope (hyperparams.json, {_LLAMA})"
)


def load_dictionary(
    source: str | Path, *, sae_id: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Autoencoder:
    """A dictionary from disk or from the registry of sae-lens; nothing in it takes gradients.

    Layouts, told by the files in the folder: sae-lens (what ``save_inference_model`` writes), sparsify, Gemma Scope
    and Llama Scope. Nothing is unpickled. Numbers that are not finite are refused.

    Args:
        source: a folder; or, with ``sae_id``, a release of sae-lens or a repository on the Hugging Face hub.
        sae_id: which one of the release, ``"layer_12/width_16k/canonical"``, say.
        device: where to put it.
        dtype: of its weights; the edit's result keeps the model's own dtype.

    Raises:
        FileNotFoundError: no such folder.
        OSError: the registry's files are neither here nor to be had.
        ValueError: no known layout, missing or damaged or ill-shaped arrays, NaN, an unknown release or id, or a
            dictionary that cannot be used (see ``dictionary``).

    >>> from probe.testbed.bed import WEIGHTS
    >>> tuple(probe.load_dictionary(WEIGHTS / "sae").directions_FD.shape)
    (1024, 128)
    """
    check_device(device)
    try:
        found = _from_disk(Path(source)) if sae_id is None else _registered(str(source), sae_id)
    except ValueError as error:
        if str(source) in str(error):
            raise
        raise ValueError(f"{source}: {str(error)[:250]}; mend its configuration, or copy it again") from error
    _check_finite(found, f"{source} {sae_id or ''}".strip())
    return found.to(device, dtype)


def save_trained(sae: Any, folder: Path) -> None:
    """What ``save_inference_model`` of a training object writes, with the keys of ``cfg.json`` in order.

    sae-lens collects its settings in a set, so that their order, and the file's bytes, would follow the hash seed.

    Args:
        sae: a training object of sae-lens.
        folder: gets ``cfg.json`` and ``sae_weights.safetensors``.
    """
    sae.save_inference_model(folder)
    config = folder / "cfg.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")), sort_keys=True), encoding="utf-8")


def _from_disk(folder: Path) -> Autoencoder:
    if folder.name in _GEMMA and folder.is_file():
        return gemma_scope(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}; pass a folder that holds a dictionary, or name a release and its sae_id"
        )
    if (folder / _WEIGHTS).is_file():
        return _sae_lens(folder)
    if (folder / _SPARSIFY).is_file():
        return sparsify(folder / _SPARSIFY)
    for name in _GEMMA:
        if (folder / name).is_file():
            return gemma_scope(folder / name)
    if (folder / _LLAMA).is_file():
        return llama_scope(folder / _LLAMA)
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
    pickled = any(path.suffix in (".pt", ".pth", ".bin", ".pkl") for path in folder.iterdir())
    why = "; pickles are never loaded, since they can run code: convert them where they were made" if pickled else ""
    raise ValueError(f"{folder} holds {held}, which is no layout that is read: {_LAYOUTS}{why}")


def _sae_lens(folder: Path) -> Autoencoder:
    if not (folder / "cfg.json").is_file():
        raise ValueError(f"{folder} has {_WEIGHTS} but no cfg.json, which says how to use it; copy that too")
    check_safetensors(folder / _WEIGHTS)
    read_settings(folder / "cfg.json")
    from sae_lens import SAE

    try:
        return _adapted(SAE.load_from_disk(folder, device="cpu", dtype="float32"))
    except ValueError:
        raise
    # Whatever a wrong setting breaks, in whichever library it happens.
    except Exception as error:
        why = " ".join(str(error).split())[:160]
        raise ValueError(
            f"sae-lens cannot make an inference SAE of {folder} ({type(error).__name__}: {why}); mend cfg.json; a "
            "training checkpoint must be saved with save_inference_model first"
        ) from error


def _registered(release: str, sae_id: str) -> Autoencoder:
    from sae_lens import SAE

    try:
        sae = SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
    except ValueError as error:
        raise ValueError(f"sae-lens does not know {release} / {sae_id}: {error}") from error
    # Whatever the network does, in whichever library it happens.
    except Exception as error:
        raise OSError(
            f"{release} / {sae_id} could not be fetched ({type(error).__name__}: {str(error).splitlines()[0]}); get "
            "it where there is a connection and pass the folder"
        ) from error
    return _adapted(sae)


def _adapted(sae: Any) -> Autoencoder:
    found = dictionary(sae)
    assert isinstance(found, Autoencoder)
    return found


def _check_finite(found: Autoencoder, name: str) -> None:
    for part in (found, found.encoder, getattr(found.encoder, "activation", None)):
        for held, tensor in vars(part).items() if part is not None else ():
            if isinstance(tensor, torch.Tensor) and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} holds NaN or infinity (in {held}); the file is damaged, copy it again")
