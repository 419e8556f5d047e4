"""The conditions of a report: a model as it is, trained, edited, or with layers of another one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from torch import nn

from probe.hooks import edited
from probe.objectives.objective import Objective
from probe.objectives.token import ga
from probe.positions import Intervention
from probe.sites import Site
from probe.study.study import Study
from probe.weights import blended

_OWN = ("original", "retrained", "Steer", "Project", "SAE clamp")
Kind = Literal["reference", "training", "replacement", "activation"]


def check_unlearned_names(study: Study) -> None:
    """Refuse unlearned models that are called as the report calls conditions of its own.

    Raises:
        ValueError: the name.
    """
    taken = [name for name in study.unlearned if name in _OWN or name.startswith("CRU (")]
    if taken:
        raise ValueError(
            f"an unlearned model is called {taken[0]!r}, as the report calls a condition of its own; rename it"
        )


@dataclass(frozen=True)
class Condition:
    """One intervention: ``with condition.applied() as model`` gives the model that diagnostics see.

    ``objective`` is the forget loss whose G-effect is reported: the method's own where it has one, otherwise
    gradient ascent, that is, what further unlearning would do in this state.
    """

    name: str
    kind: Kind
    what: str
    applied: Callable[[], AbstractContextManager[nn.Module]]
    objective: Objective = ga


def as_is(name: str, kind: Kind, model: nn.Module, what: str, objective: Objective = ga) -> Condition:
    """A model without any further change."""
    return Condition(name, kind, what, lambda: nullcontext(model), objective)


def trained(name: str, what: str, make: Callable[[], nn.Module], objective: Objective) -> Condition:
    """A model that is trained when it is first asked for, which a report that goes on may never do."""
    model = cache(make)
    return Condition(name, "training", what, lambda: nullcontext(model()), objective)


def with_edits(name: str, model: nn.Module, edits: Mapping[Site, Intervention], what: str) -> Condition:
    """A model whose activations are edited."""

    @contextmanager
    def applied() -> Iterator[nn.Module]:
        with edited(model, edits):
            yield model

    return Condition(name, "activation", what, applied)


def with_layers(name: str, model: nn.Module, other: Condition, alpha_L: Any, what: str) -> Condition:
    """A model some of whose layers come from that of another condition."""

    @contextmanager
    def applied() -> Iterator[nn.Module]:
        with other.applied() as lender, blended(model, lender, alpha_L):
            yield model

    return Condition(name, "replacement", what, applied)
