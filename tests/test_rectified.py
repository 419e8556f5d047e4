"""Gradient rectified unlearning: what a step keeps of the forget gradient."""

import pytest
import torch
from conftest import random_batch, tiny_gpt2
from scipy.optimize import minimize
from test_engine import close, gradient_of, step_of

from probe.data import Split
from probe.methods.gru import Rectified, ga_gru
from probe.objectives.token import ga, nll
from probe.train import Term


def flat(gradient):
    return torch.cat([value.flatten() for value in gradient.values()])


def terms(objective=ga):
    return [Term(0.7, objective, random_batch(0), "forget"), Term(1.3, nll, random_batch(1), "retain")]


def parts(step, objective=ga):
    return gradient_of(step, (0.7, objective, random_batch(0))), gradient_of(step, (1.3, nll, random_batch(1)))


def test_a_conflicting_gradient_loses_its_part_along_the_retain_gradient():
    step = step_of(tiny_gpt2(), terms())
    g, r = parts(step)
    assert flat(g) @ flat(r) < 0
    losses, found = Rectified(1.0)(step)
    assert abs(float(flat(found) @ flat(r))) < 1e-12 * float(flat(g).norm() * flat(r).norm())
    share = float(flat(g) @ flat(r) / flat(r).square().sum())
    close(found, {name: g[name] - share * r[name] for name in g})
    assert losses == {
        0: pytest.approx(ga(step.model, random_batch(0)).item()),
        1: pytest.approx(nll(step.model, random_batch(1)).item()),
    }
    # Descending the retain loss too adds its gradient, which the projection has no part in.
    close(Rectified(1.0, 0.5)(step)[1], {name: found[name] + 0.5 * r[name] for name in r})


def test_what_is_left_is_the_nearest_gradient_that_does_not_raise_the_retain_loss():
    step = step_of(tiny_gpt2(), terms(), parameters=r"h\.2\.mlp\.c_proj\.bias")
    g, r = (flat(one).numpy() for one in parts(step))
    nearest = minimize(
        lambda x: ((x - g) ** 2).sum(),
        g,
        jac=lambda x: 2 * (x - g),
        constraints={"type": "ineq", "fun": lambda x: x @ r, "jac": lambda x: r},
        options={"ftol": 1e-15},
    )
    assert flat(Rectified(1.0)(step)[1]).numpy() == pytest.approx(nearest.x, abs=1e-6)


def test_gradients_that_agree_are_left_alone():
    step = step_of(tiny_gpt2(), terms(nll))
    g, r = parts(step, nll)
    assert flat(g) @ flat(r) > 0
    close(Rectified(0.8)(step)[1], g)


def test_what_is_taken_away_can_be_bounded():
    step = step_of(tiny_gpt2(), terms())
    g, r = parts(step)
    cosine = float(flat(g) @ flat(r) / (flat(g).norm() * flat(r).norm()))
    assert cosine < -0.2
    share = -0.1 * float(flat(g).norm() / flat(r).norm())
    close(Rectified(1.0, least_cosine=-0.1)(step)[1], {name: g[name] - share * r[name] for name in g})
    loose = Rectified(1.0, least_cosine=max(-0.99, 2 * cosine))(step)[1]
    close(loose, Rectified(1.0)(step)[1])
    with pytest.raises(ValueError, match="least_cosine must lie between -1 and 0"):
        Rectified(1.0, least_cosine=0.0)


def test_the_retain_gradient_is_averaged_over_steps():
    way, steps = Rectified(0.8), [step_of(tiny_gpt2(seed), terms()) for seed in (0, 1)]
    way(steps[0])
    r0, (g1, r1) = parts(steps[0])[1], parts(steps[1])
    m = {name: 0.8 * r1[name] + 0.2 * 0.8 * r0[name] for name in r0}
    found = way(steps[1])[1]
    assert flat(g1) @ flat(m) < 0
    share = float(flat(g1) @ flat(m) / flat(m).square().sum())
    close(found, {name: g1[name] - share * m[name] for name in m})
    close(way.mean, m)


def test_an_average_that_a_checkpoint_would_lose_is_refused():
    split = Split(random_batch(0), random_batch(1))
    with pytest.raises(ValueError, match="would be lost at a checkpoint"):
        ga_gru(tiny_gpt2(), split, smoothing=0.8, checkpoint="x", steps=1, lr=1e-3, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="no term is called 'kept'"):
        Rectified(1.0, retain="kept")(step_of(tiny_gpt2(), terms()))
