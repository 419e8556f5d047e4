"""A model that is loaded, asked everything: samples, aggregates and rows. Nothing is read from disk or written."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from probe.commands.folder import Keep, unkept, within
from probe.evaluation.data import Material
from probe.evaluation.log import EvaluationLog
from probe.evaluation.measure import Asking, Measured, attacks, gradient_attack, measured, n_steps, samples
from probe.evaluation.numbers import (
    aggregate_rows,
    attack_rows,
    choice_rows,
    choice_samples,
    quality_rows,
    set_rows,
    utility_rows,
)
from probe.evaluation.recomputed import recomputed, reference_attack
from probe.evaluation.table import text_table
from probe.metrics.choices import ChoiceResult, choice_suite
from probe.rows import Row


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Args:
        rows: every number, as in ``rows.jsonl``.
        log: every sample, as in ``evaluation.json``.
        notes: what a reader of the table must know.
    """

    rows: tuple[Row, ...]
    log: EvaluationLog
    notes: tuple[str, ...]

    @property
    def table(self) -> str:
        """The table as text."""
        return text_table(self.rows, self.notes)


def evaluate(
    model: Any,
    tokenizer: Any,
    asked: Material,
    asking: Asking,
    *,
    name: str = "model",
    retrained: EvaluationLog | None = None,
    progress: bool = False,
    keep: Keep = unkept,
) -> Evaluation:
    """Evaluate a model that is already loaded; edits and blends that are in force act here too.

    Args:
        model: any Hugging Face decoder.
        tokenizer: its tokenizer, fast.
        asked: what is asked; see ``probe.evaluation.data.material``.
        asking: template and sizes.
        name: what the model is called in rows and table.
        retrained: log of the retrained model, for forget quality and privleak; ``reference_log`` makes one.
        progress: whether to show a bar.
        keep: what each group of batches gives is kept by it, and read back after a kill.

    Raises:
        ValueError: rows that cannot be measured, or a log of other data.
    """
    log, found = _measured_log(model, tokenizer, asked, asking, progress=progress, label=name, keep=keep)
    if retrained is not None:
        log = replace(log, results={**log.results, **reference_attack(log, retrained)})
    aggregates = recomputed(log, retrained)
    rows: list[Row] = []
    for part, measure in found.items():
        if part != "holdout":
            rows += set_rows(name, part, measure, log)
    rows += utility_rows(name, aggregates)
    if retrained is not None and "forget_quality" in aggregates:
        rows += quality_rows(name, log, retrained)
    rows += attack_rows(name, log, retrained)
    rows += aggregate_rows(name, rows)
    log = _with_aggregates(log, aggregates)
    if asked.choices:
        picks = _picks(model, tokenizer, asked, asking, keep)
        rows += choice_rows(name, picks)
        log = EvaluationLog({**log.results, "mcq_accuracy": choice_samples(picks)}, log.where)
    return Evaluation(tuple(rows), log, ())


def reference_log(
    model: Any, tokenizer: Any, asked: Material, asking: Asking, *, progress: bool = False, keep: Keep = unkept
) -> EvaluationLog:
    """The part of a retrained model's log that comparisons need: truth ratios and attacks, nothing generated."""
    only = replace(asked, sets={k: rows for k, rows in asked.sets.items() if k == "forget"}, choices=())
    log, _ = _measured_log(
        model, tokenizer, only, replace(asking, generate=False), progress=progress, label="retrained", keep=keep
    )
    return _with_aggregates(log, recomputed(log))


def _measured_log(
    model: Any, tokenizer: Any, asked: Material, asking: Asking, *, progress: bool, label: str, keep: Keep
) -> tuple[EvaluationLog, dict[str, Measured]]:
    sets = {**asked.sets, **({"holdout": asked.holdout} if asked.holdout and "forget" in asked.sets else {})}
    found: dict[str, Measured] = {}
    results: dict[str, Any] = {}
    # Only the two sides of an attack need the whole distribution, and nothing is generated for rows held out.
    how = {
        part: replace(
            asking,
            generate=asking.generate and part != "holdout",
            moments="holdout" in sets and part in ("forget", "holdout"),
        )
        for part in sets
    }
    total = sum(n_steps(rows, how[part]) for part, rows in sets.items())
    with tqdm(total=total, desc=label, unit="text", disable=not progress) as bar:
        for part, rows in sets.items():
            bar.set_postfix_str(part)
            found[part] = measured(model, tokenizer, rows, how[part], bar, within(keep, part))
            if part != "holdout":
                results |= samples(part, found[part])
    if "holdout" in found:
        results |= attacks(found["forget"], found["holdout"])
        if asking.gradnorm:
            both = {side: sets[side] for side in ("forget", "holdout")}
            results |= gradient_attack(model, tokenizer, both, asking, keep)
    return EvaluationLog(results, label), found


def _picks(model: Any, tokenizer: Any, asked: Material, asking: Asking, keep: Keep) -> ChoiceResult:
    def columns() -> list[Any]:
        found = choice_suite(
            model,
            tokenizer,
            asked.choices,
            form=asking.choices,
            batch_size=asking.batch_size,
            max_length=asking.max_length,
        )
        numbers = (found.picked_N, found.answer_N, found.guess_N)
        return [[logp_K.tolist() for logp_K in found.logp], *(values_N.tolist() for values_N in numbers)]

    logp, *numbers = keep("choices", columns)
    return ChoiceResult(asking.choices, tuple(map(np.array, logp)), *map(np.array, numbers))


def _with_aggregates(log: EvaluationLog, aggregates: dict[str, float]) -> EvaluationLog:
    results: dict[str, Any] = {}
    for name in sorted({*log.results, *aggregates}):
        area = {"auc": aggregates[name]} if name.startswith("mia_") else {}
        results[name] = {**log.results.get(name, {}), **area, "agg_value": aggregates.get(name)}
    return EvaluationLog(results, log.where)
