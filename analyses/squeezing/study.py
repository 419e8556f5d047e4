"""Five methods unlearn; the same questions are put to the model at five steps of every run."""

import copy
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from analyses.shared import choice_of, conclude, finished, probability
from analyses.squeezing.claims import CONTROL, REWORDED, judged, rows_of, table
from analyses.squeezing.measures import Material, answers, drawn, material, questions
from analyses.subjects import subject
from probe.diagnostics.dynamics import dynamics
from probe.figures.answer_kinds import answer_kinds, gains_over_steps
from probe.figures.squeezing import responses_over_steps
from probe.figures.style import new_figure, paper_style, save_figure
from probe.methods.running import run_method
from probe.methods.uwc import mixed, uwc
from probe.modes import threads
from probe.sweep import load, sweep

_WITH_RETAIN: dict[str, Any] = {"steps": 50, "retain_weight": 3.0}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    # Long enough to collapse: the claims are about that too.
    "GA": ("ga", {"steps": 30}),
    "GradDiff": ("grad_diff", _WITH_RETAIN),
    "NPO": ("npo", {**_WITH_RETAIN, "beta": 0.1}),
    "BS-T": ("bs_t", {**_WITH_RETAIN, "weight": 0.2, "k": 20}),
    "BS-S": ("bs_s", {**_WITH_RETAIN, "weight": 0.5, "samples": 3, "max_new_tokens": 16}),
}
AT = (0.1, 0.2, 0.4, 0.7, 1.0)
COMMON = {"lr": 3e-4, "batch_size": 16}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What is run."""

    out: Path = Path("results/squeezing")
    """Folder of the study."""
    seeds: int = 3
    """Seeds of each method: the order of rows, and what is sampled."""
    share: float = 0.95
    """Share of the original's retain score that a calibrated model keeps."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Only these methods."""


def cell(given: Material, share: float, method: str, seed: int) -> dict[str, Any]:
    """Unlearn, ask on the way and at the end, as it is and at equal retention."""
    began, study = time.process_time(), given.study
    asked = questions(given)
    if method in ("original", "retrained"):
        model = getattr(study, method)
        found = {f"{name}/{key}": value for name, ask in asked.items() for key, value in ask(model).items()}
        found |= {f"drawn/{key}": value for key, value in drawn(model, given, seed).items()}
        return found | {"seconds": time.process_time() - began}
    name, settings = METHODS[method]
    model, supplies = copy.deepcopy(study.original), {"original": study.original}
    common = {**COMMON, **settings, "supplies": supplies, "seed": seed}
    run = partial(run_method, name, model, study.split, study.tokenizer, **common)
    at = [round(part * settings["steps"]) for part in AT]
    rows = dynamics(run, model, asked, at=at, name=method).rows()
    values: dict[str, Any] = {f"{row.item}/{row.diagnostic}/{row.quantity}": row.value for row in rows}
    values |= {f"raw/drawn/{key}": value for key, value in drawn(model, given, seed).items()}
    alpha = uwc(study.original, model, lambda m: probability(m, given.choosing), share=share, tolerance=0.02).alpha
    with mixed(study.original, model, alpha):
        equal = {f"answers/{key}": value for key, value in answers(study.original, given).items()}
        equal["retain/probability"] = probability(study.original, given.reported)
        equal |= {f"drawn/{key}": value for key, value in drawn(study.original, given, seed).items()}
        found = asked["squeezing"](study.original)
        equal |= {f"squeezing/{key}": value for key, value in found.items()}
    values |= {f"equal/{key}": value for key, value in equal.items()}
    return values | {"alpha": alpha, "steps": settings["steps"], "seconds": time.process_time() - began}


def main(arguments: Arguments) -> None:
    """Run what is missing, then draw and judge."""
    choice_of(arguments.methods, METHODS)
    cells = [{"method": name, "seed": 0} for name in ("original", "retrained")]
    cells += [{"method": name, "seed": seed} for seed in range(arguments.seeds) for name in arguments.methods]
    with threads(1):
        given = material(subject("testbed"))
        identity = given.study.identity() | {"methods": METHODS, "common": COMMON, "share": arguments.share, "at": AT}
        sweep(partial(cell, given, arguments.share), cells, arguments.out, identity=identity)
    report(arguments.out)


def report(out: Path) -> None:
    """Figures, tables and judgements from what is on disk."""
    records = load(out)
    good = finished(records)
    meta, n = {"study": "analyses.squeezing"}, len({r["seed"] for r in good})
    note = f"Means over {n} seeds; bands from lowest to highest."
    with paper_style("neurips") as venue:
        figure = new_figure(venue.page, 2.0)
        # GA falls so far at its end that nothing else would be seen beside it.
        data = responses_over_steps([row for row in rows_of(good) if row.intervention != "GA"], figure, columns=4)
        caption = f"Log-probability of the answer and of other responses while a method unlearns it. {note}"
        save_figure(figure, out / "figures", "squeezing_over_steps", data, metadata=meta, caption=caption)
        figure = new_figure(venue.page, 1.9)
        called = {"target": "the answer", REWORDED: "reworded", CONTROL: "reworded, wrong"}
        data = gains_over_steps(rows_of(good), figure, called)
        caption = (
            f"Change of log-probability since before the run: what means the same, and what sounds the same. {note}"
        )
        save_figure(figure, out / "figures", "squeezing_meaning", data, metadata=meta, caption=caption)
        figure = new_figure(venue.page, 2.4)
        data = answer_kinds(rows_of(good), figure, {"raw": "at the end of the run", "equal": "at equal retention"})
        caption = "What greedy answers to forget questions are: at the end of the run, and at equal retention."
        save_figure(figure, out / "figures", "squeezing_answers", data, metadata=meta, caption=caption)
    (out / "tables.md").write_text(table(good), encoding="utf-8")
    conclude(out, judged(good), records, "claims.md")
    print(f"CPU time of the cells: {sum(r['seconds'] for r in good) / 60:.1f} minutes")
