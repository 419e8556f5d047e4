"""The plan of the house, held by a test: who imports whom, who may touch what, how long a room may be."""

import ast
import functools
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "probe"
MODULES = sorted(ROOT.rglob("*.py"))

# Lower numbers are lower rooms; a module imports rooms of a lower number or its own room.
LEVEL = {
    "exports": -1,
    "version": 0,
    "axes": 0,
    "display": 1,
    "ranges": 0,
    "rows": 0,
    "records": 0,
    "nesting": 0,
    "modes": 1,
    "quantised": 0,
    "sweep": 1,
    "questions": 0,
    "templates": 0,
    "sites": 1,
    "data": 1,
    "datasets": 2,
    "readers": 3,
    "model_files": 1,
    "checkpoints": 3,
    "outputs": 0,
    "positions": 1,
    "hooks": 2,
    "weights": 2,
    "context": 2,
    "harvest": 4,
    "dictionaries": 4,
    "archive": 5,
    "objectives": 5,
    "interventions": 5,
    "remote": 6,
    "metrics": 6,
    "train": 6,
    "replay": 6,
    "features": 7,
    "open_unlearning": 7,
    "methods": 8,
    "attacks": 8,
    "diagnostics": 8,
    "testbed": 8,
    "testing": 9,
    "figures": 9,
    "commands": 13,
    "options": 1,
    "runs": 2,
    "study": 9,
    "sae": 10,
    "report": 11,
    "verdict": 11,
    "evaluation": 12,
    "cli": 14,
    "__main__": 15,
    "__init__": 16,
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(text(path))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} if node.module != "probe" else {f"probe.{alias.name}" for alias in node.names}
    return frozenset(found)


def test_imports_point_down():
    wrong = [
        f"{path.relative_to(ROOT)}: {room(path)} may not import {name}"
        for path in MODULES
        for name in sorted(imports(path))
        if name.startswith("probe.")
        and name.split(".")[1] != room(path)
        and LEVEL[name.split(".")[1]] >= LEVEL[room(path)]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("matplotlib", {"figures"}),
        ("nnsight", {"remote"}),
        ("sae_lens", {"dictionaries", "features"}),
        ("tyro", {"cli", "commands"}),
    ],
)
def test_packages_stay_in_their_rooms(package, rooms):
    users = {room(path) for path in MODULES if any(name.split(".")[0] == package for name in imports(path))}
    assert users <= rooms


def test_hooks_are_registered_in_one_file():
    users = {path.name for path in MODULES if "register_forward" in text(path)}
    assert users == {"hooks.py"}


def test_no_imports_run_in_a_circle():
    home = ROOT.parent
    paths = [path for top in ("probe", "analyses", "benchmarks") for path in (home / top).rglob("*.py")]
    names = {".".join(path.relative_to(home).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    drawn = {}
    for name, path in names.items():
        froms = (node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.module)
        found = {f"{node.module}.{alias.name}": node.module for node in froms for alias in node.names}
        called = imports(path) | {full if full in names else module for full, module in found.items()}
        drawn[name] = (called & names.keys()) - {name}
    try:
        graphlib.TopologicalSorter(drawn).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_nothing_loads_pickles_or_remote_code():
    for path in MODULES:
        for banned in ("torch.load", "import pickle", "joblib.load", "trust_remote_code=True", "eval(" + "'", "exec("):
            assert banned not in text(path), f"{path.name} holds {banned}"


def lines_of_code(node: ast.FunctionDef) -> int:
    # A docstring may be as long as it needs to be.
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return node.end_lineno - body[0].lineno + 1


def test_rooms_are_small():
    # Examples in docstrings do not count, nor the blank line before or the quotes that close after them.
    long = [
        f"{path.relative_to(ROOT)} has {lines} lines"
        for path in MODULES
        if (
            lines := re.sub(r'^\n? *>>> .*\n(?: *\S.*\n)*?(?=\n| *""")(?: *"""\n)?', "", text(path), flags=re.M).count(
                "\n"
            )
        )
        > 300
    ]
    long += [
        f"{path.relative_to(ROOT)}: {node.name} has {lines} lines of code"
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and (lines := lines_of_code(node)) > 60
    ]
    assert not long, "\n".join(long)


def test_no_rooms_without_a_subject():
    forbidden = {"utils", "helpers", "common", "base", "registry", "types"}
    assert not forbidden & {path.stem for path in MODULES}


# A method is called like the loss it trains with, everything else below is of the command line and to be merged.
DEFINED_TWICE = {
    *("ga", "idk", "sim_imp", "sim_sat"),
    *("Training", "Verdict", "flat", "load", "read_records"),
}


def test_a_public_name_means_one_thing():
    where: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in where.items() if len(paths) > 1 and name not in DEFINED_TWICE}
    assert not twice, twice


def test_rows_a_pass_have_one_name():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.arg) and node.arg == "chunk"), f"{path.name}: chunk is batch_size"


def test_the_architecture_draws_these_levels_and_names_every_room():
    page = text(ROOT.parent / "ARCHITECTURE.md")
    rooms = set(LEVEL) - {"__main__", "__init__"}
    # One floor between two bars; names stand left of column 36, what they are for right of it.
    floors = [[line[:36].split() for line in floor.splitlines()] for floor in page.split("```")[1].split("   |\n")]
    drawn = [sorted(name for line in floor for name in line) for floor in floors]
    levels = sorted({LEVEL[name] for name in rooms}, reverse=True)
    assert drawn == [["analyses"], *(sorted(name for name in rooms if LEVEL[name] == level) for level in levels)]
    table = re.findall(r"^\|([^|]*)\|", page, re.M)
    assert rooms <= {name for cell in table for name in re.findall(r"`(\w+)/?`", cell)}


def test_every_name_that_a_package_offers_is_in_the_module_that_its_stub_names():
    for stub in ROOT.rglob("__init__.pyi"):
        for line in ast.parse(stub.read_text()).body:
            path = ROOT.parent / line.module.replace(".", "/")
            found = path / "__init__.pyi" if path.is_dir() else path.with_suffix(".py")
            held = found.read_text() if found.exists() else ""
            for alias in line.names:
                pattern = rf"^(def|class) {alias.name}\b|^{alias.name}\b.* = | as {alias.name}$"
                assert re.search(pattern, held, re.M), f"{stub.parent}: no {alias.name} in {line.module}"
