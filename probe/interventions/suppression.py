"""Change chosen features of a dictionary and nothing else: the reconstruction error stays where it is.

    h' = h + scale(h) * ((f' - f)_K @ directions_K)

Tokens at which no chosen feature changes keep their bits. Gradients are those of the edited model. Which tokens are
edited is said by ``probe.positions``: ``At(Suppress(...), NotIds(tokenizer.all_special_ids))`` leaves out padding and
special tokens wherever they stand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from probe.axes import HiddenBTD, MaskBT
from probe.dictionaries.adapters import check_features, dictionary
from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.coding import GatedCoding, JumpRelu, Linear, TopKCoding
from probe.dictionaries.dictionary import NOISE, Dictionary, check_hidden, delta
from probe.interventions.operations import Operation
from probe.interventions.targets import FeaturesBTK, Mode, Multiply, OnBTK
from probe.positions import Tokens

IndexK = Int[Tensor, " K"]


@dataclass(frozen=True, eq=False)
class Suppress:
    """Set chosen features to what ``mode`` says, wherever it says so.

    Args:
        dictionary: anything ``probe.dictionaries.adapters.dictionary`` takes, for the site that is edited; calculates
            in its own dtype. Where features are computed apart from one another (ReLU, JumpReLU, gated), only the
            chosen ones are.
        features: ids of the chosen features; none changes no bit.
        mode: one of ``probe.interventions.targets``, or a value that ``probe.interventions.retained`` makes.

    Raises:
        ValueError: an id that is negative, repeated or too large; a mode for another number of features; a training
            object; a transcoder, which writes elsewhere than it reads; hidden states of another width.

    >>> edit = probe.Suppress(s.sae, (3, 5), probe.Multiply(-2.0))
    >>> with probe.edited(s.original, {s.sae_site: edit}):
    ...     suppressed = probe.nll(s.original, s.split.forget)
    >>> tuple(suppressed.shape)
    ()
    """

    dictionary: Any = field(repr=False)
    features: Sequence[int]
    mode: Mode

    def __post_init__(self) -> None:
        found = dictionary(self.dictionary)
        if found.transcodes:
            raise ValueError(
                "this dictionary is a transcoder, which writes to another place than it reads; features can be edited "
                "only where they are read, so use an SAE of that place"
            )
        object.__setattr__(self, "dictionary", found)
        object.__setattr__(self, "features", check_features(found, self.features))
        self.mode.check(len(self.features))

    @property
    def reads_tokens(self) -> bool:
        """Whether the mode asks where tokens stand."""
        return bool(getattr(self.mode, "reads_tokens", False))

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        if self.reads_tokens:
            raise TypeError(f"{type(self.mode).__name__} needs to know where tokens stand; use probe.hooks.edited")
        return self.at(hidden_BTD)

    def following(self) -> Callable[[HiddenBTD, Tokens], HiddenBTD]:
        """What ``probe.hooks.edited`` calls for modes that ask where tokens stand."""
        return self.at

    def at(self, hidden_BTD: HiddenBTD, tokens: Tokens | None = None) -> HiddenBTD:
        """The edited states of the given tokens."""
        check_hidden(self.dictionary, hidden_BTD)
        if not self.features or (isinstance(self.mode, Multiply) and self.mode.factor == 1):
            return hidden_BTD
        f_BTK, on_BTK = chosen_features(self.dictionary, hidden_BTD, self.index_K)
        return self.moved(hidden_BTD, f_BTK, on_BTK, tokens)

    def moved(
        self,
        hidden_BTD: HiddenBTD,
        f_BTK: FeaturesBTK,
        on_BTK: OnBTK,
        tokens: Tokens | None,
        *,
        where_BT: MaskBT | None = None,
    ) -> HiddenBTD:
        """The edited states, the chosen features' activations being known; with ``where_BT``, where it is True."""
        change_BTK = self.mode(f_BTK, on_BTK, tokens) - f_BTK
        # A sum with zero would turn -0 into 0.
        touched_BT = (change_BTK != 0).any(-1).to(hidden_BTD.device)
        if where_BT is not None:
            touched_BT = touched_BT & where_BT.to(hidden_BTD.device)
        moved_BTD = hidden_BTD + delta(self.dictionary, change_BTK, hidden_BTD, self.index_K).to(hidden_BTD)
        return torch.where(touched_BT[..., None], moved_BTD, hidden_BTD)

    @property
    def index_K(self) -> IndexK:
        """The ids where the dictionary lives."""
        return torch.tensor(self.features, dtype=torch.long, device=self.dictionary.directions_FD.device)

    def operation(self) -> Operation:
        """The same edit as data, equal to rounding.

        Raises:
            ValueError: a mode or a dictionary that no operation knows.
        """
        kind, tensors, numbers = _compiled(self.dictionary, self.index_K)
        verb, more, settings = self.mode.written(len(self.features))
        more = {name: tensor.to(tensors["bias"]) for name, tensor in more.items()}
        return Operation(f"{verb}_{kind}", {**tensors, **more}, {**numbers, **settings})


