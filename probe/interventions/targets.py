"""What chosen features are set to: the modes of ``Suppress``.

A mode maps activations f and which of them are on to f'. All but ``Always`` and ``Together`` leave silent features
alone, and where f' = f nothing is changed, to the bit.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.interventions.activations import check_number
from probe.positions import Tokens

FeaturesBTK = Float[Tensor, "B T K"]
OnBTK = Bool[Tensor, "B T K"]
PerFeatureK = Float[Tensor, " K"]
Written = tuple[str, dict[str, Tensor], dict[str, float | int]]


@runtime_checkable
class Mode(Protocol):
    """What features become."""

    def check(self, n: int) -> None:
        """Refuse what does not fit n features.

        Raises:
            ValueError: values that are not finite, or not one per feature.
        """
        ...

    def __call__(self, f_BTK: FeaturesBTK, on_BTK: OnBTK, tokens: Tokens | None) -> FeaturesBTK:
        """f' of the same shape; ``tokens`` is given to modes that say ``reads_tokens``."""
        ...

    def written(self, n: int) -> Written:
        """Verb, tensors and numbers of the operation that does the same (``operations.operate``).

        Raises:
            ValueError: no operation does.
        """
        ...


@dataclass(frozen=True)
class Zero:
    """f' = 0 where f is on: zero ablation, which has little effect by itself (Farrell et al., arXiv 2410.19278).

    >>> edit = probe.Suppress(s.sae, (3, 5), probe.Zero())
    """

    def check(self, n: int) -> None:
        """Fits any number of features."""

    def __call__(self, f_BTK: FeaturesBTK, on_BTK: OnBTK, tokens: Tokens | None = None) -> FeaturesBTK:
        return torch.where(on_BTK, 0.0, f_BTK)

    def written(self, n: int) -> Written:
        """A scaling by 0."""
        return "scale", {}, {"factor": 0.0}


@dataclass(frozen=True)
class Multiply:
    """f' = factor * f where f is on; 1 changes no bit, negative values reverse the feature.

    Raises:
        ValueError: a factor that is not finite.

    >>> edit = probe.Suppress(s.sae, (3, 5), probe.Multiply(-2.0))
    """

    factor: float

    def __post_init__(self) -> None:
        check_number(self.factor, "factor")

    def check(self, n: int) -> None:
        """Fits any number of features."""

    def __call__(self, f_BTK: FeaturesBTK, on_BTK: OnBTK, tokens: Tokens | None = None) -> FeaturesBTK:
        return torch.where(on_BTK, self.factor * f_BTK, f_BTK)

    def written(self, n: int) -> Written:
        """A scaling."""
        return "scale", {}, {"factor": self.factor}


@dataclass(frozen=True, eq=False)
class Constant:
    """f' = value where f is on (Farrell et al., arXiv 2410.19278, and SAEBench clamp so, to negative values).

    Args:
        value: one number, or one per feature; ``probe.interventions.retained`` makes them in units that travel.

    >>> edit = probe.Suppress(s.sae, (3, 5), probe.Constant(-20.0))
    """

    value: float | PerFeatureK

    def check(self, n: int) -> None:
        """One finite number, or one per feature."""
        _check_value(self.value, n)

    def __call__(self, f_BTK: FeaturesBTK, on_BTK: OnBTK, tokens: Tokens | None = None) -> FeaturesBTK:
        return torch.where(on_BTK, torch.as_tensor(self.value).to(f_BTK), f_BTK)

    def written(self, n: int) -> Written:
        """A clamp."""
        return "clamp", {"value": _per_feature(self.value, n)}, {}


@dataclass(frozen=True, eq=False)
class Together:
    """f'_j = value for all chosen j, silent ones too, where any of them is on.

    The clamp of Dynamic SAE Guardrails (Muhamed et al., arXiv 2504.08192), which takes -500.

    >>> edit = probe.Suppress(s.sae, (3, 5), probe.Together(-20.0))
    """

    value: float | PerFeatureK

    def check(self, n: int) -> None:
        """One finite number, or one per feature."""
        _check_value(self.value, n)

    def __call__(self, f_BTK: FeaturesBTK, on_BTK: OnBTK, tokens: Tokens | None = None) -> FeaturesBTK:
        return torch.where(on_BTK.any(-1, keepdim=True), torch.as_tensor(self.value).to(f_BTK), f_BTK)

    def written(self, n: int) -> Written:
        """A clamp of all at once."""
        return "clamp_all", {"value": _per_feature(self.value, n)}, {}


