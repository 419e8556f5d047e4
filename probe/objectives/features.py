"""Objectives on the features of a dictionary: silence chosen ones, hold hidden states, keep an update in a subspace."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import MaskBT, Scalar
from probe.data import Batch
from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.coding import GatedCoding, Linear
from probe.dictionaries.dictionary import Dictionary
from probe.objectives.representation import TokenChoice, states_at
from probe.sites import Site


def context_tokens(batch: Batch) -> MaskBT:
    """Real tokens but the first of each row, whose hidden state is unlike any other: CRISP masks it and padding."""
    return batch.attention_BT & (batch.attention_BT.cumsum(1) > 1)


@dataclass(frozen=True, eq=False)
class WatchedFeatures:
    """Chosen features of a dictionary, and where it reads.

    Args:
        site: the place it was trained on.
        dictionary: computes in its own dtype; gradients pass through it.
        features: ids, at least one.

    Raises:
        ValueError: no features, or one outside the dictionary.
    """

    site: Site
    dictionary: Dictionary = field(repr=False)
    features: tuple[int, ...]

    def __post_init__(self) -> None:
        outside = [j for j in self.features if not 0 <= j < self.dictionary.n_features]
        if outside or not self.features:
            raise ValueError(
                f"expected ids of features in 0..{self.dictionary.n_features - 1} at {self.site}, at least one; got "
                f"{outside or 'none'}"
            )

    @property
    def index_K(self) -> Tensor:
        """The ids, on the dictionary's device."""
        return torch.tensor(self.features, device=self.dictionary.directions_FD.device)


@dataclass(frozen=True, eq=False)
class FeatureActivity:
    """L = mean over sites and tokens of [mean over chosen j of f_j + spread * mean over all j of f_j].

    The unlearning term of CRISP as its paper states it (Ashuach et al., arXiv 2508.13650), with lambda = ``spread``:
    the mean over all features is there to keep what was silenced from coming back in others. A feature that is off has
    no gradient; ``LiftedActivity`` gives it one.

    Args:
        watched: the chosen features of each site.
        spread: lambda; published 30 (biology) and 20 (cyber).
        tokens: which positions are averaged over.

    Raises:
        ValueError: no sites, or a negative spread.

    >>> from probe.objectives import WatchedFeatures
    >>> watched = WatchedFeatures(s.sae_site, s.sae, (3, 5))
    >>> bool(probe.FeatureActivity((watched,), spread=0.1)(s.original, s.split.forget) >= 0)
    True
    """

    watched: tuple[WatchedFeatures, ...]
    spread: float
    tokens: TokenChoice = context_tokens

    def __post_init__(self) -> None:
        _check_watched(self.watched)
        if not 0 <= self.spread < float("inf"):
            raise ValueError(f"spread must be a number of at least 0, got {self.spread}")

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        states, mask_BT = states_at(model, batch, tuple(w.site for w in self.watched)), self.tokens(batch)
        values = []
        for w in self.watched:
            hidden_ND = states[w.site][mask_BT]
            if self.spread == 0 and w.dictionary.separable:
                values.append(w.dictionary.columns(hidden_ND, w.index_K).mean())
                continue
            f_NF = w.dictionary.encode(hidden_ND)
            values.append(f_NF[:, w.index_K].mean() + self.spread * f_NF.mean())
        return torch.stack(values).mean()


@dataclass(frozen=True, eq=False)
class LiftedActivity:
    """L = mean over sites of the mean of those lifted activations of chosen features that are above 0.

    The unlearning term of CRISP as read in its code (github.com/tomerashuach/CRISP, commit f25b8df): before the
    activation function, lift * |mean over all features of their pre-activations| is added to each chosen feature
    wherever the frozen model has it on, so that one just below its threshold still has a gradient. A site at which none
    is above 0 counts as 0. That code reads hidden states one block before the one its SAEs were trained on; here the
    site decides.

    Args:
        watched: the chosen features of each site; dictionaries with a linear encoder that normalise nothing.
        original: the model before unlearning.
        lift: alpha; published 5.
        tokens: which positions count.

    Raises:
        ValueError: no sites, a negative lift, or a dictionary whose pre-activations are not defined.

    >>> from probe.objectives import WatchedFeatures
    >>> watched = WatchedFeatures(s.sae_site, s.sae, (3, 5))
    >>> tuple(probe.LiftedActivity((watched,), s.original, lift=1.0)(s.original, s.split.forget).shape)
    ()
    """

    watched: tuple[WatchedFeatures, ...]
    original: nn.Module = field(repr=False)
    lift: float
    tokens: TokenChoice = context_tokens

    def __post_init__(self) -> None:
        _check_watched(self.watched)
        if not 0 <= self.lift < float("inf"):
            raise ValueError(f"lift must be a number of at least 0, got {self.lift}")
        for w in self.watched:
            _linear(w.dictionary)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        sites, mask_BT = tuple(w.site for w in self.watched), self.tokens(batch)
        with torch.no_grad():
            before = states_at(self.original, batch, sites)
        after = states_at(model, batch, sites)
        values = []
        for w in self.watched:
            with torch.no_grad():
                on_NK = w.dictionary.active(w.dictionary.encode(before[w.site][mask_BT]))[:, w.index_K]
            f_NK = self._lifted(w, after[w.site][mask_BT], on_NK)
            above_NK = f_NK > 0
            values.append((f_NK * above_NK).sum() / above_NK.sum().clamp(min=1))
        return torch.stack(values).mean()

    def _lifted(self, w: WatchedFeatures, hidden_ND: Float[Tensor, "N D"], on_NK: Tensor) -> Float[Tensor, "N K"]:
        encoder = _linear(w.dictionary)
        raw_NF = (hidden_ND.to(encoder.encoder_DF) - encoder.shift_D) @ encoder.encoder_DF
        # The bias of every architecture admitted here is added to raw, so lifting raw lifts the pre-activation.
        lift_N1 = (self.lift * (raw_NF + encoder.activation.bias_F).mean(-1, keepdim=True)).abs()
        raised_NF = raw_NF.index_add(1, w.index_K, on_NK * lift_N1)
        return encoder.activation(raised_NF)[:, w.index_K]


