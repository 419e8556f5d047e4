"""Architectures that can be trained, as values, with the settings of sae-lens 6.54 that were found to work."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Batches over which the threshold of a BatchTopK is averaged once it is trained.
_BATCHES = 20


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of each token (Gao et al., arXiv 2406.04093).

    Args:
        k: active features a token.

    Raises:
        ValueError: k below 1.
    """

    k: int

    def __post_init__(self) -> None:
        _check_active(self.k)

    @property
    def l0(self) -> float:
        """Active features a token that it is to have."""
        return float(self.k)

    def trainee(self, shared: dict[str, Any]) -> Any:
        """The training object of sae-lens.

        Args:
            shared: what every architecture is configured with.
        """
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

        return TopKTrainingSAE(TopKTrainingSAEConfig(k=self.k, **shared))


@dataclass(frozen=True)
class BatchTopK:
    """The k * tokens largest pre-activations of each batch (Bussmann et al., arXiv 2412.06410); a JumpReLU when saved.

    The saved threshold is the mean over batches of the smallest activation that is kept, as in the paper, measured
    when training is over. sae-lens keeps a running mean of it from 0 on, which in short runs lags behind: after 245
    steps the saved dictionary had a third more active features than the trained one.

    Args:
        k: active features a token, on average.

    Raises:
        ValueError: k below 1.
    """

    k: int

    def __post_init__(self) -> None:
        _check_active(self.k)

    @property
    def l0(self) -> float:
        """Active features a token that it is to have."""
        return float(self.k)

    def trainee(self, shared: dict[str, Any]) -> Any:
        """The training object of sae-lens; see ``TopK``."""
        from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=float(self.k), **shared))


@dataclass(frozen=True)
class Matryoshka:
    """BatchTopK whose first ``widths`` features reconstruct alone as well (Bussmann et al., arXiv 2503.17547).

    Args:
        k: active features a token, on average.
        widths: sizes of the nested dictionaries, rising; the whole dictionary is added where it is missing.

    Raises:
        ValueError: k below 1, or widths that do not rise.
    """

    k: int
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_active(self.k)
        if not self.widths or self.widths[0] < 1 or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths must be rising numbers of features, got {self.widths}")

    @property
    def l0(self) -> float:
        """Active features a token that it is to have."""
        return float(self.k)

    def trainee(self, shared: dict[str, Any]) -> Any:
        """The training object of sae-lens; see ``TopK``.

        Raises:
            ValueError: a width beyond the dictionary's.
        """
        from sae_lens import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig

        whole = shared["d_sae"]
        if self.widths[-1] > whole:
            raise ValueError(f"the nested dictionaries reach {self.widths[-1]} features, the whole one has {whole}")
        widths = [*self.widths, *([whole] if self.widths[-1] < whole else [])]
        return MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(k=float(self.k), matryoshka_widths=widths, **shared)
        )


@dataclass(frozen=True)
class JumpReLU:
    """A learned threshold a feature, L0 drawn to a target: 2 / target * (L0 - target)^2 (arXiv 2407.14435; the penalty
    is Gemma Scope 2's).

    Four settings differ from those of sae-lens, with which L0 ended at 302 instead of 16 on a small Llama: threshold
    and bandwidth are in units of pre-activations after the input is scaled to a mean norm of sqrt(width), and the
    estimator passes gradients to the encoder. A learning rate of 3e-3 goes with them.

    Args:
        target: active features a token.
        threshold: every feature's threshold at the start.
        bandwidth: width of the rectangle that stands for the step's derivative.

    Raises:
        ValueError: a target, threshold or bandwidth that is not above 0.
    """

    target: float
    threshold: float = 1.0
    bandwidth: float = 2.0

    def __post_init__(self) -> None:
        for name in ("target", "threshold", "bandwidth"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {getattr(self, name)}")

    @property
    def l0(self) -> float:
        """Active features a token that it is to have."""
        return float(self.target)

    def trainee(self, shared: dict[str, Any]) -> Any:
        """The training object of sae-lens; see ``TopK``."""
        from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

        return JumpReLUTrainingSAE(
            JumpReLUTrainingSAEConfig(
                jumprelu_sparsity_loss_mode="quadratic",
                target_l0=self.target,
                jumprelu_ste_to_input=True,
                jumprelu_init_threshold=self.threshold,
                jumprelu_bandwidth=self.bandwidth,
                **shared,
            )
        )


Architecture = TopK | BatchTopK | Matryoshka | JumpReLU


@torch.no_grad()
def settle(sae: Any, batches: Iterator[Tensor]) -> None:
    """Set a BatchTopK's threshold to the mean over batches of its smallest positive activation; others are left alone.

    Args:
        sae: the training object, trained.
        batches: activations as it was trained on.
    """
    if not hasattr(sae, "topk_threshold"):
        return
    smallest = []
    for _ in range(_BATCHES):
        f_NF = sae.encode(next(batches))
        smallest += [f_NF[f_NF > 0].min().double()] if bool((f_NF > 0).any()) else []
    if smallest:
        sae.topk_threshold = torch.stack(smallest).mean()


def _check_active(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k is a whole number of active features, at least 1; got {k!r}")
