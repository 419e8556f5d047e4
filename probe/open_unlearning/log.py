"""OpenUnlearning's evaluation log, read and written.

The format (locuslab/open-unlearning, ``TOFU_EVAL.json``) is one JSON object, metric -> result. A result holds
``agg_value`` and, for most metrics, ``value_by_index``: sample number -> fields. Fields that are understood:

========================================================  ===========================================================
metric                                                    fields of a sample
========================================================  ===========================================================
``{forget,retain,ra,wf}_Q_A_Prob``, ``*_Q_A_PARA_Prob``   ``prob``, ``avg_loss`` (mean cross-entropy, nats per token)
``*_Q_A_PERT_Prob``                                       the same two, lists with one entry a wrong answer
``{ra,wf}_Q_A_Prob_normalised``                           ``prob``
``*_Q_A_ROUGE``                                           ``rouge1_recall``, ``rougeL_f1``, ``rougeL_recall`` (texts
                                                          ``input``, ``ground_truth``, ``generation`` are kept)
``forget_truth_ratio``, ``*_Truth_Ratio``                 ``score``: R, before it is aggregated
``extraction_strength``, ``exact_memorization``           ``score``
``{forget,retain}_knowmem_ROUGE``, ``forget_verbmem_ROUGE``   MUSE's, fields as ``*_Q_A_ROUGE``; F1 is averaged
``mia_*``                                                 ``forget`` and ``holdout``, each with ``value_by_index`` of
                                                          ``score``; ``auc``
``forget_quality``, ``model_utility``, ``privleak``       none: ``agg_value`` alone
========================================================  ===========================================================

Sample numbers of forks such as "0.0" are read as 0. A sample, or a field of it, that is null or NaN was not measured
and counts in no mean, as in OpenUnlearning. Other metrics are kept as they are and written back unchanged. Logs of
TOFU's first code (``eval_log_aggregated.json``: file -> field -> number -> value) are brought into this layout.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probe.records import parsed, read_text

SETS = ("forget", "retain", "ra", "wf")
EPS = 1e-10
"""What OpenUnlearning adds to denominators."""
_KEYS = {"agg_value", "value_by_index", "forget", "holdout", "auc"}
_UNDERSTOOD = re.compile(
    r"(forget|retain|ra|wf)_(Q_A_.*|[Tt]ruth_[Rr]atio|knowmem_ROUGE|verbmem_ROUGE)|mia_.*|"
    r"extraction_strength|exact_memorization"
)
_TOFU_FILES = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "ra",
    "eval_real_world_wo_options.json": "wf",
}
# Field of TOFU's first code -> metric and field of a sample.
_TOFU_FIELDS = {
    "avg_gt_loss": ("Q_A_Prob", "avg_loss"),
    "avg_paraphrased_loss": ("Q_A_PARA_Prob", "avg_loss"),
    "average_perturb_loss": ("Q_A_PERT_Prob", "avg_loss"),
    "rougeL_recall": ("Q_A_ROUGE", "rougeL_recall"),
    "rouge1_recall": ("Q_A_ROUGE", "rouge1_recall"),
}


@dataclass(frozen=True)
class EvaluationLog:
    """The log as it lies on disk; ``recomputed`` gives its aggregates, ``truth_ratios`` what forget quality compares.

    Args:
        results: metric -> result.
        where: what error messages call it.
        eps: what the log's own code adds to denominators.

    Example:
        >>> log = EvaluationLog({"retain_Q_A_Prob": {"value_by_index": {"0": {"prob": 0.5}, "1": {"prob": 0.25}}}})
        >>> log.samples("retain_Q_A_Prob", "prob")
        array([0.5 , 0.25])
    """

    results: Mapping[str, Mapping[str, Any]]
    where: str = "the log"
    eps: float = EPS

    def __contains__(self, name: str) -> bool:
        return name in self.results

    def value(self, name: str) -> float | None:
        """``agg_value`` of a metric; None where it is null or the metric absent."""
        value = self.results.get(name, {}).get("agg_value")
        return None if value is None else float(value)

    def samples(self, name: str, field: str, part: str | None = None) -> np.ndarray:
        """One field of all samples of a metric in the order of their numbers, lists as a second axis.

        Args:
            name: of the metric.
            field: "avg_loss", say.
            part: "forget" or "holdout" of an attack.

        Raises:
            ValueError: no such metric or field, samples without a value, or lists of unequal length.
        """
        found, n = self.measured(name, field, part), len(self._by_number(name, part))
        if len(found) < n:
            raise ValueError(f"{self.where}: {n - len(found)} of {n} samples of {name} have no {field}")
        return self._array(name, field, found.values())

    def measured(self, name: str, field: str, part: str | None = None) -> dict[int, Any]:
        """Sample number -> field, in the order of numbers, for the samples that have it.

        Raises:
            ValueError: no such metric, or a field that no sample has.
        """
        samples = self._by_number(name, part)
        found = {number: sample[field] for number, sample in samples.items() if sample.get(field) is not None}
        if not found:
            known = sorted({key for sample in samples.values() for key in sample})
            raise ValueError(
                f"{self.where}: {len(samples)} of {len(samples)} samples of {name} have no {field}; fields found: "
                f"{', '.join(known)[:120]}"
            )
        return found

    def has(self, name: str, field: str | None = None) -> bool:
        """Whether the log holds samples of a metric (with a field)."""
        samples = self.results.get(name, {}).get("value_by_index") or {}
        return any(sample and (field is None or sample.get(field) is not None) for sample in samples.values())

    def present(self, name: str, field: str) -> np.ndarray:
        """A field of the samples that have it, as an array.

        Raises:
            ValueError: as ``measured``, or values that are no numbers.
        """
        return self._array(name, field, self.measured(name, field).values())

    def mean(self, name: str, field: str) -> float:
        """Mean of ``present``."""
        return float(self.present(name, field).mean())

    def paired(self, first: str, second: str, field: str) -> tuple[np.ndarray, np.ndarray]:
        """A field of two metrics of the same samples, number by number; a sample that lacks either is left out.

        Raises:
            ValueError: the two metrics hold different samples, or none has both.
        """
        numbers, others = set(self._by_number(first, None)), set(self._by_number(second, None))
        alone = sorted(numbers ^ others)
        if alone:
            shown = ", ".join(map(str, alone[:5])) + (", ..." if len(alone) > 5 else "")
            raise ValueError(
                f"{self.where}: {first} has {len(numbers)} samples and {second} {len(others)}; {len(alone)} are in one "
                f"alone ({shown}), and the two are compared sample by sample: evaluate both on the same rows"
            )
        left, right = self.measured(first, field), self.measured(second, field)
        both = [number for number in left if number in right]
        if not both:
            raise ValueError(f"{self.where}: no sample has {field} in both {first} and {second}")
        pairs = ((first, left), (second, right))
        one, other = (self._array(name, field, [found[number] for number in both]) for name, found in pairs)
        return one, other

    def _array(self, name: str, field: str, values: Iterable[Any]) -> np.ndarray:
        try:
            return np.asarray(list(values), dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(
                f"{self.where}: {field} of {name[:60]} is no number in some sample, or lists differ in length; mend "
                "or remove these samples"
            ) from None

    def _by_number(self, name: str, part: str | None) -> dict[int, Mapping[str, Any]]:
        result = self.results.get(name, {})
        samples = (result.get(part) or {} if part else result).get("value_by_index")
        if not samples:
            raise ValueError(f"{self.where} holds no samples of {name}{f' ({part})' if part else ''}")
        return {number: samples[key] or {} for number, key in sorted((int(float(key)), key) for key in samples)}


def read_log(path: str | Path) -> EvaluationLog:
    """Read a log that OpenUnlearning or ``probe evaluate`` wrote.

    NaN and infinities, which Python's json writes though they are not JSON, are read as null.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or JSON of another layout; summaries are named as such.
    """
    path = Path(path)
    results = parsed(path, read_text(path), nan_is_null=True)
    expected = "expected metric -> {agg_value, value_by_index}, as in OpenUnlearning's TOFU_EVAL.json"
    if not isinstance(results, dict) or not results:
        raise ValueError(f"{path} is no evaluation log (a {type(results).__name__}); {expected}")
    if "avg_gt_loss" in results:
        raise ValueError(f"{path} is one set of TOFU's first code; take eval_log_aggregated.json beside it")
    if any(name in _TOFU_FILES for name in results):
        return EvaluationLog(_from_tofu(path, results), str(path), eps=0.0)
    if all(value is None or isinstance(value, int | float) for value in results.values()):
        raise ValueError(f"{path} is a summary without samples; take the EVAL file beside it ({expected})")
    for name, result in results.items():
        if not isinstance(result, dict) or not _KEYS & set(result):
            found = ", ".join(result) if isinstance(result, dict) else f"a {type(result).__name__}"
            found = f"{found[:60]}..." if len(found) > 60 else found or "nothing"
            raise ValueError(f"{path} is no evaluation log: {name[:60]} holds {found}; {expected}")
        for part in (result, result.get("forget"), result.get("holdout")) if _UNDERSTOOD.fullmatch(name) else ():
            _check_samples(path, name, part)
    return EvaluationLog(results, str(path))


def write_log(path: str | Path, log: EvaluationLog) -> None:
    """Write a log in OpenUnlearning's layout: sorted by metric, four spaces.

    Raises:
        ValueError: a NaN or infinity, which is not JSON.
    """
    try:
        text = json.dumps(dict(sorted(log.results.items())), indent=4, allow_nan=False)
    except ValueError:
        raise ValueError("the log holds NaN or infinity, which is not JSON; write null") from None
    Path(path).write_text(text, encoding="utf-8")


def _check_samples(path: Path, name: str, part: Any) -> None:
    samples = part.get("value_by_index") if isinstance(part, dict) else None
    if samples is None:
        return
    if not isinstance(samples, dict):
        raise ValueError(f"{path}: value_by_index of {name} is a {type(samples).__name__}; expected number -> fields")
    for number, sample in samples.items():
        if not re.fullmatch(r"\d+(\.0)?", number) or not isinstance(sample, dict | None):
            raise ValueError(
                f"{path}: sample {number[:40]!r} of {name} is {str(sample)[:40]!r}; expected number -> fields"
            )
    if len({int(float(number)) for number in samples}) < len(samples):
        raise ValueError(f"{path}: {name} holds a sample number twice (as 0 and 0.0, say); keep one of each")


def _from_tofu(path: Path, files: Mapping[str, Any]) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {}
    for file, on in _TOFU_FILES.items():
        if file in files and not isinstance(files[file], dict):
            raise ValueError(f"{path}: {file} is a {type(files[file]).__name__}; expected field -> number -> value")
        for theirs, (metric, field) in _TOFU_FIELDS.items():
            column = files.get(file, {}).get(theirs)
            if column is None:
                continue
            if not isinstance(column, dict):
                raise ValueError(f"{path}: {theirs} of {file} is a {type(column).__name__}; expected number -> value")
            samples = results.setdefault(f"{on}_{metric}", {"agg_value": None, "value_by_index": {}})["value_by_index"]
            for number, value in column.items():
                samples.setdefault(number, {})[field] = value
    for name, result in results.items():
        _check_samples(path, name, result)
    return results
