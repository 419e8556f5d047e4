"""What `import probe` and each room offer: every name is there, is what its stub says, and importing costs nothing."""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

import probe
from probe.exports import stub_names

ROOT = Path(probe.__file__).parent
PACKAGES = ["probe", *(f"probe.{found.name}" for found in pkgutil.iter_modules([str(ROOT)]) if found.ispkg)]
ROOMS = [name for name in PACKAGES if (ROOT.parent / name.replace(".", "/") / "__init__.pyi").exists()]


def exported(room: str) -> dict[str, tuple[str, str]]:
    return stub_names(ROOT.parent / room.replace(".", "/") / "__init__.pyi")


def test_importing_the_package_imports_nothing_heavy():
    code = "import probe, sys; print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_is_what_its_stub_says_and_tells_what_it_is_for(room):
    package, names = import_module(room), exported(room)
    assert package.__all__ == sorted(names)
    assert set(names) <= set(dir(package))
    for name, (module, original) in names.items():
        found = getattr(package, name)
        assert found is getattr(import_module(module), original), f"{room}.{name}"
        assert room == "probe" or module.startswith(f"{room}."), f"{room} offers {name} of {module}"
        if inspect.isroutine(found) or inspect.isclass(found):
            assert inspect.getdoc(found), f"{room}.{name} has no docstring"


def test_a_name_spelt_like_its_module_stays_a_function():
    code = (
        "import probe.diagnostics.separability\n"
        "from probe.diagnostics.separability import Separability\n"
        "from probe.diagnostics import separability\n"
        "import probe.harvest\n"
        "assert probe.separability is probe.diagnostics.separability is separability\n"
        "assert callable(separability) and callable(probe.harvest)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_an_unknown_name_is_refused_and_the_nearest_is_told():
    with pytest.raises(AttributeError, match="module 'probe' has no attribute 'seperability'"):
        _ = probe.seperability
    done = subprocess.run([sys.executable, "-c", "import probe; probe.seperability"], capture_output=True, text=True)
    assert "Did you mean: 'separability'?" in done.stderr


def hinted(tree: ast.Module) -> set[str]:
    """Names in annotations, bases and type aliases of a module: what its public names are made of."""
    parts: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            parts += [node.returns, *(arg.annotation for arg in (*node.args.args, *node.args.kwonlyargs))]
        elif isinstance(node, ast.AnnAssign):
            parts.append(node.annotation)
        elif isinstance(node, ast.ClassDef):
            parts += node.bases
    parts += [node.value for node in tree.body if isinstance(node, ast.Assign)]
    return {name for part in parts if part is not None for name in re.findall(r"\w+", ast.unparse(part))}


def test_what_no_other_module_needs_is_offered_or_private():
    texts = {path: path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}
    files = Counter(name for text in texts.values() for name in set(re.findall(r"\w+", text)))
    lonely = []
    for room in ROOMS[1:]:
        offered = set(exported(room).values())
        for path in (ROOT.parent / room.replace(".", "/")).glob("*.py"):
            tree, module = ast.parse(texts[path]), f"{room}.{path.stem}"
            for node in tree.body:
                if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                    continue
                # A recipe is reached by its name in the catalogue.
                entered = room == "probe.methods" and bool(node.decorator_list)
                part = isinstance(node, ast.ClassDef) and node.name in hinted(tree)
                if (module, node.name) not in offered and not entered and not part and files[node.name] == 1:
                    lonely.append(f"{module}.{node.name}")
    assert not lonely, f"neither offered by its room nor used by another module: {', '.join(lonely)}"
