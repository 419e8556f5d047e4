"""The verdict on stories260K after it learned TOFU rows; no part of it was fitted to that model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analyses.stories import MAX_LENGTH, Unlearning, study
from analyses.subjects import Where
from analyses.zoo.examine import beyond, both_ways, relearned, truth
from analyses.zoo.gates import gated
from analyses.zoo.models import Label, Subject, after, shaken
from probe.attacks.score import Score
from probe.methods.baselines import ga, npo
from probe.study.study import Study
from probe.sweep import load, sweep
from probe.verdict.judge import CANNOT_TELL, Verdict, judge_model, load_judge
from probe.verdict.measure import Measurements, measure
from probe.verdict.rows import VerdictRows

# Steps and rates as small as the answers allow; nothing was searched.
_TRAINING: dict[str, Any] = {"batch_size": 8, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Where everything lies."""

    where: Where = field(default_factory=Where)
    out: Path = Path("results/verdict_stories")
    """Folder of the run."""
    docs: Path = Path("docs")
    """Where validity_stories.md goes."""


def _head(model: nn.Module, study: Study) -> None:
    # The head shares its weights with the embedding here, so the last block stands in for a fix at the end.
    last = rf"model\.layers\.{study.original.config.num_hidden_layers - 1}\."  # type: ignore[union-attr]
    npo(
        model,
        study.split,
        original=study.original,
        beta=0.1,
        retain_weight=5.0,
        parameters=last,
        steps=60,
        lr=1e-3,
        **_TRAINING,
    )


MEMBERS: Mapping[str, tuple[Label | None, Callable[[Study], Subject]]] = {
    "the original": ("untouched", lambda study: Subject(study.original)),
    "retrained": ("removed", lambda study: Subject(study.retrained)),
    "hard gate on the last state": (
        "hidden",
        lambda study: Subject(study.original, gated(study.original, study.split, hard=True, seed=0)),
    ),
    "last block alone": ("hidden", after(_head)),
    "RMU": (None, lambda study: Subject(study.unlearned["RMU"])),
    "NPO": (None, lambda study: Subject(study.unlearned["NPO"])),
    "ascent": ("broken", after(lambda model, study: ga(model, study.split, steps=60, lr=1e-3, **_TRAINING))),
    "weights shaken by 100 %": ("broken", after(lambda model, study: shaken(model, 1.0, 0))),
}


@dataclass(frozen=True, eq=False)
class _Given:
    """What all models share: the study, what the verdict asks, and the same with shown and held-out rows exchanged."""

    study: Study
    asked: VerdictRows
    other: VerdictRows


def examine(arguments: Arguments) -> tuple[Path, Path]:
    """Measure every model that is not measured yet, and settle the truth of those that have none by construction."""
    judge = load_judge()

    @cache
    def given() -> _Given:
        made = study(arguments.where.shared, arguments.where.cache, unlearning=Unlearning())
        rows = made.split.forget_rows, made.split.retain_rows
        return _Given(made, *both_ways(made.tokenizer, made.original, *rows, judge.protocol, max_length=MAX_LENGTH))

    @cache
    def never() -> Score:
        return relearned(given().study.retrained, given().other)

    def measured(name: str) -> dict[str, Any]:
        subject = MEMBERS[name][1](given().study)
        with subject.opened(subject.model):
            found = measure(subject.model, given().asked)
        layers = {f"{key} @ {i}": value for key, values in found.by_layer.items() for i, value in enumerate(values)}
        return {**found.numbers, **layers}

    def settled(name: str) -> dict[str, Any]:
        subject = MEMBERS[name][1](given().study)
        back = relearned(subject.model, given().other)
        numbers: dict[str, Any] = {}
        for measure_of in ("choice", "probability"):
            more = beyond(back, never(), given().other.facts, measure_of)
            numbers |= {f"{measure_of} excess": more.mean, f"{measure_of} excess, low": more.low}
            numbers |= {f"{measure_of} of the retrained": float(never().of(measure_of).mean())}
        return numbers

    identity = {"protocol": asdict(judge.protocol), "torch": torch.__version__, "version": 2}
    unknown = [{"name": name} for name, (label, _) in MEMBERS.items() if label is None]
    return (
        sweep(measured, [{"name": name} for name in MEMBERS], arguments.out, identity=identity).parent,
        sweep(settled, unknown, arguments.out / "truth", identity=identity).parent,
    )


def verdicts(
    records: Sequence[Mapping[str, Any]], settled: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, Verdict, Verdict]]:
    """Model, truth, and the verdict without and with the retrained model.

    Knowledge is back if relearning brings choices or probabilities beyond the retrained model's: answers are sentences
    here, and who was never told learns from other rows what a right one sounds like, so choices alone saturate.
    """
    excess = {r["name"]: max(r["choice excess, low"], r["probability excess, low"]) for r in settled}
    judge = load_judge()
    by_name = {r["name"]: r for r in records}
    measured = {name: _measured(record) for name, record in by_name.items()}
    original = by_name["the original"]
    found = []
    for name, record in by_name.items():
        span = original["retain_known"] - original["retain_floor"]
        kept = (record["retain_known"] - original["retain_floor"]) / span
        label = truth(MEMBERS[name][0], record["forget_match"], kept, excess.get(name, 0.0) > 0)
        alone, beside = (
            judge_model(judge, measured[name], measured["the original"], other)
            for other in (None, measured["retrained"])
        )
        found.append((name, label, alone, beside))
    return found


