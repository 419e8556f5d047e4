"""Modules of a checkout, imported from where they lie; packages that are not installed are replaced by empty ones."""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


@contextmanager
def imports_from(
    folder: Path,
    *,
    absent: Sequence[str] = (),
    bare: Sequence[str] = (),
    empty: Sequence[str] = (),
    itself: Sequence[str] = (),
) -> Iterator[None]:
    """Within it, modules are looked for in ``folder`` first; on leaving, what was imported from there is forgotten.

    Args:
        folder: put in front of the path.
        bare: packages of the folder whose ``__init__`` is not run.
        empty: modules of the folder that an empty one stands for.
        itself: names by which the folder's modules import it as a package.
        absent: packages that an empty module stands for where they are not installed; every name in it is a class.

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}; give the root of a checkout of the peer's repository")
    before = set(sys.modules)
    finder = _Absent(absent)
    sys.path.insert(0, str(folder))
    sys.meta_path.append(finder)
    for name in empty:
        sys.modules[name] = _Empty(name)
    places = {name: folder / name.replace(".", "/") for name in bare} | dict.fromkeys(itself, folder)
    for name, place in places.items():
        package = ModuleType(name)
        package.__path__ = [str(place)]
        package.__file__ = str(place / "__init__.py")
        sys.modules[name] = package
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None) or ""
            if origin.startswith(str(folder)) or name in empty or name.split(".")[0] in (*absent, *empty):
                del sys.modules[name]


def attribute(module: str, name: str) -> Any:
    """One name of a module."""
    return getattr(importlib.import_module(module), name)


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        # Last in line: it is asked only for what nobody else has.
        if fullname.split(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


class _Empty(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