def chosen_features(found: Dictionary, hidden_BTD: HiddenBTD, index_K: IndexK) -> tuple[FeaturesBTK, OnBTK]:
    """Activations of chosen features, and which are on; the others are not computed where that is possible."""
    if found.separable:
        f_BTK = found.columns(hidden_BTD, index_K)
        return f_BTK, f_BTK != 0
    if isinstance(found, Autoencoder) and isinstance(found.encoder, Linear) and found.normaliser == "none":
        return _competing(found, found.encoder, hidden_BTD, index_K)
    f_BTF = found.encode(hidden_BTD)
    return f_BTF[..., index_K], found.active(f_BTF)[..., index_K]


def _competing(
    found: Autoencoder, encoder: Linear, hidden_BTD: HiddenBTD, index_K: IndexK
) -> tuple[FeaturesBTK, OnBTK]:
    """The same for TopK, without ever holding the features that are off."""
    activation = encoder.activation
    assert isinstance(activation, TopKCoding)
    x_ND = (hidden_BTD.to(found.directions_FD) - encoder.shift_D).flatten(0, 1)
    before_NF = torch.addmm(activation.bias_F, x_ND, encoder.encoder_DF)
    top = (before_NF.abs() if activation.signed else before_NF).topk(activation.k, dim=-1, sorted=False)
    among_NK = torch.zeros_like(before_NF, dtype=torch.bool).scatter(-1, top.indices, True)[:, index_K]
    f_NK = before_NF[:, index_K]
    f_NK = torch.where(among_NK, f_NK if activation.signed else f_NK.relu(), 0.0)
    # Rounding noise is as in ``Dictionary.active``: a matter of the token's strongest feature.
    on_NK = f_NK.abs() > NOISE * top.values.amax(-1, keepdim=True).clamp(min=0)
    shape = (*hidden_BTD.shape[:2], len(index_K))
    return f_NK.reshape(shape), on_NK.reshape(shape)


def _compiled(found: Dictionary, index_K: IndexK) -> tuple[str, dict[str, Tensor], dict[str, float | int]]:
    """What an edit needs of a dictionary: slices for ReLU and JumpReLU, the whole encoder for TopK.

    Raises:
        ValueError: a dictionary that normalises its input, or encodes in a way that no operation knows.
    """
    encoder = found.encoder if isinstance(found, Autoencoder) else None
    kind = str(found.metadata.get("architecture", "another class"))
    if (
        not isinstance(found, Autoencoder)
        or not isinstance(encoder, Linear)
        or isinstance(encoder.activation, GatedCoding)
    ):
        raise ValueError(
            f"the SAE ({kind}) cannot be written down as a plan: how it encodes is known there only for ReLU, "
            "JumpReLU and TopK; use the edit without a plan"
        )
    if found.normaliser != "none":
        raise ValueError(
            f"the SAE ({kind}) normalises by {found.normaliser}, which is not part of a plan; use the edit without one"
        )
    activation = encoder.activation
    tensors = {"shift": encoder.shift_D, "decoder": found.directions_FD[index_K]}
    if not isinstance(activation, TopKCoding):
        # JumpReLU applies a ReLU as well, so a negative threshold lets nothing more through.
        zero_F = torch.zeros_like(activation.bias_F)
        threshold_F = activation.threshold_F.clamp(min=0) if isinstance(activation, JumpRelu) else zero_F
        part = {"bias": activation.bias_F[index_K], "threshold": threshold_F[index_K]}
        return "features", {**tensors, **part, "encoder": encoder.encoder_DF[:, index_K]}, {}
    if activation.signed:
        raise ValueError(f"the SAE ({kind}) has features of both signs, which no plan knows; use the edit without one")
    rest = torch.ones_like(activation.bias_F, dtype=torch.bool).index_fill(0, index_K, False).nonzero()[:, 0]
    order = torch.cat([index_K, rest])
    whole = {"encoder": encoder.encoder_DF[:, order], "bias": activation.bias_F[order]}
    return "top_features", {**tensors, **whole}, {"k": activation.k, "noise": NOISE}
