"""Attacks that train: scores at chosen steps of fine-tuning, over seeds, beside a model that never knew.

What runs of several seeds share is done once: encoding what is trained on, scoring before the first step. Training k
copies at once with stacked weights (torch.vmap) costs more on a CPU, see ``benchmarks.relearning``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from probe.attacks.facts import Facts
from probe.attacks.recovery import AttackOutcome, Recovery
from probe.attacks.restoring import weights_restored
from probe.attacks.score import Measure, Score, mean_score
from probe.data import Batch
from probe.datasets import rows_hash
from probe.display import Result, ResultTable
from probe.metrics.intervals import Interval, interval
from probe.objectives.objective import Objective
from probe.rows import Row
from probe.train import Term, minimise

CurveKS = Float[np.ndarray, "K S"]


@dataclass(frozen=True, eq=False)
class Training:
    """How an attack trains.

    Args:
        steps: optimiser steps; 0 changes nothing.
        lr: AdamW's learning rate, constant.
        batch_size: rows a step.
        at: steps at which rows are scored; step 0 always is, and the last one.
        seeds: one run each. Every model sees the same rows in the same order under one seed.
        parameters: regular expression over the names of what is trained.

    Raises:
        ValueError: a negative number, no seed, a repeated one, or a step beyond the last.

    >>> training = probe.Training(steps=20, lr=5e-4, batch_size=16)
    >>> training.steps
    20
    """

    steps: int
    lr: float
    batch_size: int
    at: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    parameters: str = "."

    def __post_init__(self) -> None:
        if self.steps < 0 or not self.lr > 0 or self.batch_size < 1:
            raise ValueError(
                "expected steps of at least 0, an lr above 0 and a batch of at least one row, got "
                f"{self.steps}, {self.lr} and {self.batch_size}"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must be different numbers, at least one")
        outside = [step for step in self.at if not 0 <= step <= self.steps]
        if outside:
            raise ValueError(f"step {outside[0]} is asked for, the attack has steps 0..{self.steps}")

    @property
    def scored(self) -> tuple[int, ...]:
        """The steps at which rows are scored."""
        return tuple(sorted({0, *self.at, self.steps}))


@dataclass(frozen=True, eq=False)
class SeedScores:
    """Scores of one model: for each seed, one score a step.

    Args:
        held, shown: scores of the held-out and of the shown rows.
        conditions: a hash of what else than the model they depend on.
    """

    held: tuple[tuple[Score, ...], ...] = field(repr=False)
    shown: tuple[tuple[Score, ...], ...] = field(repr=False)
    conditions: str = ""


@dataclass(frozen=True, eq=False)
class Curves(Result):
    """What fine-tuning brought back, step by step.

    Args:
        attack: its name.
        training: how it trained.
        steps: where rows were scored.
        model, retrained: the scores.
        groups: the group of each held-out row.
    """

    attack: str
    training: Training
    steps: tuple[int, ...]
    model: SeedScores = field(repr=False)
    retrained: SeedScores | None = field(repr=False)
    groups: tuple[str, ...] = field(repr=False)

    def curve(
        self,
        measure: Measure = "probability",
        *,
        on: Literal["held", "shown"] = "held",
        of: Literal["model", "retrained"] = "model",
    ) -> CurveKS:
        """Mean over rows, by seed and step."""
        run = self.model if of == "model" else self._retrained()
        scores = run.held if on == "held" else run.shown
        return np.array([[score.of(measure).mean() for score in seed] for seed in scores])

    def area(self, measure: Measure = "probability", *, of: Literal["model", "retrained"] = "model") -> Interval:
        """Mean height of the held-out curve over the steps (trapezoids), with its interval over seeds."""
        return interval(_heights(self.curve(measure, of=of), self.steps), within=(0.0, 1.0))

    def excess(self, measure: Measure = "probability") -> Interval:
        """Area of the model less that of the retrained model, seed by seed: above 0, knowledge was left to come back.

        A model that starts far below the retrained model pays for its start in the area; ``excess_at`` does not.
        """
        ours, theirs = self.curve(measure), self.curve(measure, of="retrained")
        return interval(_heights(ours - theirs, self.steps), within=(-1.0, 1.0))

    def excess_at(self, step: int, measure: Measure = "probability") -> Interval:
        """The model less the retrained model after ``step`` steps, with its interval over seeds.

        Raises:
            ValueError: there is no retrained model, or a step at which nothing was scored.
        """
        if step not in self.steps:
            raise ValueError(f"step {step} was not scored; the steps are {self.steps}")
        k = self.steps.index(step)
        apart_K = self.curve(measure)[:, k] - self.curve(measure, of="retrained")[:, k]
        return interval(apart_K, within=(-1.0, 1.0))

    @property
    def recovery(self) -> Recovery:
        """Step 0 against the last step, rows averaged over seeds: the shape that all attacks share."""
        settings = {
            "steps": self.training.steps,
            "lr": self.training.lr,
            "batch_size": self.training.batch_size,
            "seeds": self.training.seeds,
            "parameters": self.training.parameters,
        }
        theirs = None if self.retrained is None else _outcome(self.retrained)
        return Recovery(self.attack, settings, _outcome(self.model), theirs, self.groups)

    def rows(self, name: str = "model", measure: Measure = "probability") -> list[Row]:
        """Mean score of the held-out rows at each step (``item``) with its interval over seeds, both models.

        ``on`` says what was trained on: "in-domain" (the shown rows) or "out-of-domain".
        """
        kind = "in-domain" if self.attack == "relearning" else "out-of-domain"
        models = {name: self.curve(measure)}
        models |= {} if self.retrained is None else {"retrained": self.curve(measure, of="retrained")}
        rows = []
        for who, curve_KS in models.items():
            for step, value_K in zip(self.steps, curve_KS.T, strict=True):
                found = interval(value_K, within=(0.0, 1.0))
                at = (who, "relearning", measure, found.mean, kind)
                # One seed has no interval.
                low, high = (found.low, found.high) if found.n > 1 else (None, None)
                rows.append(Row(*at, item=step, low=low, high=high, n=found.n))
        return rows

    def table(self) -> ResultTable:
        columns = {"model": self.curve().mean(0)}
        if self.retrained is not None:
            columns["never knew"] = self.curve(of="retrained").mean(0)
        note = f"{self.attack}: probability of held-out answers; {self.recovery.finding()}"
        return ResultTable({"step": self.steps, **columns}, note=note)

    def _retrained(self) -> SeedScores:
        if self.retrained is None:
            raise ValueError(
                f"{self.attack} was run without a retrained model; pass retrained=, one that never knew the facts"
            )
        return self.retrained


def training_curves(
    attack: str,
    model: nn.Module,
    facts: Facts,
    objective: Objective,
    data: Batch,
    training: Training,
    *,
    retrained: nn.Module | SeedScores | None,
    progress: bool,
) -> Curves:
    """Fine-tune for every seed, score on the way, and give every weight its bits back.

    Raises:
        ValueError: the retrained model's curves are of another attack.
    """
    conditions = _conditions(attack, facts, objective, data, training)

    def run(one: nn.Module, name: str) -> SeedScores:
        # Before the first step all seeds are the same model.
        seeds, start = [], _scores(one, facts)
        for seed in training.seeds:
            shown = f"{name}, seed {seed}" if progress else None
            seeds.append([start, *_one_seed(one, facts, objective, data, training, seed, shown)])
        held, shown_rows = (tuple(tuple(pair[side] for pair in seed) for seed in seeds) for side in (0, 1))
        return SeedScores(held, shown_rows, conditions)

    if isinstance(retrained, SeedScores):
        theirs: SeedScores | None = retrained
        if retrained.conditions != conditions:
            raise ValueError(
                f"the retrained model's curves were not made by this {attack}: its rows, scoring, objective or "
                "training differ; pass the retrained model itself"
            )
    else:
        theirs = None if retrained is None else run(retrained, f"{attack} (retrained)")
    return Curves(attack, training, training.scored, run(model, attack), theirs, facts.held_groups)


def _one_seed(
    model: nn.Module,
    facts: Facts,
    objective: Objective,
    data: Batch,
    training: Training,
    seed: int,
    progress: str | None,
) -> list[tuple[Score, Score]]:
    """Scores at the steps after step 0."""
    scores: list[tuple[Score, Score]] = []

    def look(step: int, _: nn.Module) -> None:
        if step in training.scored:
            scores.append(_scores(model, facts))

    if training.steps == 0:
        return scores
    with weights_restored(model), torch.enable_grad():
        minimise(
            model,
            [Term(1.0, objective, data, "attack")],
            steps=training.steps,
            lr=training.lr,
            batch_size=training.batch_size,
            seed=seed,
            parameters=training.parameters,
            progress=progress,
            every=1,
            observe=look,
        )
    return scores


def _scores(model: nn.Module, facts: Facts) -> tuple[Score, Score]:
    """Held-out and shown rows, in one pass; they are taken apart afterwards."""
    found = facts.score(model, (*facts.held, *facts.shown), facts.template)
    return _rows(found, 0, len(facts.held)), _rows(found, len(facts.held), len(found))


def _conditions(attack: str, facts: Facts, objective: Objective, data: Batch, training: Training) -> str:
    """Equal for attacks that differ in the model alone, within one process."""
    digest = hashlib.sha256(repr((attack, training, objective, facts.score, facts.template)).encode())
    digest.update(f"{rows_hash(facts.held)} {rows_hash(facts.shown)}".encode())
    for tensor in (data.tokens_BT, data.target_BT, data.attention_BT):
        digest.update(f"{tuple(tensor.shape)}".encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _rows(score: Score, start: int, stop: int) -> Score:
    choice_N, empty_N = score.choice_N, score.empty_N
    return Score(
        score.probability_N[start:stop],
        score.match_N[start:stop],
        None if choice_N is None else choice_N[start:stop],
        score.n_choices,
        None if empty_N is None else empty_N[start:stop],
    )


def _outcome(run: SeedScores) -> AttackOutcome:
    before, after = mean_score([seed[0] for seed in run.held]), mean_score([seed[-1] for seed in run.held])
    shown: Mapping[str, Any] = {
        "shown_before": mean_score([seed[0] for seed in run.shown]),
        "shown_after": mean_score([seed[-1] for seed in run.shown]),
    }
    return AttackOutcome(before, after, shown)


def _heights(curve_KS: CurveKS, steps: Sequence[int]) -> list[float]:
    if len(steps) == 1:
        return [float(seed[0]) for seed in curve_KS]
    return [float(np.trapezoid(seed, steps) / (steps[-1] - steps[0])) for seed in curve_KS]
