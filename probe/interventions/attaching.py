"""Where a dictionary belongs in a model, and the measurement that shows it."""

import math
import re
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from probe.axes import HiddenND
from probe.data import Batch
from probe.dictionaries.adapters import dictionary
from probe.dictionaries.dictionary import Dictionary
from probe.dictionaries.fit import fvu, mean_active
from probe.interventions.activations import activations, content
from probe.interventions.residual import adds_to_stream, part_fed_by
from probe.sites import Part, Side, Site, blocks, n_layers, place_of, unwrapped

# Names of TransformerLens (and of its bridge) inside a block that are places of a Hugging Face decoder.
_HOOKS: dict[str, tuple[Part, Side]] = {
    "hook_resid_pre": ("block", "in"),
    "hook_in": ("block", "in"),
    "hook_resid_post": ("block", "out"),
    "hook_out": ("block", "out"),
    "hook_attn_out": ("attention", "out"),
    "attn.hook_out": ("attention", "out"),
    "hook_mlp_out": ("mlp", "out"),
    "mlp.hook_out": ("mlp", "out"),
    "mlp.hook_in": ("mlp", "in"),
    "attn.hook_z": ("heads", "out"),
}
_ELSEWHERE = {
    "hook_resid_mid": "the residual stream between attention and MLP",
    "hook_mlp_in": "the residual stream between attention and MLP",
    "mlp.hook_pre": "inside the MLP",
    "mlp.hook_post": "the input of the MLP's last linear map",
    "ln1.hook_normalized": "inside a norm, before its weight",
    "ln2.hook_normalized": "inside a norm, before its weight",
}
_SUPPORTED = "a block's input or output, what attention or the MLP is given or returns, the heads, or the embedding"
# A block off costs far more than this; on a model that was trained further, neighbours may come out alike.
_MARGIN = 0.05


@dataclass(frozen=True, eq=False)
class Attached:
    """A dictionary at a place where it was seen to fit.

    Args:
        dictionary: the dictionary.
        site: where it reads.
        out_site: where it writes; ``site`` but for transcoders.
        fvu_by_site: fraction of variance unexplained where it reads, and one block before and after.
        active: features that are on at a token, in the mean.
    """

    dictionary: Dictionary = field(repr=False)
    site: Site
    out_site: Site
    fvu_by_site: dict[Site, float]
    active: float


def named_site(model: nn.Module, name: str) -> Site:
    """The ``Site`` that a hook name means in this model: what enters and leaves its parts is measured on four tokens.

    Args:
        model: any Hugging Face decoder.
        name: a module of it, ``"model.layers.4"``, its output unless ``.input`` follows (as in ``hf_hook_name``); or a
            name of TransformerLens, ``"blocks.4.hook_resid_post"``.

    Raises:
        ValueError: the model has no such place, or it is none that a ``Site`` can name.
    """
    if name == "hook_embed":
        return Site(0, "embedding")
    lens = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if not lens:
        return _module_site(model, name)
    layer, hook = int(lens[1]), lens[2]
    if hook not in _HOOKS:
        where = _ELSEWHERE.get(hook, "no place that is known here")
        raise ValueError(
            f"{name} is {where}, not {_SUPPORTED}; name the nearest of those as site and see whether it fits"
        )
    part, side = _HOOKS[hook]
    site = Site(layer, part, side)
    place_of(model, site)
    if side == "out" and part in ("attention", "mlp") and not adds_to_stream(model, site):
        raise ValueError(
            f"{name} is what enters the residual stream, and {type(blocks(model)[layer]).__name__} has a norm or a "
            f"factor behind its {part}, so it is not {_SUPPORTED}; name {site} as site and see whether it fits"
        )
    return site


def _module_site(model: nn.Module, name: str) -> Site:
    inner = unwrapped(model)
    path, side = (
        (name[: -len(f".{end}")], end) if (end := name.rsplit(".", 1)[-1]) in ("input", "output") else (name, "output")
    )
    modules = [known for known, _ in inner.named_modules()]
    # Some makers leave out what comes before the blocks.
    longer = [known for known in modules if known.endswith(f".{path}")]
    path = longer[0] if path not in modules and len(longer) == 1 else path
    if path not in modules:
        raise ValueError(
            f"{type(inner).__name__} has no module {path!r} (its blocks are {place_of(model, Site(0)).name} and so "
            "on), so the dictionary was made for another model; name a site if it fits all the same"
        )
    candidates = [Site(0, "embedding"), Site(0, "norm"), Site(0, "norm", "in")]
    for layer in range(n_layers(model)):
        candidates += [Site(layer, part, s) for part in ("block", "attention", "mlp") for s in ("out", "in")]
        candidates.append(Site(layer, "heads"))
    for site in candidates:
        try:
            place = place_of(model, site)
        # Not every family has every part.
        except ValueError:
            continue
        if (place.name, f"{place.side}put") == (path, side):
            return site
    parent = path.rpartition(".")[0]
    names = [place_of(model, Site(layer)).name for layer in range(n_layers(model))]
    fed = part_fed_by(model, path, names.index(parent)) if parent in names and side == "output" else None
    if fed is None:
        raise ValueError(f"{name} is not {_SUPPORTED}; name the nearest of those as site and see whether it fits")
    return fed


