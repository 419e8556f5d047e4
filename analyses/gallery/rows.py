"""Rows behind ``docs/gallery.md``: small runs on the shipped testbed, part by part, each written once."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from probe.attacks.facts import divided
from probe.attacks.finetuning import finetune
from probe.attacks.quantisation import rounded_weights
from probe.attacks.relearning import relearn
from probe.data import QA, Batch, Split
from probe.diagnostics.squeezing import sampled_bands, squeezing
from probe.dictionaries.adapters import dictionary
from probe.hooks import captured, edited
from probe.methods.running import run_method
from probe.methods.sequential import requests, sequential
from probe.metrics.aggregates import bs_aggregate, memorisation_score
from probe.metrics.mean_rows import mean_row
from probe.metrics.means import harmonic
from probe.metrics.memorisation import answer_stats
from probe.metrics.suite import SuiteResult, answer_suite
from probe.metrics.tofu import forget_quality, truth_ratio_known
from probe.questions import groups_of
from probe.report import conditions
from probe.report.doses import dose_rows, prepare_doses
from probe.report.measure import Sample, diagnosed, draw_sample
from probe.report.settings import TESTBED_METHODS, Settings
from probe.report.single_layers import reference_fragility, single_layer_rows
from probe.rows import Row, append
from probe.study.loading import testbed as testbed_study
from probe.study.study import Study

SETTINGS = Settings(sample=50, generated=10, max_new_tokens=12)
ATTACKED = ("GradDiff", "NPO", "RMU")
ATTACK: dict[str, Any] = {"steps": 24, "lr": 1e-4, "batch_size": 8, "at": (3, 6, 12, 18), "seeds": (0, 1, 2)}
# BS-T and BS-S beside NPO as the report runs it; settings were not searched.
_NPO, _GRAD_DIFF = TESTBED_METHODS["npo"], TESTBED_METHODS["grad_diff"]
_RUN = {key: _NPO[key] for key in ("lr", "batch_size", "steps")}
SQUEEZED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "NPO": ("npo", _NPO),
    "BS-T": ("bs_t", {"weight": 0.2, "k": 20, "retain_weight": 3.0, **_RUN}),
    "BS-S": ("bs_s", {"weight": 0.5, "samples": 3, "max_new_tokens": 16, "retain_weight": 3.0, **_RUN}),
}
IN_SEQUENCE: dict[str, tuple[str, Mapping[str, Any]]] = {"GradDiff": ("grad_diff", _GRAD_DIFF), "NPO": ("npo", _NPO)}
REQUESTS, STEPS_A_REQUEST = 5, 30
SAE_FEATURES, SAE_SCALES = 20, (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


def part(folder: Path, make: Callable[[], Iterable[Row]]) -> Path:
    """Write the rows of one part, unless they are there already; a part appears whole or not at all."""
    path = folder / "rows.jsonl"
    if not path.is_file():
        print(f"measuring {folder}")
        rows = list(make())
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "rows.part"
        temporary.unlink(missing_ok=True)
        append(temporary, rows)
        os.replace(temporary, path)
    return path


@dataclass(frozen=True, eq=False)
class Bench:
    """The testbed with the rows that everything is measured on."""

    study: Study
    sample: Sample

    def groups(self, on: str) -> tuple[str, ...]:
        """Of the sample's rows."""
        return groups_of(getattr(self.sample.split, f"{on}_rows"))

    def probabilities(self, model: nn.Module, batch: Batch) -> np.ndarray:
        """Answer probability of each row."""
        return answer_stats(model, batch, batch_size=SETTINGS.rows_per_pass).probability_N

    def unlearn(self, method: str, model: nn.Module, split: Split, original: nn.Module, **settings: Any) -> Any:
        """A method of the catalogue, on a model in place."""
        return run_method(method, model, split, self.study.tokenizer, supplies={"original": original}, **settings)

    def suite(self, model: nn.Module, rows: tuple[QA, ...]) -> SuiteResult:
        """Every teacher-forced metric of rows."""
        given = self.study.split
        return answer_suite(
            model, self.study.tokenizer, rows, given.template, max_length=given.max_length, with_generation=False
        )

    def utility(self, model: nn.Module) -> float:
        """Harmonic mean of probability and truth ratio on retain rows, and of probability on facts about the world."""
        kept = self.suite(model, self.sample.split.retain_rows).means()
        world = self.suite(model, self.sample.world).means()
        parts = {"retain": kept["probability"], "truth": kept["truth_ratio_retain"], "world": world["probability"]}
        return harmonic(parts).value


def bench() -> Bench:
    """Load the testbed and draw the rows."""
    study = testbed_study()
    return Bench(study, draw_sample(study, SETTINGS))