@dataclass(frozen=True, eq=False)
class Always:
    """f'_j = value at every token, whether j is on or not: feature steering (Templeton et al., 2024).

    >>> edit = probe.Suppress(s.sae, (3, 5), probe.Always(10.0))
    """

    value: float | PerFeatureK

    def check(self, n: int) -> None:
        """One finite number, or one per feature."""
        _check_value(self.value, n)

    def __call__(self, f_BTK: FeaturesBTK, on_BTK: OnBTK, tokens: Tokens | None = None) -> FeaturesBTK:
        return torch.as_tensor(self.value).to(f_BTK).expand_as(f_BTK)

    def written(self, n: int) -> Written:
        """A setting."""
        return "set", {"value": _per_feature(self.value, n)}, {}


@dataclass(frozen=True, eq=False)
class Resample:
    """f'_j = a draw from retain activations of j where f_j is on (resampling ablation, Chan et al., 2022).

    A draw depends on the seed, the feature, the token's id and its place in the row, on nothing else: padding, batches
    and a cache change nothing.

    Args:
        sample_MK: activations to draw from, one column per feature; ``Retained.resample`` gives them.
        seed: another seed, other draws.

    Raises:
        ValueError: nothing to draw from, NaN or infinity.

    >>> held = probe.retained(s.original, s.split.retain, s.sae_site, s.sae, (3, 5), special_ids=s.special_ids)
    >>> edit = probe.Suppress(s.sae, (3, 5), held.resample(seed=0))
    """

    sample_MK: Float[Tensor, "M K"] = field(repr=False)
    seed: int

    reads_tokens = True

    def __post_init__(self) -> None:
        if len(self.sample_MK) == 0 or not bool(torch.isfinite(self.sample_MK).all()):
            raise ValueError(f"draws need at least one finite retain activation, got {tuple(self.sample_MK.shape)}")

    def check(self, n: int) -> None:
        """One column per feature."""
        if self.sample_MK.shape[1] != n:
            raise ValueError(f"retain activations are of {self.sample_MK.shape[1]} features, {n} are edited")

    def __call__(self, f_BTK: FeaturesBTK, on_BTK: OnBTK, tokens: Tokens | None) -> FeaturesBTK:
        assert tokens is not None
        sample_MK = self.sample_MK.to(f_BTK)
        feature_K = torch.arange(sample_MK.shape[1], device=f_BTK.device)
        index_BT = tokens.index_BT.to(f_BTK.device)
        id_BT = torch.zeros_like(index_BT) if tokens.id_BT is None else tokens.id_BT.to(f_BTK.device)
        mixed_BT = _mixed(_mixed(_mixed(torch.full_like(index_BT, self.seed)) + index_BT) + id_BT)
        row_BTK = _mixed(mixed_BT[..., None] + feature_K) % len(sample_MK)
        return torch.where(on_BTK, sample_MK[row_BTK, feature_K], f_BTK)

    def written(self, n: int) -> Written:
        """Never works: a plan's operations do not know where tokens stand.

        Raises:
            ValueError: always.
        """
        raise ValueError("Resample draws by the place of a token, which no plan knows; use it without a plan")


def _check_value(value: float | PerFeatureK, n: int) -> None:
    if not isinstance(value, Tensor):
        check_number(value, "value")
    elif value.shape != (n,) or not bool(torch.isfinite(value).all()):
        raise ValueError(f"value must be one finite number per feature ({n}), got shape {tuple(value.shape)}")


def _per_feature(value: float | PerFeatureK, n: int) -> Tensor:
    return torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64).expand(n).clone()


def _mixed(number: Tensor) -> Tensor:
    """Scattered non-negative integers (the finaliser of splitmix64, with arithmetic shifts; overflow is meant)."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        number = (number + 0x1E3779B97F4A7C15 ^ ((number + 0x1E3779B97F4A7C15) >> shift)) * factor
    return (number ^ (number >> 31)) & 0x7FFFFFFFFFFFFFFF
