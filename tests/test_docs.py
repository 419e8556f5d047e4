"""The guides run as printed, their links lead somewhere, and the reference builds without a warning."""

import ast
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import probe
from probe.checkpoints import save_model
from probe.cli import main
from probe.datasets import write_rows
from probe.testbed import load as load_testbed

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.S | re.M)
LONG = ("report", "verdict", "layers", "figures")  # minutes in all; each has tests of its own
# Rows of the testbed on each side where a guide is run quickly.
FEW = 50
GUIDES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("concepts", "how-to", "migrating", "reproducibility")),
)
# What installs: test_readme.py looks whether it is there.
UNTRIED = ("make", "source")


def commands(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(words: list[str]) -> None:
    if words[0] in UNTRIED:
        return
    assert words[0] == "probe", f"a guide's shell block holds what no test runs: {' '.join(words)}"
    code = None
    try:
        main(words[1:])
    except SystemExit as left:
        code = left.code
    assert not code, f"{' '.join(words)} ended with {code}"


def quick(block: str) -> str:
    """A block of Python without the calls that take long."""
    lines = ast.parse(block)
    lines.body = [line for line in lines.body if not ast.unparse(line).startswith(("probe.verdict(", "probe.report("))]
    return ast.unparse(lines)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the guides name: models with their tokenizer, forget and retain rows."""
    bed = load_testbed()
    for name, model in {"original": bed.original, "retrained": bed.retrained, "my-model": bed.original}.items():
        save_model(model, tmp_path / name, tokenizer=bed.tokenizer)
    write_rows(tmp_path / "forget.jsonl", bed.split.forget_rows[::5])
    write_rows(tmp_path / "retain.jsonl", bed.split.retain_rows[:200:5])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.slow, id="whole"), pytest.param(False, id="")])
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_run(page, whole, folder, monkeypatch):
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    if whole and not any(words[1] in LONG for kind, block in blocks if kind == "sh" for words in commands(block)):
        pytest.skip("nothing here takes long")
    if not whole:
        monkeypatch.setattr(probe, "testbed", partial(probe.testbed, limit=FEW))
    names: dict = {"__name__": page.stem}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block if whole else quick(block), page.name, "exec"), names)
        else:
            for words in commands(block):
                if whole or words[1] not in LONG:
                    run(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", text):
        found = page if not target else page.parent / target
        # The reference is built, not kept.
        assert found.exists() or target.startswith("reference/"), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            kept = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor[1:] in kept, f"{page.name} links to {anchor} of {found.name}"


def built(modules: list[str], out: Path, **more) -> subprocess.CompletedProcess:
    """`make docs` for some modules."""
    recipe = re.search(r"^docs:.*\n\t\$\(BIN\)/python (.*) probe$", (ROOT / "Makefile").read_text(), re.M)
    assert recipe, "the recipe of `make docs` has another form"
    script = recipe[1].replace("docs/build.py", str(ROOT / "docs" / "build.py"))
    options = shlex.split(script.replace("docs/reference", str(out)))
    return subprocess.run([sys.executable, *options, *modules], capture_output=True, text=True, **more)


def test_a_page_of_the_reference_builds_and_reads_well(tmp_path):
    done = built(["probe.diagnostics.separability"], tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "probe" / "diagnostics" / "separability.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page).replace("&#39;", "'")
    # Shapes stand in signatures; what is private does not stand there at all.
    assert "Float[Tensor, 'L']" in text
    assert "StratifiedGroupKFold" in text
    assert "_check_groups" not in text


def test_a_warning_fails_the_build(tmp_path):
    (tmp_path / "broken.py").write_text('"""Text."""\n\n\ndef f(x: "nowhere.Missing"):\n    """Text."""\n')
    done = built(["./broken.py"], tmp_path / "out", cwd=tmp_path)
    assert done.returncode != 0
    assert "nowhere" in done.stderr


@pytest.mark.slow
def test_the_reference_builds_without_a_warning(tmp_path):
    done = built(["probe"], tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()
