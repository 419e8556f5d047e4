"""Build the reference with pdoc: ``python docs/build.py FOLDER MODULE...``.

Every module has a page. That of a package lists the names that it offers and leads to where each is described.
"""

import inspect
import pkgutil
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pdoc

import probe


def list_names(package: ModuleType) -> None:
    """Write what a package offers into its docstring, a line a name."""
    lines = []
    for name in vars(package).pop("__all__"):  # pdoc would leave out the pages of all modules that are not in it
        module, original = package._exports[name]
        while original in getattr(import_module(module), "_exports", ()):  # offered by a room, written in its module
            module, original = import_module(module)._exports[original]
        found = getattr(package, name)
        about = inspect.getdoc(found) if inspect.isclass(found) or inspect.isroutine(found) else ""
        first = re.sub(r"([\\*_<`\[])", r"\\\1", (about or "").split("\n")[0].replace("``", ""))
        lines.append(f"- **{name}**: {first} `{module}.{original}`")
    package.__doc__ = "\n".join([package.__doc__ or "", "", "## What it offers", "", *lines])


def main(folder: str, *modules: str) -> None:
    """Write pages of the modules, and of all below them, into a folder."""
    rooms = [f"probe.{found.name}" for found in pkgutil.iter_modules(probe.__path__) if found.ispkg]
    for name in ("probe", *rooms):
        if hasattr(package := import_module(name), "_exports"):
            list_names(package)
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*modules, output_directory=Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
