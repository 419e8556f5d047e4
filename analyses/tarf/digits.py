"""TARF on digits: labels, forget list and target concept differ."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from analyses.shared import DIFFERENCE
from analyses.tarf.claims import Numbers, drawn, gap, rows_of
from probe.data import Split
from probe.methods.baselines import ga
from probe.methods.classwise import fine_tune, l1_sparse, random_labels, salun, scrub
from probe.methods.tarf import Annealing, Selection, TARFResult, TopGroups, TopShare, tarf
from probe.metrics.membership import called_unseen
from probe.metrics.privacy import auc
from probe.rows import Row, append
from probe.testbed.digits import Images, Scenario, load_images, predictions, retrained, scenarios, trained_classifier

STEPS, BATCH = 100, 64
TUNING_SEEDS = (100, 101)
Setting = Mapping[str, float | int]
# Of which the Gap is the mean.
MEASURES = ("ua", "ra", "ta", "mia")


@dataclass(frozen=True, eq=False)
class Case:
    """One scenario under one seed: images, the model to unlearn from, and what retraining gives."""

    scenario: Scenario
    train: Images
    test: Images
    original: nn.Module
    retrained: nn.Module
    again: nn.Module
    seed: int

    @cached_property
    def goal(self) -> Numbers:
        """The retrained model's numbers."""
        return measured(self.retrained, self)


@cache
def case(scenario: Scenario, seed: int) -> Case:
    """Data, original, retrained, and retrained from other initial weights, the yardstick of what a Gap means."""
    train, test = load_images(seed)
    return Case(
        scenario,
        train,
        test,
        trained_classifier(scenario, train, seed),
        retrained(scenario, train, seed),
        retrained(scenario, train, seed + 1000),
        seed,
    )


Run = Callable[[nn.Module, Case, Setting], TARFResult | None]


def _common(at: Case, setting: Setting) -> dict[str, Any]:
    return {"steps": STEPS, "lr": setting["lr"], "batch_size": BATCH, "seed": at.seed}


def _labels(at: Case) -> torch.Tensor:
    return torch.arange(len(at.scenario.groups))


def _split(at: Case) -> Split:
    return at.scenario.split(at.train)


def _fine_tune_told(model: nn.Module, at: Case, setting: Setting) -> None:
    """Fine-tuning on what retraining sees: the control for whether ascent adds anything to knowing what to drop."""
    kept = replace(_split(at), retain=at.scenario.batch(at.train.of(at.scenario.retained)))
    fine_tune(model, kept, **_common(at, setting))


def _plain(method: Callable[..., Any], **more: Callable[[Case], Any]) -> Run:
    """A method whose settings are its own arguments; ``more`` are arguments that follow from the case."""

    def run(model: nn.Module, at: Case, setting: Setting) -> None:
        method(model, _split(at), **_common(at, setting) | dict(setting), **{name: of(at) for name, of in more.items()})

    return run


