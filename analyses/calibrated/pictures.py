"""Figures and tables of ``analyses.calibrated``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from analyses import shared
from analyses.calibrated.measures import OPTIONS
from analyses.calibrated.numbers import METRICS, STATES, is_reference, methods_of, seeds, studied
from analyses.shared import SHARE, Record, seed_row
from probe.figures.calibrated import calibration_arrows, choice_against_open, strength_over_alpha
from probe.figures.reliability import metric_reliability
from probe.figures.style import new_figure, paper_style, save_figure
from probe.figures.tables import main_table
from probe.rows import Row

MEASURED = (*METRICS, "open_right", "only_choice", "only_open", "at_chance", "near_uniform", "option_entropy")
# Quantities without an upper end.
_OPEN_ENDED = ("log_perplexity",)


def rows_of(runs: Sequence[Record]) -> list[Row]:
    """Mean over seeds of everything that was measured, with its 95 % t-interval, cut at the ends of a share's range."""
    rows = []
    for name in shared.methods_of(runs):
        for state in STATES:
            for on in ("forget", "retain"):
                rows += [_row(runs, name, state, on, quantity) for quantity in MEASURED]
        rows.append(_row(runs, name, "calibrated", "", "alpha", key="alpha"))
        if is_reference(name):
            continue
        for on in ("forget", "retain"):
            paths = sorted({k for r in runs for k in r if k.startswith("path/") and k.endswith(f"/{on}")})
            path = [_row(runs, name, "path", on, "extraction_strength", key=key) for key in paths]
            rows += [replace(row, dose=float(key.split("/")[1])) for row, key in zip(path, paths, strict=True)]
            # The ends of the way are the two models themselves.
            for dose, who, key in ((0.0, "original", f"raw/{on}"), (1.0, name, f"raw/{on}")):
                end = _row(runs, who, "path", on, "extraction_strength", key=f"{key}/extraction_strength")
                rows.append(replace(end, intervention=name, dose=dose))
    return [row for row in rows if row.n]


def _row(runs: Sequence[Record], name: str, state: str, on: str, quantity: str, *, key: str = "") -> Row:
    values = seeds(runs, name, key or f"{state}/{on}/{quantity}")
    return seed_row(name, state, quantity, values, on, within=(0.0, np.inf) if quantity in _OPEN_ENDED else SHARE)


def reliability_rows(runs: Sequence[Record], state: str) -> list[Row]:
    """r of each metric under each attack, with bootstrap intervals over models."""
    found = studied(runs, state)
    if found is None:
        return []
    return [
        Row("all methods", "reliability", metric, c.r, attack, low=c.bootstrap[0], high=c.bootstrap[1], n=c.n)
        for metric, attacks in found.by_metric.items()
        for attack, c in attacks.items()
    ]


def draw(runs: Sequence[Record], out: Path, subject: str) -> None:
    """Every figure and table that the records allow."""
    rows = rows_of(runs)
    plain = {n for n in methods_of(runs) if "(" not in n} | {"original", "retrained"}
    few = [row for row in rows if row.intervention in plain]
    folder, about = out / "figures", {"study": "analyses.calibrated", "subject": subject}
    n = max((row.n or 0 for row in rows), default=0)
    with paper_style("neurips") as venue:
        figure = new_figure(venue.page, 3.8)
        data = calibration_arrows(few, figure.subplots())
        caption = (
            "Extraction strength on forget and retain data, as trained (hollow) and mixed with the original so that "
            f"the stated share of the retain score is kept (full; in brackets: alpha). Means over {n} seeds; "
            "whiskers: 95 % t-intervals."
        )
        save_figure(figure, folder, "calibration", data, metadata=about, caption=caption)
        figure = new_figure(venue.page, 0.8 + 1.05 * -(-(len(plain) - 2) // 5))
        caption = f"Extraction strength as the unlearned model is mixed in; dotted: alpha. Means over {n} seeds."
        save_figure(figure, folder, "alpha", strength_over_alpha(few, figure), metadata=about, caption=caption)
        for state in STATES:
            figure = new_figure(venue.page, 2.9)
            data = choice_against_open(few, figure, state=state, guess=1 / OPTIONS)
            caption = (
                f"Multiple choice among {OPTIONS} and open answers, {state}; hollow: an accuracy that most seeds "
                f"share with blind guessing. Means over {n} seeds."
            )
            save_figure(figure, folder, f"choice_{state}", data, metadata=about, caption=caption)
            study = reliability_rows(runs, state)
            if study:
                figure = new_figure(venue.page, 4.2)
                caption = (
                    f"Pearson's r of each metric on forget data before and after four attacks, {state} models, each a "
                    f"mean over {n} seeds; whiskers: 95 % bootstrap over {study[0].n} models; ticks: mean over attacks."
                )
                data = metric_reliability(study, figure.subplots())
                save_figure(figure, folder, f"reliability_{state}", data, metadata=about, caption=caption)
    for state in STATES:
        own = [r for r in rows if r.diagnostic == state or (r.diagnostic == "raw" and is_reference(r.intervention))]
        main_table([replace(row, diagnostic="performance") for row in own]).write(out / "tables", state)
    _write_all(rows, out / "tables" / "all.csv")


def _write_all(rows: Sequence[Row], path: Path) -> None:
    lines = ["method,state,on,quantity,alpha,mean,low,high,seeds"]
    for r in rows:
        name = r.intervention.replace(",", ";")
        numbers = ("" if x is None else f"{x:.6g}" for x in (r.dose, r.value, r.low, r.high, r.n))
        lines.append(",".join([name, r.diagnostic, r.on, r.quantity, *numbers]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