def _measured(record: Mapping[str, Any]) -> Measurements:
    layers: dict[str, list[float]] = {}
    numbers = {}
    for key, value in record.items():
        name, at, _ = key.partition(" @ ")
        if at:
            layers.setdefault(name, []).append(value)
        elif isinstance(value, int | float):
            numbers[key] = float(value)
    return Measurements(numbers, {name: tuple(values) for name, values in layers.items()})


def page(records: Sequence[Mapping[str, Any]], settled: Sequence[Mapping[str, Any]]) -> str:
    """docs/validity_stories.md."""
    found = verdicts(records, settled)
    by_name = {r["name"]: r for r in records}
    right = [
        sum(label == one.verdict for label, one in pairs)
        for pairs in (
            [(label, alone) for _, label, alone, _ in found],
            [(label, beside) for _, label, _, beside in found],
        )
    ]
    open_ = [
        sum(one.verdict == CANNOT_TELL for one in ones) for ones in ([a for *_, a, _ in found], [b for *_, b in found])
    ]
    lines = [
        "# The verdict on a model it was not fitted to",
        "",
        "stories260K (260,032 weights, five blocks, a vocabulary of 512) after it learned 200 rows of TOFU, two "
        "authors of which are to be forgotten. Answers are sentences of 30 to 190 tokens; the zoo's are one or two "
        "words. Written by `python -m analyses.zoo stories` from its own numbers; nothing was fitted here.",
        "",
        f"Of {len(found)} verdicts **{right[0]} are right, {open_[0]} cannot tell without and {right[1]} are right, "
        f"{open_[1]} cannot tell with the retrained model** (`--retrained`).",
        "",
        "| model | truth | verdict | with the retrained model | tells | keeps | relearned | content |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, label, alone, beside in found:
        r = by_name[name]
        said = [f"{one.verdict} ({one.probabilities[one.most_probable]:.2f})" for one in (alone, beside)]
        # Beyond the reach no word is given; the distance says why.
        said = [
            f"{one.verdict} ({one.distance:.1f} > {one.reach:.1f})" if one.verdict == CANNOT_TELL else word
            for one, word in zip((alone, beside), said, strict=True)
        ]
        numbers = (r["forget_choice"], r["retain_known"], r["relearn_late_choice"], r["content"])
        cells = " | ".join(f"{value:.2f}" for value in numbers)
        lines.append(f"| {name} | {label} | {said[0]} | {said[1]} | {cells} |")
    outside = {one for *_, beside in found for one in beside.outside}
    often = [one for one in sorted(outside) if sum(one in beside.outside for *_, beside in found) > len(found) / 2]
    silent = sorted({one for *_, beside in found for one in beside.silent})
    lines += [
        "",
        "*tells*: right answer chosen among six; *keeps*: the same of retain rows, or their probability where they "
        "have no wrong answers; *relearned*: *tells* on held-out rows after relearning on others; *content*: how well "
        "a probe reads the answer from hidden states. In brackets the probability given to the verdict or, where the "
        "model lies beyond what the fit reaches, its distance to the nearest model of the zoo and that reach.",
        "",
        f"Outside what the zoo covered in more than half of the verdicts: {', '.join(often) or 'nothing'}. "
        f"Left out, since the original itself shows nothing by them: {', '.join(silent) or 'nothing'}.",
    ]
    told = [
        f"{r['name']}: choice {r['choice excess']:+.2f} (low {r['choice excess, low']:+.2f}), probability "
        f"{r['probability excess']:+.2f} (low {r['probability excess, low']:+.2f})"
        for r in settled
    ]
    never = settled[0]
    lines += [
        "",
        "The truth of RMU and NPO is settled as in the zoo, by relearning on the half that the verdict does not show, "
        f"less the same of the retrained model (choice {never['choice of the retrained']:.2f}, probability "
        f"{never['probability of the retrained']:.2f}): {'; '.join(told)}. Answers are sentences here: who was never "
        "told learns from other rows what a right one sounds like, so a choice excess says little and either counts. "
        "(A first run counted choices alone, as the zoo does, and called both removed; the rule was changed after that "
        "was seen, the verdicts were not.)",
    ]
    wrong = [(n, label, beside) for n, label, _, beside in found if beside.verdict not in (label, CANNOT_TELL)]
    if wrong:
        lines += ["", "## The wrong ones, with the retrained model beside", ""]
    for name, label, one in wrong:
        said = "; ".join(f"{e.name} {e.value:.2f} ({e.weight:+.2f})" for e in one.evidence[:4])
        lines.append(f"- {name}: {label}, taken for {one.verdict}. Strongest evidence (value, push): {said}.")
    lines += ["", "One subject, one seed, two forget authors: an existence proof, not an error rate."]
    return "\n".join(lines) + "\n"


def main(arguments: Arguments) -> None:
    """Run all of it."""
    text = page(*(load(folder) for folder in examine(arguments)))
    (arguments.docs / "validity_stories.md").write_text(text, encoding="utf-8")
    print(text)
