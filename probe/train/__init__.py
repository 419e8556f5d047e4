"""The one training loop: unlearning, relearning and fitting the testbed all go through ``minimise``."""

from probe.train.adapters import lora
from probe.train.adversary import LAT, TAR, FineTuning
from probe.train.averaging import EMA, SWA
from probe.train.loop import minimise
from probe.train.saved import Checkpointing, at_checkpoint, checkpoints
from probe.train.schedules import WarmUp
from probe.train.sharding import gathered, sharded
from probe.train.step import Step, Stepping, plain
from probe.train.stepping import SAM, CurvaturePenalty, GradientPenalty, Smoothing
from probe.train.terms import (
    Count,
    History,
    Schedule,
    Term,
    constant,
    one_cycle,
    real_tokens,
    rows,
    target_tokens,
)

__all__ = [
    "EMA",
    "LAT",
    "SAM",
    "SWA",
    "TAR",
    "Checkpointing",
    "Count",
    "CurvaturePenalty",
    "FineTuning",
    "GradientPenalty",
    "History",
    "Schedule",
    "Smoothing",
    "Step",
    "Stepping",
    "Term",
    "WarmUp",
    "at_checkpoint",
    "checkpoints",
    "constant",
    "gathered",
    "lora",
    "minimise",
    "one_cycle",
    "plain",
    "real_tokens",
    "rows",
    "sharded",
    "target_tokens",
]
