"""Sweeps: what a kill may cost, what is refused, and that the final bytes do not depend on the way there."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from probe.sweep import grid, load, sweep
from probe.sweep.cell import read_shard, share
from probe.sweep.quiet import NoBars

# Without torch, so that starting it 30 times is quick. Runs as shard i of n if two more arguments say so.
# Each cell takes a byte of stdin and waits for one while it is open, so no test has to be faster than this is.
SLOW_SWEEP = """
import os, sys, time
import numpy as np
from probe.sweep import grid, sweep
def run(layer, seed):
    with open(sys.argv[2], "a") as log:
        log.write(f"{layer} {seed}\\n")
    os.read(0, 1)
    time.sleep(0.001)
    drawn = float(np.random.random())
    return {"score": layer / 7 + seed, "drawn": drawn, "name": "line\\u2028end", "curve_T": np.arange(50) * drawn}
shard = tuple(map(int, sys.argv[3:])) or None
sweep(run, grid(layer=range(16), seed=range(10)), sys.argv[1], identity={"weights": "abc"}, progress=False, shard=shard)
assert "torch" not in sys.modules
"""
CELLS = 160


def score(layer, seed):
    return {"score": layer * 10.0 + seed}


def started(folder, log, *shard, stdin=subprocess.DEVNULL):
    command = [sys.executable, "-c", SLOW_SWEEP, str(folder), str(log), *map(str, shard)]
    return subprocess.Popen(command, stdin=stdin, stderr=subprocess.PIPE, text=True)


def running(folder, log, *shard, cells=0):
    """The process once it has the sweep's lock; after so many cells it waits in the next one."""
    process = started(folder, log, *shard, stdin=subprocess.PIPE)
    process.stdin.write("." * cells)
    process.stdin.flush()
    lock = folder / ("lock-{}-of-{}".format(*shard) if shard else "lock")
    while not lock.is_file() or f"process {process.pid} on" not in lock.read_text():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    return process


def kill_after(process, folder, cells):
    """Kill it once so many cells are in the journals."""
    while len(finished(folder)) < cells:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.kill()
    process.wait()


