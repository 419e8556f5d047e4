"""`probe sae rank` and `probe sae suppress`: rows, figures, a table, a manifest."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from probe.attacks.score import AnswerScorer
from probe.checkpoints import weights_hash
from probe.commands.data import Data
from probe.commands.folder import appearing
from probe.features.activity import Activity, observe
from probe.features.attribution import ByEffect, attribute
from probe.features.ranking import FeatureTable, rank
from probe.figures import draw_all
from probe.figures.folder import origin
from probe.interventions.gates import Gated
from probe.objectives.token import nll
from probe.rows import Row, append
from probe.sae.candidates import CONTROLS, Strength, candidates
from probe.sae.dose_response import dose_response
from probe.sae.gates import GATES
from probe.sae.halves import halves, thinned
from probe.sae.job import RankJob, SuppressJob
from probe.sae.named import read_rules
from probe.sae.opening import Fitted, fitted
from probe.sae.tables import dose_choice_rows, pareto_rows, response_rows, text
from probe.sae.view import feature_views


def run_rank(job: RankJob, data: Data) -> Path:
    """Put features in order by every rule, with the stability of the first ones under resampling.

    Args:
        job: model, dictionary and rules.
        data: rows, and where to.

    Returns:
        the folder: rows.jsonl, features.json, features.html, table.txt, figures, manifest.json.

    Raises:
        FileNotFoundError: rows or a dictionary that are not there.
        ValueError: models, rows, dictionary or rules that cannot be used, or a forget side on which no feature is on.
        OSError: the disk is full.
    """
    job.check()
    data.check(job.models)
    rules = dict(zip(job.rules, read_rules(job.rules), strict=True))
    with appearing(job, data) as (folder, manifest):
        at = fitted(job, data)
        tables, activity = _ranked(at, rules, job, data)
        first = next(iter(tables.values()))
        rows = [row for name, table in tables.items() for row in _rank_rows(name, table, job.top)]
        append(folder / "rows.jsonl", [*rows, *_activity_rows(activity, first.top(min(job.top, first.available)))])
        listed = {name: list(table.top(min(job.top, table.available))) for name, table in tables.items()}
        (folder / "features.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
        (folder / "table.txt").write_text(_rank_table(tables, job.top, at), encoding="utf-8")
        shown = first.top(min(job.view, first.available))
        sides = (at.at.split.forget, at.at.split.retain)
        views = feature_views(
            at.model,
            at.sae,
            at.site,
            at.at.tokenizer,
            *sides,
            shown,
            special_ids=at.special_ids,
            batch_size=data.batch_size,
        )
        views.write(folder / "features.html")
        draw_all(_read(folder), folder / "figures", only=("sae_features",), metadata=origin(folder))
        manifest |= {**at.described(data, job), "weights": {"model": weights_hash(at.model)}}
    return data.out


def run_suppress(job: SuppressJob, data: Data) -> Path:
    """Sweep features, numbers and strengths, choose on half of the entities, judge on the other, beside controls.

    Args:
        job: model, dictionary, what is tried, and what it may cost.
        data: rows, and where to.

    Returns:
        the folder: rows.jsonl, chosen.json, table.txt, figures, manifest.json.

    Raises:
        FileNotFoundError: rows or a dictionary that are not there.
        ValueError: models, rows, dictionary or settings that cannot be used, or a side of a single entity.
        OSError: the disk is full.
    """
    job.check()
    data.check(job.models)
    rules = read_rules(job.rules)
    strengths = (
        Strength("zero"),
        *(Strength("scale", c) for c in job.scales),
        *(Strength("push", c) for c in job.pushes),
    )
    with appearing(job, data) as (folder, manifest):
        at = fitted(job, data, retrained=job.retrained)
        split = at.at.split
        retain = thinned(split.retain_rows, job.most)
        parts = halves(
            at.at.tokenizer, split.forget_rows, retain, seed=job.seed, template=split.template,
            max_length=split.max_length,
        )  # fmt: skip
        tried = candidates(
            at.model, at.sae, at.site, parts.select, rules=rules, counts=job.counts, strengths=strengths,
            controls=CONTROLS if job.control_edits else (), special_ids=at.special_ids, seed=job.seed,
            batch_size=data.batch_size, gate=GATES.get(job.gate),
        )  # fmt: skip
        score, quick = (
            AnswerScorer(at.at.tokenizer, data.batch_size, split.max_length, choices=choices)
            for choices in (True, False)
        )
        found = dose_response(
            at.model, parts, tried, score=score, budget=job.budget, special_ids=at.special_ids, controls=quick,
            retrained=at.at.models.get("retrained"), progress=True,
        )  # fmt: skip
        append(folder / "rows.jsonl", [*response_rows(found), *dose_choice_rows(found), *pareto_rows(found)])
        (folder / "table.txt").write_text(text(found) + _notes(at), encoding="utf-8")
        best = found.chosen("SAE")
        if best is not None:
            one = best.response.candidate
            chosen: dict[str, Any] = {"site": str(one.site), "rule": one.rule, "strength": asdict(one.strength)}
            if isinstance(one.edit, Gated):
                chosen["gate"] = {"name": job.gate, "threshold": one.edit.gate.threshold}
            listed = json.dumps({**chosen, "features": list(one.features)}, indent=1)
            (folder / "chosen.json").write_text(listed + "\n", encoding="utf-8")
        drawn = ("sae_choices", "sae_responses")
        draw_all(_read(folder), folder / "figures", only=drawn, metadata=origin(folder))
        weights = {name: weights_hash(model) for name, model in at.at.models.items()}
        manifest |= {**at.described(data, job), "weights": weights, "warnings": list(found.warnings)}
    return data.out


def _ranked(at: Fitted, rules: dict[str, Any], job: RankJob, data: Data) -> tuple[dict[str, FeatureTable], Activity]:
    sides = (at.at.split.forget, at.at.split.retain)
    values = any(getattr(rule, "needs_values", False) for rule in rules.values())
    given: dict[str, Any] = {"special_ids": at.special_ids, "batch_size": data.batch_size}
    activity = observe(at.model, {at.site: at.sae}, *sides, values=values, **given)[at.site]
    effects = None
    if any(isinstance(rule, ByEffect) for rule in rules.values()):
        effects = attribute(at.model, {at.site: at.sae}, *sides, objective=nll, **given)[at.site]
    tables = {}
    for name, rule in rules.items():
        evidence: Any = effects if isinstance(rule, ByEffect) else activity
        # A side of a single group cannot be resampled.
        stable_at = (job.top,) if min(evidence.blocks) > 1 else ()
        tables[name] = rank(rule, evidence, at.site, stable_at=stable_at, seed=job.seed)
    return tables, activity


def _rank_rows(name: str, table: FeatureTable, top: int) -> list[Row]:
    listed = table.top(min(top, table.available))
    rows = [
        Row(name, "sae_rank", "score", float(table.score_F[j]), layer=table.site.layer, item=j, dose=float(place))
        for place, j in enumerate(listed, 1)
    ]
    rows.append(Row(name, "sae_rank", "admitted", float(table.available), layer=table.site.layer))
    return rows + [
        Row(
            name, "sae_rank", "overlap", s.overlap, layer=table.site.layer, item=s.n, low=s.low, high=s.high,
            n=min(s.blocks),
        )
        for s in table.stability
    ]  # fmt: skip


def _activity_rows(activity: Activity, selected: Sequence[int]) -> list[Row]:
    rows = [
        Row("original", "sae_activity", "mean_activation", float(value), on, item=j)
        for on, side in (("forget", activity.forget), ("retain", activity.retain))
        for j, value in enumerate(side.mean_F.tolist())
    ]
    return rows + [Row("original", "sae_activity", "selected", 1.0, item=j) for j in selected]


def _rank_table(tables: dict[str, FeatureTable], top: int, at: Fitted) -> str:
    lines = []
    for name, table in tables.items():
        listed = ", ".join(map(str, table.top(min(top, table.available)))) or "none"
        lines.append(f"{name} ({table.role}): admits {table.available} of {at.sae.n_features}; {listed}")
        lines += [
            f"  of the first {s.n}, {s.overlap:.2f} [{s.low:.2f}, {s.high:.2f}] stay when groups of rows are drawn anew"
            for s in table.stability
        ]
    sets = {name: set(table.top(min(top, table.available))) for name, table in tables.items()}
    names = list(sets)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            lines.append(f"{a} and {b} share {len(sets[a] & sets[b])} of their first {top}")
    lines.append("")
    lines.append('"detect" finds texts, "edit" changes answers; features that do one seldom do the other.')
    return "\n".join(lines) + "\n" + _notes(at)


def _notes(at: Fitted) -> str:
    fits = ", ".join(f"{value:.3g} at layer {layer}" for layer, value in at.fvu_by_layer.items())
    return "".join(f"{line}\n" for line in (f"variance unexplained: {fits}", *at.at.notes))


def _read(folder: Path) -> list[Row]:
    from probe.rows import load

    return list(load(folder / "rows.jsonl"))
