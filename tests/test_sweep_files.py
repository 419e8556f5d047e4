"""Sweeps from a TOML file: what a file may say, what is shown, shared out and submitted, and what mistakes cost."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from probe.checkpoints import check_device, load_model, weights_hash
from probe.cli import main
from probe.commands.sweep import jobs
from probe.datasets import write_rows
from probe.sweep import load
from probe.sweep.command import run_file
from probe.sweep.file import read_sweep
from probe.sweep.slurm import script

STUDY = """
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
import numpy as np

@dataclass(frozen=True)
class Settings:
    seed: int
    rate: float = 0.5
    norm: Literal["l1", "l2"] = "l2"
    def __post_init__(self):
        if self.rate <= 0:
            raise ValueError(f"rate must be above 0, got {self.rate}")

def score(layer: int, settings: Settings, rows: Path | None = None, names: tuple[str, ...] = ()):
    if layer == 7:
        raise RuntimeError("no such layer")
    text = rows.read_text() if rows else ""
    return {"score": layer + settings.rate * settings.seed, "words": len(text.split()), "names": "+".join(names)}

def filed(layer: int, out: Path):
    assert not out.exists()
    out.mkdir()
    (out / "note.txt").write_text(str(layer))
    return {"score": float(layer), "curve_T": np.arange(3) * layer}

def anything(**cell):
    return {}

class Own:
    pass

@dataclass
class Inner:
    x: "Nowhere"

def unknown(layer: "Nowhere"):
    return {}

def unknown_inside(layer: int, inner: Inner):
    return {}

def own(layer: Own):
    return {}

def own_default(layer: int, a=Own()):
    return {}

def nan_default(layer: int, a: float = float("nan")):
    return {}

async def later(layer: int):
    return {}

def leaves(layer: int):
    raise SystemExit(0)

def lazy(layer: int):
    import no_such_module

NUMBER = 3
"""

JOBS = jobs()

FILE = """
run = "study_of_sweeps:score"
out = "out"

[fixed]
rate = 1

