"""A forget term and a retain term: what most methods minimise, and how a forget loss becomes a method.

L = forget_weight * L_forget + retain_weight * L_retain. Every such method trains ``model`` in place. ``training``
stands for the keyword arguments of ``probe.train.minimise``: ``steps``, ``lr``, ``batch_size`` and ``seed``, which have
no default, and ``parameters``, ``schedule``, ``clip``, ``progress``, ``every``, ``observe`` and the rest.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from inspect import Parameter
from typing import Any

from torch import nn

from probe.data import Split
from probe.methods.method import Family, method
from probe.methods.published import Published
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.token import nll
from probe.train import History, Term, minimise


def unlearn(
    model: nn.Module,
    split: Split,
    forget_objective: Objective,
    retain_objective: Objective = nll,
    *,
    retain_weight: float,
    forget_weight: float = 1.0,
    **training: Any,
) -> History:
    """Minimise forget_weight * L_forget + retain_weight * L_retain: any objective, as a method.

    >>> import copy
    >>> from probe.objectives.token import WGA
    >>> model, training = copy.deepcopy(study.original), {"steps": 2, "lr": 3e-4, "batch_size": 4, "seed": 0}
    >>> unlearn(model, study.split, WGA(beta=1.0), retain_weight=1.0, **training).names
    ('forget', 'retain')

    Args:
        model: trained in place.
        split: forget and retain rows; each term draws its own batches.
        forget_objective: minimised on forget rows.
        retain_objective: minimised on retain rows; the plain NLL unless told otherwise.
        retain_weight: 0 leaves the retain rows out.
        forget_weight: factor of the forget term.
        training: see the module's text.

    Returns:
        the loss of each term at each step, without its weight.

    Raises:
        ValueError: a negative weight, or what ``minimise`` raises.
    """
    for name, weight in (("forget_weight", forget_weight), ("retain_weight", retain_weight)):
        if not weight >= 0:
            raise ValueError(f"{name} must be at least 0, got {weight}; objectives already have the right sign")
    terms = [Term(forget_weight, forget_objective, split.forget, "forget")]
    if retain_weight > 0:
        terms.append(Term(retain_weight, retain_objective, split.retain, "retain"))
    return minimise(model, terms, **training)


@dataclass(frozen=True)
class Loss:
    """What a method minimises, where it is not one objective on the forget answers beside the retain NLL.

    Args:
        forget: minimised on forget rows.
        retain: minimised on retain rows.
        loop: keyword arguments of ``minimise`` that the method sets itself.
        rows: what is made of the split first; see ``probe.methods.answers.instead`` and ``preferred``.
    """

    forget: Objective
    retain: Objective = nll
    loop: Mapping[str, Any] = field(default_factory=dict)
    rows: Callable[[Split], Split] | None = None


# Ends the text of every recipe that is made of a loss.
_SHARED = "Trains ``model`` in place on ``split``; the other arguments are those of ``probe.methods.unlearn.unlearn``."


def forget_loss(
    family: Family,
    formula: str,
    source: str,
    *,
    published: Mapping[str, Published] | None = None,
    retain_weight: float | None = None,
) -> Callable[[Callable[..., Objective | Loss]], Callable[..., History]]:
    """Make a method of a function that builds its objective: all that is special about many methods.

    The recipe takes ``(model, split, *, <the function's arguments>, retain_weight, **training)`` and calls ``unlearn``;
    no model among the arguments may share weights with the one that is trained. Name and text are the function's.

    >>> from probe.objectives.token import WGA
    >>> @forget_loss("divergence", "mean sg[p^beta] log p + w NLL(retain)", "Wang et al., arXiv 2502.19301")
    ... def weighted(beta: float) -> WGA:
    ...     return WGA(beta)
    >>> list(inspect.signature(weighted).parameters)
    ['model', 'split', 'beta', 'retain_weight', 'training']

    Args:
        family, formula, source, published: see ``probe.methods.method.Method``.
        retain_weight: its default, where the method is published with one.
    """

    def recipe_of(loss: Callable[..., Objective | Loss]) -> Callable[..., History]:
        own = inspect.signature(loss).parameters

        @wraps(loss)
        def recipe(model: nn.Module, split: Split, **arguments: Any) -> History:
            mine = {name: arguments.pop(name) for name in own if name in arguments}
            for value in mine.values():
                if isinstance(value, nn.Module | OriginalAnswers):
                    check_original(model, value)
            built = loss(**mine)
            built = built if isinstance(built, Loss) else Loss(built)
            data = built.rows(split) if built.rows else split
            weighed = arguments if retain_weight is None else {"retain_weight": retain_weight, **arguments}
            return unlearn(model, data, built.forget, built.retain, **built.loop, **weighed)

        signature = _signature(own, Parameter.empty if retain_weight is None else retain_weight)
        # What ``help`` and the catalogue read.
        vars(recipe)["__signature__"] = signature
        recipe.__doc__ = f"{inspect.getdoc(loss) or formula}\n\n{_SHARED}"
        recipe.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()} | {"return": History}
        return method(family, formula, source, published=published, training=unlearn, loss=loss)(recipe)

    return recipe_of


def _signature(own: Mapping[str, Parameter], retain_weight: Any) -> inspect.Signature:
    """Model and split, then by keyword the loss's arguments and ``retain_weight``, those without a default first."""
    weight = Parameter("retain_weight", Parameter.KEYWORD_ONLY, default=retain_weight, annotation=float)
    required = [p for p in own.values() if p.default is Parameter.empty]
    named = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in own.values() if p not in required]
    given = [
        Parameter("model", Parameter.POSITIONAL_OR_KEYWORD, annotation=nn.Module),
        Parameter("split", Parameter.POSITIONAL_OR_KEYWORD, annotation=Split),
        *(p.replace(kind=Parameter.KEYWORD_ONLY) for p in required),
        weight,
        *named,
        Parameter("training", Parameter.VAR_KEYWORD, annotation=Any),
    ]
    return inspect.Signature(given, return_annotation=History)


def check_original(model: nn.Module, original: nn.Module | OriginalAnswers) -> None:
    """Refuse a reference that would move with the model that is trained; one computed beforehand cannot.

    Raises:
        ValueError: the two share a parameter.
    """
    if isinstance(original, OriginalAnswers):
        return
    ours = {p.data_ptr() for p in model.parameters()}
    if any(p.data_ptr() in ours for p in original.parameters()):
        raise ValueError(
            "original shares weights with the model that is trained, so the reference would move with it; "
            "pass copy.deepcopy(model) taken before training"
        )
