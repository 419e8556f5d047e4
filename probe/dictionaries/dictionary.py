"""What a dictionary of features is, whatever made it: a sparse autoencoder, a transcoder, principal components."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

# Below this share of a token's strongest feature an activation is rounding noise of a ReLU, not a feature.
NOISE = 1e-5


@runtime_checkable
class Dictionary(Protocol):
    """Features of hidden states, and what each adds to the reconstruction.

    decode(f, h) = base(h) + scale(h) * (f @ directions_FD), where base does not depend on f. So setting f to f' changes
    the output by scale(h) * ((f' - f) @ directions_FD), which is what ``delta`` gives; the reconstruction error
    stays where it is.
    """

    @property
    def n_features(self) -> int:
        """F."""
        ...

    @property
    def width(self) -> int:
        """Width of the hidden states it reads."""
        ...

    @property
    def out_width(self) -> int:
        """Width of what it writes: ``width``, but for transcoders."""
        ...

    @property
    def directions_FD(self) -> Tensor:
        """(F, out_width): what one unit of each feature adds to the output, before ``scale``."""
        ...

    @property
    def transcodes(self) -> bool:
        """Whether it writes to another place than it reads (transcoders), so that ``delta`` is added there."""
        ...

    @property
    def separable(self) -> bool:
        """Whether each feature is computed without the others (ReLU, JumpReLU, gated), so that ``columns`` works."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What its maker wrote down: ``hook_name``, ``hf_hook_name``, ``model_name``, ``architecture``, where known."""
        ...

    def encode(self, hidden_XD: Float[Tensor, "*X D"]) -> Float[Tensor, "*X F"]:
        """Feature activations, in the dictionary's own dtype and on its device."""
        ...

    def decode(
        self, f_XF: Float[Tensor, "*X F"], hidden_XD: Float[Tensor, "*X D"] | None = None
    ) -> Float[Tensor, "*X E"]:
        """Reconstruction of the output; ``hidden_XD`` gives the statistics of normalisers and the skip path.

        Raises:
            ValueError: the dictionary needs the hidden states and was given none.
        """
        ...

    def scale(self, hidden_XD: Float[Tensor, "*X D"]) -> Float[Tensor, "*X 1"]:
        """Factor on ``directions_FD`` at each token: ones, unless the dictionary normalises its input."""
        ...

    def columns(self, hidden_XD: Float[Tensor, "*X D"], index_K: Int[Tensor, " K"]) -> Float[Tensor, "*X K"]:
        """``encode`` for the chosen features alone; a plain ReLU's rounding noise is set to 0.

        Raises:
            ValueError: not separable.
        """
        ...

    def active(self, f_XF: Float[Tensor, "*X F"]) -> Bool[Tensor, "*X F"]:
        """Which features are on: those not 0 where a threshold decides, those above rounding noise elsewhere."""
        ...


def above_noise(f_XF: Float[Tensor, "*X F"]) -> Bool[Tensor, "*X F"]:
    """Which features are larger than ``NOISE`` times the strongest of the same token; signs do not matter."""
    size_XF = f_XF.abs()
    return size_XF > NOISE * size_XF.amax(-1, keepdim=True)


def delta(
    dictionary: Dictionary,
    change_XK: Float[Tensor, "*X K"],
    hidden_XD: Float[Tensor, "*X D"],
    index_K: Int[Tensor, " K"] | None = None,
) -> Float[Tensor, "*X E"]:
    """What changing features changes in the output: scale(h) * (change @ directions[index]); 0 where nothing changes.

    Args:
        dictionary: the dictionary.
        change_XK: f' - f of the chosen features.
        hidden_XD: what f was encoded from.
        index_K: which features; all of them without it.
    """
    rows_KE = dictionary.directions_FD if index_K is None else dictionary.directions_FD[index_K]
    return dictionary.scale(hidden_XD) * (change_XK @ rows_KE)


def check_hidden(dictionary: Dictionary, hidden_XD: Float[Tensor, "*X D"]) -> None:
    """Refuse hidden states of another width.

    Raises:
        ValueError: both widths.
    """
    if hidden_XD.shape[-1] != dictionary.width:
        raise ValueError(
            f"the SAE has width {dictionary.width}, the hidden states here have width {hidden_XD.shape[-1]}; "
            "it was made for another model or site"
        )
