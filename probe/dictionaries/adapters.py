"""From what users have to a ``Dictionary``."""

import operator
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.dictionaries.autoencoder import Autoencoder, Normaliser
from probe.dictionaries.coding import GatedCoding, JumpRelu, Linear, Pursuit, Relu, TopKCoding
from probe.dictionaries.dictionary import Dictionary, above_noise, check_hidden

_NORMALISERS: dict[str, Normaliser] = {
    "none": "none",
    "expected_average_only_in": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
# Relative size of what a decoder may add beyond features times rows before it is not linear.
_LINEAR = 1e-3


def dictionary(thing: Any) -> Dictionary:
    """The ``Dictionary`` that ``thing`` is or can be read as; a dictionary comes back as it is.

    Args:
        thing: an inference object of sae-lens (standard, topk, abstopk, jumprelu, which BatchTopK and Matryoshka are
            saved as, gated, matching_pursuit and the four transcoders), or any object with ``W_dec``, ``encode(x)``
            and ``decode(f)`` whose decoder adds f @ W_dec. Weights are shared with it where they need no folding.

    Raises:
        ValueError: a training object of sae-lens; a temporal SAE, whose features depend on earlier tokens; whitening
            that was not folded into the weights; a decoder that is not linear; or something else altogether.

    >>> found = probe.dictionary(s.sae)
    >>> hidden = torch.randn(2, 3, 128)
    >>> found.decode(found.encode(hidden)).shape == hidden.shape
    True
    """
    if isinstance(thing, Dictionary):
        return thing
    if any(kind.__name__ == "TrainingSAE" for kind in type(thing).__mro__):
        raise ValueError(
            f"{type(thing).__name__} is a training object, whose encoding may depend on the rest of the batch; "
            "save it with save_inference_model and load that"
        )
    architecture = getattr(getattr(thing, "cfg", None), "architecture", None)
    if callable(architecture) and hasattr(thing.cfg, "normalize_activations"):
        return _of_sae_lens(thing, architecture())
    missing = [name for name in ("W_dec", "encode", "decode") if not hasattr(thing, name)]
    if missing:
        raise ValueError(
            f"{type(thing).__name__} is no dictionary of features: it has no {', '.join(missing)}; pass an SAE or "
            "transcoder of sae-lens, or what load_dictionary gives"
        )
    return _given(thing)


def check_features(sae: Any, features: Sequence[int]) -> tuple[int, ...]:
    """The ids as a tuple of ints.

    Raises:
        ValueError: an id is no whole number, negative, too large or repeated, or ``sae`` is no dictionary.
    """
    ids, size = [_whole(j) for j in features], dictionary(sae).n_features
    outside = [j for j in ids if not 0 <= j < size]
    if outside:
        raise ValueError(f"feature {outside[0]} does not exist; the SAE has features 0..{size - 1}")
    most = Counter(ids).most_common(1)
    if most and most[0][1] > 1:
        raise ValueError(f"feature {most[0][0]} is given {most[0][1]} times; name each feature once")
    return tuple(ids)


def _whole(feature: Any) -> int:
    """A mask would name features 0 and 1, and a rounded number another feature."""
    try:
        if not isinstance(feature, bool) and getattr(feature, "dtype", None) != torch.bool:
            return operator.index(feature)
    except TypeError:
        pass
    raise ValueError(f"a feature is named by a whole number, got {feature!r}; turn a mask into ids with nonzero()")


def _of_sae_lens(sae: Any, architecture: str) -> Autoencoder:
    cfg = sae.cfg
    if architecture == "temporal":
        raise ValueError(
            "a temporal SAE predicts each token from those before it, so that its features are no function of the "
            "hidden state they are edited at; use one of another architecture"
        )
    if cfg.normalize_activations not in _NORMALISERS:
        raise ValueError(
            f"this SAE was made for {cfg.normalize_activations} activations, whose statistics are not part of it; "
            "fold them into the weights with fold_activation_whitening, and save it anew"
        )
    if cfg.normalize_activations == "expected_average_only_in":
        warnings.warn(
            "this SAE was trained on rescaled activations and the scale was not folded into its weights; it is given "
            "activations as they are, as sae-lens does: look at the variance that it leaves unexplained",
            stacklevel=3,
        )
    transcodes = architecture.endswith("transcoder")
    rows_FE = sae.W_dec.detach()
    # Transcoders subtract nothing: their decoder's bias lives in another space.
    shift = torch.zeros(cfg.d_in).to(rows_FE) if transcodes else sae.b_dec.detach() * bool(cfg.apply_b_dec_to_input)
    bias_E = sae.b_dec.detach()
    encoder: Linear | Pursuit
    if architecture == "matching_pursuit":
        steps = cfg.d_in if cfg.max_iterations is None else int(cfg.max_iterations)
        until_repeat = bool(cfg.stop_on_duplicate_support)
        encoder = Pursuit(rows_FE, shift, float(cfg.residual_threshold), steps, until_repeat)
        bias_E = shift
    else:
        encoder, rows_FE = _linear(sae, architecture, shift, rows_FE)
    return Autoencoder(
        encoder,
        rows_FE,
        bias_E,
        _NORMALISERS[cfg.normalize_activations],
        transcodes=transcodes,
        skip_DE=sae.W_skip.detach().T if hasattr(sae, "W_skip") else None,
        metadata={**cfg.metadata.to_dict(), "architecture": architecture},
    )


def _linear(sae: Any, architecture: str, shift_D: Tensor, rows_FE: Tensor) -> tuple[Linear, Tensor]:
    encoder_DF = sae.W_enc.detach()
    if architecture == "gated":
        gated = GatedCoding(sae.b_gate.detach(), sae.r_mag.detach().exp(), sae.b_mag.detach())
        return Linear(encoder_DF, shift_D, gated), rows_FE
    bias_F = sae.b_enc.detach()
    if architecture.startswith("jumprelu"):
        return Linear(encoder_DF, shift_D, JumpRelu(bias_F, sae.threshold.detach())), rows_FE
    if architecture in ("standard", "transcoder", "skip_transcoder"):
        return Linear(encoder_DF, shift_D, Relu(bias_F)), rows_FE
    if architecture not in ("topk", "abstopk"):
        raise ValueError(f"how an SAE of architecture {architecture!r} encodes is not known here; use another one")
    if sae.cfg.rescale_acts_by_decoder_norm:
        # A row without length has no direction, and its feature is 0 before the k are chosen.
        norm_F = rows_FE.norm(dim=-1)
        encoder_DF, bias_F = encoder_DF * norm_F, bias_F * norm_F
        rows_FE = rows_FE / torch.where(norm_F > 0, norm_F, 1.0)[:, None]
    return Linear(encoder_DF, shift_D, TopKCoding(bias_F, int(sae.cfg.k), signed=architecture == "abstopk")), rows_FE


@dataclass(frozen=True, eq=False)
class UserDictionary:
    """An object of the user's own that has ``encode``, ``decode`` and ``W_dec``, with a linear decoder."""

    encoder: Callable[[Tensor], Tensor] = field(repr=False)
    decoder: Callable[[Tensor], Tensor] = field(repr=False)
    directions_FD: Float[Tensor, "F D"] = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)

    separable = False
    transcodes = False

    @property
    def n_features(self) -> int:
        """F."""
        return self.directions_FD.shape[0]

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.directions_FD.shape[1]

    @property
    def out_width(self) -> int:
        """The width of what it writes: that of what it reads."""
        return self.directions_FD.shape[1]

    def encode(self, hidden_XD: Float[Tensor, "*X D"]) -> Float[Tensor, "*X F"]:
        """The object's own ``encode``.

        Raises:
            ValueError: hidden states of another width.
        """
        check_hidden(self, hidden_XD)
        return self.encoder(hidden_XD.to(self.directions_FD))

    def decode(
        self, f_XF: Float[Tensor, "*X F"], hidden_XD: Float[Tensor, "*X D"] | None = None
    ) -> Float[Tensor, "*X D"]:
        """The object's own ``decode``."""
        return self.decoder(f_XF)

    def scale(self, hidden_XD: Float[Tensor, "*X D"]) -> Float[Tensor, "*X 1"]:
        """Ones."""
        return torch.ones(*hidden_XD.shape[:-1], 1).to(self.directions_FD)

    def columns(self, hidden_XD: Float[Tensor, "*X D"], index_K: Int[Tensor, " K"]) -> Float[Tensor, "*X K"]:
        """Refused: chosen features alone cannot be had without knowing how the object encodes.

        Raises:
            ValueError: always.
        """
        raise ValueError("how this object encodes is not known, so no feature can be had without the others; encode")

    def active(self, f_XF: Float[Tensor, "*X F"]) -> Bool[Tensor, "*X F"]:
        """Which features are above rounding noise."""
        return above_noise(f_XF)


def _given(thing: Any) -> UserDictionary:
    rows_FD = torch.as_tensor(thing.W_dec).detach()
    generator = torch.Generator().manual_seed(0)
    drawn_1F = torch.rand(1, len(rows_FD), generator=generator).to(rows_FD)
    try:
        with torch.no_grad():
            added_1D = thing.decode(drawn_1F) - thing.decode(torch.zeros_like(drawn_1F))
    except Exception as error:
        raise ValueError(
            f"{type(thing).__name__}.decode failed on a row of features ({error}); it must take (..., feature) and "
            "need nothing that encode left behind"
        ) from error
    expected_1D = drawn_1F @ rows_FD
    if added_1D.shape != expected_1D.shape or (added_1D - expected_1D).norm() > _LINEAR * expected_1D.norm():
        raise ValueError(
            f"{type(thing).__name__}.decode does not add features times W_dec, so that what a feature writes is not "
            "known; give W_dec the rows that decode really adds"
        )
    return UserDictionary(thing.encode, thing.decode, rows_FD, dict(getattr(thing, "metadata", None) or {}))