def finished(folder):
    """The cells in the journals, as the log writes them."""
    found = set()
    for path in folder.glob("journal*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            cell = json.loads(line)["cell"]
            found.add(f"{cell['layer']} {cell['seed']}")
    return found


def content(folder):
    """What must not depend on the way there: the canonical file and all arrays, by name."""
    assert not list(folder.rglob("*.tmp"))
    return {
        path.relative_to(folder): path.read_bytes() for path in [folder / "results.jsonl", *folder.glob("arrays/*")]
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The sweep as it ends if nothing happens to it."""
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    assert started(folder, folder.parent / "log").wait() == 0
    assert len(load(folder)) == CELLS
    return folder


def test_grid_is_every_combination_in_order():
    assert grid(a=[1, 2], b="xy") == ({"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"})
    for axes in ({"a": []}, {"a": [1, 1]}):
        with pytest.raises(ValueError, match="axis a needs at least one value and each once"):
            grid(**axes)


def test_results_are_read_back_flat(tmp_path):
    sweep(score, grid(layer=[0, 3], seed=[1]), tmp_path, identity={}, progress=False)
    assert [(r["layer"], r["seed"], r["score"], r["status"]) for r in load(tmp_path)] == [
        (0, 1, 1, "ok"),
        (3, 1, 31, "ok"),
    ]
    assert not list(tmp_path.glob("*.tmp"))


def test_kills_lose_and_repeat_nothing_and_leave_the_same_bytes(whole, tmp_path):
    folder, log = tmp_path / "killed", tmp_path / "log"
    moment, kills, seen = random.Random(0), 12, [(0, set())]
    for _ in range(kills):
        # The kill comes anywhere among a few cells, or while it waits in the one after them.
        ahead = moment.randint(1, 10)
        process = running(folder, log, cells=ahead)
        kill_after(process, folder, len(seen[-1][1]) + moment.randint(0, ahead))
        assert not (folder / "results.jsonl").exists()
        done = finished(folder)
        # Whatever was finished before is still there, and can be read.
        assert seen[-1][1] <= done
        if (folder / "cells.json").is_file():
            assert len(load(folder)) == len(done)
        seen.append((len(log.read_text().splitlines()) if log.is_file() else 0, done))
    assert 0 < len(seen[-1][1]) < CELLS
    assert started(folder, log).wait() == 0
    assert content(folder) == content(whole)
    # A cell under way when the kill came is run again; one in the journal never is.
    runs = log.read_text().splitlines()
    for (start, done), (end, _) in pairwise([*seen, (len(runs), set())]):
        assert not done & set(runs[start:end])
    assert CELLS <= len(runs) <= CELLS + kills


def test_four_shards_equal_one_run_byte_for_byte(whole, tmp_path):
    folder = tmp_path / "shards"
    # The fourth is killed and comes back when the others are through, so it is the one to join.
    kill_after(running(folder, tmp_path / "log-4", 4, 4, cells=5), folder, 2)
    for one in [started(folder, tmp_path / f"log-{i}", i, 4) for i in (1, 2, 3)]:
        assert one.wait() == 0, one.stderr.read()
    assert not (folder / "results.jsonl").exists()
    assert CELLS * 3 // 4 <= len(load(folder)) < CELLS
    assert started(folder, tmp_path / "log-4", 4, 4).wait() == 0
    assert content(folder) == content(whole)
    runs = [line for i in (1, 2, 3) for line in (tmp_path / f"log-{i}").read_text().splitlines()]
    assert len(runs) == len(set(runs)) == CELLS * 3 // 4
    assert len((tmp_path / "log-4").read_text().splitlines()) <= CELLS // 4 + 1
    assert len(list(folder.glob("journal-*-of-4.jsonl"))) == 4


def test_shards_can_be_finished_by_one_run_or_by_another_number_of_shards(tmp_path):
    cells, seen = grid(layer=range(6), seed=[0]), []

    def run(**cell):
        seen.append(cell["layer"])
        return score(**cell)

    sweep(run, cells, tmp_path / "one", identity={}, progress=False)
    for name, rest in (("plain", [None]), ("other", [(1, 3), (2, 3), (3, 3)])):
        seen.clear()
        for shard in [(2, 2), *rest]:
            sweep(run, cells, tmp_path / name, identity={}, progress=False, shard=shard)
        assert sorted(seen) == list(range(6))
        assert (tmp_path / name / "results.jsonl").read_bytes() == (tmp_path / "one" / "results.jsonl").read_bytes()


def test_every_cell_belongs_to_one_shard():
    ids = [f"{i * 7919 % 104729:016x}" for i in range(50)]
    parts = [share(ids, (i, 4)) for i in range(1, 5)]
    assert frozenset.union(*parts) == set(ids)
    assert sorted(map(len, parts)) == [12, 12, 13, 13]
    assert read_shard("2/4") == (2, 4)
    for text in ("0/4", "5/4", "2", "a/b", "1/4/5", "-1/4"):
        with pytest.raises(ValueError, match=r"a shard is i/n with i from 1 to n"):
            read_shard(text)
    with pytest.raises(ValueError, match=r"a shard is i/n"):
        sweep(score, grid(layer=[0], seed=[0]), "nowhere", identity={}, shard=(0, 4))


def test_a_torn_line_is_run_again(tmp_path):
    cells = grid(layer=[0, 1], seed=[0])
    sweep(score, cells, tmp_path, identity={}, progress=False)
    before = (tmp_path / "results.jsonl").read_bytes()
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    seen = []
    sweep(lambda **cell: seen.append(cell) or score(**cell), cells, tmp_path, identity={}, progress=False)
    assert seen == [{"layer": 1, "seed": 0}]
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_a_grown_grid_runs_only_what_is_new(tmp_path):
    seen = []

    def run(**cell):
        seen.append(cell["layer"])
        return score(**cell)

    sweep(run, grid(layer=[0, 1], seed=[0]), tmp_path, identity={}, progress=False)
    sweep(run, grid(layer=[2, 1, 0], seed=[0]), tmp_path, identity={}, progress=False)
    assert seen == [0, 1, 2]
    assert [r["layer"] for r in load(tmp_path)] == [2, 1, 0]


def test_failures_and_nan_are_labelled_and_failures_tried_again(tmp_path):
    broken = True

    def run(layer):
        if layer == 1 and broken:
            raise RuntimeError("out of memory")
        return {"score": float("nan") if layer == 2 else 1.0}

    cells = grid(layer=[0, 1, 2])
    sweep(run, cells, tmp_path, identity={}, progress=False)
    assert [(r["status"], r.get("score")) for r in load(tmp_path)] == [
        ("ok", 1.0),
        ("failed", None),
        ("nonfinite", None),
    ]
    assert load(tmp_path)[1]["error"] == "RuntimeError: out of memory"
    assert "NaN" not in (tmp_path / "results.jsonl").read_text()
    broken = False
    sweep(run, cells, tmp_path, identity={}, progress=False)
    assert [r["status"] for r in load(tmp_path)] == ["ok", "ok", "nonfinite"]


def test_an_unfinished_sweep_is_never_read_from_an_older_result(tmp_path):
    broken = False

    def run(layer, seed):
        if broken and layer == 3:
            raise KeyboardInterrupt
        return score(layer, seed)

    sweep(run, grid(layer=[0, 1, 9], seed=[0]), tmp_path, identity={}, progress=False)
    broken = True
    with pytest.raises(KeyboardInterrupt):
        sweep(run, grid(layer=[2, 1, 0, 3, 4], seed=[0]), tmp_path, identity={}, progress=False)
    # The grid has grown and lost a value; the new sweep was cut off.
    assert [r["layer"] for r in load(tmp_path)] == [2, 1, 0]
    assert not (tmp_path / "results.jsonl").exists()


def test_arrays_lie_beside_the_journal_and_are_made_again_if_lost(tmp_path):
    seen = []

    def run(layer):
        seen.append(layer)
        half_LD = torch.full((2, 3), layer + 0.5, dtype=torch.bfloat16)
        return {"n": np.int64(3), "loss": torch.tensor(0.5), "alpha_L": np.arange(4) * layer, "half_LD": half_LD.T}

    def numpy_only(layer):
        return {"odd_T": np.array([1.0, np.nan])}

    cells = grid(layer=[1, 2])
    sweep(run, cells, tmp_path / "a", identity={}, progress=False)
    first, second = load(tmp_path / "a")
    assert first["n"] == 3
    assert first["loss"] == 0.5
    from safetensors.torch import load_file as load_tensors

    found = load_tensors(second["arrays"])
    assert found["alpha_L"].tolist() == [0, 2, 4, 6]
    assert torch.equal(found["half_LD"], torch.full((3, 2), 2.5, dtype=torch.bfloat16))
    before = (tmp_path / "a" / "results.jsonl").read_bytes()
    os.remove(second["arrays"])
    sweep(run, cells, tmp_path / "a", identity={}, progress=False)
    assert seen == [1, 2, 2]
    assert (tmp_path / "a" / "results.jsonl").read_bytes() == before
    sweep(numpy_only, grid(layer=[1]), tmp_path / "b", identity={}, progress=False)
    (record,) = load(tmp_path / "b")
    assert (record["status"], record["error"]) == ("nonfinite", "odd_T")
    assert np.isnan(load_file(record["arrays"])["odd_T"][1])


def test_what_a_cell_draws_does_not_depend_on_the_cells_before_it(tmp_path):
    def run(layer, seed):
        return {"r": random.random(), "n": float(np.random.random()), "t": float(torch.rand(()))}

    sweep(run, grid(layer=[0, 1, 2], seed=[0]), tmp_path / "a", identity={}, progress=False)
    for shard in ((2, 2), (1, 2)):
        sweep(run, grid(layer=[0, 1, 2], seed=[0]), tmp_path / "b", identity={}, progress=False, shard=shard)
    assert load(tmp_path / "a") == load(tmp_path / "b")
    assert len({r["t"] for r in load(tmp_path / "a")}) == 3


async def _coroutine():
    return {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": 1.0}, "the result 'layer' has the name of an axis"),
        ({"status": "good"}, "the result 'status' has the name of an axis or of a field of every record"),
        ({"score": {1, 2}}, "the result score is a set"),
        (3, "the result is a int"),
        (None, "the result is None"),
        ([("score", 1.0)], "the result is a list"),
        ((one for one in "ab"), "the result is a generator; collect what it yields"),
        (_coroutine, "the result is a coroutine; call it with asyncio.run"),
        ({"score": 1j}, "the result score is a complex"),
        ({"score": np.complex64(1j)}, "the result score is a complex"),
        ({"score": object()}, "the result score is a object"),
        ({"score": {"by": [1.0, Ellipsis]}}, "the result score.by[1] is a ellipsis"),
        ({"score": 10**5000}, "the result score is a number of about 5000 digits"),
        ({"score": {1: 2.0}}, "the result score is a dict with keys that are no texts"),
        ({1: 2.0}, "a result is called 1, a int"),
        ({"score": [np.arange(3)]}, "arrays stand under a name of their own"),
        ({"names": np.array(["a", "b"])}, "the array names is of dtype <U1"),
        ({"scores": np.array([None, 1])}, "the array scores is of dtype object"),
        ({"text": "half \ud83d"}, "text holds half of a surrogate pair at character 5"),
        ({"half \ud83d": 1}, "the name of a result holds half of a surrogate pair"),
    ],
)
def test_r8_results_that_cannot_be_written_are_that_cells_failure_and_say_what_a_result_may_be(
    tmp_path, given, message, capfd
):
    def run(layer):
        return (given() if callable(given) else given) if layer else {"score": 1.0}

    sweep(run, grid(layer=[0, 1]), tmp_path, identity={})
    good, bad = load(tmp_path)
    assert (good["status"], bad["status"]) == ("ok", "failed")
    assert message in bad["error"]
    assert len(bad["error"]) < 400
    assert "a cell gives a dict from names to" in bad["error"] or "; " in bad["error"]
    # The line names the cell; a traceback would point into this package.
    said = capfd.readouterr().err
    assert f"cell layer=1 failed; the sweep goes on: {bad['error']}\n" in said
    assert "Traceback" not in said


def test_r8_nan_inside_nesting_is_null_and_named_as_at_the_top(tmp_path):
    nested = {
        "by": {"seed": [1.0, float("nan")], "n": (2, np.float32(3.5))},
        "top": float("inf"),
        "ok": torch.tensor(2),
    }
    sweep(lambda layer: nested, grid(layer=[1]), tmp_path, identity={}, progress=False)
    (record,) = load(tmp_path)
    assert (record["status"], record["error"]) == ("nonfinite", "by.seed[1], top")
    assert record["by"] == {"seed": [1.0, None], "n": [2, 3.5]}
    assert (record["top"], record["ok"]) == (None, 2)


@pytest.mark.parametrize("code", [0, None, 3, "a text"])
def test_r19_a_cell_that_calls_exit_has_failed_and_the_sweep_goes_on(tmp_path, code, capfd):
    def run(layer):
        if layer == 0:
            sys.exit(code)
        return {"score": 1.0}

    sweep(run, grid(layer=[0, 1]), tmp_path, identity={})
    bad, good = load(tmp_path)
    assert (bad["status"], good["status"]) == ("failed", "ok")
    assert bad["error"] == f"SystemExit: it called sys.exit({code!r})"
    assert "cell layer=0 failed" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, content) for name in ("identity.json", "cells.json") for content in ("", "[", "3", "null", '"x"')),
        ("identity.json", "[" * 100_000),
        ("identity.json", "[]"),
        ("cells.json", "{}"),
        ("cells.json", "[1]"),
        ("code.json", "[]"),
        ("code.json", "\udcff"),
        ("journal.jsonl", "[]\n"),
        ("journal.jsonl", "[" * 100_000 + "\n"),
        ("journal.jsonl", '{"id": 1, "cell": 3, "values": [], "status": null, "error": 0}\n'),
        ("journal.jsonl", '{"id": "a", "cell": {}, "values": {}, "status": "fine", "error": ""}\n'),
        ("journal.jsonl", '{"id": "a", "cell": {}, "values": {}, "status": "ok", "error": "", "arrays": 3}\n'),
    ],
    ids=lambda text: text[:20],
)
def test_r8_a_stored_state_that_is_garbage_is_named_and_refused(tmp_path, name, content):
    def again():
        return sweep(score, grid(layer=[0], seed=[0]), tmp_path, identity={"a": 1}, progress=False, code="abc")

    again()
    (tmp_path / "results.jsonl").unlink()
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    # The order of the grid is only read by load; the next run notes it anew.
    use = (lambda: load(tmp_path)) if name == "cells.json" else again
    with pytest.raises(ValueError, match=rf"{name}(:1)?: not (the state|a cell) of a sweep") as told:
        use()
    assert len(str(told.value)) < 400
    assert not (tmp_path / "results.jsonl").exists()
    if name == "cells.json":
        again()


def test_reserved_names_are_no_axes(tmp_path):
    with pytest.raises(ValueError, match="status cannot be an axis"):
        sweep(score, grid(status=[0]), tmp_path, identity={})


def test_a_second_writer_is_refused_with_who_and_since_when_70(tmp_path):
    def again(shard=None):
        cells = grid(layer=range(16), seed=range(10))
        sweep(score, cells, tmp_path, identity={"weights": "abc"}, progress=False, shard=shard)

    for shard, others in (((), [None, (1, 2)]), ((1, 2), [None, (1, 2), (1, 3)])):
        process = running(tmp_path, tmp_path / "log", *shard)
        try:
            for other in others:
                with pytest.raises(BlockingIOError, match=rf"being written by process {process.pid} on .* since 20"):
                    again(other)
        finally:
            process.kill()
            process.wait()
    again()
    assert len(load(tmp_path)) == CELLS


def test_a_file_system_without_locks_is_warned_about_and_used(tmp_path, monkeypatch):
    def none(handle, kind):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(sys.modules["probe.sweep.lock"].fcntl, "flock", none)
    with pytest.warns(UserWarning, match="file system without locks"):
        sweep(score, grid(layer=[0], seed=[0]), tmp_path, identity={}, progress=False)
    assert len(load(tmp_path)) == 1


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs_69(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write to .*file/sweep .*choose another folder"):
        sweep(lambda **cell: pytest.fail("ran"), grid(layer=[0]), tmp_path / "file" / "sweep", identity={})
    # Root may write anywhere, so a read-only file system is made up.
    made = type(tmp_path).open

    def read_only(path, mode="r", **more):
        if mode != "r" and "sealed" in str(path):
            raise OSError(30, "Read-only file system")
        return made(path, mode, **more)

    monkeypatch.setattr(type(tmp_path), "open", read_only)
    with pytest.raises(ValueError, match=r"cannot write to .*sealed \(Read-only file system\); choose another folder"):
        sweep(lambda **cell: pytest.fail("ran"), grid(layer=[0]), tmp_path / "sealed", identity={})


def test_another_identity_is_refused_with_the_difference_71(tmp_path):
    sweep(score, grid(layer=[0], seed=[0]), tmp_path, identity={"weights": "abc"}, progress=False)
    with pytest.raises(ValueError, match=r"weights: 'abc' then, 'abd' now.*another folder"):
        sweep(score, grid(layer=[0], seed=[0]), tmp_path, identity={"weights": "abd"}, progress=False)


def test_changed_code_is_warned_about_and_keeps_what_is_finished_72(tmp_path):
    cells = grid(layer=[0, 1], seed=[0])
    sweep(score, cells, tmp_path, identity={}, progress=False, code="abc")
    with pytest.warns(UserWarning, match=r"code of the function has changed .* kept"):
        sweep(lambda **cell: pytest.fail("ran"), cells, tmp_path, identity={}, progress=False, code="abd")


def test_sigterm_ends_with_143_and_keeps_what_is_done_77(tmp_path):
    process = running(tmp_path, tmp_path / "log", cells=5)
    journal = tmp_path / "journal.jsonl"
    while len(finished(tmp_path)) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert len(load(tmp_path)) >= 3
    assert all(json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1])


@pytest.fixture
def interruptible():
    """A suite that a shell started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_finishes_the_cell_and_a_second_one_does_not(tmp_path):
    cells, seen = grid(layer=[0, 1, 2], seed=[0]), []

    def run(layer, seed, times=1):
        seen.append(layer)
        for _ in range(times if layer == 1 else 0):
            signal.raise_signal(signal.SIGINT)
        return score(layer, seed)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        sweep(run, cells, tmp_path / "once", identity={}, progress=False)
    assert seen == [0, 1]
    assert [r["layer"] for r in load(tmp_path / "once")] == [0, 1]
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        sweep(lambda **cell: run(**cell, times=2), cells, tmp_path / "twice", identity={}, progress=False)
    assert [r["layer"] for r in load(tmp_path / "twice")] == [0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_full_disk_keeps_the_journal_whole_68(tmp_path, monkeypatch):
    cells = grid(layer=range(4), seed=[0])
    write, calls = os.write, []

    def full(descriptor, data):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="2 rows already there are safe"):
        sweep(score, cells, tmp_path, identity={}, progress=False)
    assert len(load(tmp_path)) == 2
    monkeypatch.undo()
    sweep(score, cells, tmp_path, identity={}, progress=False)
    assert len(load(tmp_path)) == 4


def test_no_cells_and_double_cells_are_refused(tmp_path):
    for cells in ((), ({"layer": 1}, {"layer": 1})):
        with pytest.raises(ValueError, match="needs cells, each once"):
            sweep(score, cells, tmp_path, identity={}, progress=False)


def test_a_full_disk_inside_a_cell_ends_the_sweep_and_is_no_failure_of_the_cell_68(tmp_path):
    def run(layer):
        if layer == 2:
            raise OSError(28, "No space left on device")
        return {"score": 1.0, "many_N": np.zeros(9)}

    told = r"No space left on device while cell .*\"layer\": 2.* ran; the cells finished before are safe"
    with pytest.raises(OSError, match=told) as caught:
        sweep(run, grid(layer=range(4)), tmp_path, identity={}, progress=False)
    assert caught.value.errno == 28
    assert [r["layer"] for r in load(tmp_path)] == [0, 1]


@pytest.fixture
def no_notebook(monkeypatch):
    """Another test may have loaded what notebooks run on."""
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


@pytest.mark.usefixtures("no_notebook")
def test_a_log_shows_no_bar_but_why_a_cell_failed(tmp_path, capfd):
    def run(layer):
        if layer == 1:
            raise RuntimeError("out of memory")
        return {"score": 1.0}

    sweep(run, grid(layer=[0, 1, 2]), tmp_path, identity={})
    printed = capfd.readouterr().err
    assert "cell layer=1 failed; the sweep goes on: RuntimeError: out of memory" in printed
    assert "Traceback" in printed
    assert "\r" not in printed


@pytest.mark.usefixtures("no_notebook")
def test_f42_a_log_says_which_cell_runs_and_how_many_are_left(tmp_path, capfd):
    cells = grid(layer=[0, 1, 2])
    seen = []

    def run(layer):
        # What was said before the cell ended.
        seen.append(capfd.readouterr().err)
        return {"score": 1.0}

    sweep(run, cells[:1], tmp_path, identity={}, progress=False)
    seen.clear()
    sweep(run, cells, tmp_path, identity={})
    assert seen[0] == "cell 2 of 3: layer=1\n"
    assert re.fullmatch(r"cell 2 of 3: ok, \d+ s; 1 left, about \d+ s\ncell 3 of 3: layer=2\n", seen[1])
    assert re.fullmatch(r"cell 3 of 3: ok, \d+ s\n", capfd.readouterr().err)


@pytest.mark.usefixtures("no_notebook")
def test_f42_of_many_short_cells_a_log_takes_few_lines(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.modules["probe.sweep.progress"], "_MANY", 9)
    monkeypatch.setattr(sys.modules["probe.sweep.progress"], "_APART", 1e9)
    sweep(lambda layer: {"score": 1.0}, grid(layer=range(10)), tmp_path, identity={})
    first, last = capfd.readouterr().err.splitlines()
    assert first == "cell 1 of 10: layer=0"
    assert last.startswith("cell 10 of 10: ok, ")


def test_a_terminal_shows_cells_done_those_to_come_and_an_estimate(tmp_path, capsys, monkeypatch):
    cells = grid(layer=[0, 1, 2, 3])
    sweep(lambda layer: {"score": 1.0}, cells[:1], tmp_path, identity={}, progress=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    def run(layer):
        time.sleep(0.15)
        return {"score": 1.0}

    sweep(run, cells, tmp_path, identity={})
    printed = capsys.readouterr().err
    assert "1 of 4 cells" in printed
    assert "4 of 4 cells, 0 left" in printed
    assert "to go" in printed


def test_bars_of_what_cells_do_are_left_out_and_all_else_is_not(capsys):
    from tqdm import tqdm

    stream = NoBars(sys.stderr)
    with tqdm(total=2, file=sys.stderr) as outer:
        capsys.readouterr()
        for _ in tqdm(range(3), file=stream):
            print("a warning", file=stream)
        stream.write("")
        assert capsys.readouterr().err == "a warning\n" * 3
        outer.update()