[grid]
layer = [0, 3]
seed = [1, 2]
"""


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A folder with a study and its sweep file, as a user has them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "study_of_sweeps", raising=False)
    Path("study_of_sweeps.py").write_text(STUDY)
    Path("night.toml").write_text(FILE)
    return tmp_path


def done(*words):
    """The exit code of `probe sweep`."""
    try:
        main(["sweep", *map(str, words)])
    except SystemExit as ended:
        return ended.code or 0
    return 0


def written(text, name="night.toml"):
    path = Path(name)
    path.write_text(text)
    return path


def test_a_file_names_a_function_fixed_fields_and_axes(at, capsys):
    assert done("night.toml") == 0
    assert capsys.readouterr().out.splitlines() == ["4 cells: 4 finished", "out/results.jsonl"]
    records = load("out")
    assert [(r["layer"], r["seed"], r["score"]) for r in records] == [(0, 1, 1), (0, 2, 2), (3, 1, 4), (3, 2, 5)]
    identity = json.loads(Path("out/identity.json").read_text())
    # Defaults are part of what determines a cell; 1 for a float is 1.0.
    assert identity["fixed"] == {"rate": 1.0, "norm": "l2", "rows": None, "names": []}
    assert set(identity["packages"]) == {"unlearn-probe", "torch", "transformers"}


def test_a_dry_run_shows_states_and_touches_nothing(at, capsys):
    assert done("night.toml", "--dry-run") == 0
    assert sorted(path.name for path in at.iterdir() if path.name != "__pycache__") == [
        "night.toml",
        "study_of_sweeps.py",
    ]
    printed = capsys.readouterr().out
    assert "fixed: rate=1.0 norm=l2 names=[]" in printed
    assert "4 cells: 4 left; 4 would be run" in printed
    written(FILE.replace("[0, 3]", "[0, 7]"))
    assert done("night.toml") == 1
    captured = capsys.readouterr()
    assert "failed: layer=7 seed=1: RuntimeError: no such layer" in captured.out
    assert "4 cells: 2 finished, 2 failed; run again to try these again" in captured.out
    assert 'raise RuntimeError("no such layer")' in captured.err
    written(FILE.replace("[0, 3]", "[0, 3, 7]"))
    before = {path: path.stat().st_mtime_ns for path in at.rglob("*")}
    assert done("night.toml", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines() if "seed=" in line] == ["ok"] * 2 + ["left"] * 2 + [
        "failed"
    ] * 2
    assert "6 cells: 2 failed, 2 left, 2 ok; 4 would be run" in printed
    assert done("night.toml", "--dry-run", "--shard", "1/3") == 0
    assert "2 cells: " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in at.rglob("*")} == before


def test_four_shards_of_a_file_equal_one_run_byte_for_byte(at, capsys):
    assert done("night.toml", "--out", "whole") == 0
    for i in (3, 1, 4):
        assert done("night.toml", "--shard", f"{i}/4") == 0
        assert "1 cell: 1 finished" in capsys.readouterr().out
        assert not Path("out/results.jsonl").exists()
    assert done("night.toml", "--shard", "2/4") == 0
    assert "out/results.jsonl" in capsys.readouterr().out
    assert Path("out/results.jsonl").read_bytes() == Path("whole/results.jsonl").read_bytes()


def test_several_grids_make_one_table_without_holes(at):
    path = written(
        'run = "study_of_sweeps:score"\n'
        "[[grid]]\nlayer = [0]\nseed = [1, 2]\n[[grid]]\nlayer = [3]\nseed = [1]\nrate = [0.25, 2]\n"
    )
    asked = read_sweep(path, {})
    assert [tuple(cell.values()) for cell in asked.cells] == [(0, 1, 0.5), (0, 2, 0.5), (3, 1, 0.25), (3, 1, 2.0)]
    assert "rate" not in asked.fixed
    assert asked.out == Path("results/sweeps/night")


def test_files_that_are_named_are_part_of_a_cell(at, capsys):
    Path("a.txt").write_text("one two")
    Path("b.txt").write_text("three")
    text = FILE.replace("seed = [1, 2]", 'seed = [1]\nrows = ["a.txt", "b.txt"]')
    path = written(text)
    run_file(path, {})
    assert [r["words"] for r in load("out")] == [2, 1, 2, 1]
    # Another content is another cell; that of the others is kept.
    Path("b.txt").write_text("three four five")
    from probe.sweep import inputs

    inputs.content_hash.cache_clear()
    assert "4 cells: 2 left, 2 ok; 2 would be run" in run_file(path, {}, dry_run=True)[0]
    run_file(path, {})
    assert [r["words"] for r in load("out")] == [2, 3, 2, 3]
    # Of a fixed file the whole sweep is made.
    path = written(text.replace('rows = ["a.txt", "b.txt"]', "").replace("rate = 1", 'rate = 1\nrows = "a.txt"'))
    with pytest.raises(ValueError, match=r"holds a sweep of something else \(fixed.rows: None then, 'a.txt' now; inp"):
        run_file(path, {})
    run_file(path, {}, out=Path("fixed"))
    Path("a.txt").write_text("changed")
    inputs.content_hash.cache_clear()
    with pytest.raises(ValueError, match=r"inputs.rows: '\w+\.\.\.' then, '\w+\.\.\.' now\); choose another folder"):
        run_file(path, {}, out=Path("fixed"))
    Path("a.txt").unlink()
    with pytest.raises(ValueError, match=r"rows = 'a.txt': no such file .resolved to /"):
        run_file(path, {}, out=Path("other"))


def test_a_cell_has_a_folder_of_its_own_and_arrays_a_file(at):
    path = written('run = "study_of_sweeps:filed"\nout = "out"\n[grid]\nlayer = [2, 5]')
    run_file(path, {})
    ids = json.loads(Path("out/cells.json").read_text())
    assert [Path("out/cells", one, "note.txt").read_text() for one in ids] == ["2", "5"]
    from safetensors.numpy import load_file

    assert load_file(load("out")[1]["arrays"])["curve_T"].tolist() == [0, 5, 10]
    # What a kill left of a cell is removed before it runs again.
    Path("out/journal.jsonl").write_bytes(b"")
    assert run_file(path, {})[1] == 0
    with pytest.raises(ValueError, match="out is not set there; every cell gets a folder of its own"):
        run_file(written('run = "study_of_sweeps:filed"\n[fixed]\nout = "x"\n[grid]\nlayer = [2]'), {})


def test_smoke_runs_the_first_cell_small_and_keeps_nothing(at, capsys):
    written(FILE + "[smoke]\nseed = 100\n")
    assert done("night.toml", "--smoke") == 0
    printed = capsys.readouterr().out
    assert "score = 100.0" in printed
    assert "the first cell, layer=0 seed=1, with seed=100: " in printed
    assert not Path("out").exists()
    written(FILE.replace("[0, 3]", "[7]"))
    assert done("night.toml", "--smoke") == 1
    captured = capsys.readouterr()
    assert "as it is (a [smoke] table would make it smaller), failed: RuntimeError: no such layer" in captured.out
    assert 'raise RuntimeError("no such layer")' in captured.err


def test_changed_code_is_warned_about_and_a_version_makes_it_another_sweep(at):
    run_file(Path("night.toml"), {})
    Path("study_of_sweeps.py").write_text(STUDY + "\n# changed")
    with pytest.warns(UserWarning, match="raise the version in the sweep file"):
        assert run_file(Path("night.toml"), {})[1] == 0
    with pytest.raises(ValueError, match="version: None then, 2 now"):
        run_file(written("version = 2\n" + FILE), {})


GRID = "[grid]\nlayer = [0]\nseed = [1]\n"
RUN = 'run = "study_of_sweeps:score"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RUN + "[grid\n", r"night.toml is no TOML: .*line 2"),
        (RUN + "gird = 3\n" + GRID, r"night.toml: unknown key 'gird'; known: run, out, version, fixed, grid"),
        (GRID, r"night.toml: run is missing: one of attack, diagnose, evaluate"),
        ('run = "unlaern"\n' + GRID, r"run = 'unlaern' is none of attack, .*verdict, nor \"package.module:function\""),
        ('run = "os.path:no.such"\n' + GRID, r"nor \"package.module:function\""),
        ('run = "no_such_module:f"\n' + GRID, r"cannot be imported \(ModuleNotFoundError: No module named 'no_such"),
        ('run = "study_of_sweeps:absent"\n' + GRID, r"cannot be imported \(AttributeError"),
        ('run = "study_of_sweeps:NUMBER"\n' + GRID, r"is no function"),
        ('run = "study_of_sweeps:anything"\n' + GRID, r"takes \*\*cell; a sweep file needs a function whose param"),
        *(
            (f'run = "study_of_sweeps:{name}"\n[grid]\nlayer = [0]\n', rf"^probe: night.toml: .*{message}")
            for name, message in (
                ("unknown", r"annotations of study_of_sweeps:unknown cannot be read \(name 'Nowhere' is not defined"),
                ("unknown_inside", r"annotations of study_of_sweeps:unknown_inside, inner cannot be read"),
                ("own", r"study_of_sweeps:own: no file holds values of layer"),
                ("own_default", r"the default of a is part of what a cell is, and cannot be written"),
                ("nan_default", r"the default of a is part of what a cell is, and cannot be written"),
            )
        ),
        (RUN, r"\[grid\] is missing: a table of axes"),
        (RUN + "[grid]\n", r"\[grid\] is missing"),
        (RUN + "[grid]\nlayer = []\nseed = [1]\n", r"night.toml, \[grid\]: layer needs a list of at least one value"),
        (RUN + "[grid]\nlayer = 3\nseed = [1]\n", r"layer needs a list of at least one value, got 3"),
        (RUN + "[grid]\nlayer = [1, 1]\nseed = [1]\n", r"\[grid\]: axis layer needs at least one value and each once"),
        (RUN + GRID + "rate = [1, 1.0]\n", r"axis rate needs at least one value and each once"),
        (RUN + "[grid]\nlayer = [0]\n", r"night.toml: seed missing: give a value in \[fixed\] or an axis in \[grid\]"),
        (RUN + "[fixed]\nseed = 1\n" + GRID, r"seed is both in \[fixed\] and in \[grid\]"),
        (
            RUN + "[fixed]\nrat = 1\n" + GRID,
            r"\[fixed\]: unknown field 'rat'; did you mean 'rate'\? known fields: layer",
        ),
        (RUN + GRID + "laier = [1]\n", r"\[grid\]: unknown field 'laier'; did you mean 'layer'"),
        (RUN + '[fixed]\nrate = "1e-5"\n' + GRID, r"rate = '1e-5' does not fit \(Input should be a valid number\)"),
        (RUN + "[grid]\nlayer = [0, true]\nseed = [1]\n", r"layer = True does not fit .*; expected int"),
        (RUN + "[grid]\nlayer = [0.5]\nseed = [1]\n", r"layer = 0.5 does not fit"),
        (RUN + '[fixed]\nnorm = "l3"\n' + GRID, r"norm = 'l3' does not fit \(Input should be 'l1' or 'l2'\)"),
        (RUN + "[fixed]\nnames = [1]\n" + GRID, r"names = \[1\] does not fit"),
        (RUN + "[fixed]\nrate = nan\n" + GRID, r"rate = nan does not fit"),
        (RUN + "[fixed]\nrate = 1979-05-27\n" + GRID, r"rate = .* does not fit"),
        (RUN + "[fixed]\nrate = -1\n" + GRID, r"night.toml, cell layer=0 seed=1: rate must be above 0, got -1.0"),
        (RUN + "fixed = 3\n" + GRID, r"\[fixed\] is a table of fields, got 3"),
        (RUN + "out = 3\n" + GRID, r"out is a folder, got 3"),
        (RUN + "version = 1.5\n" + GRID, r"version is a number or a word"),
        (RUN + GRID + "[smoke]\nsteps = 1\n", r"\[smoke\]: unknown field 'steps'"),
        (RUN + GRID + "[slurm]\nshards = 2\n", r"\[slurm\]: memory, time missing; clusters differ"),
        (RUN + GRID + '[slurm]\nshards = 2\nmemory = "1G"\ntime = 60\n', r"\[slurm\]: time = 60 does not fit"),
        (RUN + GRID + '[slurm]\nshards = 0\nmemory = "1G"\ntime = "1"\n', r"\[slurm\]: shards must be at least 1"),
        (RUN + GRID + '[slurm]\nshards = 1\nmemory = "1G\\nx"\ntime = "1"\n', r"is not one line"),
        (RUN + GRID + '[slurm]\nshards = 1\nmemory = "1G"\ntime = "1"\noptions = ["x"]\n', r"options are sbatch's own"),
        (RUN + "[[grid]]\nlayer = [0]\nseed = [1]\n[[grid]]\nseed = [1]\nlayer = [0]\n", r"layer=0 seed=1 comes twice"),
        ('run = "unlearn"\n[grid]\nmethod = ["ga"]\nsteps = [1.5]\n', r"steps = 1.5 does not fit"),
        (
            'run = "unlearn"\n[fixed]\ncompare = "m"\n[grid]\nmethod = ["ga"]\n',
            r"night.toml: compare is now called retrained; write that",
        ),
        ('run = "layers"\n[fixed]\nrows = 3\n[grid]\nspans = ["all"]\n', r"night.toml: rows is now called limit"),
        ('run = "unlearn"\n[grid]\nmethod = ["nothing"]\n', r"cell method=nothing: .*nothing"),
        ('run = "unlearn"\n[grid]\nmethod = ["npo"]\n', r"cell method=npo: npo also needs --"),
        (
            'run = "evaluate"\n[fixed]\nmodel = "./absent"\n[grid]\nlimit = [3]\n',
            r"no model at ./absent .* download it",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_it_73_74(at, capsys, text, message):
    written(text)
    assert done("night.toml") == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed), printed
    assert len(printed.strip().splitlines()) == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("code", ["import no_such_module", "import sys\nsys.exit(0)", "def f(:", "1 / 0"])
def test_r8_r19_a_module_that_cannot_be_imported_is_no_success(at, capsys, code):
    name = f"study_{abs(hash(code))}"
    Path(f"{name}.py").write_text(code)
    written(f'run = "{name}:f"\n' + GRID)
    assert done("night.toml") == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"probe: night.toml: {name}:f cannot be imported \(.*\); mend it, .*\n", said)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("later", "a coroutine; call it with asyncio.run"), ("lazy", "No module named")]
)
def test_r8_a_cell_that_fails_is_named_and_the_exit_code_is_1(at, capsys, name, message):
    written(f'run = "study_of_sweeps:{name}"\nout = "out"\n[grid]\nlayer = [5]\n')
    assert done("night.toml") == 1
    assert re.search(rf"failed: layer=5: .*{message}", capsys.readouterr().out)


@pytest.mark.parametrize(("name", "message"), [("leaves", r"it called sys.exit\(0\)"), ("later", "a coroutine")])
def test_r19_a_trial_of_a_cell_that_exits_or_gives_nothing_fails(at, capsys, name, message):
    written(f'run = "study_of_sweeps:{name}"\nout = "out"\n[grid]\nlayer = [5]\n')
    assert done("night.toml", "--smoke") == 1
    assert re.search(rf"the first cell, layer=5, as it is .* failed: .*{message}", capsys.readouterr().out)
    assert not Path("out").exists()


def test_a_file_that_is_not_there_and_flags_that_do_not_go_together(at, capsys):
    for words, message in (
        (["absent.toml"], "no sweep file at absent.toml (resolved to /"),
        (["night.toml", "--shard", "5/4"], "a shard is i/n with i from 1 to n"),
        (["night.toml", "--smoke", "--dry-run"], "--smoke runs one cell here and now"),
        (["night.toml", "--slurm", "--shard", "1/4"], "--slurm submits all shards"),
        (["night.toml", "--slurm"], "--slurm needs a [slurm] table"),
    ):
        assert done(*words) == 2
        assert message in capsys.readouterr().err
    (at / "file").touch()
    assert done("night.toml", "--out", "file/out") == 2
    assert "cannot write to file/out" in capsys.readouterr().err


def test_ctrl_c_in_the_shell_exits_130_and_says_what_is_kept(at, capsys, monkeypatch):
    def stopped(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["probe.sweep.command"], "sweep", stopped)
    assert done("night.toml") == 130
    assert "stopped; finished cells are kept; run again to go on" in capsys.readouterr().err


def test_a_full_disk_exits_with_74_and_a_valid_journal_68(at):
    written(FILE.replace("rate = 1", 'names = ["' + "x" * 100 + '"]').replace("[1, 2]", str(list(range(40)))))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000))"
    code = f"import probe.cli\n{limit}\nprobe.cli.main(['sweep', 'night.toml'])"
    # Without -B the limit would cut compiled modules short.
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 74, done.stderr
    finished = load("out")
    assert 3 < len(finished) < 80
    assert f"the {len(finished)} rows already there are safe; free some space and run again" in done.stderr
    *before, last = done.stderr.strip().splitlines()
    assert last.startswith("probe: ")
    assert all(line.startswith("cell ") for line in before)
    assert run_file(Path("night.toml"), {})[1] == 0
    assert len(load("out")) == 80


# Slurm

SLURM = FILE + '\n[slurm]\nshards = 3\nmemory = "2G"\ntime = "00:10:00"\ngpus = 1\noptions = ["--constraint=a100"]\n'


def test_the_slurm_script_asks_for_what_the_file_says(at, capsys):
    written(SLURM)
    assert done("night.toml", "--slurm", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not Path("out").exists()
    assert lines[0] == "#!/bin/bash"
    for line in (
        "#SBATCH --job-name=night",
        "#SBATCH --array=1,2,3",
        "#SBATCH --mem=2G",
        "#SBATCH --time=00:10:00",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --requeue",
        "#SBATCH --constraint=a100",
        f"#SBATCH --chdir={at}",
        f"#SBATCH --output={at}/out/slurm/%A_%a.log",
    ):
        assert line in lines
    assert lines[-1] == (
        f'exec {sys.executable} -m probe sweep {at}/night.toml --out {at}/out --shard "$SLURM_ARRAY_TASK_ID/3"'
    )


def test_a_path_with_a_space_is_quoted(at):
    folder = at / "my study"
    folder.mkdir()
    (folder / "study_of_sweeps.py").write_text(STUDY)
    asked = read_sweep(written(SLURM, "my study/night one.toml"), {})
    assert asked.slurm is not None
    text = script(asked.slurm, asked.path, folder / "out", [1, 3])
    assert "#SBATCH --job-name=night_one" in text
    assert f"#SBATCH --output='{folder}/out/slurm/%A_%a.log'" in text
    assert f"sweep '{folder}/night one.toml' --out '{folder}/out' --shard" in text


def test_only_shards_with_cells_left_are_submitted(at, capsys, monkeypatch):
    written(SLURM)
    assert done("night.toml", "--shard", "2/3") == 0
    monkeypatch.setenv("PATH", str(at))
    capsys.readouterr()
    assert done("night.toml", "--slurm") == 2
    assert "no sbatch here; submit out/slurm/sweep.sbatch where Slurm is" in capsys.readouterr().err
    fake = at / "sbatch"
    fake.write_text("#!/bin/sh\n/bin/cat \"$2\" > submitted; echo '41;cluster'\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    assert done("night.toml", "--slurm") == 0
    assert "job 41: 3 cells in 2 shards; logs in out/slurm" in capsys.readouterr().out
    assert "#SBATCH --array=1,3\n" in Path("submitted").read_text()
    fake.write_text("#!/bin/sh\necho 'invalid partition' >&2; exit 1\n")
    assert done("night.toml", "--slurm") == 2
    assert "sbatch refused out/slurm/sweep.sbatch: invalid partition" in capsys.readouterr().err
    for i in (1, 3):
        assert done("night.toml", "--shard", f"{i}/3") == 0
    assert done("night.toml", "--slurm") == 0
    assert "nothing to submit: all 4 cells are finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_slurm_runs_requeues_and_preempts():
    run = subprocess.run(["bash", str(Path(__file__).parent / "slurm" / "run.sh")], capture_output=True, text=True)
    if run.returncode == 77:
        pytest.skip(run.stdout.strip().splitlines()[-1])
    assert run.returncode == 0, run.stdout + run.stderr


# The commands as cells


def test_two_methods_are_unlearned_and_measured(at):
    path = written(
        'run = "unlearn"\nout = "out"\n'
        "[fixed]\nsteps = 2\nlr = 1e-4\nbatch_size = 4\nmeasure_limit = 3\nmeasure_texts = false\n"
        '[grid]\nmethod = ["ga", "grad_diff"]\nset = [[], ["retain_weight=1"]]\n'
    )
    with pytest.raises(ValueError, match=r"cell method=ga set=\[\"retain_weight=1\"\]: .*retain_weight"):
        run_file(path, JOBS)
    path = written(
        path.read_text().replace(
            '[grid]\nmethod = ["ga", "grad_diff"]\nset = [[], ["retain_weight=1"]]',
            '[[grid]]\nmethod = ["ga"]\n[[grid]]\nmethod = ["grad_diff"]\nset = [["retain_weight=1"]]',
        )
    )
    text, code = run_file(path, JOBS)
    assert code == 0, text
    ga, diff = load("out")
    assert (ga["method"], ga["set"], diff["method"], diff["set"]) == ("ga", [], "grad_diff", ["retain_weight=1"])
    for record in (ga, diff):
        assert record["status"] == "ok"
        assert 0 < record["forget_probability"] < 1
        assert {"forget_quality_p", "forget_extraction_strength"} <= record.keys()
    assert ga["forget_probability"] != diff["forget_probability"]
    for one in json.loads(Path("out/cells.json").read_text()):
        folder = Path("out/cells", one)
        assert json.loads((folder / "manifest.json").read_text())["status"] == "complete"
        assert (folder / "evaluate" / "table.txt").is_file()
        assert not list(folder.rglob("*.safetensors"))


def test_f44_hyper_parameters_are_axes_by_name_and_crossed(at, capsys):
    path = written(
        'run = "unlearn"\nout = "out"\n'
        "[fixed]\nsteps = 1\nlr = 1e-3\nbatch_size = 2\nmeasure_limit = 2\nmeasure_texts = false\nalpha = 1.0\n"
        '[[grid]]\nmethod = ["rmu"]\nlayer = [2, 4]\ncoefficient = [1, 5.0]\n'
        '[[grid]]\nmethod = ["rmu"]\nset = [["layer=3", "coefficient=2"]]\n'
    )
    asked = read_sweep(path, JOBS)
    given = [asked.arguments(cell, Path("x"))["set"] for cell in asked.cells]
    assert given == [
        ("alpha=1.0", "layer=2", "coefficient=1"),
        ("alpha=1.0", "layer=2", "coefficient=5.0"),
        ("alpha=1.0", "layer=4", "coefficient=1"),
        ("alpha=1.0", "layer=4", "coefficient=5.0"),
        ("layer=3", "coefficient=2", "alpha=1.0"),
    ]
    # What a setting comes to is part of a cell, however it is written.
    assert asked.inputs(asked.cells[1])["arguments"]["coefficient"] == 5.0
    assert asked.cells[4]["layer"] is None
    # No hyper-parameter that nobody names is a field of the sweep.
    assert {"beta", "rank", "coefficient"} & set(asked.fixed) == set()
    start = path.read_text().split("[[grid]]")[0]
    twice = written(f'{start}[grid]\nmethod = ["rmu"]\nset = [["layer=3"]]\nlayer = [2]\n')
    with pytest.raises(ValueError, match=r"cell .*: layer is given by its name and in set; leave one out"):
        run_file(twice, JOBS, dry_run=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("laier = [3]", r"\[grid\]: unknown field 'laier'; did you mean 'layer'\? known fields: "),
        ("beta = [0.1]", r"cell method=rmu beta=0.1: rmu has no hyper-parameter 'beta'"),
        ("layer = [1.5]", r"cell method=rmu layer=1.5: --set layer=1.5 cannot be read"),
        ("layer = [{ a = 1 }]", r"\[grid\]: layer = {'a': 1} does not fit"),
    ],
)
def test_f44_a_hyper_parameter_that_does_not_fit_is_refused_before_anything_runs(at, line, message):
    start = 'run = "unlearn"\nout = "out"\n[fixed]\nsteps = 1\nlr = 1e-3\nbatch_size = 2\ncoefficient = 3\nalpha = 1\n'
    path = written(f'{start}[grid]\nmethod = ["rmu"]\n{line}\n')
    with pytest.raises(ValueError, match=message):
        run_file(path, JOBS)
    assert not Path("out").exists()


def test_models_too_large_for_one_device_are_spread_by_device_auto(at, bed):
    check_device("auto")
    spread = load_model(bed.folder / "original", device="auto")
    assert weights_hash(spread) == weights_hash(bed.original)
    write_rows("forget.jsonl", bed.split.forget_rows[:3])
    write_rows("retain.jsonl", bed.split.retain_rows[:3])
    path = written(
        'run = "evaluate"\nout = "out"\n'
        f'[fixed]\nforget = "forget.jsonl"\nretain = "retain.jsonl"\ntokenizer = "{bed.folder}/tokenizer"\n'
        f'generate = false\ndevice = "auto"\n[grid]\nmodel = ["{bed.folder}/original", "{bed.folder}/retrained"]\n'
    )
    assert run_file(path, JOBS)[1] == 0
    knows, never = (record["forget_probability"] for record in load("out"))
    assert knows > 0.9 > never
    # Models are told apart by their weights: these are part of what a cell is.
    inputs = read_sweep(path, JOBS).inputs
    assert inputs({"model": f"{bed.folder}/original"}) != inputs({"model": f"{bed.folder}/retrained"})


@pytest.mark.slow
def test_every_command_can_be_a_cell(at, bed):
    write_rows("forget.jsonl", bed.split.forget_rows)
    write_rows("retain.jsonl", bed.split.retain_rows)
    models = f'original = "{bed.folder}/original"\ntokenizer = "{bed.folder}/tokenizer"'
    files = {
        "layers": (
            'run = "layers"\n[fixed]\nlimit = 2\n[grid]\nspans = ["single"]\n',
            "forget_probability_block_into_or",
        ),
        "effect": (
            'run = "g-effect"\n[fixed]\nlimit = 2\n[grid]\nobjective = [["ga"], ["wga:beta=1"]]\n',
            "forget_total",
        ),
        "verdict": (
            f'run = "verdict"\n[fixed]\n{models}\nforget = "forget.jsonl"\nretain = "retain.jsonl"\n[grid]\n'
            f'model = ["{bed.folder}/retrained"]\n',
            "verdict",
        ),
    }
    for name, (text, column) in files.items():
        text, code = run_file(written(text, f"{name}.toml"), JOBS, out=Path(name))
        assert code == 0, text
        assert all(any(key.startswith(column) for key in record) for record in load(name))
    assert load("effect")[0]["forget_total"] != load("effect")[1]["forget_total"]


def test_a_method_without_a_model_gives_its_answers_means(at):
    # Asking for more than answers of it is refused before anything runs.
    text = 'run = "unlearn"\n[fixed]\nmeasure = ["evaluate", "verdict"]\n[grid]\nmethod = ["in_context"]\n'
    with pytest.raises(ValueError, match=r"cell method=in_context: in_context leaves no model"):
        run_file(written(text), JOBS)
