"""A model that is loaded, evaluated: samples, aggregates and rows. Nothing is read from disk or written."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from probe.data import Batch, Template, encode
from probe.evaluation.data import RowSets
from probe.evaluation.numbers import aggregate_rows, attack_rows, choice_rows, quality_rows, set_rows
from probe.evaluation.table import text_table
from probe.metrics.attacks import attack_scores, gradient_norm
from probe.metrics.choices import ChoiceResult, Form, choice_suite
from probe.metrics.suite import SuiteResult, answer_suite, n_texts
from probe.open_unlearning.log import EvaluationLog
from probe.open_unlearning.recomputed import recomputed, reference_attack, with_aggregates
from probe.open_unlearning.samples import attack_samples, choice_samples, set_samples
from probe.rows import Row
from probe.runs.folder import Keep, unkept, within


@dataclass(frozen=True)
class EvaluationSettings:
    """How rows are put to a model: template, sizes in rows and tokens, and what is run besides scoring."""

    template: Template
    batch_size: int
    max_length: int
    max_new_tokens: int
    generate: bool = True
    choices: Form = "letter"
    gradnorm: bool = False


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one model.

    Args:
        rows: every number, as in ``rows.jsonl``.
        log: every sample, as in ``evaluation.json``.
        notes: what a reader of the table must know.
    """

    rows: tuple[Row, ...]
    log: EvaluationLog
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> str:
        """The table as text."""
        return text_table(self.rows, self.notes)


def evaluate(
    model: Any,
    tokenizer: Any,
    data: RowSets,
    settings: EvaluationSettings,
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
        data: the rows; see ``probe.evaluation.data.material``.
        settings: template and sizes.
        name: what the model is called in rows and table.
        retrained: log of the retrained model, for forget quality and privleak; ``reference_log`` makes one.
        progress: whether to show a bar.
        keep: what each group of batches gives is kept by it, and read back after a kill.

    Raises:
        ValueError: rows that cannot be measured, or a log of other data.
    """
    log, suites = _measured(model, tokenizer, data, settings, progress=progress, label=name, keep=keep)
    if retrained is not None:
        log = replace(log, results={**log.results, **reference_attack(log, retrained)})
    aggregates = recomputed(log, retrained)
    rows = [row for part in data.sets for row in set_rows(name, part, suites[part])]
    if "model_utility" in aggregates:
        rows.append(Row(name, "evaluation", "model_utility", aggregates["model_utility"], n=9))
    if retrained is not None and "forget_quality" in aggregates:
        rows += quality_rows(name, log, retrained)
    rows += attack_rows(name, log, retrained)
    rows += aggregate_rows(name, rows)
    log = with_aggregates(log, aggregates)
    if data.choices:
        picks = _picks(model, tokenizer, data, settings, keep)
        rows += choice_rows(name, picks)
        log = replace(log, results={**log.results, "mcq_accuracy": choice_samples(picks)})
    return Evaluation(tuple(rows), log)


def reference_log(
    model: Any,
    tokenizer: Any,
    data: RowSets,
    settings: EvaluationSettings,
    *,
    progress: bool = False,
    keep: Keep = unkept,
) -> EvaluationLog:
    """The part of a retrained model's log that comparisons need: truth ratios and attacks, nothing generated."""
    only = replace(data, sets={on: rows for on, rows in data.sets.items() if on == "forget"}, choices=())
    how = replace(settings, generate=False)
    log, _ = _measured(model, tokenizer, only, how, progress=progress, label="retrained", keep=keep)
    return with_aggregates(log, recomputed(log))


def _measured(
    model: Any, tokenizer: Any, data: RowSets, settings: EvaluationSettings, *, progress: bool, label: str, keep: Keep
) -> tuple[EvaluationLog, dict[str, SuiteResult]]:
    sides = ("forget", "holdout") if data.holdout and "forget" in data.sets else ()
    sets = {**data.sets, **({"holdout": data.holdout} if sides else {})}
    generated = set(data.sets) if settings.generate else set()
    suites: dict[str, SuiteResult] = {}
    total = sum(n_texts(rows, with_generation=on in generated) for on, rows in sets.items())
    with tqdm(total=total, desc=label, unit="text", disable=not progress) as bar:
        for on, rows in sets.items():
            bar.set_postfix_str(on)
            suites[on] = answer_suite(
                model,
                tokenizer,
                rows,
                settings.template,
                batch_size=settings.batch_size,
                max_new_tokens=settings.max_new_tokens,
                max_length=settings.max_length,
                with_generation=on in generated,
                # Only the two sides of an attack need the whole distribution.
                with_moments=on in sides,
                keep=within(keep, on),
                progress=bar.update,
            )
    results = {metric: result for on in data.sets for metric, result in set_samples(on, suites[on]).items()}
    if sides:
        scores = {on: attack_scores(suites[on].tokens, [row.answer for row in sets[on]]) for on in sides}
        if settings.gradnorm:
            for on in sides:
                batch = encode(tokenizer, sets[on], template=settings.template, max_length=settings.max_length)
                norms = keep(f"{on}, gradient norms", partial(_gradient_norms, model, batch))
                scores[on] = {**scores[on], "gradnorm": np.array(norms)}
        results |= attack_samples(scores)
    return EvaluationLog(results, label), suites


def _gradient_norms(model: nn.Module, batch: Batch) -> list[float]:
    """OpenUnlearning's form, with dropout off; a backward pass for each row."""
    found: list[float] = gradient_norm(model, batch, eos=False).tolist()
    return found


def _picks(model: Any, tokenizer: Any, data: RowSets, settings: EvaluationSettings, keep: Keep) -> ChoiceResult:
    sizes: dict[str, Any] = {"batch_size": settings.batch_size, "max_length": settings.max_length}

    def columns() -> list[Any]:
        found = choice_suite(model, tokenizer, data.choices, form=settings.choices, **sizes)
        numbers = (found.picked_N, found.answer_N, found.guess_N)
        return [[logp_K.tolist() for logp_K in found.logp], *(values_N.tolist() for values_N in numbers)]

    logp, *numbers = keep("choices", columns)
    return ChoiceResult(settings.choices, tuple(map(np.array, logp)), *map(np.array, numbers))
