"""What came of every candidate: who would be chosen on one half of the entities, and what it is worth on the other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from probe.attacks.score import Score
from probe.metrics.arrays import ArrayN
from probe.metrics.intervals import Interval
from probe.sae.candidates import Candidate

Half = Literal["select", "report"]
On = Literal["forget", "retain"]
HALVES: tuple[Half, Half] = ("select", "report")
SIDES: tuple[On, On] = ("forget", "retain")
# SAEBench's bar: a configuration counts if the side effects leave 99 % of answers right.
SAEBENCH_KEEPS = 0.99


@dataclass(frozen=True, eq=False)
class Sides:
    """Scores of one half's forget and retain rows."""

    forget: Score = field(repr=False)
    retain: Score = field(repr=False)


@dataclass(frozen=True, eq=False)
class Response:
    """What one candidate does on both halves."""

    candidate: Candidate
    select: Sides = field(repr=False)
    report: Sides = field(repr=False)


@dataclass(frozen=True, eq=False)
class ChosenDose:
    """The candidate that a source would choose, and the price of having chosen.

    Args:
        response: the choice.
        forget, retain: rise of the loss on the report half, with its interval over entities.
        optimism: how much better select says it is than report: the forget rise less, the retain rise more.
    """

    response: Response
    forget: Interval
    retain: Interval
    optimism: Mapping[On, float]


def loss_of(score: Score) -> ArrayN:
    """Mean negative log-likelihood a token of the right answer, in nats; bounded where a probability underflows."""
    return -np.log(np.maximum(score.probability_N, np.finfo(float).tiny))
