"""Every notebook runs from top to bottom on a clean kernel, and is stored without outputs."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from probe.diagnostics.g_effect import g_effect
from probe.diagnostics.logit_collapse import logit_collapse
from probe.display import ResultTable
from probe.objectives.token import ga

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# Each takes 20 to 80 seconds of processor time; what they call has tests of its own.
LONG = ("first_look", "g_effects", "is_it_gone", "layer_maps", "sae_suppression")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in LONG), id=path.stem) for path in NOTEBOOKS],
)
def test_notebooks_run(path, monkeypatch):
    from nbclient import NotebookClient

    # The kernel's own warnings about its socket are none of ours.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=None, kernel_name="python3").execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_begin_with_few_imports_and_silence_no_warning(path):
    first, *others = (cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert sum(line.startswith(("import ", "from ")) for line in first.splitlines()) <= 3
    assert first.startswith("import probe\n")
    assert not any("warnings" in source or "disable_progress_bar" in source for source in (first, *others))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stored_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


def test_a_table_shows_numbers_and_escapes_texts():
    shown = ResultTable(
        {"layer": range(2), "<b>": [torch.tensor(0.123456), np.float64("nan")], "x": ["a & b", None]}, note="1 < 2"
    ).html()
    for piece in ("&lt;b&gt;", "0.1235", "–", "a &amp; b", "<p>1 &lt; 2</p>"):
        assert piece in shown
    assert "script" not in shown
    with pytest.raises(ValueError, match="equally long"):
        ResultTable({"layer": range(2), "value": [1.0]})


def test_results_show_themselves(bed):
    rows = bed.split.forget.select(range(8))
    effect = g_effect(bed.original, ga, rows, over=bed.split.retain.select(range(8)))
    assert f"{float(effect.layer_L[0]):.4g}" in effect._repr_html_()
    found = logit_collapse(bed.original, rows)
    assert found.verdict in found._repr_html_()
    assert f"{found.mean_max_logit:.4g}" in found._repr_html_()
