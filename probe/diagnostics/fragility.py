"""Which single block of the unlearned model does the unlearning, and which one the damage?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from probe.axes import PerLayerL
from probe.checkpoints import check_different
from probe.data import Batch, Split
from probe.display import Result, ResultTable
from probe.metrics.memorisation import answer_stats
from probe.modes import evaluating
from probe.rows import Row, over_layers
from probe.sites import n_layers
from probe.weights import blended, one_layer

Score = Callable[[nn.Module], float | dict[str, float]]


@dataclass(frozen=True, eq=False)
class LayerMap(Result):
    """What one block alone brings about.

    Args:
        layers: block indices, in the order of the arrays.
        score_L: the score with that one block of the unlearned model in the original; a dictionary of arrays if
            the score is a dictionary.
        original, unlearned: the score of either model as it is.
        quantity: what the score is.
    """

    layers: tuple[int, ...]
    score_L: PerLayerL | dict[str, PerLayerL]
    original: float | dict[str, float]
    unlearned: float | dict[str, float]
    quantity: str = "score"

    def rows(self, name: str = "model") -> list[Row]:
        """Both models as they are and every layer alone; ``on`` is the side where scores have one."""
        maps, first, last = self._by_name()
        rows = []
        for on, score_L in maps.items():
            rows.append(Row("original", "fragility", self.quantity, first[on], on))
            rows.append(Row(name, "fragility", self.quantity, last[on], on))
            rows += over_layers(name, "fragility", self.quantity, self.layers, score_L, on)
        return rows

    def _by_name(self) -> tuple[dict[str, PerLayerL], dict[str, float], dict[str, float]]:
        scores, ends = self.score_L, (self.original, self.unlearned)
        first, last = (end if isinstance(end, dict) else {"": end} for end in ends)
        return scores if isinstance(scores, dict) else {"": scores}, first, last

    def table(self) -> ResultTable:
        maps, first, last = self._by_name()
        where = ["original", *self.layers, "unlearned"]
        columns = {name or self.quantity: [first[name], *score_L, last[name]] for name, score_L in maps.items()}
        return ResultTable({"unlearned block": where, **columns})


def layer_map(
    original: nn.Module,
    unlearned: nn.Module,
    on: Split | Batch | None = None,
    *,
    score: Score | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> LayerMap:
    """score(theta_o with block l of theta_u) for each l: the sweep behind CRU's layer choice.

    Costs one call of ``score`` per layer and two more, plus a copy of one block each; no model is copied.

    Args:
        original: changed in place during the sweep, bit-identical afterwards.
        unlearned: never changed.
        on: a split or a batch of answers; read by the default score alone.
        score: any function of a model, for example forget quality and utility on a validation subset; higher need
            not be better. None is the mean probability of the answers (exp of the mean log-probability of an answer's
            tokens), by side where ``on`` is a split.
        layers: blocks to try; None tries all.
        batch_size: rows per pass of the default score.
        progress: show a progress bar.

    Raises:
        ValueError: neither rows nor a score are given, the models are identical or of different architecture, a layer
            lies outside the model, or the score's names change from call to call.

    >>> found = probe.layer_map(s.original, s.retrained, s.split, layers=[0, 7])
    >>> found.layers, sorted(found.score_L)
    ((0, 7), ['forget', 'retain'])
    """
    quantity = "probability" if score is None else "score"
    score = _probability(on, batch_size) if score is None else score
    depth = n_layers(original)
    chosen = tuple(range(depth)) if layers is None else tuple(layers)
    alphas = [one_layer(layer, depth) for layer in chosen]  # refuses a wrong layer before anything is measured
    check_different(original, unlearned, ("original", "unlearned"))
    with evaluating(original), evaluating(unlearned):
        ends = score(original), score(unlearned)
        found = []
        for alpha_L in tqdm(alphas, desc="layers", disable=not progress, leave=False):
            with blended(original, unlearned, alpha_L):
                found.append(score(original))
    return LayerMap(chosen, _stacked([*found, *ends], len(found)), *ends, quantity)


def _probability(on: Split | Batch | None, batch_size: int) -> Score:
    """Mean probability of the answers, by side where there are two."""
    if on is None:
        raise ValueError("there is nothing to score models by; pass a split or a batch of answers, or score=")
    if isinstance(on, Batch):
        return lambda model: float(answer_stats(model, on, batch_size).probability_N.mean())
    sides = {"forget": on.forget, "retain": on.retain}
    return lambda model: {
        name: float(answer_stats(model, side, batch_size).probability_N.mean()) for name, side in sides.items()
    }


def _stacked(values: list[float | dict[str, float]], n: int) -> PerLayerL | dict[str, PerLayerL]:
    """The first ``n`` values as arrays; all must have the same names."""
    names = {tuple(sorted(value)) if isinstance(value, dict) else None for value in values}
    if len(names) != 1:
        raise ValueError(f"the score must return the same names for every model, got {sorted(map(str, names))}")
    numbers = [value if isinstance(value, dict) else {"": value} for value in values[:n]]
    arrays = {name: torch.tensor([float(v[name]) for v in numbers], dtype=torch.float64) for name in numbers[0]}
    return arrays if isinstance(values[0], dict) else arrays[""]