def models(at: Bench) -> Iterator[Row]:
    """The report's diagnostics of original, retrained and five unlearned models, with attacks."""
    yield from reference_fragility(at.study, at.sample, SETTINGS)
    made = [*conditions.references(at.study)]
    for condition in made:
        with condition.applied() as model:
            for _, rows in diagnosed(at.study, at.sample, condition, model, SETTINGS):
                yield from rows
            yield from beyond_the_report(at, condition.name, model)
    methods = conditions.resolved_methods(TESTBED_METHODS, SETTINGS.seed)
    for condition in conditions.unlearned(replace(at.study, split=at.sample.training), methods):
        yield from single_layer_rows(at.study, at.sample, condition, SETTINGS)
        with condition.applied() as model:
            for _, rows in diagnosed(at.study, at.sample, condition, model, SETTINGS):
                yield from rows
            yield from beyond_the_report(at, condition.name, model)
    yield from dose_rows(at.study, at.sample, prepare_doses(at.study, at.sample, SETTINGS), SETTINGS)


def beyond_the_report(at: Bench, name: str, model: nn.Module) -> Iterator[Row]:
    """Quantisation, relearning and aggregates of one model."""
    for bits in (16, 8, 4):
        with rounded_weights(model, bits=bits):
            for on, batch in (("forget", at.sample.split.forget), ("retain", at.sample.split.retain)):
                found = at.probabilities(model, batch)
                yield mean_row(name, "quantisation", "probability", found, on, at.groups(on), item=bits)
    yield from aggregates(at, name, model, f"{len(at.study.split.forget_rows)} forget rows at once")
    if name in (*ATTACKED, "original", "retrained"):
        yield from relearned(at, name, model)


def aggregates(at: Bench, name: str, model: nn.Module, split: str) -> Iterator[Row]:
    """Memorisation, utility and their harmonic mean; extraction strength on paraphrased questions."""
    suite = at.suite(model, at.sample.split.forget_rows)
    memory = memorisation_score(
        extraction_strength=float(suite.extraction("1/L").mean()),
        exact_memorisation=float(suite.exact_memorisation_N.mean()),
        paraphrased_probability=float(np.exp(-suite.right_loss_N).mean()),  # type: ignore[operator]
        truth_ratio_known=truth_ratio_known(suite.truth_ratio_N),
    ).value
    utility = at.utility(model)
    size = sum(p.numel() for p in model.parameters())
    both = {"memorisation": memory, "utility": utility}
    both["aggregate"] = bs_aggregate(**both).value
    for quantity, value in both.items():
        yield Row(name, "aggregate", quantity, value, split, item=size, n=len(suite))
    yield Row(name, "evaluation", "model_utility", utility, n=len(suite))
    for on, found in (("forget", suite), ("retain", at.suite(model, at.sample.split.retain_rows))):
        value_N = found.extraction("0", perturbed=True)
        yield mean_row(name, "performance", "perturbed_strength", value_N, on, at.groups(on))


def relearned(at: Bench, name: str, model: nn.Module) -> Iterator[Row]:
    """Fine-tuning on half of the forget rows, and on retain rows; held-out forget rows are scored."""
    split = at.study.split
    facts = divided(at.study.tokenizer, split.forget_rows, share=0.5, by="row", seed=0, choices=False)
    if name == "original":
        level = float(facts.score(model, facts.held, facts.template).probability_N.mean())
        for kind in ("in-domain", "out-of-domain"):
            yield Row(name, "relearning", "probability", level, kind, item=0, n=len(facts.held))
        return
    yield from relearn(model, facts, **ATTACK).rows(name)
    yield from finetune(model, facts, data=split.retain.select(range(200)), **ATTACK).rows(name)


def squeezed(at: Bench, name: str) -> Iterator[Row]:
    """The target's and other responses' log-likelihood while a method unlearns; utility and forget quality too."""
    entry, settings = SQUEEZED[name]
    asked = at.sample.split.forget_rows[:20]
    bands = sampled_bands(
        at.study.original, at.study.tokenizer, asked, samples=8, temperatures=(1.0, 2.0), seed=0, max_new_tokens=16
    )
    rows: list[Row] = []

    def observe(step: int, model: nn.Module) -> None:
        rows.extend(squeezing(model, bands).rows(name, step))
        ratio_N = at.suite(model, at.sample.split.forget_rows).truth_ratio_N
        quality = forget_quality(ratio_N, at.sample.forget_retrained.truth_ratio_N)
        rows.append(Row(name, "checkpoint", "forget_quality_ln_p", quality.ln_p, "forget", item=step, n=quality.n))
        rows.append(Row(name, "checkpoint", "model_utility", at.utility(model), item=step))

    model = copy.deepcopy(at.study.original)
    observe(0, model)
    at.unlearn(entry, model, at.study.split, at.study.original, **settings, every=15, observe=observe)
    # The end of NPO's run is the model of the report; the others have no place there, so their end is a point too.
    if name != "NPO":
        last = [r for r in rows if r.diagnostic == "checkpoint"][-2:]
        rows += [
            replace(last[0], diagnostic="performance", item=None),
            replace(last[1], diagnostic="evaluation", item=None),
        ]
    yield from rows