def _scrub(model: nn.Module, at: Case, setting: Setting) -> None:
    rounds = {"rounds": 5, "leaving_rounds": 3, "leave_steps": setting["leave_steps"], "stay_steps": STEPS // 5}
    common = {key: value for key, value in _common(at, setting).items() if key != "steps"}
    scrub(model, _split(at), original=at.original, alpha=setting["alpha"], gamma=1.0, **rounds, **common)


def _tarf(select: Callable[[Case], Selection]) -> Run:
    def run(model: nn.Module, at: Case, setting: Setting) -> TARFResult:
        annealing = Annealing(setting["k0"], int(setting["t1"]), int(setting["t0"]))
        return tarf(model, _split(at), annealing=annealing, select=select(at), **_common(at, setting))

    return run


def _told(at: Case) -> Selection:
    """The rows that do belong to the concept, which nobody knows: what selection could at best give."""
    digit_N = at.train.of(at.scenario.remaining).digit_N
    truth_N = torch.isin(digit_N, torch.tensor(at.scenario.false_retaining, dtype=torch.long))
    return lambda rise_N, group_N: truth_N


def _grid(**values: Sequence[float | int]) -> tuple[Setting, ...]:
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


_TARF = tuple(
    {"lr": lr, "k0": k0, "t1": t1, "t0": t0}
    for lr in (1e-3, 3e-3)
    for k0, t1, t0 in ((0.03, 3, 10), (0.3, 5, 10), (0.3, 5, 50))
)
_FINE_TUNE = _grid(lr=(1e-3, 3e-3, 1e-2, 3e-2, 5e-2, 1e-1))
# Six settings each; the ranges were found on the tuning seeds too.
METHODS: dict[str, tuple[Run, tuple[Setting, ...]]] = {
    "FT": (_plain(fine_tune), _FINE_TUNE),
    "GA": (_plain(ga), _grid(lr=(3e-4, 1e-3), steps=(10, 20, 40))),
    "RL": (_plain(random_labels, labels_K=_labels), _grid(lr=(3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 3e-2))),
    "L1-sparse": (_plain(l1_sparse), _grid(lr=(3e-3, 1e-2), alpha=(3e-4, 1e-3, 3e-3))),
    "SalUn": (_plain(salun, labels_K=_labels), _grid(lr=(3e-4, 3e-3, 1e-2), share=(0.1, 0.5))),
    "SCRUB": (_scrub, _grid(lr=(1e-3, 3e-3), leave_steps=(2, 5, 12), alpha=(0.1,))),
    "TARF": (_tarf(lambda at: TopGroups(at.scenario.n_unlisted_labels)), _TARF),
    "TARF (top 10 %)": (_tarf(lambda at: TopShare(0.1)), _TARF),
    "TARF (told)": (_tarf(_told), _TARF),
    "TARF (all retained)": (_tarf(lambda at: TopShare(0.0)), _TARF),
    "FT (told)": (_fine_tune_told, _FINE_TUNE),
}
# Where the list is complete there is nothing to drop: these are TARF and FT themselves.
_SAME_IF_COMPLETE = ("TARF (told)", "TARF (all retained)", "FT (told)")


def measured(model: nn.Module, at: Case) -> Numbers:
    """UA, RA, TA, MIA in percent, and accuracies on parts of the concept and its neighbours.

    UA: accuracy on the concept's training images (100 - UA in papers that count what is forgotten). RA: on all other
    training images. TA: on test images outside the concept. MIA: share of the concept's training images that an SVM
    on confidences, fitted on as many retained training images as there are such test images, calls unseen.
    """
    scenario = at.scenario
    concept = predictions(model, scenario, at.train.of(scenario.concept))
    retain = predictions(model, scenario, at.train.of(scenario.retained))
    test = predictions(model, scenario, at.test.of(scenario.retained))
    n = min(len(retain.right_N), len(test.right_N))
    chosen = torch.randperm(len(retain.right_N), generator=torch.Generator().manual_seed(at.seed))[:n]
    unseen = called_unseen(
        retain.confidence_N[chosen].numpy(), test.confidence_N[:n].numpy(), concept.confidence_N.numpy()
    )
    found = {
        "ua": 100 * concept.right_N.mean().item(),
        "ra": 100 * retain.right_N.mean().item(),
        "ta": 100 * test.right_N.mean().item(),
        "mia": 100 * unseen,
        "listed": 100 * predictions(model, scenario, at.train.of(scenario.listed)).right_N.mean().item(),
    }
    if scenario.affected:
        found["affected"] = 100 * predictions(model, scenario, at.train.of(scenario.affected)).right_N.mean().item()
    return found


def unlearned(name: str, at: Case, setting: Setting) -> tuple[nn.Module, Numbers]:
    """The model after a method, and its numbers; TARF's selection is judged along with it."""
    model = copy.deepcopy(at.original)
    result = METHODS[name][0](model, at, setting)
    found = measured(model, at)
    found["gap"] = gap(found, at.goal, MEASURES)
    false_retaining = torch.tensor(at.scenario.false_retaining, dtype=torch.long)
    if result is not None and len(false_retaining):
        truth_N = torch.isin(at.train.of(at.scenario.remaining).digit_N, false_retaining)
        found["recall"] = 100 * result.dropped_N[truth_N].float().mean().item()
        kept_wrongly = result.dropped_N & ~truth_N
        found["dropped_wrongly"] = 100 * kept_wrongly.float().sum().item() / max(1, int((~truth_N).sum()))
    return model, found


def tuned(name: str, scenario: Scenario) -> Setting:
    """The setting with the smallest mean Gap on the tuning seeds."""
    means = [
        np.mean([unlearned(name, case(scenario, seed), setting)[1]["gap"] for seed in TUNING_SEEDS])
        for setting in METHODS[name][1]
    ]
    return METHODS[name][1][int(np.argmin(means))]


def entanglement(at: Case) -> Numbers:
    """How near the affected digits are to the listed ones in the original model, against all other digits.

    cosine_affected and cosine_other: mean cosine of centred features with the centre of the listed images; rise_auroc:
    chance that the loss of an affected image rises more than that of another one after 10 steps of ascent on the
    listed images.
    """
    scenario, remaining = at.scenario, at.train.of(at.scenario.remaining)
    with torch.no_grad():
        features = at.original.features(scenario.batch(remaining).tokens_BT)  # type: ignore[operator]
        centre = at.original.features(scenario.batch(at.train.of(scenario.listed)).tokens_BT).mean(0)  # type: ignore
    middle = features.mean(0)
    cosine_N = torch.cosine_similarity(features - middle, (centre - middle)[None], dim=1)
    affected_N = torch.isin(remaining.digit_N, torch.tensor(scenario.affected))
    annealing = Annealing(1.0, 10, 10)
    result = tarf(
        copy.deepcopy(at.original),
        _split(at),
        annealing=annealing,
        select=TopShare(0.0),
        steps=10,
        lr=1e-3,
        batch_size=BATCH,
        seed=at.seed,
    )
    return {
        "cosine_affected": cosine_N[affected_N].mean().item(),
        "cosine_other": cosine_N[~affected_N].mean().item(),
        "rise_auroc": auc(result.rise_N[~affected_N].numpy(), result.rise_N[affected_N].numpy()),
    }


def study(scenario: Scenario, seeds: Sequence[int]) -> tuple[list[Row], dict[str, Setting]]:
    """All numbers of one scenario, and the settings that were chosen for it."""
    cases = [case(scenario, seed) for seed in seeds]
    rows: list[Row] = []
    for name, which in (("original", "original"), ("retrained", "retrained"), ("retrained again", "again")):
        runs = [measured(getattr(at, which), at) for at in cases]
        gaps = [gap(run, at.goal, MEASURES) for run, at in zip(runs, cases, strict=True)]
        rows += rows_of(name, [{**run, "gap": g} for run, g in zip(runs, gaps, strict=True)], "tarf", scenario.name)
    if scenario.affected:
        rows += rows_of("original", [entanglement(at) for at in cases], "entanglement", scenario.name, DIFFERENCE)
    methods = [name for name in METHODS if scenario.false_retaining or name not in _SAME_IF_COMPLETE]
    chosen = {name: tuned(name, scenario) for name in methods}
    for name, setting in chosen.items():
        rows += rows_of(name, [unlearned(name, at, setting)[1] for at in cases], "tarf", scenario.name)
    return rows, chosen


def main(*, out: Path = Path("results/tarf_digits"), seeds: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
    """Run all of it.

    Args:
        out: folder of the run; rows of an earlier run are replaced.
        seeds: draw images, initial weights and the order of rows; at least two, none of them a tuning seed.
    """
    if len(set(seeds)) < 2 or set(seeds) & set(TUNING_SEEDS):
        raise SystemExit(f"expected two or more seeds without {TUNING_SEEDS}, which choose the settings; got {seeds}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.jsonl").unlink(missing_ok=True)
    rows, settings = [], {}
    for scenario in scenarios():
        found, settings[scenario.name] = study(scenario, seeds)
        append(out / "rows.jsonl", found)
        rows += found
    recipe = {"seeds": seeds, "tuning_seeds": TUNING_SEEDS, "steps": STEPS, "settings": settings}
    (out / "settings.json").write_text(json.dumps(recipe, indent=1) + "\n")
    print(drawn(rows, out))
