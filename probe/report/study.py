"""The subject of a report: models, data and the conditions under which each diagnostic is run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from torch import nn

from probe.checkpoints import check_different, check_usable
from probe.data import QA, Split
from probe.hooks import edited
from probe.objectives.objective import Objective
from probe.objectives.token import ga
from probe.positions import Intervention
from probe.sites import Site
from probe.weights import blended, check_same_architecture

_OWN = ("original", "retrained", "Steer", "Project", "SAE clamp")
Kind = Literal["reference", "training", "replacement", "activation"]


@dataclass(frozen=True)
class Study:
    """What is studied. Nothing in it is changed by a report: weights hash the same before and after."""

    original: nn.Module
    tokenizer: Any
    split: Split
    retrained: nn.Module | None = None
    unlearned: Mapping[str, nn.Module] = field(default_factory=dict)
    world: tuple[QA, ...] = ()
    sae: Any = None
    sae_site: Site | None = None

    def check(self) -> None:
        """Refuse what could only give nonsense.

        Raises:
            ValueError: broken weights, models that do not belong together, two that are identical, or a name that the
                report gives to a condition of its own.
        """
        taken = [name for name in self.unlearned if name in _OWN or name.startswith("CRU (")]
        if taken:
            raise ValueError(
                f"an unlearned model is called {taken[0]!r}, as the report calls a condition of its own; rename it"
            )
        check_usable(self.original, self.tokenizer)
        others = {**self.unlearned, **({} if self.retrained is None else {"retrained": self.retrained})}
        for name, model in others.items():
            check_usable(model, self.tokenizer)
            check_same_architecture(self.original, model)
            check_different(self.original, model, ("original", name))
            if self.retrained is not None and name != "retrained":
                check_different(self.retrained, model, ("retrained", name))


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
