"""Rows and manifests as runs leave them, as sweeps name them, and as broken ones are refused; no model is needed."""

import csv
import io
import json
import math
import re

import pytest

from probe.cli import main
from probe.figures.folder import _contents, draw_folder, drawing_summary, origin, rows_of, unfinished
from probe.figures.tables import csv_text, main_table
from probe.report.sentences import findings
from probe.rows import Row, append, load
from probe.sweep.journal import write_record

GOOD = {"intervention": "GA", "diagnostic": "performance", "quantity": "probability", "value": 0.5}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", r"rows\.jsonl:2: not a row: b'\[1\]'; remove the line"),
        ("null", "not a row"),
        ("3", "not a row"),
        ("{", "not a row"),
        ("[" * 100_000, "not a row"),
        ('{"intervention": "GA"}', r"rows\.jsonl:2: diagnostic, quantity, value missing"),
        (json.dumps({**GOOD, "value": "0.5"}), r"rows\.jsonl:2: value is '0\.5', expected float or null"),
        (json.dumps({**GOOD, "value": True}), "value is 'True', expected float or null"),
        (json.dumps({**GOOD, "layer": 1.5}), "layer is '1.5', expected int or null"),
        (json.dumps({**GOOD, "layer": [1]}), r"layer is '\[1\]'"),
        (json.dumps({**GOOD, "intervention": None}), "intervention is 'None', expected str"),
        (json.dumps({**GOOD, "colour": 1}), "unknown fields .'colour'."),
        (json.dumps({**GOOD, "value": 10**400}), "value is too large for a float"),
    ],
)
def test_r5_what_is_no_row_is_named_with_its_line(tmp_path, capsys, line, said):
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(SystemExit) as stopped:
        main(["figures", str(tmp_path)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert re.search(said, error), error
    assert len(error) < 400 + len(str(tmp_path))
    assert not (tmp_path / "figures").exists()


def test_r5_whole_numbers_are_numbers(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({**GOOD, "value": 1, "low": None, "layer": 2, "n": 3}) + "\n")
    assert load(tmp_path / "rows.jsonl") == [Row("GA", "performance", "probability", 1.0, layer=2, n=3)]


REPORT = {"settings": {"seed": 0}, "conditions": [], "status": "complete"}


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("[]", r"manifest\.json holds a list, expected an object; run the command again"),
        ("null", "holds a NoneType"),
        ("7", "holds a int"),
        ("{", r"manifest\.json is damaged"),
        (json.dumps(REPORT), r"manifest\.json is not what a report leaves \(.*; run `probe report` again"),
        (json.dumps({**REPORT, "model": 3, "data": [], "versions": None}), "is not what a report leaves"),
    ],
)
def test_r5_a_broken_manifest_is_named(tmp_path, capsys, manifest, said):
    append(tmp_path / "rows.jsonl", [Row(**GOOD)])
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(SystemExit) as stopped:
        main(["figures", str(tmp_path)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize("on", ["forget", "retain"])
def test_r5_a_dose_with_one_side_alone_says_nothing(on):
    assert findings([Row("Steer", "dose", "probability", 0.5, on, dose=0.0)], "dose") == []


def test_r11_figures_of_a_part_say_so(tmp_path):
    for name, status in (("whole", "complete"), ("half", "running"), (".mine.part", "unfinished")):
        (tmp_path / name).mkdir()
        append(tmp_path / name / "rows.jsonl", [Row(**{**GOOD, "intervention": name})])
        (tmp_path / name / "manifest.json").write_text(json.dumps({"status": status}))
    told = unfinished(tmp_path)
    assert told == [
        f"{tmp_path / 'half'} is not finished: what it shows is a part",
        f"{tmp_path / '.mine.part'} is left out: it is not finished",
    ]
    drawn = draw_folder(tmp_path, only=["main"])
    assert drawing_summary(drawn).splitlines()[:2] == told
    assert f"<b>{told[0]}</b>" in _contents(drawn)
    assert draw_folder(tmp_path / "whole", only=["main"]).notes == ()
    assert "a part" in draw_folder(tmp_path / ".mine.part", only=["main"]).notes[0]
    with pytest.raises(FileNotFoundError, match=r"no such folder; an unfinished run lies in .*\.mine\.part"):
        rows_of(tmp_path / "mine")


def sweep_of(folder, cells):
    """What a sweep leaves: a journal, and a folder of rows for each cell."""
    for k, (cell, rows) in enumerate(cells):
        out = folder / "cells" / f"{k:016x}" / "evaluate"
        out.mkdir(parents=True)
        append(out / "rows.jsonl", rows)
        record = {"id": f"{k:016x}", "cell": cell, "values": {}, "status": "ok", "error": ""}
        write_record(folder / "journal.jsonl", record)


def performed(name, value):
    return Row(name, "performance", "probability", value, "forget")


def test_f36_each_cell_of_a_sweep_is_one_row_with_its_label(tmp_path):
    original = performed("original", 0.99)
    rates = (1e-4, 3e-4, 1e-3)
    sweep_of(
        tmp_path,
        [({"method": "npo", "lr": lr}, [original, performed("model", 0.5 + k / 10)]) for k, lr in enumerate(rates)],
    )
    rows = rows_of(tmp_path)
    assert [(r.intervention, r.value) for r in rows] == [
        ("original", 0.99),
        ("lr=0.0001", 0.5),
        ("lr=0.0003", 0.6),
        ("lr=0.001", 0.7),
    ]
    names = [line.split(",")[0] for line in main_table(rows).csv.splitlines()[1:]]
    assert names == ["original", "lr=0.0001", "lr=0.0003", "lr=0.001"]
    # Inside of one cell there is nothing to tell apart.
    assert [r.intervention for r in rows_of(tmp_path / "cells" / f"{1:016x}")] == ["original", "model"]


def test_f36_what_differs_between_cells_is_never_one_name(tmp_path):
    """Several models a cell keep their names; an original that a cell changes is that cell's."""
    cells = [{"seed": seed, "method": method} for seed in (0, 1) for method in ("ga", "npo")]
    sweep_of(
        tmp_path,
        [
            (cell, [performed("original", 0.9 + cell["seed"] / 100), performed("a", 0.1), performed("b", 0.2)])
            for cell in cells
        ],
    )
    found = {r.intervention for r in rows_of(tmp_path)}
    assert found == {
        f"{name} (method={m} seed={s})" for name in ("original", "a", "b") for s in (0, 1) for m in ("ga", "npo")
    }


def test_r20_a_name_is_no_formula():
    bad = ["=cmd|' /C calc'!A0", "+1", "-1+2", "@SUM(A1)", "\t=1"]
    rows = list(csv.reader(io.StringIO(csv_text([[*bad, "fine", -0.5, None]]), newline="")))
    assert rows[0][: len(bad)] == [f"'{cell}" for cell in bad]
    assert rows[0][len(bad) :] == ["fine", "-0.5", ""]
    table = main_table([performed(name, -0.5) for name in bad])
    assert not [line for line in table.csv.splitlines() if line.startswith(("=", "+", "-", "@"))]
    assert "-0.5" in table.csv


def test_r21_what_is_written_into_figures_depends_on_the_rows_alone(tmp_path):
    for name in (".run.part", "run", "elsewhere"):
        (tmp_path / name).mkdir()
        append(tmp_path / name / "rows.jsonl", [performed("GA", 0.5)])
    assert origin(tmp_path / ".run.part") == origin(tmp_path / "run") == origin(tmp_path / "elsewhere")
    append(tmp_path / "run" / "rows.jsonl", [performed("GA", math.nan)])
    assert origin(tmp_path / "run") != origin(tmp_path / "elsewhere")
