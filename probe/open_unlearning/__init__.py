"""OpenUnlearning's evaluation log: read, written, and every aggregate computed anew from its samples."""

from probe.open_unlearning.log import EvaluationLog, read_log, write_log
from probe.open_unlearning.recomputed import recomputed, truth_ratios

__all__ = ["EvaluationLog", "read_log", "recomputed", "truth_ratios", "write_log"]
