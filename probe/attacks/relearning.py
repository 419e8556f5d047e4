"""Relearning: fine-tune on some forget rows and see whether the others come back."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

from probe.attacks.curves import Curves, SeedScores, Training, training_curves
from probe.attacks.facts import Facts, Studied, prepared
from probe.objectives.objective import Objective
from probe.objectives.token import nll

# Settings as printed, for 7 B models; a small model needs a larger learning rate.
PUBLISHED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # Rob_ReL of arXiv 2510.07626: all forget rows.
        "rob-rel": MappingProxyType({"steps": 100, "lr": 2e-5, "batch_size": 4}),
        # Unlearn-Smooth (arXiv 2502.05374), WMDP bio with more data; its weight decay is 0 as well.
        "unlearn-smooth-wmdp": MappingProxyType({"steps": 100, "lr": 1e-5, "batch_size": 4, "seeds": (1,)}),
    }
)


def relearn(
    model: nn.Module,
    study: Facts | Studied,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    at: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
    parameters: str = ".",
    retrained: nn.Module | SeedScores | None = None,
    objective: Objective = nll,
    progress: bool = False,
) -> Curves:
    """Fine-tune on the shown rows; score the held-out and the shown ones at chosen steps.

    A model that never knew learns the shown rows too, and with them the form of the answers. What is left of
    knowledge shows in held-out rows alone, and only beyond that model's curve. Published protocols train on all
    forget rows and score the same ones: give ``Facts`` both, with ``overlap=True``.

    Args:
        model: attacked in place and restored bit for bit, after an exception as well.
        study: a study, whose forget rows are divided (``facts_of``) and whose retrained model is compared with, or
            your own ``Facts``.
        steps, lr, batch_size, at, seeds, parameters: as in ``Training``; published: ``**PUBLISHED["rob-rel"]``.
        retrained: a model that never knew the facts; trained on the same rows in the same order. Its curves depend on
            nothing else: where many models are attacked alike, pass ``curves.retrained`` of the first attack to the
            others, which halves their time.
        objective: what the attacker minimises.
        progress: show bars.

    Returns:
        the curves; ``excess`` is the area beyond the retrained model with its interval over seeds.

    Raises:
        ValueError: as ``minimise``, or a retrained model's curves that another attack made.
        FloatingPointError: the attack diverged; lower its learning rate.

    >>> curves = probe.relearn(s.retrained, s, steps=2, lr=5e-4, batch_size=8)
    >>> curves.steps, curves.attack
    ((0, 2), 'relearning')
    """
    facts, never = prepared(study, retrained)
    training = Training(steps, lr, batch_size, tuple(at), tuple(seeds), parameters)
    return training_curves(
        "relearning", model, facts, objective, facts.shown_batch, training, retrained=never, progress=progress
    )
