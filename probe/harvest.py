"""Activations of whole corpora: any sites, any positions, one pass; as they are, or as mean and covariance.

The forward passes end at the last site asked for, and what is kept grows with the tokens chosen and with nothing else.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from probe.axes import DirectionD, HiddenND
from probe.context import check_rows
from probe.data import Batch
from probe.hooks import captured
from probe.modes import evaluating
from probe.positions import Counter, Positions, everywhere
from probe.sites import Site


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and scatter of N vectors, which add up over chunks (Chan, Golub and LeVeque, 1983).

    Args:
        mean_D: mean, float64.
        scatter_DD: sum of (h - mean)(h - mean)^T, float64.
        count: N.
    """

    mean_D: DirectionD = field(repr=False)
    scatter_DD: Float[Tensor, "D D"] = field(repr=False)
    count: int

    @staticmethod
    def of(hidden_ND: HiddenND) -> "Moments":
        """The moments of one chunk.

        Raises:
            ValueError: no vectors, or NaN or infinity.
        """
        if len(hidden_ND) == 0:
            raise ValueError("no activations, so they have no mean")
        wide_ND = hidden_ND.detach().double()
        mean_D = wide_ND.mean(0)
        if not bool(torch.isfinite(mean_D).all()):
            raise ValueError("the activations hold NaN or infinity; check the model and the site")
        centred_ND = wide_ND - mean_D
        return Moments(mean_D, centred_ND.T @ centred_ND, len(hidden_ND))

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both sets of vectors together, as if they had been seen at once.

        Raises:
            ValueError: another width.
        """
        if len(self.mean_D) != len(other.mean_D):
            raise ValueError(f"moments of width {len(self.mean_D)} and {len(other.mean_D)} cannot be merged")
        count = self.count + other.count
        apart_D = other.mean_D - self.mean_D
        between_DD = torch.outer(apart_D, apart_D) * (self.count * other.count / count)
        return Moments(
            self.mean_D + apart_D * (other.count / count), self.scatter_DD + other.scatter_DD + between_DD, count
        )

    @property
    def covariance_DD(self) -> Float[Tensor, "D D"]:
        """scatter / (N - 1), the unbiased estimate, as ``numpy.cov`` gives it.

        Raises:
            ValueError: a single vector.
        """
        if self.count < 2:
            raise ValueError("one vector has no covariance; harvest at least two tokens")
        return self.scatter_DD / (self.count - 1)


def visit(
    model: nn.Module,
    batches: Iterable[Batch],
    sites: Sequence[Site],
    take: Callable[[Batch, dict[Site, Tensor]], None],
    *,
    positions: Positions | None = None,
    progress: bool = False,
) -> None:
    """Run every batch as far as the last site and hand ``take`` the batch and the states there.

    The states are made without a graph but not in inference mode, so they may take part in one later.

    Args:
        model: any Hugging Face decoder; measured in eval mode and left as it was.
        batches: what it is shown; moved to its device.
        sites: where to read.
        take: gets states (batch, position, width), or (token, width) with ``positions``.
        positions: which tokens; None keeps all, padding included.
        progress: show a bar.

    Raises:
        ValueError: no site, or one outside the model.
    """
    if not sites:
        raise ValueError("no site is given; name at least one, Site(0) say")
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        for batch in tqdm(batches, desc="activations", unit="batch", disable=not progress, leave=False):
            check_rows(model, batch)
            there = batch.to(device)
            with captured(model, sites, positions=positions, stop=True) as states:
                model(**there.inputs, use_cache=False)
            take(there, states)


def count_rows(batches: Iterable[Batch], positions: Positions = everywhere) -> int:
    """How many tokens ``positions`` chooses, found without the model: the rows of each site's activations.

    >>> probe.count_rows([s.split.forget], probe.Only((0,)))
    20
    """
    n_rows = 0
    for batch in batches:
        counter = Counter()
        counter.see(batch.inputs)
        assert counter.tokens is not None
        n_rows += int(positions(counter.tokens).sum())
    return n_rows


def harvest(
    model: nn.Module,
    batches: Iterable[Batch],
    sites: Sequence[Site],
    *,
    positions: Positions = everywhere,
    into: Mapping[Site, Tensor] | None = None,
    progress: bool = False,
) -> dict[Site, HiddenND]:
    """Hidden states of the chosen tokens of every row, in order, in memory.

    Args:
        model: any Hugging Face decoder.
        batches: the corpus (``Batch.chunks`` cuts one); held as a list, for its tokens are counted first.
        sites: where to read.
        positions: which tokens.
        into: a buffer (rows, width) for each site, on any device and of any float dtype; None makes them on the CPU
            in the model's dtype.
        progress: show a bar.

    Returns:
        the buffers, filled: site -> (token, width).

    Raises:
        ValueError: no token is chosen, buffers that do not fit exactly, NaN or infinity, or states beyond the range
            of a buffer's dtype.

    >>> hidden = probe.harvest(s.original, [s.split.forget], [probe.Site(4)])
    >>> hidden[probe.Site(4)].shape[1]
    128
    """
    listed = list(batches)
    n_rows = count_rows(listed, positions)
    if n_rows == 0:
        raise ValueError(f"no token of the {len(listed)} batches is chosen; check the batches and the positions")
    buffers = dict(into or {})
    if into is not None and set(into) != set(sites):
        raise ValueError(f"buffers are given for {sorted(map(str, into))}, the sites are {sorted(map(str, sites))}")
    for site, buffer in buffers.items():
        if buffer.ndim != 2 or len(buffer) != n_rows:
            raise ValueError(f"{site} needs a buffer of {n_rows} rows, got one of shape {tuple(buffer.shape)}")
    filled = 0

    def take(batch: Batch, states: dict[Site, Tensor]) -> None:
        nonlocal filled
        for site in sites:
            hidden_ND = states[site]
            if site not in buffers:
                buffers[site] = torch.empty(n_rows, hidden_ND.shape[1], dtype=hidden_ND.dtype)
            if buffers[site].shape[1] != hidden_ND.shape[1]:
                raise ValueError(
                    f"{site} needs a buffer of width {hidden_ND.shape[1]}, got one of shape "
                    f"{tuple(buffers[site].shape)}"
                )
            end = filled + len(hidden_ND)
            buffers[site][filled:end].copy_(narrowed(hidden_ND, buffers[site].dtype, site))
        filled += len(states[sites[0]])

    visit(model, listed, sites, take, positions=positions, progress=progress)
    return {site: buffers[site] for site in sites}


def moments(
    model: nn.Module,
    batches: Iterable[Batch],
    sites: Sequence[Site],
    *,
    positions: Positions = everywhere,
    progress: bool = False,
) -> dict[Site, Moments]:
    """Mean and covariance of the chosen tokens at every site, in one pass; activations are dropped batch by batch.

    Each site holds one (width, width) matrix in float64, and merging needs two more for a moment.

    Args:
        model: any Hugging Face decoder.
        batches: the corpus, which may be a generator.
        sites: where to read.
        positions: which tokens.
        progress: show a bar.

    Raises:
        ValueError: no token is chosen, or NaN or infinity.

    >>> found = probe.moments(s.original, [s.split.retain], [probe.Site(4)])[probe.Site(4)]
    >>> tuple(found.mean_D.shape)
    (128,)
    """
    found: dict[Site, Moments] = {}

    def take(batch: Batch, states: dict[Site, Tensor]) -> None:
        for site in sites:
            if len(states[site]):
                new = Moments.of(narrowed(states[site], states[site].dtype, site))
                found[site] = found[site].merged(new) if site in found else new

    visit(model, batches, sites, take, positions=positions, progress=progress)
    if not found:
        raise ValueError("no token is chosen; check the batches and the positions")
    return found


def narrowed(hidden_ND: HiddenND, dtype: torch.dtype, site: Site) -> HiddenND:
    """The states in the dtype they are kept in.

    Raises:
        ValueError: NaN or infinity, or states that the dtype cannot hold.
    """
    kept_ND = hidden_ND.to(dtype)
    if bool(torch.isfinite(kept_ND).all()):
        return kept_ND
    broken = int((~torch.isfinite(hidden_ND)).any(1).sum())
    if broken:
        raise ValueError(f"{site}: the states of {broken} of {len(hidden_ND)} tokens hold NaN or infinity")
    name, largest = str(dtype).removeprefix("torch."), hidden_ND.abs().max().item()
    raise ValueError(f"{site}: states reach {largest:.3g}, beyond {name}; keep them in a wider dtype")
