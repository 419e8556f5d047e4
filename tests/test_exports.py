"""What `import probe` and each room offer: every name is there, is what its stub says, and importing costs nothing."""

import inspect
import pkgutil
import subprocess
import sys
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
