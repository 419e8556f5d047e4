"""What blocks, spans of blocks, or their attention or mlp alone bring about when one model lends them to the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import PerLayerL
from probe.context import check_context
from probe.data import Batch, Split
from probe.diagnostics.span_tree import Loans, Span, measured_spans, replaceable
from probe.display import Result, ResultTable
from probe.metrics.forward import device_of
from probe.metrics.teacher_forced import Metric, loss_and_probability
from probe.modes import evaluating
from probe.replay import check_replay
from probe.rows import Row, span_row
from probe.sites import n_layers
from probe.weights import check_exchangeable

Part = Literal["block", "attention", "mlp"]
Into = Literal["original", "unlearned"]
PerVariantX = Float[Tensor, " X"]
PerSpanLL = Float[Tensor, "L L"]


@dataclass(frozen=True)
class Variant:
    """One model put together from two: ``part`` of blocks ``first`` to ``last`` put ``into`` the model named."""

    first: int
    last: int
    part: Part = "block"
    into: Into = "original"


@dataclass(frozen=True, eq=False)
class ReplacementMap(Result):
    """Metrics of every variant.

    Args:
        depth: L, the number of blocks.
        variants: what was put together, in the order of the arrays.
        values: data -> metric -> one number a variant.
        original, unlearned: data -> metric -> that of either model as it is.
        block_calls: how often a block ran for each batch of rows; a forward a variant would take ``whole_calls``.
    """

    depth: int
    variants: tuple[Variant, ...]
    values: Mapping[str, Mapping[str, PerVariantX]]
    original: Mapping[str, Mapping[str, float]]
    unlearned: Mapping[str, Mapping[str, float]]
    block_calls: int

    @property
    def whole_calls(self) -> int:
        """Blocks that run if every variant and both models take a whole forward."""
        return self.depth * (len(self.variants) + 2)

    def rows(self, name: str = "model") -> list[Row]:
        """Every metric of every variant, and of the two models as they are; see ``span_row``."""
        rows = [
            span_row(name, metric, float(value_X[x]), on, **vars(variant))
            for x, variant in enumerate(self.variants)
            for on, metrics in self.values.items()
            for metric, value_X in metrics.items()
        ]
        ends: tuple[tuple[Into, Mapping[str, Mapping[str, float]]], ...]
        ends = (("original", self.original), ("unlearned", self.unlearned))
        for into, end in ends:
            rows += [span_row(name, m, v, on, into=into) for on, metrics in end.items() for m, v in metrics.items()]
        return rows

    def table(self) -> ResultTable:
        columns: dict[str, list[Any]] = {"part": [], "first": [], "last": [], "into": []}
        wholes = ("original", self.original), ("unlearned", self.unlearned)
        for variant in self.variants:
            for key in columns:
                columns[key].append(getattr(variant, key))
        for end, _ in wholes:
            for key, cell in (("part", "none"), ("first", None), ("last", None), ("into", end)):
                columns[key].append(cell)
        for on, metrics in self.values.items():
            for metric, value_X in metrics.items():
                columns[f"{on} {metric}".strip()] = [*value_X.tolist(), *(end[on][metric] for _, end in wholes)]
        return ResultTable(columns)

    def score_LL(self, on: str, metric: str, *, part: Part = "block", into: Into = "original") -> PerSpanLL:
        """The metric of the span i..j at [i, j]; NaN where it was not measured, below the diagonal always."""
        value_X = self._chosen(on, metric)
        score_LL = torch.full((self.depth, self.depth), float("nan"), dtype=torch.float64)
        for x, variant in enumerate(self.variants):
            if (variant.part, variant.into) == (part, into):
                score_LL[variant.first, variant.last] = value_X[x]
        return score_LL

    def score_L(self, on: str, metric: str, *, part: Part = "block", into: Into = "original") -> PerLayerL:
        """The metric of single layers; NaN where it was not measured."""
        return self.score_LL(on, metric, part=part, into=into).diagonal().clone()

    def _chosen(self, on: str, metric: str) -> PerVariantX:
        names = [(d, m) for d, metrics in self.values.items() for m in metrics]
        if (on, metric) not in names:
            raise ValueError(f"no metric {metric!r} on {on!r} here; there are {', '.join(map(str, names))}")
        return self.values[on][metric]


def single_layers(depth: int) -> tuple[Span, ...]:
    """Every block alone.

    >>> probe.single_layers(3)
    ((0, 0), (1, 1), (2, 2))
    """
    return tuple((layer, layer) for layer in range(depth))


def every_span(depth: int) -> tuple[Span, ...]:
    """Every contiguous span i..j, L(L+1)/2 of them.

    >>> probe.every_span(3)
    ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    """
    return tuple((first, last) for first in range(depth) for last in range(first, depth))


def from_embeddings(depth: int) -> tuple[Span, ...]:
    """Spans that grow from the first block up: 0..0, 0..1, ..."""
    return tuple((0, last) for last in range(depth))


def from_head(depth: int) -> tuple[Span, ...]:
    """Spans that grow from the last block down: L-1..L-1, L-2..L-1, ..."""
    return tuple((first, depth - 1) for first in reversed(range(depth)))


def replacement_map(
    original: nn.Module,
    unlearned: nn.Module,
    on: Split | Batch | Mapping[str, Batch],
    metric: Metric = loss_and_probability,
    *,
    spans: Sequence[Span] | None = None,
    parts: Sequence[Part] = ("block",),
    into: Sequence[Into] = ("original",),
    moments: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> ReplacementMap:
    """metric(theta_o with part p of blocks i..j of theta_u), or the other way round, for many (i, j, p) at once.

    What ``layer_map`` and ``blended`` give, for metrics of one teacher-forced pass, in fewer passes: hidden states
    below block i are those of the unchanged model, those of i..j serve i..j+1 too, and only target positions meet
    the head. Single blocks take L(L+1)/2 block runs, all spans about L^3/6, in place of L^2 and L^3/2; blocks with
    the same bits in both models take none. Weights are exchanged by reference. Kept at once: one hidden state a
    block and token of ``batch_size`` rows, for each model.

    Embeddings, final norm and head stay those of the model named in ``into``, and so do open edits.

    Args:
        original, unlearned: of the same architecture; bit-identical afterwards.
        on: rows with targets; several sets by name, a split's are "forget" and "retain", one alone is called "".
        metric: from the numbers of every target token to named numbers, ``TeacherForced`` for example.
        spans: (first, last) block, both included; None is ``single_layers``.
        parts: ``"block"`` (with its norms), ``"attention"`` or ``"mlp"`` alone.
        into: which model the parts are put into.
        moments: whether tokens carry mean and variance over the vocabulary, for Min-K%++.
        batch_size: rows per pass.
        progress: show a progress bar.

    Raises:
        ValueError: identical blocks, another architecture, quantised or offloaded weights, spans outside the model, a
            part that the family does not have, nothing asked for, or rows without targets or longer than the context.
        CannotReplay: a model that is more than blocks one after another; the message names what to use.

    >>> few = s.split.forget.select(range(4))
    >>> found = probe.replacement_map(s.original, s.retrained, few, spans=probe.single_layers(8))
    >>> found.score_L("", "probability").shape
    torch.Size([8])
    """
    check_exchangeable(original, unlearned)
    depth = n_layers(original)
    wanted = single_layers(depth) if spans is None else tuple(dict.fromkeys(spans))
    if isinstance(on, Split):
        on = {"forget": on.forget, "retain": on.retain}
    named = {"": on} if isinstance(on, Batch) else dict(on)
    _check_asked(wanted, parts, into, depth, batch_size)
    _check_rows(original, named)
    models = {"original": original, "unlearned": unlearned}
    lent = {(name, part): _lent(models, name, part) for name in dict.fromkeys(into) for part in dict.fromkeys(parts)}
    variants = tuple(Variant(i, j, part, name) for name, part in lent for i, j in wanted)
    values: dict[str, dict[str, PerVariantX]] = {}
    ends: dict[str, dict[str, dict[str, float]]] = {"original": {}, "unlearned": {}}
    with evaluating(original), evaluating(unlearned), torch.no_grad():
        some = next(iter(named.values()))
        for name in dict.fromkeys(into):
            layer = min(i for (into_, _), loan in lent.items() if into_ == name for i, one in enumerate(loan) if one)
            check_replay(models[name], models[_other(name)], some.to(device_of(models[name])), layer=layer)
        for data, batch in named.items():
            found, calls = measured_spans(models, batch, lent, wanted, moments, batch_size, progress)
            scores = {key: dict(metric(tokens)) for key, tokens in found.items()}
            values[data] = {
                name: torch.tensor(
                    [float(scores[(v.into, v.part, (v.first, v.last))][name]) for v in variants], dtype=torch.float64
                )
                for name in scores["original"]
            }
            for end, kept in ends.items():
                kept[data] = scores[end]
    return ReplacementMap(depth, variants, values, ends["original"], ends["unlearned"], calls)


def _other(name: Into) -> Into:
    return "unlearned" if name == "original" else "original"


def _lent(models: Mapping[str, nn.Module], name: Into, part: Part) -> Loans:
    lent = replaceable(models[name], models[_other(name)], part)
    if all(loan is None for loan in lent):
        raise ValueError(
            f"original and unlearned model have identical {part} weights in every layer, bit for bit; check that the "
            "paths differ and that the second was saved after training"
        )
    return lent


def check_spans(spans: Sequence[Span], depth: int) -> None:
    """Refuse spans that are not in a model of ``depth`` blocks.

    Raises:
        ValueError: none, a layer outside 0..depth-1, or a span that ends before it begins.
    """
    if not spans:
        raise ValueError("no spans were given; pass (first, last) pairs of blocks, or None for every block alone")
    for first, last in spans:
        for layer in (first, last):
            if not 0 <= layer < depth:
                raise ValueError(f"layer {layer} does not exist; the model has layers 0..{depth - 1}")
        if first > last:
            raise ValueError(f"the span ({first}, {last}) ends before it begins; write ({last}, {first})")


def _check_asked(spans: Sequence[Span], parts: Sequence[str], into: Sequence[str], depth: int, batch_size: int) -> None:
    check_spans(spans, depth)
    for name, given, known in (("parts", parts, get_args(Part)), ("into", into, get_args(Into))):
        if isinstance(given, str) or not given or not set(given) <= set(known):
            raise ValueError(f"{name} must be one or more of {', '.join(known)} in a tuple, got {given!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def _check_rows(model: nn.Module, named: Mapping[str, Batch]) -> None:
    if not named:
        raise ValueError("no rows to measure on (an empty mapping); pass a batch, or batches by name")
    for name, batch in named.items():
        empty = (~batch.target_BT[:, 1:].any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(batch)} rows of {name or 'the batch'} have no target token "
                f"(first: row {empty[0]}); drop them"
            )
        check_context(model, int(batch.attention_BT.sum(1).max()))
