"""An SAE beside random dictionaries, single neurons and one direction; layers; weights that stay silent."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from analyses.sae import dose_response
from analyses.sae.claims import control_claims
from analyses.sae.dose_response import as_record, report
from analyses.sae.subjects import Given, Name, given, trained
from analyses.subjects import Options, Where
from probe.attacks.facts import divided
from probe.features.activity import observe
from probe.features.ranking import rank
from probe.features.rules import Auroc
from probe.methods.orthogonalised import orthogonalised
from probe.modes import threads
from probe.rows import Row
from probe.sae.audit import audit
from probe.sae.candidates import CONTROLS
from probe.sites import Site, n_layers
from probe.sweep import sweep

RULES, STRENGTHS = dose_response.RULES[1:], dose_response.STRENGTHS[:-1]
# CRISP's numbers (arXiv 2508.13650): features whose directions are taken out of the weights.
N_ORTHOGONAL, RATIO = 30, 3.0


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """What is run."""

    subject: Name = "testbed"
    """What is suppressed in."""
    seeds: int = 2
    """Divisions of the people into halves, each with its own random features and dictionary."""


def study(at: Given, where: Where) -> Callable[..., dict[str, Any]]:
    """The function of one cell."""

    def run(part: str, seed: int) -> dict[str, Any]:
        if part == "controls":
            return controls(at, seed)
        if part == "silent":
            return silent(at)
        return layer(at, where, int(part.removeprefix("layer ")), seed)

    return run


def controls(at: Given, seed: int) -> dict[str, Any]:
    """The SAE and every control, chosen and judged alike."""
    how = {"score": at.scorer(choices=False), "words_by": at.scorer(choices=True), "progress": True}
    found = at.responses(
        at.halves(seed), rules=RULES, strengths=STRENGTHS, controls=CONTROLS, seed=seed,
        retrained=at.subject.retrained, **how,
    )  # fmt: skip
    return as_record(found)


def layer(at: Given, where: Where, layer: int, seed: int) -> dict[str, Any]:
    """Best detection and best removal of an SAE of one block."""
    site = Site(layer)
    sae = at.sae if site == at.site else trained(at.subject, site, where, n_features=512, active=16, steps=150)
    parts = at.halves(seed)
    model, ids = at.subject.original, at.special_ids
    area = [
        rank(
            Auroc("row"),
            observe(model, {site: sae}, half.forget, half.retain, special_ids=ids, values=True)[site],
            site,
        )
        for half in (parts.select, parts.report)
    ]
    first = area[0].top(1)[0]
    # A feature that is no better than chance there has no score.
    detection = max(0.5, float(area[1].score_F[first]))
    there = replace(at, sae=sae, site=site)
    found = there.responses(parts, rules=RULES, strengths=STRENGTHS, seed=seed, score=at.scorer(choices=False))
    chosen = found.chosen("SAE")
    rows = [Row("SAE", "sae_layers", "detection", detection, "forget", layer=layer, item=first)]
    if chosen is not None:
        rows += [
            Row("SAE", "sae_layers", "removal", i.mean, on, layer=layer, low=i.low, high=i.high, n=i.n)
            for on, i in (("forget", chosen.forget), ("retain", chosen.retain))
        ]
    return {"rows": json.dumps([asdict(row) for row in rows]), "text": "", "words": "{}"}


def silent(at: Given) -> dict[str, Any]:
    """Weights orthogonalised against 30 features, audited with hooks off."""
    model = copy.deepcopy(at.subject.original)
    split = at.halves(0).select
    found = orthogonalised(
        model, split, sae=at.sae, site=at.site, special_ids=at.special_ids, features=N_ORTHOGONAL, ratio=RATIO
    )
    facts = divided(
        at.subject.tokenizer, at.forget, share=0.2, by="row", seed=0, max_length=at.max_length,
    )  # fmt: skip
    audited = audit(
        at.subject.original, model, at.sae, at.site, found.features, facts, at.retain, name="orthogonalised",
        retrained=at.subject.retrained,
    )  # fmt: skip
    rows = [asdict(row) for row in audited.rows()]
    more = [f"Weights orthogonalised against {len(found.features)} features: {said}." for said in audited.findings]
    return {"rows": json.dumps(rows), "text": "", "words": "{}", "more": json.dumps(more)}


def main(arguments: Arguments) -> None:
    """Run what is missing, then draw and judge."""
    out = arguments.folder("sae_controls")
    with threads(1):
        at = given(arguments.subject, arguments.where)
        depth = n_layers(at.subject.original)
        layers = sorted({1, at.site.layer, depth - 2})
        cells = [{"part": "controls", "seed": seed} for seed in range(arguments.seeds)]
        cells += [{"part": "silent", "seed": 0}, *({"part": f"layer {one}", "seed": 0} for one in layers)]
        sweep(study(at, arguments.where), cells, out, identity=at.identity(RULES, STRENGTHS))
    report(out, arguments.subject, ("sae_choices", "sae_layers"), control_claims)
