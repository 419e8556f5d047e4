"""The verdict on one model: probabilities, the evidence for it, and how often such verdicts were wrong."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from probe.display import Result, ResultTable
from probe.metrics.intervals import wilson
from probe.rows import Row
from probe.verdict.features import BY_NAME, features, verdict_features
from probe.verdict.logistic import LogisticFit
from probe.verdict.measure import Measurements
from probe.verdict.rows import Protocol

FITTED = Path(__file__).with_name("fitted.json")
# Which fit applies: (retain rows given, a retrained model given).
KINDS = {
    (True, False): "alone",
    (True, True): "with a retrained model",
    (False, False): "no retain rows",
    (False, True): "with a retrained model, no retain rows",
}
CANNOT_TELL = "cannot tell"
"""The verdict on a model that lies further from every model of the zoo than those from each other."""
Counts = tuple[int, int]
_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Judge:
    """What was learned from the zoo.

    Args:
        protocol: how its models were examined; other models must be examined alike.
        zoo: what the models were.
        fits: by kind, see ``KINDS``.
        errors: (wrong, given) verdicts on families that were left out, by kind: over all, and by verdict given.
    """

    protocol: Protocol
    zoo: Mapping[str, Any] = field(repr=False)
    fits: Mapping[str, LogisticFit] = field(repr=False)
    errors: Mapping[str, Mapping[str, Counts]]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "protocol": vars(self.protocol),
            "zoo": dict(self.zoo),
            "errors": {kind: dict(one) for kind, one in self.errors.items()},
            "fits": {kind: one.to_json() for kind, one in self.fits.items()},
        }


def load_judge(path: Path = FITTED) -> Judge:
    """The fit that ships with the package, or another that ``Judge.to_json`` gave.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no judge.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no fitted verdict at {path}; make it with `python -m analyses.zoo build`")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        fits = {kind: LogisticFit.from_json(one) for kind, one in given["fits"].items()}
        errors = {kind: {name: _counts(one) for name, one in of.items()} for kind, of in given["errors"].items()}
        return Judge(Protocol(**given["protocol"]), given["zoo"], fits, errors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no fitted verdict ({type(error).__name__}: {error})") from None


def _counts(given: Any) -> Counts:
    wrong, n = given
    return int(wrong), int(n)


@dataclass(frozen=True, eq=False)
class VerdictEvidence:
    """One diagnostic of the judged model.

    Args:
        name, says: as in ``Feature``.
        value: the feature.
        weight: what it adds to the logit of the verdict, less the mean over classes; negative speaks against it.
        layers: values by layer of the model and of the original, where there are any.
        outside: whether the value alone lies outside what the zoo covered.
    """

    name: str
    says: str
    value: float
    weight: float
    layers: tuple[tuple[float, ...], tuple[float, ...]] | None
    outside: bool


@dataclass(frozen=True, eq=False)
class Verdict(Result):
    """What became of the facts.

    Args:
        verdict: the most probable class, or ``CANNOT_TELL`` where the model lies beyond the fit's reach.
        probabilities: by class, calibrated on families that were left out; beyond the reach they mean nothing.
        error: (wrong, given) among verdicts of the most probable class on families that were left out.
        overall_error: the same over all verdicts.
        distance, reach: to the nearest model of the zoo, and within which the fit speaks (``Fit.reach``).
        kind: which fit was used.
        evidence: strongest first.
        silent: diagnostics by which the original itself shows no knowledge; they are left out.
        zoo: what the fit is from.
    """

    verdict: str
    probabilities: dict[str, float]
    error: Counts
    overall_error: Counts
    distance: float
    reach: float
    kind: str
    evidence: tuple[VerdictEvidence, ...] = field(repr=False)
    silent: tuple[str, ...]
    zoo: Mapping[str, Any] = field(repr=False)

    @property
    def outside(self) -> tuple[str, ...]:
        """Diagnostics whose values the zoo did not cover."""
        return tuple(one.name for one in self.evidence if one.outside)

    @property
    def most_probable(self) -> str:
        """The class of the largest probability."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def _worth(self) -> str:
        """How far the verdict can be believed, in a sentence."""
        if self.verdict == CANNOT_TELL:
            return (
                f"the model lies {self.distance:.1f} from the nearest of the zoo's models, which the fit reaches up to "
                f"{self.reach:.1f}; it is of a kind that the fit never saw, and its probabilities mean nothing"
            )
        (wrong, n), (wrong_all, n_all) = self.error, self.overall_error
        most = f", at most {wilson(wrong, n)[1]:.0%} by Wilson's 95 % interval, were they independent" if n else ""
        return (
            f"of verdicts {self.verdict!r} on families left out of the fit {wrong} of {n} are wrong{most}; of all "
            f"{wrong_all} of {n_all}"
        )

    def table(self) -> ResultTable:
        chances = ", ".join(f"{name} {p:.2f}" for name, p in self.probabilities.items())
        note = f"{self.verdict} ({chances}); {self._worth}"
        columns: dict[str, list[Any]] = {
            "evidence": [one.name for one in self.evidence],
            "value": [one.value for one in self.evidence],
            "push, logits": [one.weight for one in self.evidence],
            "outside the zoo": ["yes" if one.outside else "" for one in self.evidence],
            "what it is": [one.says for one in self.evidence],
        }
        return ResultTable(columns, note=note)

    def rows(self, name: str = "model") -> list[Row]:
        """Probabilities and evidence as rows.

        Args:
            name: what the model is called.
        """
        found = [Row(name, "verdict", f"probability of {one}", p) for one, p in self.probabilities.items()]
        return found + [Row(name, "verdict", one.name, one.value) for one in self.evidence]

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        """What the shell prints."""
        chances = ", ".join(f"{name} {p:.2f}" for name, p in self.probabilities.items())
        lines = [
            f"verdict: {self.verdict}",
            f"probabilities: {chances}",
            f"{self._worth} ({self.zoo['models']} models of {self.zoo['families']} families; fit: {self.kind})",
            "evidence, strongest first (value; push towards the verdict, in logits):",
        ]
        for one in self.evidence[:_SHOWN]:
            lines.append(f"  {one.name}: {one.value:.2f}; {one.weight:+.2f}  ({one.says})")
        lines.append("by layer (original in brackets):")
        for one in self.evidence:
            if one.layers is not None:
                ours, theirs = (" ".join(f"{x:.2f}" for x in values) for values in one.layers)
                lines.append(f"  {one.name}, {BY_NAME[one.name].layer_quantity}: {ours} [{theirs}]")
        if self.silent:
            lines.append(f"left out, the original itself shows nothing by them: {', '.join(self.silent)}")
        if self.outside:
            lines.append(f"outside what the zoo covered: {', '.join(self.outside)}")
        if "retrained" not in self.kind:
            lines.append(
                "no retrained model is given: what topics, names and wording tell counts as knowledge here, and of one "
                "number alone (separability, content probe) nothing can be read; compare with the original's"
            )
        return "\n".join(lines)


def judge_model(
    judge: Judge,
    model: Measurements,
    original: Measurements,
    retrained: Measurements | None = None,
    *,
    retain: bool = True,
) -> Verdict:
    """Apply the fit that suits what was given.

    Args:
        judge: from ``load_judge``.
        model, original: measured under the judge's protocol.
        retrained: a model that never saw the forget rows.
        retain: whether retain rows were given.

    Raises:
        ValueError: as ``features``.
    """
    kind = KINDS[retain, retrained is not None]
    fit = judge.fits[kind]
    which = tuple(BY_NAME[name] for name in fit.features)
    assert set(which) <= set(verdict_features(retain=retain))
    row = features(which, model.numbers, original.numbers, None if retrained is None else retrained.numbers)
    # What says nothing pushes nowhere: the mean of the zoo adds 0 to every logit.
    silent = tuple(name for name, value in row.items() if math.isnan(value))
    row |= {name: fit.mean[fit.features.index(name)] for name in silent}
    probability_C = fit.probabilities(np.array([[row[name] for name in fit.features]]))[0]
    likely = fit.classes[int(probability_C.argmax())]
    distance = fit.distance(row, silent)
    part, odd = fit.contributions(row)[likely], fit.outside(row)
    evidence = sorted(
        (
            VerdictEvidence(
                f.name,
                f.says,
                row[f.name],
                part[f.name],
                (model.by_layer[f.layers], original.by_layer[f.layers]) if f.layers else None,
                f.name in odd,
            )
            for f in which
            if f.name not in silent
        ),
        key=lambda one: -abs(one.weight),
    )
    errors = judge.errors[kind]
    return Verdict(
        likely if distance <= fit.reach else CANNOT_TELL,
        dict(zip(fit.classes, map(float, probability_C), strict=True)),
        errors[likely],
        errors["all"],
        distance,
        fit.reach,
        kind,
        tuple(evidence),
        silent,
        judge.zoo,
    )