@dataclass(frozen=True, eq=False)
class StatesHeld:
    """L = mean over sites and tokens of |h - h0|^2, or of that divided by the width.

    CRISP's retain and coherence terms (arXiv 2508.13650): its paper has the squared length (``over="vectors"``), its
    code the mean over entries (``over="entries"``), smaller by the width.

    Args:
        original: the model before unlearning.
        sites: where both hidden states are read; every site counts alike.
        over: what is averaged.
        tokens: which positions are averaged over.

    Raises:
        ValueError: no sites.

    >>> loss = probe.StatesHeld(s.original, (probe.Site(3),), over="entries")
    >>> float(loss(s.original, s.split.retain)), bool(loss(s.retrained, s.split.retain) > 0)
    (0.0, True)
    """

    original: nn.Module = field(repr=False)
    sites: tuple[Site, ...]
    over: Literal["vectors", "entries"]
    tokens: TokenChoice = context_tokens

    def __post_init__(self) -> None:
        if not self.sites:
            raise ValueError("no sites given; name at least one, such as Site(10)")

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        mask_BT = self.tokens(batch)
        with torch.no_grad():
            before = states_at(self.original, batch, self.sites)
        after = states_at(model, batch, self.sites)
        values = [(after[s] - before[s]).square()[mask_BT] for s in self.sites]
        reduced = [v_ND.mean() if self.over == "entries" else v_ND.sum(-1).mean() for v_ND in values]
        return torch.stack(reduced).mean()


@dataclass(frozen=True, eq=False)
class UpdateOutside:
    """L = sum over weights of |(I - U U^T) (W - W0)|_F^2: an update pays for what it writes outside U.

    The regulariser of SSPU (Wang et al., arXiv 2505.24428), U the span of decoder rows of the features to be forgotten.
    Of the batch nothing is used.

    Args:
        before: W0 by parameter name.
        axes: the axis of each weight along which it writes to the residual stream: 0 for ``nn.Linear``, 1 for GPT-2's
            ``Conv1D``.
        basis_DR: U, with orthonormal columns.

    Raises:
        ValueError: no weights, a weight without an axis or of another width, or columns that are not orthonormal.

    >>> weight = "model.layers.3.mlp.down_proj.weight"
    >>> before = {weight: s.original.state_dict()[weight].clone()}
    >>> loss = probe.UpdateOutside(before, {weight: 0}, torch.eye(128)[:, :8])
    >>> float(loss(s.original, s.split.retain))
    0.0
    """

    before: Mapping[str, Tensor] = field(repr=False)
    axes: Mapping[str, int] = field(repr=False)
    basis_DR: Float[Tensor, "D R"] = field(repr=False)

    def __post_init__(self) -> None:
        width, rank = self.basis_DR.shape
        if not self.before or set(self.before) != set(self.axes):
            raise ValueError(f"expected an axis for each of at least one weight, got {len(self.axes)}")
        for name, weight in self.before.items():
            if weight.shape[self.axes[name]] != width:
                raise ValueError(f"{name} writes {weight.shape[self.axes[name]]} numbers, the basis has {width}")
        gram_RR = self.basis_DR.T @ self.basis_DR
        if (gram_RR - torch.eye(rank).to(gram_RR)).abs().max() > 1e-4:
            raise ValueError("the basis is not orthonormal; take the Q of a QR decomposition")

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        now = dict(model.named_parameters())
        total = torch.zeros((), dtype=self.basis_DR.dtype, device=self.basis_DR.device)
        for name, weight in self.before.items():
            change = (now[name] - weight).movedim(self.axes[name], 0)
            change_DM = change.reshape(len(change), -1)
            basis_DR = self.basis_DR.to(change_DM)
            total = total + (change_DM - basis_DR @ (basis_DR.T @ change_DM)).square().sum()
        return total


def _check_watched(watched: tuple[WatchedFeatures, ...]) -> None:
    if not watched or len({w.site for w in watched}) < len(watched):
        raise ValueError(f"expected features at one or more different sites, got {[w.site for w in watched]}")


def _linear(dictionary: Dictionary) -> Linear:
    """The encoder that pre-activations come from.

    Raises:
        ValueError: it has none, two biases, or its input is normalised.
    """
    if (
        not isinstance(dictionary, Autoencoder)
        or not isinstance(dictionary.encoder, Linear)
        or isinstance(dictionary.encoder.activation, GatedCoding)
        or dictionary.normaliser != "none"
    ):
        raise ValueError(
            "the loss of CRISP's code needs pre-activations: a ReLU, JumpReLU or TopK dictionary whose input is not "
            "normalised; use the loss of its paper (FeatureActivity)"
        )
    return dictionary.encoder
