"""Every diagnostic of one condition, as rows."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from probe.data import QA, Batch, Split, encode
from probe.diagnostics.g_effect import g_effect
from probe.diagnostics.logit_collapse import logit_collapse
from probe.diagnostics.representation_pca import fit_axes, representation_pca
from probe.diagnostics.separability import Separability, separability, words_alone
from probe.metrics.mean_rows import mean_row
from probe.metrics.suite import SuiteResult, answer_suite
from probe.metrics.text import rouge_l_recall
from probe.metrics.tofu import forget_quality, truth_ratio_terms
from probe.questions import groups_of
from probe.report.conditions import Condition
from probe.report.lens import lens_rows
from probe.report.settings import Settings
from probe.rows import Row
from probe.sites import n_layers
from probe.study.study import Study


@dataclass(frozen=True)
class Sample:
    """The rows that diagnostics see: drawn once, the same for every condition.

    ``choosing`` is for decisions (features, directions, layers), ``training`` for the methods that are trained here:
    their retain rows are none that ``split`` holds, where there are enough of them, so that nothing on the retain side
    is chosen, or trained on, and reported on the same rows.
    """

    split: Split
    choosing: Split
    training: Split
    world: tuple[QA, ...]
    pca_axes: Any
    retrained: nn.Module | None = None
    forget_retrained: SuiteResult | None = None

    @cached_property
    def separability_retrained(self) -> Separability | None:
        """What others are compared with, fold by fold."""
        return None if self.retrained is None else separability(self.retrained, self.split)


def draw_sample(study: Study, settings: Settings) -> Sample:
    """Draw the rows and fit the PCA axes on the original model."""
    generator = np.random.default_rng(settings.seed)

    def drawn(rows: Sequence[QA], n: int) -> tuple[QA, ...]:
        return tuple(rows[i] for i in sorted(generator.permutation(len(rows))[:n]))

    split = _split(
        study, *(drawn(rows, settings.sample) for rows in (study.split.forget_rows, study.split.retain_rows))
    )
    seen = set(split.retain_rows)
    unseen = tuple(row for row in study.split.retain_rows if row not in seen)
    training = _split(study, study.split.forget_rows, _trained_on(study.split.retain_rows, unseen))
    if len(unseen) < len(split.retain_rows):
        warnings.warn(
            f"only {len(unseen)} retain rows are left for choosing features, directions and layers, so rows that are "
            "reported are used for it too; give more retain rows or lower --sample",
            stacklevel=2,
        )
        unseen = study.split.retain_rows
    choosing = _split(study, split.forget_rows, drawn(unseen, settings.sample))
    depth = n_layers(study.original)
    axes = fit_axes(study.original, split, layers=sorted({0, depth // 3, 2 * depth // 3, depth - 1}))
    theirs = None if study.retrained is None else _suite(study, study.retrained, split.forget_rows, settings)
    world = drawn(study.world, settings.sample)
    return Sample(split, choosing, training, world, axes, study.retrained, theirs)


def _trained_on(retain: tuple[QA, ...], unseen: tuple[QA, ...]) -> tuple[QA, ...]:
    """Retain rows that are not reported, unless they are less than a third: nothing would hold a method back then."""
    if 3 * len(unseen) >= len(retain):
        return unseen
    warnings.warn(
        f"only {len(unseen)} of {len(retain)} retain rows are not reported, so methods are trained on reported "
        "ones too and look better on them than on others; give more retain rows or lower --sample",
        stacklevel=3,
    )
    return retain


def _split(study: Study, forget: tuple[QA, ...], retain: tuple[QA, ...]) -> Split:
    def coded(rows: tuple[QA, ...]) -> Batch:
        return encode(study.tokenizer, rows, template=study.split.template, max_length=study.split.max_length)

    return Split(coded(forget), coded(retain), forget, retain, study.split.template, study.split.max_length)


DIAGNOSED = ("performance", "g_effect", "separability", "logit_collapse", "pca", "logit_lens")


def diagnosed(
    study: Study, sample: Sample, condition: Condition, model: nn.Module, settings: Settings
) -> Iterator[tuple[str, Iterator[Row]]]:
    """The rows of one condition by diagnostic; each is measured as its rows are read."""
    found = (
        performance(study, sample, condition.name, model, settings),
        _g_effects(sample, condition, model),
        _separability(sample, condition.name, model),
        _collapse(study, sample, condition.name, model, settings),
        _pca(sample, condition.name, model),
        lens_rows(study.tokenizer, sample.split.forget, condition.name, model),
    )
    return zip(DIAGNOSED, found, strict=True)


def _suite(study: Study, model: nn.Module, rows: Sequence[QA], settings: Settings) -> SuiteResult:
    return answer_suite(
        model,
        study.tokenizer,
        rows,
        study.split.template,
        batch_size=settings.rows_per_pass,
        max_length=study.split.max_length,
        with_generation=False,
        with_wrong_answers=all(row.perturbed_answer for row in rows),
    )


def performance(study: Study, sample: Sample, name: str, model: nn.Module, settings: Settings) -> Iterator[Row]:
    """Forgetting and utility: answer probability, paraphrase, extraction strength, truth ratio, choice, ROUGE."""
    sides = {"forget": sample.split.forget_rows, "retain": sample.split.retain_rows, "world": sample.world}
    for on, rows in sides.items():
        if not rows:
            continue
        suite, groups = sample.forget_retrained, np.array(groups_of(rows))
        if suite is None or on != "forget" or model is not sample.retrained:
            suite = _suite(study, model, rows, settings)
        found = {
            "probability": suite.probability_N,
            "paraphrased_probability": suite.paraphrased_probability_N,
            "extraction_strength": suite.extraction_strength_N,
            "exact_memorisation": suite.exact_memorisation_N,
        }
        if suite.truth_ratio_N is not None:
            found["truth_ratio"] = truth_ratio_terms(suite.truth_ratio_N, on)
            found["choice_accuracy"] = np.asarray(suite.rank_N) == 0
            found["choice_chance"] = np.array([1 / (1 + len(row.perturbed_answer)) for row in rows])
            if on == "forget" and sample.forget_retrained is not None:
                quality = forget_quality(suite.truth_ratio_N, sample.forget_retrained.truth_ratio_N)
                yield Row(name, "performance", "forget_quality_ln_p", quality.ln_p, on, n=quality.n)
        for quantity, value_N in found.items():
            # Rows without a paraphrased question have no probability of it.
            there_N = ~np.isnan(np.asarray(value_N, dtype=float))
            if there_N.any():
                yield mean_row(name, "performance", quantity, value_N[there_N], on, tuple(groups[there_N]))


def _g_effects(sample: Sample, condition: Condition, model: nn.Module) -> Iterator[Row]:
    forget = sample.split.forget
    for on, over in (("forget", forget), ("retain", sample.split.retain)):
        # One batch: NPO and RMU are no token means, so chunks of them would not add up exactly.
        effect = g_effect(model, condition.objective, forget, over=over, batch_size=max(len(forget), len(over)))
        kept = [row for row in effect.rows(condition.name, on) if row.quantity in ("effect", "total")]
        yield from (replace(row, n=len(forget)) for row in kept)
    # The rows' format has no place for a text: what the objective is called stands in the quantity.
    yield Row(condition.name, "g_effect", f"objective {_called(condition.objective)}", 1.0)


def _called(objective: Any) -> str:
    name = getattr(objective, "__name__", type(objective).__name__)
    return {"ga": "gradient ascent", "TowardsTarget": "RMU's forget term"}.get(name, name)


def _separability(sample: Sample, name: str, model: nn.Module) -> Iterator[Row]:
    against = None if name == "original" else sample.separability_retrained
    found = against if name == "retrained" and against is not None else separability(model, sample.split)
    if name == "original":
        words = words_alone(model, sample.split)
        yield Row(name, "separability", "words alone", words.mean, low=words.low, high=words.high, n=found.n)
    if against is not None and name != "retrained":
        for layer, more in enumerate(found.beyond(against)):
            mean, low, high = more.mean, more.low, more.high
            yield Row(name, "separability", "beyond retrained", mean, layer=layer, low=low, high=high, n=found.n)
    yield from found.rows(name)


def _collapse(study: Study, sample: Sample, name: str, model: nn.Module, settings: Settings) -> Iterator[Row]:
    for on in ("forget", "retain"):
        rows = getattr(sample.split, f"{on}_rows")[: settings.generated]
        found = logit_collapse(
            model,
            getattr(sample.split, on),
            tokenizer=study.tokenizer,
            prompts=[study.split.template.asked(row.question) for row in rows],
            template=study.split.template,
            max_new_tokens=settings.longest_generation,
            batch_size=settings.rows_per_pass,
        )
        # The same texts serve ROUGE: generation is the dearest part of a report.
        rouge_N = [rouge_l_recall(row.answer, text) for row, text in zip(rows, found.texts, strict=True)]
        yield mean_row(name, "performance", "rouge", rouge_N, on, groups_of(rows))
        yield from found.rows(name, on)


def _pca(sample: Sample, name: str, model: nn.Module) -> Iterator[Row]:
    found = representation_pca(model, sample.split, axes=sample.pca_axes).rows(name)
    # The axes are the original's.
    return (row for row in found if name == "original" or not row.quantity.startswith("explained"))