def sites_of(model: nn.Module, sae: Any) -> tuple[Site, Site]:
    """Where a dictionary reads and where it writes, from its metadata: ``hf_hook_name`` first, then ``hook_name``.

    Raises:
        ValueError: the metadata say nothing, or name a place that is no ``Site`` of this model.
    """
    found = dictionary(sae)
    read, written = (
        found.metadata.get(f"hf_hook_name{end}") or found.metadata.get(f"hook_name{end}") for end in ("", "_out")
    )
    missing = "hook_name" if not read else "hook_name_out" if found.transcodes and not written else None
    if missing:
        raise ValueError(f"the dictionary does not say where it belongs (no {missing}); name the site yourself")
    site = named_site(model, str(read))
    return site, named_site(model, str(written)) if found.transcodes else site


def attach(
    model: nn.Module, sae: Any, batch: Batch, site: Site | None = None, *, out_site: Site | None = None
) -> Attached:
    """Find where a dictionary belongs and measure that it does: its FVU there and one block before and after.

    A dictionary that is one block off hardly raises the loss, but explains visibly less variance.

    Args:
        model: the model that will be edited.
        sae: anything ``dictionary`` takes.
        batch: usual input; 64 tokens are enough. The first token of each row is left out.
        site: where it reads; from its metadata unless given.
        out_site: where a transcoder writes; from its metadata unless given.

    Raises:
        ValueError: another width; a reconstruction worse than the mean (FVU above 1), as a dictionary of another model
            gives; a neighbouring block whose FVU is over 5 % lower; or no site in the metadata. All with the numbers.

    >>> found = probe.attach(s.original, s.sae, s.split.retain, s.sae_site)
    >>> found.site
    Site(4)
    """
    found = dictionary(sae)
    if out_site is not None and not found.transcodes:
        raise ValueError("only transcoders write to another place than they read; leave out_site out")
    if site is None or (found.transcodes and out_site is None):
        known = sites_of(model, found)
        site, out_site = site or known[0], out_site or known[1]
    written = (out_site if found.transcodes else site) or site
    steps = [step for step in (-1, 0, 1) if step == 0 or _moves(model, site, written, step)]
    pairs = {step: (_moved(site, step), _moved(written, step)) for step in steps}
    states = activations(model, batch, [*dict.fromkeys(s for pair in pairs.values() for s in pair)], tokens=content)
    _check_widths(found, site, written, states)
    by_step = {step: fvu(found, states[one], states[two]) for step, (one, two) in pairs.items()}
    _judge(site, {pairs[step][0].layer: value for step, value in by_step.items()})
    fvu_by_site = {pairs[step][0]: value for step, value in by_step.items()}
    return Attached(found, site, written, fvu_by_site, mean_active(found, states[site]))


def check_site(model: nn.Module, sae: Any, site: Site, batch: Batch) -> dict[Site, float]:
    """``attach`` for a site that is known: the FVU there and one block before and after.

    Raises:
        ValueError: as for ``attach``.
    """
    return attach(model, sae, batch, site).fvu_by_site


def _moved(site: Site, step: int) -> Site:
    return replace(site, layer=site.layer + step)


def _moves(model: nn.Module, site: Site, written: Site, step: int) -> bool:
    """Whether both places exist one block further; the embedding and the final norm are alone."""
    inside = all(0 <= s.layer + step < n_layers(model) for s in (site, written))
    return inside and not {site.part, written.part} & {"embedding", "norm"}


def _check_widths(found: Dictionary, site: Site, written: Site, states: dict[Site, HiddenND]) -> None:
    for what, width, place in (("reads", found.width, site), ("writes", found.out_width, written)):
        if states[place].shape[1] != width:
            name = found.metadata.get("model_name")
            raise ValueError(
                f"the SAE has width {width} where it {what}, the hidden states at {place} have width "
                f"{states[place].shape[1]}; it was made for {name or 'another model'} or another site"
            )


def _judge(site: Site, fvu_by_layer: dict[int, float]) -> None:
    listed = ", ".join(f"{value:.3g} at layer {layer}" for layer, value in fvu_by_layer.items())
    here, best = fvu_by_layer[site.layer], min(fvu_by_layer, key=lambda layer: fvu_by_layer[layer])
    if not math.isfinite(here) or here > 1:
        raise ValueError(
            f"the SAE does not fit {site}: fraction of variance unexplained {listed} (above 1 is worse than the "
            "mean); it was trained on another model or site"
        )
    if fvu_by_layer[best] < (1 - _MARGIN) * here:
        raise ValueError(f"the SAE fits layer {best} better than {site}: fraction of variance unexplained {listed}")
    if here > 0.5:
        warnings.warn(f"the SAE explains less than half of the variance at {site}: FVU {here:.3g}", stacklevel=3)
