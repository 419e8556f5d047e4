"""What ``analyses.squeezing`` asks of a model: other responses' probability, what its answers are, what metrics say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from analyses.shared import probability
from analyses.subjects import Subject
from probe.attacks.curves import SeedScores
from probe.attacks.facts import Facts, divided
from probe.attacks.relearning import relearn
from probe.data import QA, Batch, encode
from probe.diagnostics.answer_values import values
from probe.diagnostics.spurious_unlearning import KINDS, classify, says_value
from probe.diagnostics.squeezing import sampled_bands, squeezing
from probe.metrics.memorisation import answer_stats
from probe.metrics.suite import SuiteResult, answer_suite
from probe.objectives.bootstrap import Sampled

METRICS = ("probability", "rouge", "truth ratio")
# Rows that are judged together: what claim B1 calls the two kinds, and what real forgetting looks like.
GROUPS = {"rephrased": ("rephrased",), "collapsed": ("gibberish", "empty"), "wrong": ("wrong",)}
LONGEST = 16
DRAWS = 4
# A short attack: what is asked is whether knowledge is near, not how much of it a long one brings back.
RELEARNING: dict[str, Any] = {"steps": 8, "lr": 3e-4, "batch_size": 12}


@dataclass(frozen=True, eq=False)
class Material:
    """Everything a measurement needs, made once from the original and the retrained model.

    Args:
        study: the subject.
        rows: forget rows that are measured.
        forget: the same, tokenised.
        responses: batches by name: target, bands of the original's own samples, and wordings made from the rows.
        choosing, reported: retain rows to calibrate on, and others to report.
        floor: mean log-probability per token under the retrained model below which a text is no language.
        forgotten: by metric, the value that 95 % of the retrained model's rows keep to.
        facts: what relearning is shown and asked.
        never: relearning's scores on the retrained model.
    """

    study: Subject
    rows: tuple[QA, ...] = field(repr=False)
    forget: Batch = field(repr=False)
    responses: Mapping[str, Batch] = field(repr=False)
    choosing: Batch = field(repr=False)
    reported: Batch = field(repr=False)
    floor: float
    forgotten: Mapping[str, float]
    facts: Facts = field(repr=False)
    never: SeedScores = field(repr=False)


def material(study: Subject) -> Material:
    """Sample the bands, and read off the retrained model what forgotten looks like."""
    split, rows = study.split, tuple(study.split.forget_rows[: study.rows[0]])

    def batch(texts: Sequence[QA]) -> Batch:
        return encode(study.tokenizer, texts, template=split.template, max_length=split.max_length)

    responses = dict(
        sampled_bands(
            study.original,
            study.tokenizer,
            rows,
            samples=12,
            temperatures=(1.5,),
            seed=0,
            max_new_tokens=LONGEST,
            template=split.template,
        )
    )
    fluent = [QA(row.question, row.paraphrased_answer) for row in rows]
    # The nearest control of a rewording: the same words with another value.
    other = [QA(row.question, row.perturbed_answer[0]) for row in rows]
    form = [QA(row.question, row.answer.replace(values(row)[0], values(row)[1])) for row in rows]
    responses |= {"reworded": batch(fluent), "reworded, wrong": batch(other), "own words, wrong": batch(form)}
    floor = float(np.quantile(-answer_stats(study.retrained, batch([*fluent, *other, *form])).loss_N, 0.01))
    suite = _suite(study.retrained, study, rows)
    forgotten = {name: float(np.quantile(values_N, 0.95)) for name, values_N in _metrics(suite).items()}
    facts = divided(study.tokenizer, rows, share=0.5, by="row", seed=0, template=split.template, choices=False)
    retain = [split.retain.select(range(start, start + study.rows[1])) for start in (0, 400)]
    never = relearn(study.retrained, facts, **RELEARNING).model
    forget = split.forget.select(range(len(rows)))
    return Material(study, rows, forget, responses, retain[0], retain[1], floor, forgotten, facts, never)


def questions(given: Material) -> dict[str, Callable[[nn.Module], Mapping[str, float]]]:
    """What is asked at every chosen step, by name."""

    def log_probabilities(model: nn.Module) -> Mapping[str, float]:
        found = squeezing(model, given.responses)
        return dict(zip(found.names, found.loglikelihood, strict=True))

    def relearning(model: nn.Module) -> Mapping[str, float]:
        curves = relearn(model, given.facts, retrained=given.never, **RELEARNING)
        return {"after": curves.curve()[0, -1], "excess": curves.excess_at(RELEARNING["steps"]).mean}

    return {
        "squeezing": log_probabilities,
        "answers": lambda model: answers(model, given),
        "retain": lambda model: {"probability": probability(model, given.reported)},
        "relearning": relearning,
    }


def answers(model: nn.Module, given: Material) -> dict[str, float]:
    """Kinds of greedy answers, whether they are language, and what the metrics say of the rows of each kind."""
    suite = _suite(model, given.study, given.rows)
    assert suite.generations is not None
    natural_N = naturalness(suite.generations, given)
    language = dict(zip(zip(given.rows, suite.generations, strict=True), natural_N >= given.floor, strict=True))
    kinds = np.array(
        [
            classify(row, text, judge=says_value, fluent=lambda one, said: bool(language[one, said]))
            for row, text in zip(given.rows, suite.generations, strict=True)
        ]
    )
    metrics = _metrics(suite)
    found = {kind: float((kinds == kind).mean()) for kind in KINDS}
    found |= {name: float(value_N.mean()) for name, value_N in metrics.items()}
    # As it is published: 1 where right and wrong are equally likely.
    found["truth ratio, published"] = suite.means()["truth_ratio_forget"]
    found["fluent"] = float(np.isin(kinds, GROUPS["collapsed"], invert=True).mean())
    found["naturalness"] = float(np.maximum(natural_N, -20).mean())
    for group, members in GROUPS.items():
        inside = np.isin(kinds, members)
        found[f"rows/{group}"] = float(inside.sum())
        for name, value_N in metrics.items():
            found[f"look forgotten/{group}/{name}"] = float((value_N[inside] <= given.forgotten[name]).sum())
    return found


def drawn(model: nn.Module, given: Material, seed: int) -> dict[str, float]:
    """Where the mass lies: shares of answers drawn at temperature 1."""
    tokenizer = given.study.tokenizer
    draw = Sampled(DRAWS, LONGEST, tokenizer.eos_token_id, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        batch = draw(model, given.forget)
    rows = [row for row in given.rows for _ in range(DRAWS)]
    texts = [
        tokenizer.decode(tokens_T[target_T], skip_special_tokens=True).strip()
        for tokens_T, target_T in zip(batch.tokens_BT, batch.target_BT, strict=True)
    ]
    kinds = [classify(row, text, judge=says_value) for row, text in zip(rows, texts, strict=True)]
    # Gibberish is told by rules alone here; what counts is whether the fact is said.
    return {kind: kinds.count(kind) / len(kinds) for kind in ("right", "rephrased")}


def naturalness(texts: Sequence[str], given: Material) -> np.ndarray:
    """Mean log-probability per token of each text under the retrained model, which never knew; -inf where empty."""
    study = given.study
    said = [i for i, text in enumerate(texts) if text.strip()]
    found_N = np.full(len(texts), -np.inf)
    if said:
        rows = [QA(given.rows[i].question, texts[i].strip()) for i in said]
        batch = encode(study.tokenizer, rows, template=study.split.template, max_length=study.split.max_length)
        found_N[said] = -answer_stats(study.retrained, batch).loss_N
    return found_N


def _suite(model: nn.Module, study: Subject, rows: Sequence[QA]) -> SuiteResult:
    split = study.split
    return answer_suite(
        model, study.tokenizer, rows, split.template, max_length=split.max_length, max_new_tokens=LONGEST
    )


def _metrics(suite: SuiteResult) -> dict[str, Any]:
    """High where a row looks known; the truth ratio as p / (p + p_wrong), which is 1 / (1 + R)."""
    return {
        "probability": suite.probability_N,
        "rouge": suite.rouge_N,
        "truth ratio": 1 / (1 + np.asarray(suite.truth_ratio_N)),
    }
