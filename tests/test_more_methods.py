"""Recipes of other toolkits' methods: each minimises the terms that its entry names, on the rows it names."""

import copy

import pytest
import torch
from conftest import random_batch, tiny_llama

from probe.data import Split, paired
from probe.methods.catalogue import method_named
from probe.objectives.bootstrap import BSTW
from probe.objectives.generic import GenericLabels
from probe.objectives.hinge import InvertedHinge
from probe.objectives.jensun import JensenShannon, JensenShannonToText
from probe.objectives.kto import KTO
from probe.objectives.logprobs import before_targets
from probe.objectives.masked import TowardsMasked
from probe.objectives.representation import NearOriginal, TowardsTarget, answer_tokens
from probe.objectives.robust import HardestRows, OfRows, OfTokens, SoftWorst, summed_nll
from probe.objectives.sequence import NPO, SimNPO
from probe.objectives.token import SatImp, ga, nll
from probe.sites import Site

FORGET, RETAIN, TRACES, OTHER = (random_batch(seed) for seed in range(4))
REFUSALS = random_batch(0)
REFUSALS.tokens_BT[REFUSALS.target_BT] = 7
ORIGINAL, REINFORCED = tiny_llama(1), tiny_llama(2)
SOFT, EASY = SoftWorst(2.0), SoftWorst(2.0, easiest=True)
JS = JensenShannon(ORIGINAL)
KEPT = torch.rand(16, generator=torch.Generator().manual_seed(0)) > 0.5


def target(result) -> TowardsTarget:
    return TowardsTarget(Site(1), result.target_D, answer_tokens)


NPO_BETA = {"original": ORIGINAL, "beta": 0.5}
SIM, SAT = {"beta": 2.5}, {"beta1": 5.0, "beta2": 1.0}
RMU = {"original": ORIGINAL, "layer": 1, "alpha": 0.7}
# Name, settings, and for each term its objective and rows; an objective may depend on what the recipe returns.
RECIPES = [
    ("jensun", {"original": ORIGINAL, "refusals": REFUSALS}, (JensenShannonToText(), REFUSALS), (JS, RETAIN)),
    (
        "jensun_released",
        {"original": ORIGINAL, "text_ids": (5, 6)},
        (JensenShannonToText((5, 6)), FORGET),
        (JS, RETAIN),
    ),
    (
        "bstw",
        {**NPO_BETA, "weight": 0.3, "k": 5},
        (BSTW(ORIGINAL, 0.3, 5, 0.5), FORGET),
        (nll, RETAIN),
    ),
    ("dr_npo", {**NPO_BETA, "temperature": 2.0}, (NPO(ORIGINAL, 0.5, SOFT), FORGET), (nll, RETAIN)),
    (
        "dr_npo",
        {**NPO_BETA, "temperature": 2.0, "form": "released"},
        (NPO(ORIGINAL, 0.5, EASY), FORGET),
        (summed_nll, RETAIN),
    ),
    ("dr_npo", {**NPO_BETA, "share": 0.5}, (HardestRows(NPO(ORIGINAL, 0.5), 0.5), FORGET), (nll, RETAIN)),
    (
        "dr_npo",
        {**NPO_BETA, "share": 0.5, "form": "released"},
        (HardestRows(NPO(ORIGINAL, 0.5), 0.5, "likelihood"), FORGET),
        (nll, RETAIN),
    ),
    ("dr_simnpo", {**SIM, "temperature": 2.0}, (SimNPO(2.5, over_rows=SOFT), FORGET), (nll, RETAIN)),
    (
        "dr_simnpo",
        {**SIM, "temperature": 2.0, "form": "released"},
        (SimNPO(2.5, over_rows=EASY), FORGET),
        (nll, RETAIN),
    ),
    ("dr_sat_imp", {**SAT, "temperature": 2.0}, (SatImp(5.0, 1.0, OfRows(SOFT)), FORGET), (nll, RETAIN)),
    (
        "dr_sat_imp",
        {**SAT, "temperature": 2.0, "form": "released"},
        (SatImp(5.0, 1.0, OfTokens(EASY)), FORGET),
        (summed_nll, RETAIN),
    ),
    ("kto", {**NPO_BETA, "refusals": REFUSALS}, (KTO(ORIGINAL, 0.5), paired(REFUSALS, FORGET)), (nll, RETAIN)),
    ("ga_gru", {"smoothing": 0.8}, (ga, FORGET), (nll, RETAIN)),
    ("npo_gru", {**NPO_BETA, "smoothing": 0.8}, (NPO(ORIGINAL, 0.5), FORGET), (nll, RETAIN)),
    ("ihl", {}, (InvertedHinge(), FORGET), (nll, RETAIN)),
    ("loku", {"rank": 2, "alpha": 4.0}, (InvertedHinge(), FORGET), (nll, RETAIN)),
    (
        "whp",
        {"original": ORIGINAL, "assistant": REINFORCED, "alpha": 5.0},
        (GenericLabels(ORIGINAL, REINFORCED, 5.0), FORGET),
        (nll, RETAIN),
    ),
    (
        "rmu_mask",
        RMU,
        (TowardsMasked(Site(1), KEPT, before_targets), FORGET),
        (NearOriginal(ORIGINAL, Site(1)), RETAIN),
    ),
    (
        "r2mu",
        {
            **RMU,
            "coefficient": 3.0,
            "reasoning_weight": 0.2,
            "traces": TRACES,
            "environment": OTHER,
            "tokens": "answers",
        },
        (target, FORGET),
        (target, TRACES),
        (NearOriginal(ORIGINAL, Site(1), answer_tokens), RETAIN),
        (NearOriginal(ORIGINAL, Site(1), answer_tokens), OTHER),
    ),
]


@pytest.mark.parametrize(("name", "given", "terms"), [(n, g, t) for n, g, *t in RECIPES])
def test_the_first_losses_are_the_objectives_on_whole_batches(name, given, terms):
    before = tiny_llama()
    model = copy.deepcopy(before)
    weight = {} if name in ("rmu_mask", "r2mu") else {"retain_weight": 1.0}
    training = {"steps": 1, "lr": 1e-3, "batch_size": 4, "seed": 0}
    result = method_named(name).run(model, Split(FORGET, RETAIN), **{**weight, **given}, **training)
    found = getattr(result, "history", result).losses[0]
    assert len(found) == len(terms)
    with torch.no_grad():
        for loss, (objective, rows) in zip(found, terms, strict=True):
            formula = objective(result) if objective is target else objective
            assert loss == pytest.approx(formula(before, rows).item(), rel=1e-4), formula
