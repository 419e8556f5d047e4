"""Probes of all layers with a tuned penalty beside scikit-learn; goals 10x LogisticRegressionCV, 4x RidgeClassifierCV.

States are made up: Gaussian, rotated, ill-conditioned, with a weak signal. What ridge costs or gains in AUROC next to
standardised logistic regression is therefore read on real states, those of the testbed, and printed below.
"""

import argparse
import warnings

import numpy as np
import torch

from benchmarks.timing import alternating, show
from probe.diagnostics.ridge_solve import ridge_heldout, standardised

PENALTIES = tuple(10.0**k for k in range(-4, 5))


def synthetic(layers: int, rows: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """States (layer, row, width) and labels 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    label_N = (torch.rand(rows, generator=generator) < 0.5).long()
    hidden = []
    for _ in range(layers):
        turn_DD, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
        scale_D = torch.logspace(1, -1, width, dtype=torch.float64)
        noise_ND = torch.randn(rows, width, generator=generator, dtype=torch.float64) * scale_D
        noise_ND[:, width // 2 : width // 2 + 8] += 0.3 * scale_D[width // 2] * (2.0 * label_N[:, None] - 1)
        hidden.append(noise_ND @ turn_DD)
    return torch.stack(hidden), label_N


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--shuffles", type=int, default=100)
    parser.add_argument("--skip-testbed", action="store_true")
    settings = parser.parse_args()
    from sklearn.linear_model import LogisticRegressionCV, RidgeClassifierCV

    torch.set_num_threads(1)
    raw_LND, label_N = synthetic(settings.layers, settings.rows, settings.width)
    hidden_LND, label = standardised(raw_LND), label_N.numpy()
    generator = torch.Generator().manual_seed(1)
    orders = [torch.arange(settings.rows)]
    orders += [torch.randperm(settings.rows, generator=generator) for _ in range(settings.shuffles)]
    target_NK = 2.0 * torch.stack([label_N[order] for order in orders], 1) - 1

    def ours() -> torch.Tensor:
        return ridge_heldout(hidden_LND, target_NK[:, :1], penalties=PENALTIES).penalty_LK

    def with_null() -> torch.Tensor:
        return ridge_heldout(hidden_LND, target_NK, penalties=PENALTIES).penalty_LK

    def ridge_cv() -> list[float]:
        return [float(RidgeClassifierCV(alphas=PENALTIES).fit(h_ND.numpy(), label).alpha_) for h_ND in hidden_LND]

    def logistic_cv() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations differ between scikit-learn versions
            for h_ND in hidden_LND:
                LogisticRegressionCV(Cs=5, cv=5, max_iter=1000).fit(h_ND.numpy(), label)

    assert np.allclose(ours()[:, 0].numpy(), ridge_cv()), "both must choose the same penalty at every layer"
    assert torch.equal(with_null()[:, :1], ours())
    sides = {
        "ridge, leave-one-out, 9 penalties": ours,
        f"... and {settings.shuffles} shuffled label sets": with_null,
        "RidgeClassifierCV, 9 penalties": ridge_cv,
        "LogisticRegressionCV, 5 C x 5 folds": logistic_cv,
    }
    show(
        f"probes: {settings.layers} layers, {settings.rows} rows, width {settings.width}",
        alternating(sides, settings.repeats),
    )
    if not settings.skip_testbed:
        testbed_difference()


def testbed_difference() -> None:
    """AUROC of ridge less that of standardised logistic regression on real states, and the same at other contrasts."""
    from probe.diagnostics.answer_values import value_split
    from probe.diagnostics.ridge_probes import ridge_minus_logistic
    from probe.testbed import load as load_testbed

    bed = load_testbed()
    splits = {"end of prompt": bed.split, "before the value": value_split(bed.tokenizer, bed.split)}
    for name, model in (("original", bed.original), ("retrained", bed.retrained)):
        for place, split in splits.items():
            apart_L = ridge_minus_logistic(model, split)
            shown = " ".join(f"{apart:+.3f}" for apart in apart_L.tolist())
            print(f"  testbed, {name}, {place}: ridge - logistic AUROC by layer {shown}; mean {apart_L.mean():+.3f}")


if __name__ == "__main__":
    main()
