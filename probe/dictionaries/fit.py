"""How well a dictionary fits hidden states."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.axes import HiddenND
from probe.dictionaries.adapters import dictionary
from probe.dictionaries.dictionary import check_hidden

OutputNE = Float[Tensor, "N E"]

# Features are many times wider than the hidden states: encode in pieces.
_PIECE = 4096


def fvu(sae: Any, hidden_ND: HiddenND, output_ND: OutputNE | None = None) -> float:
    """Fraction of variance unexplained: sum |y - decode(encode(h))|^2 / sum |y - mean y|^2, y = h but for transcoders.

    0 is a perfect reconstruction; above 1 the SAE is worse than the constant mean.

    Args:
        sae: a dictionary, or anything ``dictionary`` takes.
        hidden_ND: hidden states it reads.
        output_ND: what it should give, for transcoders: the states at the place where it writes, of the same tokens.

    Raises:
        ValueError: fewer than two activations, other widths than the SAE's, or outputs for other tokens.

    >>> hidden = probe.harvest(s.original, [s.split.retain], [s.sae_site], positions=probe.not_first)[s.sae_site]
    >>> 0 < probe.fvu(s.sae, hidden) < 1
    True
    """
    found = dictionary(sae)
    if len(hidden_ND) < 2:
        raise ValueError(f"the variance of {len(hidden_ND)} activations is not defined; pass at least two")
    check_hidden(found, hidden_ND)
    wanted_ND = hidden_ND if output_ND is None else output_ND
    if wanted_ND.shape != (len(hidden_ND), found.out_width):
        raise ValueError(
            f"the dictionary writes width {found.out_width} at each of {len(hidden_ND)} tokens, got outputs of shape "
            f"{tuple(wanted_ND.shape)}; give a transcoder the states of the same tokens where it writes"
        )
    with torch.no_grad():
        y_ND = wanted_ND.to(found.directions_FD)
        error = 0.0
        for x_ND, part_ND in zip(hidden_ND.split(_PIECE), y_ND.split(_PIECE), strict=True):
            error += (part_ND - found.decode(found.encode(x_ND), x_ND)).square().sum().item()
        return error / (y_ND - y_ND.mean(0)).square().sum().item()


def mean_active(sae: Any, hidden_ND: HiddenND) -> float:
    """Features that are on at a token, in the mean (L0)."""
    found = dictionary(sae)
    with torch.no_grad():
        return sum(found.active(found.encode(x_ND)).sum().item() for x_ND in hidden_ND.split(_PIECE)) / len(hidden_ND)
