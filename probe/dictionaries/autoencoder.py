"""The dictionary that everything becomes: an encoder, rows it adds, and what normalises its input."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.dictionaries.coding import Linear, Pursuit
from probe.dictionaries.dictionary import above_noise, check_hidden

StatesXD = Float[Tensor, "*X D"]
OutputXE = Float[Tensor, "*X E"]
FeaturesXF = Float[Tensor, "*X F"]
Normaliser = Literal["none", "layer_norm", "constant_norm"]

# What sae-lens adds to the standard deviation.
_EPSILON = 1e-5


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """f = encoder(normalised h); reconstruction = restored(f @ directions + bias) + h @ skip.

    Nothing is remembered from one call to the next: statistics come from the hidden states that are passed.

    Args:
        encoder: how normalised hidden states become features.
        directions_FD: (F, out_width) decoder rows, whatever their length.
        bias_E: (out_width,) added to the reconstruction.
        normaliser: "layer_norm": (h - mean) / (std + 1e-5); "constant_norm": h * sqrt(width) / |h|.
        transcodes: whether it writes to another place than it reads; the output is then not scaled back.
        skip_DE: (width, out_width) linear path past the features, or None.
        metadata: what is known about its origin.
    """

    encoder: Linear | Pursuit
    directions_FD: Float[Tensor, "F E"] = field(repr=False)
    bias_E: Float[Tensor, " E"] = field(repr=False)
    normaliser: Normaliser = "none"
    transcodes: bool = False
    skip_DE: Float[Tensor, "D E"] | None = field(default=None, repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def n_features(self) -> int:
        """F."""
        return self.directions_FD.shape[0]

    @property
    def width(self) -> int:
        """Width of the hidden states it reads."""
        return self.encoder.shift_D.shape[0]

    @property
    def out_width(self) -> int:
        """Width of what it writes."""
        return self.directions_FD.shape[1]

    @property
    def separable(self) -> bool:
        """Whether each feature is computed without the others."""
        return self.encoder.separable

    def encode(self, hidden_XD: StatesXD) -> FeaturesXF:
        """Feature activations.

        Raises:
            ValueError: hidden states of another width.
        """
        return self.encoder(self._normalised(hidden_XD))

    def decode(self, f_XF: FeaturesXF, hidden_XD: StatesXD | None = None) -> OutputXE:
        """Reconstruction of the output from features of ``hidden_XD``.

        Raises:
            ValueError: the statistics of a normaliser or a skip path are needed, and no hidden states were given.
        """
        output_XE = f_XF @ self.directions_FD + self.bias_E
        needed = self.skip_DE is not None or self._restores
        if not needed:
            return output_XE
        if hidden_XD is None:
            why = "has a skip path" if self.skip_DE is not None else f"normalises its input ({self.normaliser})"
            raise ValueError(f"this dictionary {why}; pass decode the hidden states that the features come from")
        wide_XD = self._checked(hidden_XD)
        if self._restores:
            mean_X1, scale_X1 = self._statistics(wide_XD)
            output_XE = output_XE * scale_X1 + mean_X1
        return output_XE if self.skip_DE is None else output_XE + wide_XD @ self.skip_DE

    def scale(self, hidden_XD: StatesXD) -> Float[Tensor, "*X 1"]:
        """Factor on the directions at each token."""
        wide_XD = self._checked(hidden_XD)
        return self._statistics(wide_XD)[1] if self._restores else wide_XD.new_ones(*wide_XD.shape[:-1], 1)

    def columns(self, hidden_XD: StatesXD, index_K: Int[Tensor, " K"]) -> Float[Tensor, "*X K"]:
        """``encode`` for chosen features alone; a plain ReLU's rounding noise is set to 0.

        Raises:
            ValueError: the features compete.
        """
        return self.encoder.columns(self._normalised(hidden_XD), index_K)

    def active(self, f_XF: FeaturesXF) -> Bool[Tensor, "*X F"]:
        """Which features are on."""
        return f_XF > 0 if self.encoder.thresholded else above_noise(f_XF)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Autoencoder":
        """The same on another device or in another dtype."""
        return _moved(self, device, dtype)

    @property
    def _restores(self) -> bool:
        return self.normaliser != "none" and not self.transcodes

    def _checked(self, hidden_XD: Tensor) -> Tensor:
        check_hidden(self, hidden_XD)
        return hidden_XD.to(self.directions_FD)

    def _normalised(self, hidden_XD: Tensor) -> Tensor:
        wide_XD = self._checked(hidden_XD)
        if self.normaliser == "none":
            return wide_XD
        if self.normaliser == "constant_norm":
            return wide_XD / self._statistics(wide_XD)[1]
        mean_X1, std_X1 = self._statistics(wide_XD)
        return (wide_XD - mean_X1) / (std_X1 + _EPSILON)

    def _statistics(self, wide_XD: Tensor) -> tuple[Tensor, Tensor]:
        """What is added back and what multiplies back."""
        if self.normaliser == "constant_norm":
            # A token without any length is left as it is, where sae-lens divides 0 by 0.
            norm_X1 = wide_XD.norm(dim=-1, keepdim=True)
            return norm_X1.new_zeros(()), torch.where(norm_X1 > 0, norm_X1, 1.0) / self.width**0.5
        mean_X1 = wide_XD.mean(dim=-1, keepdim=True)
        return mean_X1, (wide_XD - mean_X1).std(dim=-1, keepdim=True)


def dictionary_hash(found: Autoencoder) -> str:
    """sha256 over every tensor and number that its features and reconstructions depend on; metadata do not count."""
    digest = hashlib.sha256()
    for name, value in sorted(_held(found)):
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}\n".encode())
    return digest.hexdigest()


def _held(thing: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name in (one.name for one in fields(thing)):
        value = getattr(thing, name)
        if is_dataclass(value):
            yield f"{path}{name}", type(value).__name__
            yield from _held(value, f"{path}{name}.")
        elif name != "metadata":
            yield f"{path}{name}", value


def _moved(thing: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
    """Every tensor of a frozen value and of the values in it, moved."""
    changed: dict[str, Any] = {}
    for name in (one.name for one in fields(thing)):
        value = getattr(thing, name)
        if isinstance(value, Tensor):
            changed[name] = value.to(device=device, dtype=dtype)
        elif is_dataclass(value):
            changed[name] = _moved(value, device, dtype)
    return replace(thing, **changed)
