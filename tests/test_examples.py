"""The examples of docstrings run as printed, after `import probe` and `s = probe.testbed()`."""

import copy
import dataclasses
import doctest
import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

import probe
from probe.checkpoints import weights_hash
from probe.data import make_split

ROOT = Path(probe.__file__).parent
MODULES = [
    found.name
    for found in pkgutil.walk_packages([str(ROOT)], "probe.")
    if ">>> " in Path(found.module_finder.find_spec(found.name).origin).read_text(encoding="utf-8")
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def session():
    """What an example finds: the package, torch, and a testbed with a tenth of its rows."""
    whole = probe.testbed()
    split = make_split(whole.tokenizer, whole.split.forget_rows[::5], whole.split.retain_rows[:900:45])
    s = dataclasses.replace(whole, split=split, world=whole.world[:8])
    return {"probe": probe, "torch": torch, "copy": copy, "s": s, "study": s}


# More than a second of processor time each: they train, search or audit, which tests of their own do.
LONG = ("probe.attacks.", "probe.diagnostics.reweighting", "probe.sae.", "probe.testing.model", "probe.train.stepping")


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith(LONG)) for name in MODULES]
)
def test_the_examples_run_as_printed(module, session, monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "testbed", lambda **_: session["s"])
    before = weights_hash(session["s"].original)
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    told: list[str] = []
    found = import_module(module)
    finder, names = doctest.DocTestFinder(), {**vars(found), **session}
    # What is wrapped elsewhere counts to the other module, so it is looked for by itself.
    wrapped = [one.__wrapped__ for one in vars(found).values() if getattr(one, "__module__", "") == module
               and getattr(one, "__wrapped__", None) is not None and inspect.isfunction(one)]  # fmt: skip
    tests = {test.docstring: test for one in (found, *wrapped) for test in finder.find(one, globs=names)}
    for number, test in enumerate(tests.values()):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            runner.run(test, out=told.append)
    assert not runner.failures, "".join(told)
    assert weights_hash(session["s"].original) == before, "an example changed the model that all examples share"


def test_every_name_of_the_front_door_has_an_example():
    offered = {name: getattr(probe, name) for name in probe.__all__}
    without = [
        name
        for name, found in offered.items()
        if (inspect.isroutine(found) or inspect.isclass(found)) and ">>> " not in (inspect.getdoc(found) or "")
    ]
    assert not without, f"no example in the docstring of {', '.join(without)}"
