"""Figures of ``analyses.g_effects``, drawn from its records alone."""

from collections.abc import Sequence
from pathlib import Path

from analyses.shared import Record, by_method, range_row, runs_of, steps_of
from probe.figures.dynamics import g_effects_over_steps
from probe.figures.layers import g_effects_by_layer
from probe.figures.style import new_figure, paper_style, save_figure
from probe.figures.weights import weightings, weights_by_quarter
from probe.rows import Row

PANELS = (("GA", "NPO"), ("GA + NLL", "WGA + NLL"), ("NPO + NLL", "TNPO + NLL"), ("GA + KL", "IDK + NLL"))


def draw(records: Sequence[Record], folder: Path, subject: str, venue: str = "neurips") -> None:
    """All figures of the study."""
    runs = _largest(records)
    rows = [*_dynamics(runs), *_layers(runs), *_weights(runs), *_map(runs)]
    note = f"{subject}; means over {len({r['seed'] for r in runs})} seeds, bands and whiskers from lowest to highest."
    meta = {"study": "analyses.g_effects", "subject": subject}
    with paper_style(venue) as sizes:
        figure = new_figure(sizes.page, 2.9)
        data = g_effects_over_steps(rows, figure, PANELS)
        caption = f"G-effects of forget objectives over training. {note}"
        save_figure(figure, folder, "over_steps", data, metadata=meta, caption=caption)
        figure = new_figure(sizes.page, 3.6)
        data = g_effects_by_layer(rows, figure.subplots(2, sharex=True))
        save_figure(
            figure, folder, "by_layer", data, metadata=meta, caption=f"The same by layer, mean over the run. {note}"
        )
        figure = new_figure(sizes.page, 2.0)
        data = weights_by_quarter(rows, figure)
        save_figure(
            figure, folder, "npo_weights", data, metadata=meta, caption=f"Weights that NPO gives to answers. {note}"
        )
        figure = new_figure(3.6, 2.9)
        data = weightings(rows, figure.subplots(), curve=_curve(runs), bound=_bound(runs))
        caption = (
            "Token weightings late in one run of GA "
            f"({subject}), scaled to the same total. Black: the best weightings with at most 5 times the uniform "
            "weight on a token; dashed by the harm to the retain rows they were chosen by, all else by that to others."
        )
        save_figure(figure, folder, "reweightings", data, metadata=meta, caption=caption)


def rows_of(records: Sequence[Record]) -> list[Row]:
    """Every row that the figures of the set draw (``probe.figures.catalogue``); of the largest forget set alone."""
    runs = _largest(records)
    return [*_dynamics(runs), *_retain_terms(runs), *_layers(runs), *_layers_over_steps(runs), *_weights(runs)]


def _largest(records: Sequence[Record]) -> list[Record]:
    most = max(r["n_forget"] for r in records)
    return [r for r in records if r["n_forget"] == most]


def _retain_terms(runs: Sequence[Record]) -> list[Row]:
    """What the retain terms themselves do, along the runs of gradient ascent that hold them."""
    rows = []
    for term in ("NLL", "KL"):
        own = runs_of(runs, f"GA + {term}")
        for on in ("forget", "retain"):
            for step in steps_of(own[0]) if own else ():
                values = [r[f"{step}/{term}/{on}/total"] for r in own if f"{step}/{term}/{on}/total" in r]
                if values:
                    rows.append(range_row(f"{term} retain", "g_effect", "effect over steps", values, on, item=step))
    return rows


def _layers_over_steps(runs: Sequence[Record]) -> list[Row]:
    rows = []
    for method, own in by_method(runs).items():
        depth = sum(key.startswith(f"0/{_name(method)}/forget/layer ") for key in own[0])
        rows += [
            range_row(
                method,
                "g_effect",
                "effect by layer over steps",
                [r[f"{step}/{_name(method)}/{on}/layer {layer}"] for r in own],
                on,
                layer=layer,
                item=step,
            )
            for on in ("forget", "retain")
            for step in steps_of(own[0])
            for layer in range(depth)
        ]
    return rows


def _name(method: str) -> str:
    return "IDK" if method.startswith("IDK") else method.split(" +")[0]


def _dynamics(runs: Sequence[Record]) -> list[Row]:
    return [
        range_row(
            method,
            "g_effect",
            "effect over steps",
            [r[f"{step}/{_name(method)}/{on}/total"] for r in own],
            on,
            item=step,
        )
        for method, own in by_method(runs).items()
        for on in ("forget", "retain")
        for step in steps_of(own[0])
    ]


def _layers(runs: Sequence[Record]) -> list[Row]:
    rows = []
    for method, own in by_method(runs).items():
        depth = sum(key.startswith(f"0/{_name(method)}/forget/layer ") for key in own[0])
        for on in ("forget", "retain"):

            def over_run(record: Record, what: str, on: str = on, name: str = _name(method)) -> float:
                values = [record[f"{step}/{name}/{on}/{what}"] for step in steps_of(record)]
                return sum(values) / len(values)

            rows.append(range_row(method, "g_effect", "total", [over_run(r, "total") for r in own], on))
            rows += [
                range_row(method, "g_effect", "effect", [over_run(r, f"layer {layer}") for r in own], on, layer=layer)
                for layer in range(depth)
            ]
    return rows


def _weights(runs: Sequence[Record]) -> list[Row]:
    own = runs_of(runs, "NPO")
    steps = [s for s in steps_of(own[0]) if f"{s}/NPO weight/mean" in own[0]]
    weights = {0: [1.0] * len(own)} | {s: [r[f"{s}/NPO weight/mean"] for r in own] for s in steps}
    return [
        range_row("NPO", "npo_weight", "weight over steps", values, "forget", item=s) for s, values in weights.items()
    ] + [
        range_row("NPO", "npo_weight", "rise", [r[f"{steps[-1]}/NPO weight/quarter {q}/{on}"] for r in own], on, item=q)
        for on in ("forget", "retain")
        for q in range(4)
    ]


def _last_map(runs: Sequence[Record], harm: str = "harm") -> dict[tuple[str, float], tuple[float, float]]:
    """(harm, forgetting) of every weighting at the last checkpoint of the first run of GA."""
    first = next(r for r in runs if r["method"] == "GA")
    step = [s for s in steps_of(first) if f"{s}/map/GA/0.0/harm" in first][-1]
    found = {}
    for key in first:
        if key.startswith(f"{step}/map/") and key.endswith(f"/{harm}"):
            family, dose = key.split("/")[2:4]
            found[family, float(dose)] = first[key], first[key.removesuffix(harm) + "forgetting"]
    return found


def _map(runs: Sequence[Record]) -> list[Row]:
    return [
        Row("GA run", "reweighting", quantity, value, family, dose=dose)
        for (family, dose), point in _last_map(runs).items()
        if family != "ideal"
        for quantity, value in zip(("harm", "forgetting"), point, strict=True)
    ]


def _curve(runs: Sequence[Record]) -> list[tuple[float, float]]:
    return [point for (family, _), point in sorted(_last_map(runs).items()) if family == "ideal"]


def _bound(runs: Sequence[Record]) -> list[tuple[float, float]]:
    """The same weightings by the harm to the rows that they were chosen by."""
    return [point for (family, _), point in sorted(_last_map(runs, "bound").items()) if family == "ideal"]
