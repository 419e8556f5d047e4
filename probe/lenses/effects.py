"""G-effects of objectives at a model, by layer, and of every token: rows, figures, a table, a manifest."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.checkpoints import weights_hash
from probe.commands.data import Data
from probe.commands.folder import appearing
from probe.commands.opening import Opened, opened, opened_testbed
from probe.data import Batch, encode
from probe.diagnostics.g_effect import GEffect, g_effects
from probe.diagnostics.token_effects import TokenEffects, token_effects
from probe.figures.folder import origin
from probe.figures.layers import g_effects_by_layer as effects_figure
from probe.figures.style import new_figure, paper_style, save_figure
from probe.figures.tokens import token_heat_map, token_texts
from probe.lenses.job import GEffectJob
from probe.lenses.named import Named, read_objective, reference_for
from probe.objectives.token import nll
from probe.rows import Row, append, append_lines

# Rows of the coloured page; tokens.jsonl holds all of them.
_PAGE_ROWS = 20


def run_g_effect(job: GEffectJob, data: Data) -> Path:
    """G-effects of named objectives on the loss of forget and of retain rows.

    Args:
        job: models and objectives.
        data: rows, and where to.

    Returns:
        the folder: rows.jsonl, table.txt, figures, manifest.json; with ``tokens`` also tokens.jsonl and tokens.html.

    Raises:
        FileNotFoundError: rows that are not there.
        ValueError: models, rows or objectives that cannot be used, or an objective without gradient here.
        OSError: the disk is full.
    """
    job.check()
    data.check(job.models)
    asked = {
        "forget": [read_objective(text) for text in job.objective],
        "retain": [read_objective(text) for text in job.retain_objective],
    }
    own = [one.name for named in asked.values() for one in named if one.whole]
    if job.original is None and own:
        raise ValueError(
            f"{own[0]} compares with the model before unlearning, and is zero at that model; give --original"
        )
    with appearing(job, data) as (folder, manifest):
        at = _opened(job, data)
        found = _measured(at, asked, data)
        rows = [row for name, effects in found.items() for on, e in effects.items() for row in effect_rows(name, on, e)]
        append(folder / "rows.jsonl", rows)
        (folder / "table.txt").write_text(_table(found, at.notes), encoding="utf-8")
        with paper_style() as sizes:
            figure = new_figure(sizes.page, 3.6)
            drawn = effects_figure(rows, figure.subplots(2, sharex=True))
            save_figure(figure, folder / "figures", "g_effect", drawn, metadata=origin(folder), caption=_CAPTION)
        if job.tokens:
            manifest["kernels switched"] = _tokens(at, data, folder)
        weights = {key: weights_hash(model) for key, model in at.models.items()}
        manifest |= {**at.described(data), "weights": weights}
    return data.out


_CAPTION = (
    "G-effect by layer: inner products of the objectives' gradients with those of the negative log-likelihood of "
    "forget rows (above) and retain rows (below). A step on the objective raises that loss where the value is negative."
)


def _opened(job: GEffectJob, data: Data) -> Opened:
    if job.model is None:
        at = opened_testbed(data)
        return Opened({"model": at.models["original"]}, at.tokenizer, at.split, at.notes)
    models = {"model": job.model} | ({} if job.original is None else {"original": job.original})
    return opened(data, models)


def _measured(at: Opened, asked: Mapping[str, Sequence[Named]], data: Data) -> dict[str, dict[str, GEffect]]:
    model = at.models["model"]
    every = [one for named in asked.values() for one in named]
    rows = (*at.split.forget_rows, *at.split.retain_rows) if asked["retain"] else at.split.forget_rows
    known = encode(at.tokenizer, rows, template=at.split.template, max_length=at.split.max_length)
    reference = reference_for(every, at.models.get("original", model), known)
    if reference is None and "original" in at.models:
        raise ValueError(f"none of {', '.join(one.name for one in every)} compares with --original; leave it out")
    sides = {"forget": at.split.forget, "retain": at.split.retain}
    risks = {on: (nll, batch) for on, batch in sides.items()}
    found: dict[str, dict[str, GEffect]] = {}
    for on, named in asked.items():
        if named:
            losses = {_label(one, on): one.made(reference) for one in named}
            found |= g_effects(model, losses, sides[on], risks, batch_size=data.batch_size)
    return found


def _label(one: Named, on: str) -> str:
    return one.text if on == "forget" else f"{one.text} on retain rows"


def effect_rows(name: str, on: str, effect: GEffect) -> list[Row]:
    """The whole effect, its cosine and norms, and the shares of each block and of its parts."""
    whole = {
        "total": effect.total,
        "cosine": effect.cosine,
        "gradient norm": effect.gradient_norm,
        "risk norm": effect.risk_norm,
        "rest": effect.rest,
    }
    rows = [Row(name, "g_effect", quantity, value, on) for quantity, value in whole.items()]
    rows += [Row(name, "g_effect", "effect", float(v), on, layer=i) for i, v in enumerate(effect.layer_L)]
    return rows + [
        Row(name, "g_effect", f"effect of {group.part}", product.effect, on, layer=group.layer)
        for group, product in effect.group.items()
    ]


def _table(found: Mapping[str, Mapping[str, GEffect]], notes: Sequence[str]) -> str:
    width = max(map(len, found)) + 2
    lines = [f"{'':{width}}{'forget':>24}{'retain':>24}", f"{'':{width}}" + f"{'effect':>15}{'cosine':>9}" * 2]
    for name, effects in found.items():
        numbers = "".join(f"{effects[on].total:15.5g}{effects[on].cosine:9.3f}" for on in ("forget", "retain"))
        lines.append(f"{name:{width}}{numbers}")
    lines += ["", "A step on the objective raises the loss of those rows where the effect is negative."]
    return "\n".join([*lines, *notes]) + "\n"


def _tokens(at: Opened, data: Data, folder: Path) -> list[str]:
    """Write tokens.jsonl and tokens.html; what was switched while forward mode ran."""
    risks = {"forget": (nll, at.split.forget), "retain": (nll, at.split.retain)}
    effects = token_effects(at.models["model"], at.split.forget, risks, batch_size=data.batch_size)
    lines = token_lines(at.tokenizer, effects)
    append_lines(folder / "tokens.jsonl", (json.dumps(line, ensure_ascii=False) for line in lines))
    texts: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        texts.setdefault(line["row"], []).append(line)
    shown = list(texts.values())[:_PAGE_ROWS]
    pages = [
        token_heat_map(
            [[line["token"] for line in text] for text in shown],
            [[-line[on] for line in text] for text in shown],
            label=f"rise of the {on} loss per step if the token is unlearned",
            names=[f"{text[0]['row']}:" for text in shown],
        ).html
        for on in risks
    ]
    head = '<!doctype html><meta charset="utf-8"><title>Point-wise G-effects</title>'
    (folder / "tokens.html").write_text(head + "<hr>".join(pages) + "\n", encoding="utf-8")
    return list(effects.kernels)


def token_lines(tokenizer: Any, effects: TokenEffects) -> list[dict[str, Any]]:
    """One record a target token: row, position, text, log-probability, and the effect of raising it on each risk."""
    batch: Batch = effects.batch
    mask_BT = batch.target_BT.clone()
    mask_BT[:, 0] = False
    lines = []
    for row, position in mask_BT.nonzero().tolist():
        token = int(batch.tokens_BT[row, position])
        line: dict[str, Any] = {"row": row, "position": position, "token": token_texts(tokenizer, [token])[0]}
        line["logp"] = float(effects.logp_BT[row, position])
        lines.append(line | {on: float(pg_BT[row, position]) for on, pg_BT in effects.pg_BT.items()})
    return lines
