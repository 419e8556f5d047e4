"""The public names of a package: listed once, in its ``__init__.pyi``, and imported when they are first asked for."""

import ast
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType


def export(package: str) -> None:
    """Give a package the names that its stub lists: ``__getattr__``, ``__dir__`` and ``__all__``.

    Importing the package imports none of its modules, so ``import probe`` stays fast.

    >>> import probe
    >>> "Site" in dir(probe)
    True
    """
    module = sys.modules[package]
    if module.__file__ is None:
        raise ImportError(f"{package} has no file, so there is no stub beside it")
    names = stub_names(Path(module.__file__).with_suffix(".pyi"))
    module.__dict__.update(_exports=names, __all__=sorted(names))
    module.__class__ = _Room


def stub_names(stub: Path) -> dict[str, tuple[str, str]]:
    """What a stub exports: public name -> (module, the name in it), from ``from module import name as public``."""
    lines = ast.parse(stub.read_text(encoding="utf-8")).body
    froms = [line for line in lines if isinstance(line, ast.ImportFrom)]
    return {
        alias.asname: (line.module, alias.name)
        for line in froms
        for alias in line.names
        if line.module and alias.asname
    }


class _Room(ModuleType):
    """A package whose public names are imported on first use."""

    _exports: dict[str, tuple[str, str]]

    def __getattr__(self, name: str) -> object:
        if name not in self._exports:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        module, original = self._exports[name]
        value = self.__dict__[name] = getattr(import_module(module), original)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # Importing probe.a.b binds b in probe.a. A public name that is spelt like its module must stay what it is.
        if name in self._exports and isinstance(value, ModuleType) and value.__name__ == f"{self.__name__}.{name}":
            return
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self._exports} - {"_exports", "export"})
