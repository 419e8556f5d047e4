"""Why zeroing features forgets little: a trained dictionary splits a concept that is one direction by construction."""

import itertools

import pytest
import torch
from planted import concept, rows_of

from probe.features.architectures import TopK
from probe.features.attribution import ByEffect, attribute
from probe.features.ranking import rank
from probe.features.training import train_dictionary
from probe.hooks import edited
from probe.interventions.activations import activations, content
from probe.interventions.suppression import Suppress
from probe.interventions.targets import Multiply
from probe.objectives.token import nll
from probe.positions import At, NotIds
from probe.sites import Site

SITE, SPECIAL = Site(1), (1, 2)


@pytest.fixture(scope="module")
def known():
    return concept()


@pytest.fixture(scope="module")
def split(known, tmp_path_factory):
    """A TopK dictionary trained on 200,000 draws of tokens with and without triggers."""
    rows = (rows_of(10, 1500, triggered=True), rows_of(11, 1500, triggered=False))
    hidden_ND = torch.cat([activations(known.model, batch, [SITE], tokens=content)[SITE] for batch in rows])
    numbers = {"n_features": 256, "steps": 50, "batch_size": 4096, "lr": 1e-3, "seed": 0, "least_variance": 0.4}
    judged, folder = rows_of(12, 100, triggered=True), tmp_path_factory.mktemp("sae") / "split"
    return train_dictionary(known.model, SITE, hidden_ND, judged, folder, architecture=TopK(16), **numbers).dictionary


def answers(known, sae, features, factor: float) -> float:
    """P(answer | trigger) with features scaled."""
    with edited(known.model, {SITE: At(Suppress(sae, features, Multiply(factor)), NotIds(SPECIAL))}):
        return float(known.answer_probability(known.forget).mean())


def test_zeroing_five_features_fails_and_reversing_them_succeeds(known, split):
    given = attribute(
        known.model, {SITE: split}, known.forget, known.retain, objective=nll, special_ids=SPECIAL, error=True
    )[SITE]
    order = rank(ByEffect(), given, SITE).order
    cosine_F = torch.nn.functional.cosine_similarity(split.directions_FD, known.direction_D[None])
    assert int((cosine_F > 0.5).sum()) >= 5
    # What is ranked first is what carries the concept.
    assert (cosine_F[list(order[:5])] > 0.5).all()
    factors, counts = (1.0, 0.0, -1.0, -2.0, -3.0), (1, 5, 10, 20)
    said = {(n, factor): answers(known, split, order[:n], factor) for n in counts for factor in factors}
    assert said[5, 1.0] > 0.9
    assert said[5, 0.0] > 0.7
    assert said[5, -2.0] < 0.2
    for n in counts:
        by_dose = [said[n, factor] for factor in factors]
        assert by_dose == sorted(by_dose, reverse=True)
    for factor in factors[1:]:
        by_count = [said[n, factor] for n in counts]
        assert all(b <= a + 1e-3 for a, b in itertools.pairwise(by_count))
    # The set is complete once every feature that carries the concept is in it.
    carrying = tuple((cosine_F > 0.3).nonzero().flatten().tolist())
    assert answers(known, split, carrying, 0.0) < 0.2
