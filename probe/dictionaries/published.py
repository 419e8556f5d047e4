"""Gemma Scope, Llama Scope and sparsify as they lie on disk, read without sae-lens and checked array by array."""

import json
import operator
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.coding import JumpRelu, Linear, TopKCoding
from probe.model_files import check_safetensors
from probe.records import listed, value_shown

# Names of repositories and of folders in them; whatever folders they lie in says nothing.
_GEMMA_1 = re.compile(r"(?:.+--)?gemma-scope-(\d+b-(?:pt|it))-(res|mlp|att|transcoders)(?:-.+)?")
_GEMMA_2 = re.compile(r"(?:.+--)?gemma-scope-2-(\d+[bm])-(pt|it)")
_GEMMA_2_KIND = re.compile(r"(resid_post|attn_out|mlp_out|transcoder)(?:_all)?")
_GEMMA_1_HOOKS = {
    "res": ("hook_resid_post",),
    "mlp": ("hook_mlp_out",),
    "att": ("attn.hook_z",),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
_GEMMA_2_HOOKS = {
    "resid_post": ("output",),
    "attn_out": ("self_attn.o_proj.input",),
    "mlp_out": ("post_feedforward_layernorm.output",),
    "transcoder": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
}


def gemma_scope(path: Path) -> Autoencoder:
    """JumpReLU dictionaries of Gemma Scope (Lieberum et al., arXiv 2408.05147) and Gemma Scope 2, transcoders too.

    Where it belongs is read from ``config.json`` or ``hyperparams.json`` beside it, otherwise from the names of the
    published repository and of the folders in it (as sae-lens does); where those were renamed it is unknown.

    Args:
        path: ``params.npz`` (w_enc, w_dec, b_enc, b_dec, threshold) or ``params.safetensors`` (the same names, and
            affine_skip_connection for transcoders with a skip path).

    Raises:
        ValueError: arrays that are missing, have other shapes, or are pickled objects; the embedding's dictionary.
    """
    if "embedding" in _repository(path)[1]:
        raise ValueError(f"{path} reads embeddings in units of its own training; use one that reads a block")
    found = {name.lower(): tensor for name, tensor in (_npz(path) if path.suffix == ".npz" else _tensors(path)).items()}
    width, size = _shape(found, "w_enc", path, 2)
    out_width = _shape(found, "w_dec", path, 2)[1]
    expected = {"w_dec": (size, out_width), "b_enc": (size,), "b_dec": (out_width,), "threshold": (size,)}
    _check_shapes(found, expected, path)
    skip = found.get("affine_skip_connection")
    if skip is not None:
        _check_shapes(found, {"affine_skip_connection": (width, out_width)}, path)
    metadata = _gemma_metadata(path)
    transcodes = skip is not None or out_width != width or metadata["transcodes"]
    encoder = Linear(found["w_enc"], torch.zeros(width), JumpRelu(found["b_enc"], found["threshold"]))
    return Autoencoder(
        encoder, found["w_dec"], found["b_dec"], transcodes=transcodes, skip_DE=skip, metadata=metadata["known"]
    )


def _gemma_metadata(path: Path) -> dict[str, Any]:
    """What is written beside the file, then what the published folder names say."""
    settings = {**read_settings(path.parent / "hyperparams.json"), **read_settings(path.parent / "config.json")}
    known: dict[str, Any] = {"architecture": "jumprelu", **{k: v for k, v in settings.items() if k != "architecture"}}
    for ours, theirs in (("hf_hook_name", "hf_hook_point_in"), ("hf_hook_name_out", "hf_hook_point_out")):
        if settings.get(theirs):
            known.setdefault(ours, settings[theirs])
    for key, value in _published_place(path).items():
        known.setdefault(key, value)
    transcodes = "hf_hook_name_out" in known or "hook_name_out" in known
    if transcodes:
        known["architecture"] = "jumprelu_transcoder"
    return {"known": known, "transcodes": transcodes}


def _repository(path: Path) -> tuple[str, tuple[str, ...]]:
    """The name of the published repository that a file lies in, and the folders inside it; empty if there is none."""
    folders = path.absolute().parent.parts
    at = [i for i, name in enumerate(folders) if _GEMMA_1.fullmatch(name) or _GEMMA_2.fullmatch(name)]
    return (folders[at[-1]], folders[at[-1] + 1 :]) if at else ("", ())


def _published_place(path: Path) -> dict[str, str]:
    name, inside = _repository(path)
    known: dict[str, str] = {}
    first, second = _GEMMA_1.fullmatch(name), _GEMMA_2.fullmatch(name)
    kind, layer = _GEMMA_2_KIND.fullmatch(path.parent.parent.name), re.match(r"layer_(\d+)_width_", path.parent.name)
    if first:
        known["model_name"] = f"gemma-2-{first[1].removesuffix('-pt')}"
        numbers = [found[1] for folder in inside if (found := re.fullmatch(r"layer_(\d+)", folder))]
        hooks = [f"blocks.{numbers[-1]}.{hook}" for hook in _GEMMA_1_HOOKS[first[2]]] if numbers else []
        known |= dict(zip(("hook_name", "hook_name_out"), hooks, strict=False))
    elif kind and layer:
        hooks = [f"model.layers.{layer[1]}.{hook}" for hook in _GEMMA_2_HOOKS[kind[1]]]
        known |= dict(zip(("hf_hook_name", "hf_hook_name_out"), hooks, strict=False))
    if second:
        known["model_name"] = f"google/gemma-3-{second[1]}" + (
            "" if second.groups() == ("270m", "pt") else f"-{second[2]}"
        )
    return known


def llama_scope(path: Path) -> Autoencoder:
    """JumpReLU dictionaries of Llama Scope (He et al., arXiv 2410.20526), with the scale of their input folded in.

    They were trained on s * h, s = sqrt(width) / mean |h|; as in sae-lens the encoder is multiplied by s, the decoder
    and its bias divided by it, and the one threshold, which is written in units of h, multiplied by it.

    Args:
        path: ``checkpoints/final.safetensors``, with ``hyperparams.json`` one folder up.

    Raises:
        ValueError: missing settings or arrays, other shapes, another activation, or a transcoder, whose two scales
            sae-lens does not know either.
    """
    check_safetensors(path)
    source = path.parents[1] / "hyperparams.json"
    settings = read_settings(source)
    try:
        width, size = operator.index(settings["d_model"]), operator.index(settings["d_sae"])
        threshold, norm = float(settings["jump_relu_threshold"]), settings["dataset_average_activation_norm"]
        scale = width**0.5 / float(norm["in"])
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(
            f"{source} must give d_model, d_sae, jump_relu_threshold and dataset_average_activation_norm "
            f"(failed at {error}); without them the scale of the dictionary is not known"
        ) from error
    hook = settings.get("hook_point_in")
    if settings.get("hook_point_out", hook) != hook:
        raise ValueError(
            f"{path.parents[1]} is a transcoder of Llama Scope, whose output has a scale of its own; "
            "only those that write where they read are supported"
        )
    if settings.get("act_fn", "jumprelu") != "jumprelu":
        raise ValueError(
            f"{source} says act_fn {value_shown(settings['act_fn'])}; only jumprelu, as published, is supported"
        )
    found = _tensors(path)
    shapes = {"encoder.weight": (size, width), "decoder.weight": (width, size)}
    _check_shapes(found, {**shapes, "encoder.bias": (size,), "decoder.bias": (width,)}, path)
    jump = JumpRelu(found["encoder.bias"], torch.full((size,), threshold * scale))
    shift_D = found["decoder.bias"] * bool(settings.get("apply_decoder_bias_to_pre_encoder", False))
    metadata = {"architecture": "jumprelu", "model_name": "meta-llama/Llama-3.1-8B", "norm_scaling_factor": scale}
    if hook:
        metadata["hook_name"] = hook
    return Autoencoder(
        Linear(found["encoder.weight"].T.contiguous() * scale, shift_D / scale, jump),
        found["decoder.weight"].T.contiguous() / scale,
        found["decoder.bias"] / scale,
        metadata=metadata,
    )


def sparsify(path: Path) -> Autoencoder:
    """TopK dictionaries and transcoders of EleutherAI's sparsify (Gao et al., arXiv 2406.04093, is the architecture).

    Read as sparsify itself does: W_dec is (feature, width), and the decoder's bias is subtracted first unless it
    transcodes. Where it belongs is the folder's name, a module of the model.

    Args:
        path: ``sae.safetensors``, with ``cfg.json`` beside it.

    Raises:
        ValueError: missing settings or arrays, other shapes, another activation than topk.
    """
    settings = read_settings(path.with_name("cfg.json"))
    # true is an int to Python.
    if type(settings.get("k")) is not int:
        raise ValueError(f"{path.with_name('cfg.json')} must give k, the number of active features; copy it again")
    if settings.get("activation", "topk") != "topk" or settings.get("signed"):
        raise ValueError(
            f"{path.parent} has activation {value_shown(settings.get('activation', 'signed topk'))}; only topk is read"
        )
    found = _tensors(path)
    size, width = _shape(found, "encoder.weight", path, 2)
    _check_shapes(found, {"W_dec": (size, width), "encoder.bias": (size,), "b_dec": (width,)}, path)
    transcodes, skip = bool(settings.get("transcode", settings.get("skip_connection", False))), found.get("W_skip")
    if skip is not None:
        _check_shapes(found, {"W_skip": (width, width)}, path)
    place = path.parent.name
    metadata = {"architecture": "transcoder" if transcodes else "topk", "hf_hook_name": place}
    if transcodes:
        metadata |= {"hf_hook_name": f"{place}.input", "hf_hook_name_out": place}
    top = TopKCoding(found["encoder.bias"], settings["k"])
    return Autoencoder(
        Linear(found["encoder.weight"].T.contiguous(), found["b_dec"] * (not transcodes), top),
        found["W_dec"],
        found["b_dec"],
        transcodes=transcodes,
        skip_DE=None if skip is None else skip.T,
        metadata=metadata,
    )


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object from disk; an empty one where there is no file.

    Raises:
        ValueError: no JSON, or JSON that is no object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold one JSON object, got {type(found).__name__}; copy it again")
    return found


def _npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        # Without pickles: an array of objects can run code.
        with np.load(path, allow_pickle=False) as held:
            return {name: torch.from_numpy(np.asarray(held[name], dtype=np.float32)) for name in held.files}
    except Exception as error:
        raise ValueError(
            f"{path} is not an archive of plain number arrays ({error}); it is damaged or pickled, copy it again"
        ) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    check_safetensors(path)
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def _shape(found: Mapping[str, Tensor], name: str, path: Path, axes: int) -> tuple[int, ...]:
    if name not in found:
        raise ValueError(f"{path} has no {name}; it holds {listed(sorted(found))}; copy the file again")
    if found[name].ndim != axes:
        raise ValueError(f"{name} in {path} must have {axes} axes, got shape {tuple(found[name].shape)}; copy it again")
    return tuple(found[name].shape)


def _check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    for name, shape in expected.items():
        if _shape(found, name, path, len(shape)) != shape:
            raise ValueError(
                f"{name} in {path} has shape {tuple(found[name].shape)}, the other arrays expect {shape}; copy the "
                "file again, or name another"
            )
