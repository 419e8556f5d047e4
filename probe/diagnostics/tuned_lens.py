"""An affine translator from each layer's stream to the last one's: what the tuned lens reads through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import HiddenND
from probe.data import Batch, Split
from probe.display import Result, ResultTable
from probe.harvest import visit
from probe.model_files import check_safetensors
from probe.positions import Positions, not_first
from probe.rows import Row
from probe.sites import Site, n_layers


@dataclass(frozen=True, eq=False)
class TunedLens(Result):
    """h_l + A_l h_l + b_l, an estimate of the last block's output.

    Args:
        layers: block indices.
        weight: A_l by layer, (D, D), float32.
        bias: b_l by layer, (D,), float32.
        explained: share of the last stream's variance explained on the fitted tokens, by layer.
    """

    layers: tuple[int, ...]
    weight: Mapping[int, Tensor] = field(repr=False)
    bias: Mapping[int, Tensor] = field(repr=False)
    explained: Mapping[int, float]

    def rows(self, name: str = "model") -> list[Row]:
        return [Row(name, "tuned_lens", "explained", self.explained[layer], layer=layer) for layer in self.layers]

    def table(self) -> ResultTable:
        shares = [self.explained[layer] for layer in self.layers]
        return ResultTable({"layer": self.layers, "explained": shares}, note="share of the last stream's variance")

    def translate(self, hidden_ND: HiddenND, layer: int) -> HiddenND:
        """The stream of ``layer`` as it is expected to leave the last block.

        Raises:
            ValueError: another width than the lens was fitted for.
        """
        weight_DD = self.weight[layer]
        if weight_DD.shape[0] != hidden_ND.shape[1]:
            raise ValueError(f"the lens has width {weight_DD.shape[0]}, the hidden states width {hidden_ND.shape[1]}")
        wide_ND = hidden_ND.to(torch.promote_types(hidden_ND.dtype, torch.float32))
        moved_ND = wide_ND + wide_ND @ weight_DD.to(wide_ND).T + self.bias[layer].to(wide_ND)
        return moved_ND.to(hidden_ND.dtype)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        from safetensors.torch import save_file

        tensors = {f"weight.{layer}": self.weight[layer].contiguous() for layer in self.layers}
        tensors |= {f"bias.{layer}": self.bias[layer].contiguous() for layer in self.layers}
        tensors |= {f"explained.{layer}": torch.tensor(self.explained[layer]) for layer in self.layers}
        save_file(tensors, str(path))


def load_tuned_lens(path: str | Path) -> TunedLens:
    """What ``TunedLens.save`` wrote.

    Raises:
        ValueError: a damaged file, or one that holds no lens.

    >>> lens = probe.fit_tuned_lens(s.original, s.split, penalty=0.1, layers=[0, 7])
    >>> lens.save("lens")
    >>> lens = probe.load_tuned_lens("lens")
    """
    from safetensors.torch import load_file

    check_safetensors(path)
    found = load_file(str(path))
    layers = tuple(sorted(int(name.split(".")[1]) for name in found if name.startswith("weight.")))
    if not layers or any(f"bias.{layer}" not in found for layer in layers):
        raise ValueError(f"{path} holds no tuned lens; its tensors are {sorted(found)[:4]}")
    return TunedLens(
        layers,
        {layer: found[f"weight.{layer}"] for layer in layers},
        {layer: found[f"bias.{layer}"] for layer in layers},
        {layer: float(found[f"explained.{layer}"]) for layer in layers},
    )


def fit_tuned_lens(
    model: nn.Module,
    on: Split | Batch,
    *,
    penalty: float = 0.01,
    layers: Sequence[int] | None = None,
    positions: Positions = not_first,
    batch_size: int = 32,
) -> TunedLens:
    """Least squares for the residual map: min |h_L - h_l - A h_l - b|^2 + n penalty tr(Sigma_l)/D |A|^2, one pass.

    The published tuned lens (Belrose et al., arXiv 2303.08112) minimises the divergence of the final distributions by
    gradient steps; this one fits streams in closed form, as linear shortcuts do (arXiv 2303.09435), so it needs no
    learning rate and no steps. Towards a large penalty it becomes the plain logit lens, shifted by a mean.

    Args:
        model: measured in eval mode and left as it was.
        on: text to fit on: retain text, so that no forget fact is taught to the lens; of a split its retain rows.
        penalty: in units of the mean variance of a stream's entries.
        layers: blocks to translate; None takes all.
        positions: tokens to fit on.
        batch_size: rows per forward pass.

    Raises:
        ValueError: a penalty that is not positive, no token, a layer outside the model, or NaN or infinity.

    >>> lens = probe.fit_tuned_lens(s.original, s.split, penalty=0.1, layers=[0, 4, 7])
    >>> probe.logit_lens(s.original, s.split.forget, layers=[0, 4], lens=lens).tuned
    True
    """
    if not penalty > 0:
        raise ValueError(f"penalty must be positive, got {penalty}; without one rare directions would be inverted")
    batch = on.retain if isinstance(on, Split) else on
    chosen = tuple(range(n_layers(model))) if layers is None else tuple(layers)
    last = Site(n_layers(model) - 1)
    sites = list(dict.fromkeys((*(Site(layer) for layer in chosen), last)))
    sums: dict[Site, dict[str, Tensor]] = {}
    count = 0

    def take(piece: Batch, states: dict[Site, Tensor]) -> None:
        nonlocal count
        target_ND = states[last].double()
        count += len(target_ND)
        for site in sites:
            wide_ND = states[site].double()
            new = {
                "x": wide_ND.sum(0),
                "xx": wide_ND.T @ wide_ND,
                "xy": wide_ND.T @ (target_ND - wide_ND),
                "y": (target_ND - wide_ND).sum(0),
            }
            old = sums.get(site)
            sums[site] = new if old is None else {name: old[name] + new[name] for name in new}

    visit(model, batch.chunks(batch_size), sites, take, positions=positions)
    if count == 0:
        raise ValueError(f"no token of the {len(batch)} rows is chosen; check the batch and the positions")
    final = sums[last]
    variance = float((final["xx"].diagonal().sum() - final["x"].square().sum() / count) / count)
    if not variance < float("inf"):
        raise ValueError("the activations hold NaN or infinity; check the model")
    solved = {layer: _solved(sums[Site(layer)], count, penalty) for layer in chosen}
    return TunedLens(
        chosen,
        {layer: weight.float().cpu() for layer, (weight, _, _) in solved.items()},
        {layer: bias.float().cpu() for layer, (_, bias, _) in solved.items()},
        {layer: 1 - left(sums[Site(layer)], final, count) / variance for layer, (_, _, left) in solved.items()},
    )


def _solved(part: dict[str, Tensor], count: int, penalty: float) -> tuple[Tensor, Tensor, "_Left"]:
    mean_D, gap_D = part["x"] / count, part["y"] / count
    covariance_DD = part["xx"] / count - torch.outer(mean_D, mean_D)
    cross_DD = part["xy"] / count - torch.outer(mean_D, gap_D)
    level = penalty * covariance_DD.diagonal().mean()
    eye_DD = torch.eye(len(mean_D), dtype=mean_D.dtype, device=mean_D.device)
    weight_DD = torch.linalg.solve(covariance_DD + level * eye_DD, cross_DD).T
    return weight_DD, gap_D - weight_DD @ mean_D, _Left(weight_DD, covariance_DD, cross_DD)


@dataclass(frozen=True, eq=False)
class _Left:
    """Mean squared error that a map leaves, from second moments."""

    weight_DD: Float[Tensor, "D D"]
    covariance_DD: Float[Tensor, "D D"]
    cross_DD: Float[Tensor, "D D"]

    def __call__(self, part: dict[str, Tensor], final: dict[str, Tensor], count: int) -> float:
        # Var(y) of the residual y = h_L - h_l, expanded so that no second pass is needed.
        final_DD = final["xx"] / count - torch.outer(final["x"], final["x"]) / count**2
        var_gap = (final_DD - self.covariance_DD - self.cross_DD - self.cross_DD.T).diagonal().sum()
        explained = 2 * (self.weight_DD * self.cross_DD.T).sum()
        explained = explained - ((self.weight_DD @ self.covariance_DD) * self.weight_DD).sum()
        return float(var_gap - explained)
