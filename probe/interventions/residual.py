"""What a block's parts are given and what of them enters the residual stream: measured on four tokens, not by names."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probe.hooks import calls_of, captured, edited
from probe.interventions.replacement import Replace, Scale
from probe.modes import evaluating
from probe.outputs import first_given
from probe.sites import Part, Site, blocks, place_of, unwrapped

_TOKENS = 4
# Half precision rounds a sum by less than a hundredth of its largest entry; norms and factors change far more.
_APART = 0.05


def adds_to_stream(model: nn.Module, site: Site) -> bool:
    """Whether what attention or the MLP returns at ``site`` is what its block adds to the residual stream.

    Numbers of the stream's own size are put in the place of what the part returns, the other part is silenced, and the
    block's output less its input must be those numbers; of a part whose neighbour is no module of its own, the sum must
    be what another module of the block is given. A norm or a factor behind the part changes it.

    Args:
        model: any Hugging Face decoder; runs on four tokens and is left as it was.
        site: the output of attention or of the MLP.

    Raises:
        ValueError: a site outside the model, or weights that are not loaded.
    """
    other: Part = "mlp" if site.part == "attention" else "attention"
    entering, leaving = Site(site.layer, side="in"), Site(site.layer)
    with captured(model, [entering, site], stop=True) as states:
        _run(model)
    stream_BTD, part_BTD = states[entering], states[site]
    if part_BTD.shape != stream_BTD.shape:
        return False
    drawn_BTD = torch.rand(part_BTD.shape, generator=torch.Generator().manual_seed(0)).to(part_BTD) * 2 - 1
    # Tokens of unlike length: a norm would make them alike.
    size_T = stream_BTD.abs().max().clamp(min=1e-3) * 0.5 ** torch.arange(part_BTD.shape[1]).to(part_BTD)
    added_BTD = drawn_BTD * size_T[:, None]
    edits: dict[Site, Any] = {site: Replace(added_BTD)}
    silenced = _has(model, Site(site.layer, other))
    if silenced:
        edits[Site(site.layer, other)] = Scale(0.0)
    inside = list(blocks(model)[site.layer].modules())
    with edited(model, edits), calls_of(model, inside) as calls, captured(model, [leaving], stop=True) as states:
        _run(model)
    sums = [states[leaving]] if silenced else [first_given(*called) for called in calls.values()]
    return any(_alike(found, stream_BTD + added_BTD, added_BTD) for found in sums)


def part_fed_by(model: nn.Module, name: str, layer: int) -> Site | None:
    """The part of a block whose input is what the module ``name`` of it returns; None where it feeds neither.

    Args:
        model: any Hugging Face decoder; runs on four tokens and is left as it was.
        name: of a module right inside the block, a norm say.
        layer: which block.

    Raises:
        ValueError: a layer outside the model, or weights that are not loaded.
    """
    module = unwrapped(model).get_submodule(name)
    parts: tuple[Part, ...] = ("attention", "mlp")
    sites = [site for part in parts if _has(model, site := Site(layer, part, "in"))]
    fed = {site: place_of(model, site).module for site in sites}
    with calls_of(model, [module, *fed.values()]) as calls:
        _run(model)
    if module not in calls:
        return None
    args, kwargs = calls[module]
    with _quietly(model):
        returned = module(*args, **kwargs)
    for site, part in fed.items():
        entering = first_given(*calls[part]) if part in calls else None
        if isinstance(returned, Tensor) and entering is not None and torch.equal(returned, entering):
            return site
    return None


def _run(model: nn.Module) -> None:
    inner: Any = unwrapped(model)
    embedding = inner.get_input_embeddings()
    tokens_BT = torch.arange(1, _TOKENS + 1, device=embedding.weight.device)[None] % embedding.num_embeddings
    with _quietly(model):
        model(input_ids=tokens_BT, use_cache=False)


@contextmanager
def _quietly(model: nn.Module) -> Iterator[None]:
    """No gradients, eval mode; that a model is in train mode matters to nobody here."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        with evaluating(model):
            yield


def _alike(found: Tensor | None, expected_BTD: Tensor, added_BTD: Tensor) -> bool:
    if found is None or found.shape[-1] != expected_BTD.shape[-1] or found.numel() != expected_BTD.numel():
        return False
    found = found.reshape(expected_BTD.shape)  # some families join rows and positions inside a block
    limit_T = _APART * added_BTD.abs().amax((0, 2))
    return bool(((found - expected_BTD).abs().amax((0, 2)) <= limit_T).all())


def _has(model: nn.Module, site: Site) -> bool:
    try:
        place_of(model, site)
    except ValueError:
        return False
    return True
