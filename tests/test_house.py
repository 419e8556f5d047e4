"""The plan of the house, held by a test: who imports whom, who may touch what, how long a room may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "probe"
MODULES = sorted(ROOT.rglob("*.py"))

# Lower numbers are lower rooms; a module imports rooms of a lower number or its own room.
LEVEL = {
    "axes": 0,
    "display": 0,
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
    "methods": 8,
    "attacks": 8,
    "diagnostics": 8,
    "testbed": 8,
    "testing": 9,
    "figures": 9,
    "commands": 9,
    "sae": 10,
    "report": 11,
    "verdict": 11,
    "unlearning": 12,
    "evaluation": 12,
    "lenses": 12,
    "swept": 13,
    "cli": 14,
    "__main__": 15,
    "__init__": 0,
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} if node.module != "probe" else {f"probe.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] != "probe" or len(pieces) == 1 or pieces[1] == room(path):
            continue
        assert LEVEL[pieces[1]] < LEVEL[room(path)], f"{room(path)} may not import {pieces[1]}"


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("matplotlib", {"figures"}),
        ("nnsight", {"remote"}),
        ("sae_lens", {"dictionaries", "features"}),
        ("tyro", {"cli"}),
    ],
)
def test_packages_stay_in_their_rooms(package, rooms):
    users = {room(path) for path in MODULES if any(name.split(".")[0] == package for name in imports(path))}
    assert users <= rooms


def test_hooks_are_registered_in_one_file():
    users = {path.name for path in MODULES if "register_forward" in path.read_text()}
    assert users == {"hooks.py"}


def test_nothing_loads_pickles_or_remote_code():
    for path in MODULES:
        text = path.read_text()
        for banned in ("torch.load", "import pickle", "joblib.load", "trust_remote_code=True", "eval(" + "'", "exec("):
            assert banned not in text, f"{path.name} holds {banned}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_are_small(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            # A docstring may be as long as it needs to be.
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lines = node.end_lineno - body[0].lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines of code"


def test_no_rooms_without_a_subject():
    forbidden = {"utils", "helpers", "common", "base", "registry", "types"}
    assert not forbidden & {path.stem for path in MODULES}


def test_the_architecture_draws_these_levels_and_names_every_room():
    text = (ROOT.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = set(LEVEL) - {"__main__", "__init__"}
    # One floor between two bars; names stand left of column 36, what they are for right of it.
    floors = [[line[:36].split() for line in floor.splitlines()] for floor in text.split("```")[1].split("   |\n")]
    drawn = [sorted(name for line in floor for name in line) for floor in floors]
    levels = sorted({LEVEL[name] for name in rooms}, reverse=True)
    assert drawn == [["analyses"], *(sorted(name for name in rooms if LEVEL[name] == level) for level in levels)]
    table = re.findall(r"^\|([^|]*)\|", text, re.M)
    assert rooms <= {name for cell in table for name in re.findall(r"`(\w+)/?`", cell)}
