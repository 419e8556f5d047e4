"""Take what chosen features write out of every weight that writes to the residual stream; nothing is trained.

>>> unlearned = study.unlearn("orthogonalised", features=2, ratio=1)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.data import Batch, Split
from probe.dictionaries.adapters import dictionary
from probe.dictionaries.dictionary import Dictionary
from probe.features.ranking import rank_features
from probe.features.rules import Crisp
from probe.interventions.activations import activations, content
from probe.interventions.attaching import check_site
from probe.methods.method import method
from probe.methods.rmu import mlp_output_parameters
from probe.sites import Site, blocks, compiled, n_layers, place_of, trunk, unwrapped

BasisDR = Float[Tensor, "D R"]

# Rows on which the dictionary is tried at its site, and what is left is measured.
_ROWS = 32
# Share of the squared length that rounding may leave along the directions.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Orthogonalised:
    """What was taken out.

    Args:
        features: their directions.
        names: the parameters that were changed.
        share_before, share_after: share of the squared length of hidden states at the site that lies in the span.
    """

    features: tuple[int, ...]
    names: tuple[str, ...] = field(repr=False)
    share_before: float
    share_after: float


@method(
    "no gradient",
    "W - Q Q^T W for all that writes to the residual stream, Q the span of features' decoder rows",
    "Arditi et al., arXiv 2406.11717, against decoder rows",
    trains="embeddings, and output weights of attention and MLP, in closed form",
)
def orthogonalised(
    model: nn.Module,
    split: Split,
    *,
    sae: Any,
    site: Site,
    special_ids: Sequence[int],
    features: int,
    ratio: float,
    parameters: str | None = None,
    progress: str | None = None,
) -> Orthogonalised:
    """W becomes (I - Q Q^T) W for all that writes to the residual stream, Q the span of the features' directions.

    Weight orthogonalisation (Arditi et al., arXiv 2406.11717) against decoder rows. Embeddings, position embeddings,
    and the output weights and biases of attention and MLP are changed, in every block. With tied embeddings the
    head changes with them.

    Args:
        model: changed in place.
        split: features are chosen on both sides.
        sae, site: a dictionary of block outputs and where it belongs, which is measured.
        special_ids: token ids left out when features are chosen.
        features: how many, by CRISP's rule (``probe.features.rules.Crisp``).
        ratio: smallest ratio of mean activations of that rule; 3 there.
        parameters: regular expression; of the weights above only those whose names match are changed. What is left
            then is in the result.
        progress: taken as every method does; there is nothing to show.

    Raises:
        ValueError: a dictionary at the wrong site or of another place, no feature that passes, directions that span
            the whole stream, or a family that writes to the stream in other ways (norms behind attention and MLP, as
            in Gemma 2); the model is then unchanged.
    """
    found = dictionary(sae)
    few = split.retain.select(range(min(_ROWS, len(split.retain))))
    check_block(model, found, site)
    check_site(model, found, site, few)
    chosen = _salient(model, found, site, split, special_ids, features, ratio)
    basis_DR = spanned(found, chosen)
    before = _share_along(model, few, site, basis_DR)
    kept: dict[str, Tensor] = {}
    try:
        orthogonalise(model, basis_DR, parameters=parameters or ".", kept=kept)
        after = _share_along(model, few, site, basis_DR)
        if parameters is None and after > _ROUNDING:
            raise ValueError(
                f"{type(unwrapped(model)).__name__} writes to the residual stream in ways not known here: {after:.3g} "
                f"of the squared length at {site} still lies along the features ({before:.3g} before); use an edit of "
                "activations instead"
            )
    except BaseException:
        with torch.no_grad():
            for name, parameter in unwrapped(model).named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])
        raise
    return Orthogonalised(chosen, tuple(kept), before, after)


def orthogonalise(
    model: nn.Module, basis_DR: BasisDR, *, parameters: str = ".", kept: dict[str, Tensor] | None = None
) -> None:
    """W <- W - Q (Q^T W) in place, for the weights of ``writers`` whose names match.

    Args:
        model: changed in place.
        basis_DR: Q, orthonormal columns.
        parameters: regular expression over names.
        kept: gets a copy of each weight before it is changed.

    Raises:
        ValueError: no regular expression, or nothing matches.
    """
    wanted = compiled(parameters)
    chosen = {name: axis for name, axis in writers(model).items() if wanted.search(name)}
    if not chosen:
        raise ValueError(f"pattern {parameters!r} matches none of the weights that write to the residual stream")
    named = dict(unwrapped(model).named_parameters())
    with torch.no_grad():
        for name, axis in chosen.items():
            if kept is not None:
                kept[name] = named[name].detach().clone()
            # In float64: what is left along Q must be rounding of the weight's own dtype only.
            wide = named[name].detach().double().movedim(axis, 0)
            wide_DM = wide.reshape(len(wide), -1)
            q_DR = basis_DR.to(wide_DM)
            clean = (wide_DM - q_DR @ (q_DR.T @ wide_DM)).reshape(wide.shape).movedim(0, axis)
            named[name].copy_(clean)


def writers(model: nn.Module) -> dict[str, int]:
    """Names of the parameters that write to the residual stream, each with the axis along which it writes.

    Raises:
        ValueError: a family whose MLP output or attention output weight has an unknown name.
    """
    inner = unwrapped(model)
    modules = dict(inner.named_modules())
    stack = blocks(model)
    inside = {id(module) for block in stack for module in block.modules()}
    width = inner.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
    found: dict[str, int] = {}
    names = {id(module): name for name, module in modules.items()}
    for module in trunk(model).modules():
        if isinstance(module, nn.Embedding) and id(module) not in inside and module.embedding_dim == width:
            found[f"{names[id(module)]}.weight"] = 1
    listed = {name for name, _ in inner.named_parameters()}
    for layer in range(n_layers(model)):
        mixer = place_of(model, Site(layer, "heads")).name
        pattern = mlp_output_parameters(inner, [layer])
        outputs = [name.removesuffix(".weight") for name in listed if re.search(pattern, name)]
        for module_name in (mixer, *sorted(outputs)):
            # Linear keeps (out, in), GPT-2's Conv1D (in, out).
            found[f"{module_name}.weight"] = 0 if isinstance(modules[module_name], nn.Linear) else 1
            if f"{module_name}.bias" in listed:
                found[f"{module_name}.bias"] = 0
    return {name: axis for name, axis in found.items() if name in listed}


def spanned(sae: Dictionary, features: Sequence[int]) -> BasisDR:
    """Orthonormal columns that span the directions of ``features``, in float64.

    Raises:
        ValueError: no direction, or directions that span the whole width.
    """
    rows_KD = sae.directions_FD[list(features)].double()
    _, size_R, right_RD = torch.linalg.svd(rows_KD, full_matrices=False)
    basis_DR = right_RD[size_R > 1e-6 * size_R.max().clamp(min=1e-300)].T
    if not 0 < basis_DR.shape[1] < sae.out_width:
        raise ValueError(
            f"the directions of {len(features)} features span {basis_DR.shape[1]} of {sae.out_width} dimensions; "
            "choose some, and fewer than fill the stream"
        )
    return basis_DR


def _share_along(model: nn.Module, batch: Batch, site: Site, basis_DR: BasisDR) -> float:
    """sum |Q^T h|^2 / sum |h|^2 over all tokens but the first of each row."""
    hidden_ND = activations(model, batch, [site], tokens=content)[site].double()
    return float((hidden_ND @ basis_DR.to(hidden_ND)).square().sum() / hidden_ND.square().sum())


def _salient(
    model: nn.Module,
    sae: Dictionary,
    site: Site,
    split: Split,
    special_ids: Sequence[int],
    features: int,
    ratio: float,
) -> tuple[int, ...]:
    """Features by CRISP's rule, at most ``features``.

    Raises:
        ValueError: none passes.
    """
    rule = Crisp(features, ratio)
    table = rank_features(model, sae, site, split.forget, split.retain, rule=rule, special_ids=special_ids)
    if not table.order:
        raise ValueError(
            f"none of the {features} features at {site} with the largest difference of rates is {ratio:g} times as "
            "strong on forget rows as on retain rows; lower ratio, or raise features"
        )
    return table.order


def check_block(model: nn.Module, sae: Dictionary, site: Site) -> None:
    """Refuse a dictionary whose directions do not live in the residual stream.

    Raises:
        ValueError: another site than a block's output, or a transcoder.
    """
    if site.part != "block" or site.side != "out" or sae.width != sae.out_width:
        raise ValueError(
            f"the directions are taken for ones of the residual stream, which {site} and a dictionary of width "
            f"{sae.width} to {sae.out_width} do not give; use an SAE trained on a block's output"
        )
