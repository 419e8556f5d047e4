"""Every method of this package: each recipe that carries an entry (``probe.methods.method``), module by module."""

import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from inspect import isfunction, signature
from pkgutil import iter_modules
from typing import Any

import probe.methods
from probe.methods.method import FAMILIES, Method, entry, readable, words_of, written


def methods() -> tuple[Method, ...]:
    """All methods, family by family, the oldest paper first."""
    names = [f"{probe.methods.__name__}.{found.name}" for found in iter_modules(probe.methods.__path__)]
    found = [
        method
        for name in names
        for value in vars(import_module(name)).values()
        if isfunction(value) and value.__module__ == name and (method := entry(value))
    ]
    return tuple(sorted(found, key=lambda method: (FAMILIES.index(method.family), _published(method))))


def _published(method: Method) -> str:
    """The first arXiv number, which begins with year and month."""
    number = re.search(r"arXiv (\d{4}\.\d{5})", method.source)
    return number.group(1) if number else "later"


def method_named(name: str) -> Method:
    """The method of that name.

    >>> method_named("npo").source
    'Zhang et al., arXiv 2404.05868'

    Raises:
        ValueError: no such method; the nearest name is given.
    """
    found = {method.name: method for method in methods()}
    if name not in found:
        near = get_close_matches(name.lower().replace("-", "_"), list(found), n=1, cutoff=0)
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        raise ValueError(f"no method {shown!r}; did you mean {near[0]!r}? `probe methods` lists all {len(found)}")
    return found[name]


def overview(width: int | None = None) -> str:
    """A line a method, under the names of the families: its name, and its formula as far as the line reaches.

    >>> print(overview(70).splitlines()[2])
    grad_diff             log p(forget) + w NLL(retain)

    Args:
        width: of a line; the terminal's unless given.
    """
    wide = shutil.get_terminal_size((100, 24)).columns if width is None else width
    room = max(len(method.name) for method in methods()) + 2
    lines = []
    for family in FAMILIES:
        lines += ["", family, "-" * len(family)]
        for method in methods():
            if method.family == family:
                line = f"{method.name:<{room}}{method.formula}"
                lines.append(line if len(line) <= wide else f"{line[: max(room, wide - 1)]}\N{HORIZONTAL ELLIPSIS}")
    lines += ["", "`probe methods NAME` shows the whole entry of one"]
    return "\n".join(lines[1:])


def details(
    names: Sequence[str],
    more: Callable[[Method], Mapping[str, str]] = lambda method: {},
    width: int | None = None,
) -> str:
    """Everything that is known of the named methods, as text.

    >>> print(details(["ga"], width=100))  # doctest: +ELLIPSIS
    ga
      formula: log p of forget answers, token mean
      family: divergence
      source: Jang et al., arXiv 2210.01504
      trains: all parameters
      published open-unlearning: lr=1e-05, batch_size=32, weight_decay=0.01, ...

    Args:
        names: of methods.
        more: what else to say of each, by name.
        width: of a line; the terminal's unless given.

    Raises:
        ValueError: an unknown name.
    """
    wide = shutil.get_terminal_size((100, 24)).columns if width is None else width
    return "\n\n".join(_detailed(method, more(method), wide) for method in map(method_named, names))


def _detailed(method: Method, more: Mapping[str, str], width: int) -> str:
    own = ", ".join(_shown(name, p) for name, p in signature(method.run).parameters.items() if readable(p.annotation))
    facts = {
        "formula": method.formula,
        "family": method.family,
        "source": method.source,
        "trains": method.trains,
        "needs": ", ".join(method.needs),
        "sets": own,
        **{
            f"published {name}": f"{', '.join(f'{k}={written(v)}' for k, v in p.arguments.items())} ({p.source})"
            for name, p in method.published.items()
        },
        **more,
    }
    wrapped = (
        textwrap.fill(f"{name}: {text}", max(width, 40), initial_indent="  ", subsequent_indent="    ")
        for name, text in facts.items()
        if text
    )
    return "\n".join([method.name, *wrapped])


def _shown(name: str, parameter: Any) -> str:
    """An argument with its default, and the words it may be."""
    default = parameter.default
    value = "" if default is parameter.empty else f"={getattr(default, '__name__', default)}"
    choices = " or ".join(map(str, words_of(parameter.annotation)))
    return f"{name}{value} ({choices})" if choices else f"{name}{value}"
