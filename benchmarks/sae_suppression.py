"""What suppressing 20 of 8192 features costs. Goals: 1.05 bare forwards where features are apart, 1.4 elsewhere."""

import argparse

import torch

from benchmarks import models
from benchmarks.timing import alternating, peak_mib, show
from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.coding import JumpRelu, Linear, Relu, TopKCoding
from probe.hooks import edited
from probe.interventions.gates import Cusum, Gated
from probe.interventions.suppression import Suppress
from probe.interventions.targets import Constant
from probe.positions import At, NotIds
from probe.sites import Site

WIDTH, VALUE = models.WIDTH, -4.0


def dictionary(kind: str, size: int) -> Autoencoder:
    """Random unit rows, the encoder their transpose; about 1 % of the features are on at a token of length 1."""
    generator = torch.Generator().manual_seed(1)
    rows_FD = torch.randn(size, WIDTH, generator=generator)
    rows_FD = rows_FD / rows_FD.norm(dim=1, keepdim=True)
    bias_F = torch.full((size,), 0.0 if kind == "topk" else -2.3 / WIDTH**0.5)
    activation = {
        "relu": Relu(bias_F),
        "jumprelu": JumpRelu(bias_F, torch.full((size,), 0.01)),
        "topk": TopKCoding(bias_F, 64),
    }[kind]
    return Autoencoder(Linear(rows_FD.T.contiguous(), torch.zeros(WIDTH), activation), rows_FD, torch.zeros(WIDTH))


def naive(sae: Autoencoder, features: tuple[int, ...]):
    """h + decode(f') - decode(f), as it is written in papers: whole encoder, whole decoder, twice."""

    def edit(hidden_BTD: torch.Tensor) -> torch.Tensor:
        f_BTF = sae.encode(hidden_BTD)
        changed_BTF = f_BTF.clone()
        changed_BTF[..., features] = torch.where(f_BTF[..., features] > 0, VALUE, f_BTF[..., features])
        return hidden_BTD + sae.decode(changed_BTF) - sae.decode(f_BTF)

    return edit


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--features", type=int, default=20)
    settings = parser.parse_args()
    clean, model = models.model(), models.model()
    inputs = models.batch(settings.rows, settings.length).inputs
    site, features = Site(models.LAYERS // 2), tuple(range(settings.features))
    saes = {kind: dictionary(kind, settings.size) for kind in ("relu", "jumprelu", "topk")}
    edits = {
        f"{kind}, {settings.features} of {settings.size}": Suppress(saes[kind], features, Constant(VALUE))
        for kind in saes
    }
    by_kind = dict(zip(saes, edits.values(), strict=True))

    def run(edit=None) -> torch.Tensor:
        if edit is None:
            return clean(**inputs, use_cache=False).logits
        with edited(model, {site: edit}):
            return model(**inputs, use_cache=False).logits

    gate = Gated(by_kind["jumprelu"], Cusum(0.3, 2.0), NotIds((1, 2)))
    sides = {
        "bare forward": run,
        **{name: lambda edit=edit: run(edit) for name, edit in edits.items()},
        "jumprelu, not at special ids": lambda: run(At(by_kind["jumprelu"], NotIds((1, 2)))),
        "jumprelu, behind a gate": lambda: run(gate),
        "jumprelu, decode(f') - decode(f)": lambda: run(naive(saes["jumprelu"], features)),
        "topk, decode(f') - decode(f)": lambda: run(naive(saes["topk"], features)),
    }
    with torch.no_grad():
        for kind, edit in by_kind.items():
            ours, theirs = run(edit), run(naive(saes[kind], features))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(ours, run(), atol=1e-3)
        timings = alternating(sides, settings.repeats)
        peaks = {name: peak_mib(side) for name, side in sides.items()}
    show(f"suppression at one site of {models.LAYERS}, {settings.rows} x {settings.length}", timings, peaks)


if __name__ == "__main__":
    main()
