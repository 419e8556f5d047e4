"""Layer maps of two models: rows, figures, a table, a manifest."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probe.checkpoints import weights_hash
from probe.commands.data import Data
from probe.commands.folder import appearing
from probe.commands.opening import Opened, opened, opened_testbed
from probe.diagnostics.layer_maps import ReplacementMap, every_span, from_embeddings, from_head, replacement_map
from probe.diagnostics.screening import Screening, screened
from probe.figures.folder import origin
from probe.figures.layers import u_shape
from probe.figures.spans import growing_spans, part_lines, span_map, span_row
from probe.figures.style import new_figure, paper_style, save_figure
from probe.lenses.job import LayersJob
from probe.methods.baselines import grad_diff
from probe.metrics.teacher_forced import TeacherForced
from probe.rows import Row, append
from probe.sites import n_layers

# As published: UWC's floor of extraction strength, and Min-K% at 20 %.
METRICS = TeacherForced(floor="0", k=0.2)
# The method study's first guess for the testbed, two thirds of its steps.
_FEW = {"steps": 40, "lr": 3e-4, "retain_weight": 3.0, "batch_size": 16, "seed": 0}
_SHOWN = "probability"
_LABEL = "probability of a token"


def run_layers(job: LayersJob, data: Data) -> Path:
    """Replace layers of one model by the other's, as the job says; write what every teacher-forced metric says of it.

    Args:
        job: models and layers.
        data: rows, and where to.

    Returns:
        the folder: rows.jsonl, table.txt, figures, manifest.json.

    Raises:
        FileNotFoundError: rows that are not there.
        ValueError: models or rows that cannot be used, or models with the same blocks.
        OSError: the disk is full.
    """
    job.check()
    data.check(job.models)
    with appearing(job, data) as (folder, manifest):
        at = _opened(job, data)
        original, unlearned = at.models["original"], at.models["unlearned"]
        depth = n_layers(original)
        found = replacement_map(
            original,
            unlearned,
            {"forget": at.split.forget, "retain": at.split.retain},
            METRICS,
            spans=_spans(job, depth),
            parts=job.parts,
            into=job.into,
            moments=True,
            batch_size=data.batch_size,
            progress=True,
        )
        guesses = _guesses(at, data) if job.screening else {}
        name = "GradDiff" if job.original is None else Path(str(job.unlearned).rstrip("/")).name
        rows = [*map_rows(found, name), *_guess_rows(guesses, name)]
        append(folder / "rows.jsonl", rows)
        (folder / "table.txt").write_text(_table(found, job, guesses, at.notes), encoding="utf-8")
        _draw(rows, found, job, folder / "figures", name)
        manifest |= {
            **at.described(data),
            "weights": {key: weights_hash(model) for key, model in at.models.items()},
            "block_calls": {"run": found.block_calls, "whole forwards would take": found.whole_calls},
        }
    return data.out


def _opened(job: LayersJob, data: Data) -> Opened:
    if job.original is not None and job.unlearned is not None:
        return opened(data, {"original": job.original, "unlearned": job.unlearned})
    at = opened_testbed(data)
    unlearned = copy.deepcopy(at.models["original"])
    grad_diff(unlearned, at.split, **_FEW)
    written = ", ".join(f"{key} {value:g}" for key, value in _FEW.items())
    note = f"unlearned here by a few steps of GradDiff ({written}); an example, not a tuned method"
    return Opened({**at.models, "unlearned": unlearned}, at.tokenizer, at.split, (*at.notes, note))


def _spans(job: LayersJob, depth: int) -> Sequence[tuple[int, int]] | None:
    if job.spans == "all":
        return every_span(depth)
    return (*from_embeddings(depth), *from_head(depth)) if job.spans == "cumulative" else None


def map_rows(found: ReplacementMap, name: str) -> list[Row]:
    """Every number of a layer map as a row; see ``probe.figures.spans.span_row``."""
    return [
        span_row(
            name,
            row["metric"],
            row["value"],
            row["on"],
            first=row["first"],
            last=row["last"],
            part=row["part"],
            into=row["into"],
        )
        for row in found.rows()
    ]


def _guesses(at: Opened, data: Data) -> dict[str, Screening]:
    pair = at.models["original"], at.models["unlearned"]
    sides = {"forget": at.split.forget, "retain": at.split.retain}
    return {on: screened(*pair, batch, batch_size=data.batch_size) for on, batch in sides.items()}


def _guess_rows(guesses: dict[str, Screening], name: str) -> list[Row]:
    rows = []
    for on, guess in guesses.items():
        rows.append(Row(name, "screening", "rank correlation", guess.spearman, on, n=len(guess.predicted_L)))
        for quantity, value_L in (("predicted rise", guess.predicted_L), ("exact rise", guess.exact_L)):
            rows += [Row(name, "screening", quantity, float(v), on, layer=i) for i, v in enumerate(value_L)]
    return rows


def _table(found: ReplacementMap, job: LayersJob, guesses: dict[str, Screening], notes: Sequence[str]) -> str:
    metrics = {"probability": "p", "extraction_strength": "ES"}
    heads = [f"{on} {short}" for on in found.values for short in metrics.values()]
    width = max(map(len, heads)) + 2
    lines = [f"{'':32}" + "".join(f"{head:>{width}}" for head in heads)]

    def line(name: str, numbers: Sequence[float]) -> str:
        return f"{name:32}" + "".join(f"{number:{width}.4f}" for number in numbers)

    for name, ends in (("original", found.original), ("unlearned", found.unlearned)):
        lines.append(line(name, [ends[on][metric] for on in found.values for metric in metrics]))
    for x, one in enumerate(found.variants):
        span = f"{one.first}" if one.first == one.last else f"{one.first}..{one.last}"
        numbers = [float(found.values[on][metric][x]) for on in found.values for metric in metrics]
        lines.append(line(f"{one.part} {span} into {one.into}", numbers))
    lines += [f"\n{on} rows, from one gradient: {guess}" for on, guess in guesses.items()]
    lines += ["", "p: probability of a token; ES: extraction strength; all metrics are in rows.jsonl.", *notes]
    lines += [f"{found.block_calls} block runs; a forward for each variant would take {found.whole_calls}"]
    return "\n".join(lines) + "\n"


def _draw(rows: Sequence[Row], found: ReplacementMap, job: LayersJob, folder: Path, name: str) -> None:
    meta = origin(folder.parent)
    with paper_style() as sizes:
        figure = new_figure(sizes.page, 2.5 * len(job.into) + 0.4)
        if job.spans == "all" and "block" in job.parts:
            drawn: Any = span_map(rows, figure, metric=_SHOWN, label=_LABEL, into=job.into)
            save_figure(figure, folder, "spans", drawn, metadata=meta, caption=f"{name}: every span of blocks lent.")
        if "original" not in job.into:
            return
        if job.spans != "single" and "block" in job.parts:
            figure = new_figure(3.6, 2.9)
            drawn = growing_spans(rows, figure, metric=_SHOWN, label=_SHOWN)
            save_figure(
                figure, folder, "growing", drawn, metadata=meta, caption=f"{name}: spans that grow from either end."
            )
        if job.spans == "cumulative":
            return
        figure = new_figure(3.6, 2.9)
        drawn = part_lines(rows, figure, metric=_SHOWN, label=_SHOWN)
        save_figure(
            figure, folder, "parts", drawn, metadata=meta, caption=f"{name}: single blocks, or parts of them, lent."
        )
        if "block" in job.parts:
            figure = new_figure(sizes.page, 1.9)
            drawn = u_shape(u_rows(found, name), figure.subplots(1, 2))
            save_figure(
                figure, folder, "u_shape", drawn, metadata=meta, caption=f"{name}: one block of it in the original."
            )


def u_rows(found: ReplacementMap, name: str) -> list[Row]:
    """Single blocks put into the original, as ``probe.figures.layers.u_shape`` takes them."""
    rows = []
    for on in found.values:
        rows.append(Row("original", "fragility", _SHOWN, found.original[on][_SHOWN], on))
        rows.append(Row(name, "fragility", _SHOWN, found.unlearned[on][_SHOWN], on))
        score_L = found.score_L(on, _SHOWN)
        rows += [Row(name, "fragility", _SHOWN, float(v), on, layer=i) for i, v in enumerate(score_L)]
    return rows
