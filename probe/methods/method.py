"""What is known of a method besides its code: family, formula, source, what it trains, sets and needs."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from probe.methods.published import Published
from probe.train import minimise

Family = Literal["divergence", "representation", "rejection", "other", "no gradient"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Makes = Literal["model", "mixture", "wrapper", "prompt", "edit"]
"""What a recipe leaves behind: ``model`` trained in place, or returns: how to mix it with another one's weights, a
module around it, a ``Template``, edits of its hidden states by site."""
_ACTS = "nothing; acts while a text is read or written"
_TRAINS: Mapping[Makes, str] = {
    "model": "all parameters",
    "mixture": "mixes all parameters of two models",
    "wrapper": _ACTS,
    "prompt": _ACTS,
    "edit": _ACTS,
}
Recipe = TypeVar("Recipe", bound=Callable[..., Any])


@dataclass(frozen=True)
class Method:
    """One published method.

    Args:
        name: what ``probe unlearn`` calls it.
        family: divergence-driven, representation misalignment or rejection-based (arXiv 2510.07626), or neither.
        formula: what is minimised, or done, in one line; sums and means as the recipe takes them.
        source: paper, arXiv number.
        trains: which parameters change.
        run: the recipe.
        published: settings by name.
        training: what takes the keyword arguments that the recipe passes on.
        decides: arguments of the training loop that the recipe gives itself.
        makes: what the recipe leaves behind or returns.
        loss: gives the forget loss from those arguments of the recipe that it takes, where it is known apart.
    """

    name: str
    family: Family
    formula: str
    source: str
    trains: str
    run: Callable[..., Any]
    published: Mapping[str, Published] = field(default_factory=dict)
    training: Callable[..., Any] = minimise
    decides: tuple[str, ...] = ()
    makes: Makes = "model"
    loss: Callable[..., Any] | None = None

    @property
    def trains_in_place(self) -> bool:
        """Whether the recipe takes (model, split, ...) and leaves an unlearned model behind."""
        return self.makes == "model"

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of the recipe's own arguments."""
        return tuple(inspect.signature(self.run).parameters)

    @property
    def needs(self) -> tuple[str, ...]:
        """What has no default and is neither number nor word, besides model and split: refusals, another model."""
        own = inspect.signature(self.run).parameters.values()
        asked = [p for p in own if p.default is p.empty and p.kind is not p.VAR_KEYWORD and not readable(p.annotation)]
        return tuple(p.name for p in asked if p.name not in ("model", "split"))

    @property
    def takers(self) -> tuple[Callable[..., Any], ...]:
        """The recipe and, as far as it passes keyword arguments on, the functions that take them."""
        found: list[Callable[..., Any]] = []
        for taker in (self.run, self.training, minimise):
            found += [taker] if taker not in found else []
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(taker).parameters.values()):
                break
        return tuple(found)

    @property
    def hyperparameters(self) -> dict[str, inspect.Parameter]:
        """Every argument that is a number or a word, those of the training loop included."""
        found: dict[str, inspect.Parameter] = {}
        for taker in self.takers:
            # ``every`` goes with an observer, which no word can stand for.
            left_out = ("progress", "every", *self.decides) if taker is minimise else ("progress",)
            for p in inspect.signature(taker).parameters.values():
                if readable(p.annotation) and p.name not in left_out:
                    found.setdefault(p.name, p)
        return found


def method(
    family: Family,
    formula: str,
    source: str,
    *,
    name: str = "",
    trains: str = "",
    published: Mapping[str, Published] | None = None,
    training: Callable[..., Any] = minimise,
    decides: tuple[str, ...] = (),
    makes: Makes = "model",
    loss: Callable[..., Any] | None = None,
) -> Callable[[Recipe], Recipe]:
    """Enter a recipe in the catalogue; the function stays what it is.

    >>> @method("other", "NLL(retain)", "Golatkar et al., arXiv 1911.04933")
    ... def fine_tune(model: Any, split: Any, *, steps: int, **training: Any) -> None: ...
    >>> entry(fine_tune).name, entry(fine_tune).trains
    ('fine_tune', 'all parameters')

    Args:
        family, formula, source, published, training, decides, makes, loss: see ``Method``.
        name: of the method; the function's unless given.
        trains: which parameters change; all, or none where no model is made, unless given.
    """

    def entered(run: Recipe) -> Recipe:
        changed = trains or _TRAINS[makes]
        vars(run)["method"] = Method(
            name or run.__name__, family, formula, source, changed, run, published or {}, training, decides, makes, loss
        )
        return run

    return entered


def entry(run: Callable[..., Any]) -> Method | None:
    """What ``method`` entered for a function, if it did."""
    return vars(run).get("method")


def written(value: Any) -> str:
    """A hyper-parameter as it is written behind ``--set key=``."""
    if isinstance(value, tuple):
        return ",".join(map(written, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def words_of(annotation: Any) -> tuple[str, ...]:
    """The words that may stand for it: those of a ``Literal``, alone or beside other types."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind))


def readable(annotation: Any) -> bool:
    """Whether a word on a command line can stand for it: numbers, words, choices, and numbers separated by commas."""
    if words_of(annotation):
        return True
    if get_origin(annotation) is tuple:
        return all(kind in (int, float, Ellipsis) for kind in get_args(annotation))
    if get_origin(annotation) not in (None, Union, UnionType):
        return False
    return all(kind in (int, float, bool, str, NoneType) for kind in get_args(annotation) or (annotation,))
