"""How hidden states become features: the encoders of the published architectures.

Each activation is given raw = (x - shift) @ W_enc, without the bias, since a gated encoder has two of them.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.dictionaries.dictionary import NOISE
from probe.ranges import shortened

PerFeatureF = Float[Tensor, " F"]
RawXF = Float[Tensor, "*X F"]


@dataclass(frozen=True, eq=False)
class Relu:
    """f = max(0, raw + b)."""

    bias_F: PerFeatureF = field(repr=False)

    separable = True
    thresholded = False

    def __call__(self, raw_XF: RawXF) -> RawXF:
        return (raw_XF + self.bias_F).relu()

    def of(self, index_K: Int[Tensor, " K"]) -> "Relu":
        """This activation for the chosen features alone."""
        return Relu(self.bias_F[index_K])


@dataclass(frozen=True, eq=False)
class JumpRelu:
    """f = max(0, raw + b) where raw + b > threshold, else 0 (Rajamanoharan et al., arXiv 2407.14435)."""

    bias_F: PerFeatureF = field(repr=False)
    threshold_F: PerFeatureF = field(repr=False)

    separable = True

    @cached_property
    def thresholded(self) -> bool:
        """Whether every feature has a threshold above 0; without one it is a plain ReLU."""
        return bool((self.threshold_F > 0).all())

    def __call__(self, raw_XF: RawXF) -> RawXF:
        before_XF = raw_XF + self.bias_F
        return before_XF.relu() * (before_XF > self.threshold_F)

    def of(self, index_K: Int[Tensor, " K"]) -> "JumpRelu":
        """This activation for the chosen features alone."""
        return JumpRelu(self.bias_F[index_K], self.threshold_F[index_K])


@dataclass(frozen=True, eq=False)
class GatedCoding:
    """f = [raw + b_gate > 0] * max(0, raw * exp(r) + b_mag) (Rajamanoharan et al., arXiv 2404.16014)."""

    gate_F: PerFeatureF = field(repr=False)
    gain_F: PerFeatureF = field(repr=False)
    bias_F: PerFeatureF = field(repr=False)

    separable = True
    thresholded = True

    def __call__(self, raw_XF: RawXF) -> RawXF:
        return (raw_XF * self.gain_F + self.bias_F).relu() * (raw_XF + self.gate_F > 0)

    def of(self, index_K: Int[Tensor, " K"]) -> "GatedCoding":
        """This activation for the chosen features alone."""
        return GatedCoding(self.gate_F[index_K], self.gain_F[index_K], self.bias_F[index_K])


@dataclass(frozen=True, eq=False)
class TopKCoding:
    """The k largest of raw + b, through a ReLU (Gao et al., arXiv 2406.04093).

    With ``signed`` the k largest in magnitude keep their signs (AbsTopK, arXiv 2510.00404).
    """

    bias_F: PerFeatureF = field(repr=False)
    k: int
    signed: bool = False

    separable = False
    thresholded = False

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not 1 <= self.k <= len(self.bias_F):
            raise ValueError(
                f"k is {shortened(self.k)}; from 1 to all {len(self.bias_F)} features can be active, so mend k"
            )

    def __call__(self, raw_XF: RawXF) -> RawXF:
        before_XF = raw_XF + self.bias_F
        ranked_XF = before_XF.abs() if self.signed else before_XF
        index_XK = ranked_XF.topk(self.k, dim=-1, sorted=False).indices
        value_XK = before_XF.gather(-1, index_XK)
        return torch.zeros_like(before_XF).scatter(-1, index_XK, value_XK if self.signed else value_XK.relu())


@dataclass(frozen=True, eq=False)
class Linear:
    """activation((x - shift) @ encoder)."""

    encoder_DF: Float[Tensor, "D F"] = field(repr=False)
    shift_D: Float[Tensor, " D"] = field(repr=False)
    activation: Relu | JumpRelu | GatedCoding | TopKCoding

    @property
    def separable(self) -> bool:
        """Whether ``columns`` works."""
        return self.activation.separable

    @property
    def thresholded(self) -> bool:
        """Whether a feature that is off is exactly 0."""
        return self.activation.thresholded

    def __call__(self, x_XD: Float[Tensor, "*X D"]) -> RawXF:
        return self.activation((x_XD - self.shift_D) @ self.encoder_DF)

    def columns(self, x_XD: Float[Tensor, "*X D"], index_K: Int[Tensor, " K"]) -> Float[Tensor, "*X K"]:
        """Chosen features alone.

        Raises:
            ValueError: the features compete, so that all of them are needed.
        """
        if isinstance(self.activation, TopKCoding):
            raise ValueError("the features of a TopK dictionary compete, so none is known without the others; encode")
        x_XD, chosen_DK = x_XD - self.shift_D, self.encoder_DF[:, index_K]
        f_XK = self.activation.of(index_K)(x_XD @ chosen_DK)
        if self.thresholded:
            return f_XK
        # Without the other features noise is told by the size of the inner product's terms.
        return torch.where(f_XK > NOISE * x_XD.norm(dim=-1, keepdim=True) * chosen_DK.norm(dim=0), f_XK, 0.0)


@dataclass(frozen=True, eq=False)
class Pursuit:
    """Matching pursuit (Mallat and Zhang, 1993; as in sae-lens): take the best row, subtract its part, repeat.

    Args:
        rows_FD: decoder rows; the encoder is the same matrix.
        shift_D: subtracted first.
        threshold: a token is done once its residual is shorter than this; 0 or below: never.
        steps: at most so many rows a token.
        until_repeat: a token is done once a step brings no new row.
    """

    rows_FD: Float[Tensor, "F D"] = field(repr=False)
    shift_D: Float[Tensor, " D"] = field(repr=False)
    threshold: float
    steps: int
    until_repeat: bool

    separable = False
    thresholded = False

    def __call__(self, x_XD: Float[Tensor, "*X D"]) -> RawXF:
        rest_ND = (x_XD - self.shift_D).reshape(-1, x_XD.shape[-1])
        f_NF = rest_ND.new_zeros(len(rest_ND), len(self.rows_FD))
        done_N1 = torch.zeros(len(rest_ND), 1, dtype=torch.bool, device=rest_ND.device)
        for _ in range(self.steps):
            best_N1 = (rest_ND @ self.rows_FD.T).detach().argmax(1, keepdim=True)
            row_ND = self.rows_FD[best_N1[:, 0]]
            value_N1 = (rest_ND * row_ND).sum(-1, keepdim=True).relu() * ~done_N1
            known_N1 = (f_NF.gather(1, best_N1) != 0) | (value_N1 == 0)
            f_NF = f_NF.scatter_add(1, best_N1, value_N1)
            rest_ND = rest_ND - value_N1 * row_ND
            if self.until_repeat:
                done_N1 = done_N1 | known_N1
            if self.threshold > 0:
                done_N1 = done_N1 | (rest_ND.detach().norm(dim=-1, keepdim=True) < self.threshold)
            if bool(done_N1.all()):
                break
        return f_NF.reshape(*x_XD.shape[:-1], -1)

    def columns(self, x_XD: Float[Tensor, "*X D"], index_K: Int[Tensor, " K"]) -> Float[Tensor, "*X K"]:
        """Refused: matching pursuit takes one row after another, so no feature is known without the others.

        Raises:
            ValueError: always.
        """
        raise ValueError("matching pursuit takes one row after another, so no feature is known without the others")
