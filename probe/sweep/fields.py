"""What a function can be told from a file: its parameters, and the fields of those that are dataclasses."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from probe.ranges import WEIGHTS, check_ranges, shortened
from probe.sweep.cell import canonical, clipped

_Word = bool | int | float | str | list[int] | list[float] | list[str] | None

OUT = "out"
"""The field that every cell gets from the sweep: a folder of its own."""


@dataclass(frozen=True)
class Field:
    """One thing to be told.

    Args:
        name: of the field.
        kind: its annotation; ``Any`` without one.
        default: its JSON value, or MISSING.
        parameter: of the function.
        made: the dataclass that the parameter is, if it is one.
        through: the field that takes this one as "name=value", if it is no field of the function's own.
        is_model: whether it names a model (``ModelName``), whose weights are part of what a cell is.
    """

    name: str
    kind: Any
    default: Any
    parameter: str
    made: type | None = None
    through: str | None = None
    is_model: bool = False

    @property
    def is_path(self) -> bool:
        """Whether it names a file or folder."""
        return self.kind is Path or Path in get_args(self.kind)


def fields_of(run: Callable[..., Any], name: str) -> dict[str, Field]:
    """The fields of a function, in order.

    Args:
        run: every parameter is a field of its own, or a dataclass whose fields count.
        name: what the function is called in messages.

    Raises:
        ValueError: parameters that have no name of their own, two fields of one name, annotations that cannot be read
            or whose values no file can hold, or a default that is no JSON.
    """
    hints = _hints(run, name)
    try:
        signature = inspect.signature(run)
    except ValueError as error:
        raise ValueError(f"{name} does not say what it takes ({error}); name a function of your own") from None
    found: dict[str, Field] = {}
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{name} takes {parameter}; a sweep file needs a function whose parameters all have names")
        kind = hints.get(parameter.name, Any)
        if isinstance(kind, type) and is_dataclass(kind):
            inner = _hints(kind, f"{name}, {parameter.name}")
            new = [Field(f.name, inner[f.name], _default(f), parameter.name, kind) for f in fields(kind) if f.init]
            new = [replace(one, is_model=one.name in _models(kind)) for one in new]
        else:
            default = MISSING if parameter.default is parameter.empty else parameter.default
            new = [Field(parameter.name, kind, default, parameter.name, is_model=parameter.name in _models(run))]
        for one in new:
            if one.name in found:
                raise ValueError(f"{name} has two fields called {one.name}; rename one")
            found[one.name] = one
    return {key: _written(one, name) for key, one in found.items()}


def _hints(kind: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except (NameError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the annotations of {name} cannot be read ({error}); name a function or dataclass whose annotations are "
            "imported where it is defined"
        ) from None


def _models(kind: Callable[..., Any]) -> set[str]:
    """Names of the fields that are a ``ModelName``, alone, or beside None."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name
        for name, hint in hints.items()
        for one in (hint, *get_args(hint))
        if WEIGHTS in getattr(one, "__metadata__", ())
    }


def further(takers: Mapping[str, str]) -> dict[str, Field]:
    """Fields that another field takes as "name=value"; each is left out unless it is given.

    Args:
        takers: by the name of each the field that takes it.
    """
    return {name: Field(name, _Word, None, through, through=through) for name, through in takers.items()}


def value_of(known: Mapping[str, Field], name: str, value: Any, where: str, others: Collection[str] = ()) -> Any:
    """A value from a file as canonical JSON value of its field's type: 1 for a float becomes 1.0.

    Args:
        known: the fields.
        name: of the field that is given.
        value: what the file says.
        where: the place in the file.
        others: names that could be given, too, though nobody gives them.

    Raises:
        ValueError: an unknown field, or a value of another type.
    """
    if name not in known:
        listed = [one for one in known if one != OUT]
        near = get_close_matches(name, [*listed, *others], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{where}: unknown field {clipped(name, 40)!r}; {hint}known fields: {clipped(', '.join(listed)) or 'none'}"
        )
    if name == OUT:
        raise ValueError(f"{where}: out is not set there; every cell gets a folder of its own from the sweep")
    adapter = _adapter(known[name].kind)
    if get_origin(known[name].kind) is tuple and isinstance(value, str):
        # A list of one is written without brackets, too.
        value = [value]
    try:
        return adapter.dump_python(adapter.validate_json(canonical(value), strict=True), mode="json")
    except (ValueError, TypeError) as error:
        faults: Any = getattr(error, "errors", list)()
        reason = faults[0]["msg"] if faults else str(error)
        shown = clipped(_value_text(value), 60)
        raise ValueError(
            f"{where}: {name} = {shown} does not fit ({clipped(reason)}); {_expected(known[name])}"
        ) from None


def arguments(known: Mapping[str, Field], values: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Keyword arguments of the function from JSON values; absent fields keep their defaults.

    Raises:
        ValueError: what a dataclass says of its own values, or a value that is given twice.
    """
    values = _handed_through(known, values)
    found: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, field in known.items():
        if field.made is not None:
            parts.setdefault(field.parameter, {})
        if name == OUT:
            value = out
        elif name in values:
            value = _adapter(field.kind).validate_json(canonical(values[name]), strict=True)
        else:
            continue
        (found if field.made is None else parts[field.parameter])[name] = value
    made = {field.parameter: field.made for field in known.values() if field.made is not None}
    whole = {parameter: made[parameter](**part) for parameter, part in parts.items()}
    for one in whole.values():
        check_ranges(one)
    return {**found, **whole}


def _handed_through(known: Mapping[str, Field], values: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in values.items() if known[name].through is None}
    for name, value in values.items():
        through = known[name].through
        if through is None or value is None:
            continue
        given = plain.get(through) or []
        if any(text.partition("=")[0] == name for text in given):
            raise ValueError(f"{name} is given by its name and in {through}; leave one out")
        plain[through] = [*given, f"{name}={_word(value)}"]
    return plain


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_word, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _value_text(value: Any) -> str:
    """A value of a file for a message."""
    return shortened(value) if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def _default(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _written(field: Field, name: str) -> Field:
    """The same with its default as JSON: it is part of what determines a cell."""
    from pydantic.errors import PydanticUserError

    try:
        adapter = _adapter(field.kind)
    except PydanticUserError:
        raise ValueError(
            f"{name}: no file holds values of {field.name} ({str(field.kind)[:100]}); take numbers, texts, lists, "
            "paths, or a dataclass of these"
        ) from None
    if field.default is MISSING:
        return field
    try:
        default = adapter.dump_python(field.default, mode="json", warnings=False)
        canonical(default)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name}: the default of {field.name} is part of what a cell is, and cannot be written ({error}); take a "
            "number, a text, a list or None"
        ) from None
    return replace(field, default=default)


def _expected(field: Field) -> str:
    kind = field.kind
    return f"expected {getattr(kind, '__name__', None) if isinstance(kind, type) else str(kind).replace('typing.', '')}"