def continual(at: Bench, name: str) -> Iterator[Row]:
    """Five requests one after another."""
    entry, settings = IN_SEQUENCE[name]
    split = at.study.split
    size = len(split.forget_rows) // REQUESTS
    tasks = [split.forget_rows[i * size : (i + 1) * size] for i in range(REQUESTS)]
    splits = requests(at.study.tokenizer, tasks, split.retain_rows, max_length=split.max_length)
    rows: list[Row] = []

    def look(who: str, model: nn.Module, n: int) -> float:
        kept = at.probabilities(model, split.retain.select(range(100)))
        left = 1 - at.probabilities(model, split.forget.select(range(n * size)))
        of_kept, of_left = groups_of(split.retain_rows[:100]), groups_of(split.forget_rows[: n * size])
        rows.append(mean_row(who, "continual", "utility", kept, "retain", of_kept, item=n))
        rows.append(mean_row(who, "continual", "forgetting", left, "forget", of_left, item=n))
        return float(kept.mean())

    for n in range(1, REQUESTS + 1):
        for who, reference in (("original", at.study.original), ("retrained", at.study.retrained)):
            assert reference is not None
            look(who, reference, n)
    asked = iter(range(REQUESTS + 1))

    def utility(model: nn.Module) -> float:
        n = next(asked)
        return look(name, model, n) if n else float(at.probabilities(model, split.retain.select(range(100))).mean())

    def recipe(model: nn.Module, one: Any, original: nn.Module) -> Any:
        return at.unlearn(entry, model, one, original, **{**settings, "steps": STEPS_A_REQUEST})

    model = copy.deepcopy(at.study.original)
    sequential(model, splits, recipe, utility, reference="updated")
    yield from rows
    # Forgotten one after another is another split of Table 2.
    rows_of_table = aggregates(at, name, model, f"{len(split.forget_rows)} forget rows, {size} at a time")
    yield from (row for row in rows_of_table if row.diagnostic == "aggregate")


def sae(at: Bench) -> Iterator[Row]:
    """Mean activations of the testbed's SAE on either side, and suppressing the features that tell them apart."""
    features, site = dictionary(at.study.sae), at.study.sae_site
    assert site is not None
    means = {}
    for on, batch in (("forget", at.sample.choosing.forget), ("retain", at.sample.choosing.retain)):
        with torch.no_grad(), captured(at.study.original, [site]) as states:
            at.study.original(**batch.inputs, use_cache=False)
        means[on] = features.encode(states[site][batch.attention_BT]).mean(0)
        n = int(batch.attention_BT.sum())
        for feature, value in enumerate(means[on].tolist()):
            yield Row("original", "sae_activity", "mean_activation", value, on, item=feature, n=n)
    chosen = (means["forget"] - means["retain"]).topk(SAE_FEATURES).indices
    for feature in chosen.tolist():
        yield Row("original", "sae_activity", "selected", 1.0, item=feature)
    # The control: as many features that fire on forget tokens, by chance.
    alive = (means["forget"] > 0).nonzero()[:, 0]
    alive = alive[~torch.isin(alive, chosen)]
    random = alive[torch.randperm(len(alive), generator=torch.Generator().manual_seed(0))[:SAE_FEATURES]]
    for name, index_K in (("SAE", chosen), ("SAE (random features)", random)):
        for scale in SAE_SCALES:
            yield from suppressed(at, name, index_K, scale)


def suppressed(at: Bench, name: str, index_K: torch.Tensor, scale: float) -> Iterator[Row]:
    """Probabilities with ``scale`` times the chosen features' contribution taken off; 0 is no edit."""
    features, site = dictionary(at.study.sae), at.study.sae_site
    assert site is not None

    def edit(hidden_BTD: torch.Tensor) -> torch.Tensor:
        f_BTK = features.encode(hidden_BTD)[..., index_K]
        return hidden_BTD - scale * (f_BTK @ features.directions_FD[index_K])

    edits: Mapping[Any, Any] = {site: edit} if scale else {}
    with torch.no_grad(), edited(at.study.original, edits):
        for on, batch in (("forget", at.sample.split.forget), ("retain", at.sample.split.retain)):
            found = at.probabilities(at.study.original, batch)
            yield mean_row(name, "sae_dose", "probability", found, on, at.groups(on), dose=scale)
