"""Diagnostics of one batch, asked of both sides of a split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload, runtime_checkable

from torch import nn

from probe.data import Batch, Split
from probe.display import Result, ResultTable
from probe.rows import Row

P = ParamSpec("P")
R = TypeVar("R", bound=Result)


@dataclass(frozen=True, eq=False)
class BySide(Result, Generic[R]):
    """One result for the forget and one for the retain rows.

    Args:
        sides: by "forget" and "retain"; ``found["forget"]`` is one of them.
    """

    sides: Mapping[str, R]

    def __getitem__(self, side: str) -> R:
        return self.sides[side]

    def rows(self, name: str = "model") -> list[Row]:
        """The rows of both, ``on`` saying which side."""
        return [row for on, one in self.sides.items() for row in cast(Any, one).rows(name, on)]

    def table(self) -> ResultTable:
        tables = {on: one.table() for on, one in self.sides.items()}
        first = next(iter(next(iter(tables.values())).columns))
        columns = {first: next(iter(tables.values())).columns[first]}
        for on, one in tables.items():
            columns |= {f"{head}, {on}": cells for head, cells in one.columns.items() if head != first}
        return ResultTable(columns, note="; ".join(f"{on}: {one.note}" for on, one in tables.items()))


@runtime_checkable
class OfModel(Protocol[P, R]):
    """``(model, batch, ...)`` gives the result, ``(model, split, ...)`` one for each side."""

    @overload
    def __call__(self, model: nn.Module, on: Batch, /, *args: P.args, **options: P.kwargs) -> R: ...
    @overload
    def __call__(self, model: nn.Module, on: Split, /, *args: P.args, **options: P.kwargs) -> BySide[R]: ...


@runtime_checkable
class OfPair(Protocol[P, R]):
    """``(original, unlearned, batch, ...)`` gives the result, ``(original, unlearned, split, ...)`` one a side."""

    @overload
    def __call__(self, a: nn.Module, b: nn.Module, on: Batch, /, *args: P.args, **options: P.kwargs) -> R: ...
    @overload
    def __call__(self, a: nn.Module, b: nn.Module, on: Split, /, *args: P.args, **options: P.kwargs) -> BySide[R]: ...


def of_model(function: Callable[Concatenate[nn.Module, Batch, P], R]) -> OfModel[P, R]:
    """Let ``function(model, batch)`` take a split too; options then hold for both sides."""
    return cast(OfModel[P, R], _by_side(function, 1))


def of_pair(function: Callable[Concatenate[nn.Module, nn.Module, Batch, P], R]) -> OfPair[P, R]:
    """Let ``function(original, unlearned, batch)`` take a split too; options then hold for both sides."""
    return cast(OfPair[P, R], _by_side(function, 2))


def _by_side(function: Callable[..., R], place: int) -> Callable[..., Any]:
    @wraps(function)
    def either(*given: Any, **options: Any) -> Any:
        if len(given) <= place or not isinstance(given[place], Split):
            return function(*given, **options)
        models, split, more = given[:place], given[place], given[place + 1 :]
        return BySide(
            {side: function(*models, getattr(split, side), *more, **options) for side in ("forget", "retain")}
        )

    return either
