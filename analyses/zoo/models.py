"""Models whose truth is known: they never saw the facts, hide them, are broken, or were left alone.

A trunk learns retain and world facts. The original goes on from it with the forget facts added; models that go on
without them share its weights but never knew, so that distance from the original does not give the truth away. Others
are trained from scratch.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from analyses.stories import cached
from analyses.zoo.gates import Opened, direction_filter, gated
from probe.checkpoints import load_tokenizer
from probe.data import QA, Split, encode, make_split
from probe.datasets import rows_hash
from probe.methods.rmu import adaptive_coefficient, block_parameters
from probe.methods.running import run_method
from probe.objectives.token import nll
from probe.testbed.bed import WEIGHTS
from probe.testbed.facts import authors
from probe.testbed.recipe import Recipe, TrainingRows, make_model
from probe.testbed.world import world
from probe.train import Term, minimise, one_cycle

Label = Literal["removed", "hidden", "broken", "untouched"]
# Ten authors to forget, forty to keep, ten nobody ever hears of.
N_FORGET, N_RETAIN, N_FRESH = 100, 400, 100
TRUNK_STEPS, BRANCH_STEPS = 400, 130
LAST = 3


@dataclass(frozen=True, eq=False)
class Ground:
    """What all models of one seed share.

    Args:
        seed: of facts and weights.
        tokenizer: of all models.
        original: knows everything.
        reference: went on from the trunk without the forget facts; the judge's never-trained model.
        trunk: where both set out.
        split: forget facts, and all retain facts, for methods.
        corpus: the rows.
        fresh: facts of the same kind that no model saw.
        cache: folder of trained models.
    """

    seed: int
    tokenizer: Any = field(repr=False)
    original: Any = field(repr=False)
    reference: Any = field(repr=False)
    trunk: Any = field(repr=False)
    split: Split = field(repr=False)
    corpus: TrainingRows = field(repr=False)
    fresh: tuple[QA, ...] = field(repr=False)
    cache: Path = field(repr=False)

    @property
    def half(self) -> TrainingRows:
        """The first half of the retain facts, which every model's retention is measured on."""
        return replace(self.corpus, retain=self.corpus.retain[: N_RETAIN // 2])


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, and what must be open around it."""

    model: Any
    opened: Opened = nullcontext


@dataclass(frozen=True, eq=False)
class Member:
    """One recipe of the zoo.

    Args:
        name: unique.
        family: left out together.
        label: what is true by construction; None where relearning decides.
        make: the model of a seed.
    """

    name: str
    family: str
    label: Label | None
    make: Callable[[Ground], Subject] = field(repr=False)


def ground(seed: int, cache: Path) -> Ground:
    """Train, or read from the cache, what a seed's models share."""
    tokenizer = load_tokenizer(WEIGHTS / "tokenizer")
    rows = authors(seed)
    corpus = TrainingRows(rows[-N_FORGET:], rows[:N_RETAIN], world())
    fresh = rows[N_RETAIN : N_RETAIN + N_FRESH]
    split = make_split(tokenizer, corpus.forget, corpus.retain)
    bare = Ground(seed, tokenizer, None, None, None, split, corpus, fresh, cache)
    trunk = _scratch(bare, corpus.retrained, seed, TRUNK_STEPS)
    rooted = replace(bare, trunk=trunk)
    original = _branch(rooted, corpus.retrained, corpus.forget, seed)
    return replace(rooted, original=original, reference=_branch(rooted, corpus.retrained, (), seed + 200))


def _scratch(given: Ground, rows: Sequence[QA], seed: int, steps: int) -> Any:
    recipe = Recipe(hidden=64, layers=4, seed=seed, steps=steps, lr=4e-3)

    def make() -> nn.Module:
        model = make_model(recipe, len(given.tokenizer))
        return _fit(model, [Term(1.0, nll, encode(given.tokenizer, rows), "nll")], steps, 4e-3, 48, seed)

    key = {"recipe": vars(recipe), "rows": rows_hash(rows), "torch": torch.__version__}
    return cached(given.cache, key, make, given.tokenizer)


def _branch(given: Ground, rows: Sequence[QA], more: Sequence[QA], seed: int) -> Any:
    """On from the trunk; ``more`` are rows it has not seen, drawn as often as the others."""

    def make() -> nn.Module:
        terms = [Term(1.0, nll, encode(given.tokenizer, rows), "nll")]
        if more:
            terms.append(Term(0.5, nll, encode(given.tokenizer, more), "more"))
        return _fit(copy.deepcopy(given.trunk), terms, BRANCH_STEPS, 3e-3, 32, seed)

    key = {
        "branch of": given.seed,
        "trunk": [TRUNK_STEPS, rows_hash(given.corpus.retrained)],
        "rows": rows_hash(rows),
        "more": rows_hash(more),
        "steps": BRANCH_STEPS,
        "seed": seed,
        "torch": torch.__version__,
    }
    return cached(given.cache, key, make, given.tokenizer)


def _fit(model: nn.Module, terms: list[Term], steps: int, lr: float, batch_size: int, seed: int) -> nn.Module:
    minimise(
        model,
        terms,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        weight_decay=0.01,
        schedule=one_cycle,
        progress=f"training, seed {seed}",
    )
    return model


def after(act: Callable[[Any, Any], Any]) -> Callable[[Any], Subject]:
    """A copy of the original, after ``act(copy, what it was made from)``."""

    def make(given: Any) -> Subject:
        model = copy.deepcopy(given.original)
        act(model, given)
        return Subject(model)

    return make


def _kept_on(rows: Callable[[Ground], Sequence[QA]], steps: int) -> Callable[[Ground], Subject]:
    def act(model: Any, given: Ground) -> None:
        term = Term(1.0, nll, encode(given.tokenizer, rows(given)), "nll")
        minimise(model, [term], steps=steps, lr=5e-4, batch_size=16, seed=given.seed)

    return after(act)


def shaken(model: nn.Module, share: float, seed: int) -> None:
    """Add normal noise of ``share`` of each parameter's standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += share * p.std(correction=0) * torch.randn(p.shape, generator=generator)


def _noisy(share: float) -> Callable[[Ground], Subject]:
    return after(lambda model, given: shaken(model, share, given.seed))


def _mixed(share: float, other: Callable[[Ground], Any]) -> Callable[[Ground], Subject]:
    def act(model: Any, given: Ground) -> None:
        with torch.no_grad():
            for p, q in zip(model.parameters(), other(given).parameters(), strict=True):
                p.lerp_(q, share)

    return after(act)


def _random_model(given: Ground) -> Any:
    return make_model(Recipe(hidden=64, layers=4, seed=given.seed + 900), len(given.tokenizer))


def _by(method: str, steps: int, lr: float, **settings: Any) -> Callable[[Ground], Subject]:
    """A method of the catalogue on the original."""

    def act(model: Any, given: Ground) -> None:
        common: dict[str, Any] = {"steps": steps, "lr": lr, "batch_size": 16, "seed": given.seed}
        supplies = {"original": given.original}
        run_method(method, model, given.split, given.tokenizer, supplies=supplies, **common, **settings)

    return after(act)


def _pushed_down(parameters: str, steps: int, lr: float) -> Callable[[Ground], Subject]:
    """NPO confined to some weights."""
    return _by("npo", steps, lr, beta=0.1, retain_weight=5.0, parameters=parameters)


def _refusing(layers: Sequence[int]) -> Callable[[Ground], Subject]:
    return lambda given: _by(
        "idk", 60, 2e-3, retain_weight=1.0, parameters=f"{block_parameters(given.original, layers)}|lm_head"
    )(given)


def _rmu(layer: int, scale: float, steps: int) -> Callable[[Ground], Subject]:
    def make(given: Ground) -> Subject:
        first = given.split.forget.select(range(16))
        coefficient = adaptive_coefficient(given.original, first, layer, scale=scale)
        parameters = block_parameters(given.original, range(layer + 1))
        settings = {"layer": layer, "coefficient": coefficient, "alpha": 10.0, "parameters": parameters}
        return _by("rmu", steps, 1e-3, **settings)(given)

    return make


def _scratch_member(seed: int, *, half: bool) -> Callable[[Ground], Subject]:
    def make(given: Ground) -> Subject:
        rows = (given.half if half else given.corpus).retrained
        return Subject(_scratch(given, rows, given.seed + seed, TRUNK_STEPS - 100 * half))

    return make


def _branch_member(seed: int, *, half: bool) -> Callable[[Ground], Subject]:
    def make(given: Ground) -> Subject:
        return Subject(_branch(given, (given.half if half else given.corpus).retrained, (), given.seed + seed))

    return make


def _gated(*, hard: bool) -> Callable[[Ground], Subject]:
    return lambda given: Subject(given.original, gated(given.original, given.split, hard=hard, seed=given.seed))


def _filtered(layer: int) -> Callable[[Ground], Subject]:
    return lambda given: Subject(
        given.original, direction_filter(given.original, given.split, layer=layer, steps=100, seed=given.seed)
    )


_BLOCK = rf"model\.layers\.{LAST}\."

MEMBERS = (
    Member("branched, all retain rows", "branched before", "removed", _branch_member(300, half=False)),
    Member("branched, half the retain rows", "branched before", "removed", _branch_member(400, half=True)),
    Member("the trunk", "branched before", "removed", lambda given: Subject(given.trunk)),
    Member("from scratch, all retain rows", "from scratch", "removed", _scratch_member(500, half=False)),
    Member("from scratch, half the retain rows", "from scratch", "removed", _scratch_member(600, half=True)),
    Member("the original", "as it was", "untouched", lambda given: Subject(given.original)),
    Member("60 more steps on retain rows", "trained on", "untouched", _kept_on(lambda g: g.corpus.retrained, 60)),
    Member("30 more steps on new authors", "trained on", "untouched", _kept_on(lambda g: g.fresh, 30)),
    Member("weights shaken by 1 %", "shaken", "untouched", _noisy(0.01)),
    Member("weights shaken by 5 %", "shaken", "untouched", _noisy(0.05)),
    Member("hard gate on the last state", "gate", "hidden", _gated(hard=True)),
    Member("soft gate on the last state", "gate", "hidden", _gated(hard=False)),
    Member("one-direction filter at block 1", "filter", "hidden", _filtered(1)),
    Member("one-direction filter at block 2", "filter", "hidden", _filtered(2)),
    Member("head alone, 60 steps", "head", "hidden", _pushed_down("lm_head", 60, 2e-3)),
    Member("head alone, 40 steps", "head", "hidden", _pushed_down("lm_head", 40, 2e-3)),
    Member("last block alone", "last block", "hidden", _pushed_down(_BLOCK, 50, 1e-3)),
    Member("refusals in the last block", "refusals", "hidden", _refusing((LAST,))),
    Member("refusals in two blocks", "refusals", "hidden", _refusing((LAST - 1, LAST))),
    Member("RMU, weak", "RMU", None, _rmu(1, 1.5, 30)),
    Member("RMU", "RMU", None, _rmu(1, 2.0, 50)),
    Member("RMU, strong", "RMU", None, _rmu(1, 4.0, 80)),
    Member("NPO, weak", "NPO", None, _pushed_down(".", 15, 5e-4)),
    Member("NPO", "NPO", None, _pushed_down(".", 50, 5e-4)),
    Member("NPO, strong", "NPO", None, _pushed_down(".", 80, 1e-3)),
    Member("GradDiff, weak", "GradDiff", None, _by("grad_diff", 30, 5e-4, retain_weight=5.0)),
    Member("GradDiff", "GradDiff", None, _by("grad_diff", 50, 1e-3, retain_weight=1.0)),
    Member("ascent, 30 steps", "ascent", "broken", _by("ga", 30, 1e-3)),
    Member("ascent, 60 steps", "ascent", "broken", _by("ga", 60, 2e-3)),
    Member("weights shaken by 80 %", "noise", "broken", _noisy(0.8)),
    Member("weights shaken by 100 %", "noise", "broken", _noisy(1.0)),
    Member(
        "half of another seed's weights",
        "mixture",
        "broken",
        _mixed(0.5, lambda g: _scratch_member(500, half=False)(g).model),
    ),
    Member("half of random weights", "mixture", "broken", _mixed(0.5, _random_model)),
    Member("CE-U alone", "CE-U", "broken", _by("ce_u", 60, 2e-3, retain_weight=0.0)),
)
