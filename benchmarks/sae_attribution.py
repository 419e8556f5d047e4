"""What effects of all features cost against one forward and backward of the plain model. Goal: 1.3 times, at one site
and for every width up to 16,384.
"""

import argparse
from typing import Any

import torch

from benchmarks import models
from benchmarks.timing import alternating, peak_mib, show
from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.coding import JumpRelu, Linear, TopKCoding
from probe.features.attribution import attribute
from probe.hooks import captured, edited
from probe.objectives.token import nll
from probe.sites import Site

SITE = Site(8)
ACTIVE = 64
WIDTHS = (1024, 4096, 16384)


def dictionary(kind: str, width: int, hidden_ND: torch.Tensor) -> Autoencoder:
    """Random rows of which about 64 are on at a token."""
    generator = torch.Generator().manual_seed(0)
    rows_FD = torch.randn(width, models.WIDTH, generator=generator)
    rows_FD /= rows_FD.norm(dim=1, keepdim=True)
    zero_F, zero_D = torch.zeros(width), torch.zeros(models.WIDTH)
    if kind == "TopK":
        return Autoencoder(Linear(rows_FD.T.contiguous(), zero_D, TopKCoding(zero_F, ACTIVE)), rows_FD, zero_D)
    threshold = torch.quantile((hidden_ND[:64] @ rows_FD.T).flatten()[: 2**20], 1 - ACTIVE / width).item()
    jump = JumpRelu(zero_F, torch.full((width,), threshold))
    return Autoencoder(Linear(rows_FD.T.contiguous(), zero_D, jump), rows_FD, zero_D)


def spliced(model: Any, sae: Autoencoder, batch: Any) -> torch.Tensor:
    """The same effects with the dictionary in the graph and its error held constant."""
    with torch.no_grad(), captured(model, [SITE]) as states:
        model(**batch.inputs, use_cache=False)
    f_BTF = sae.encode(states[SITE]).detach().requires_grad_()
    error_BTD = (states[SITE] - sae.decode(f_BTF)).detach()
    with edited(model, {SITE: lambda h: sae.decode(f_BTF) + error_BTD}):
        (g_BTF,) = torch.autograd.grad(nll(model, batch), f_BTF)
    return (-f_BTF * g_BTF).detach().double().clamp(min=0).sum((0, 1))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    settings = parser.parse_args()
    model = models.model()
    forget, retain = models.batch(8, 128, seed=0), models.batch(8, 128, seed=1)
    with torch.no_grad(), captured(model, [SITE]) as states:
        model(**forget.inputs, use_cache=False)
    hidden_ND = states[SITE].flatten(0, 1)

    def plain() -> None:
        for batch in (forget, retain):
            model.zero_grad(set_to_none=True)
            nll(model, batch).backward()

    def frozen() -> None:
        model.requires_grad_(False)
        for batch in (forget, retain):
            start = torch.zeros(1, requires_grad=True)
            with edited(model, {Site(0, "embedding"): lambda h, start=start: h + start}):
                nll(model, batch).backward()
        model.requires_grad_(True)

    for kind in ("JumpReLU", "TopK"):
        sides: dict[str, Any] = {"forward and backward": plain, "... weights frozen": frozen}
        for width in WIDTHS:
            sae = dictionary(kind, width, hidden_ND)

            def ours(sae: Autoencoder = sae) -> Any:
                return attribute(model, {SITE: sae}, forget, retain, objective=nll, special_ids=())[SITE]

            sides[f"attribute, {width} features"] = ours
            found_F, expected_F = ours().forget.total("positive"), spliced(model, sae, forget)
            apart = float((found_F - expected_F).abs().max() / expected_F.max())
            active = float((sae.encode(hidden_ND) > 0).sum(1).float().mean())
            print(f"{kind}, {width} features: {active:.0f} on at a token; splice differs by {apart:.1e}", flush=True)
            assert apart < 1e-5
        timings = alternating(sides, settings.repeats)
        peaks = {name: peak_mib(side) for name, side in sides.items()}
        show(f"{kind}, one site of {models.LAYERS}, 2 x 8 x 128 tokens", timings, peaks)


if __name__ == "__main__":
    main()
