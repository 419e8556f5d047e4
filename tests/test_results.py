"""What a run leaves on disk: nothing, what it had finished, or all; and nothing of another run is touched."""

import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from probe.cli.signals import signals_raised
from probe.rows import read_manifest
from probe.runs.folder import Run, free, results


@dataclass(frozen=True)
class Asked:
    strength: float = 1.0
    out: Path | None = None
    resume: bool = True


class Killed(Exception):
    pass


def work(run: Run, made: list[int], *, of: str = "rows", until: int = 5, kill=None) -> None:
    """Five parts, each made once; ``kill`` is called when ``until`` of them are kept."""
    run.about(data=of, weights={"model": "abc"})
    for k in range(5):
        if k == until and kill is not None:
            kill()
        part = run.kept(f"part {k}", lambda k=k: made.append(k) or {"value": [0.1 + k, float("nan")]})
        with (run.folder / "rows.jsonl").open("a") as handle:
            handle.write(f"{part['value'][0]}\n")


def whole(out: Path, settings: Asked = Asked(), **more) -> list[int]:
    made: list[int] = []
    with results(out, settings, resumes=True) as run:
        (run.folder / "rows.jsonl").unlink(missing_ok=True)
        work(run, made, **more)
    return made


def stop() -> None:
    raise Killed("the power went")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_r9_a_finished_run_is_never_touched(tmp_path):
    out = tmp_path / "run"
    assert whole(out) == [0, 1, 2, 3, 4]
    assert names(out) == ["manifest.json", "rows.jsonl"]
    assert names(tmp_path) == ["run"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="run exists and is not empty; choose another --out"):
        whole(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_r9_a_mistake_costs_nothing_that_was_kept(tmp_path):
    out, part = tmp_path / "run", tmp_path / ".run.part"
    with pytest.raises(Killed):
        whole(out, until=3, kill=stop)
    kept = (part / "journal.jsonl").read_bytes()
    with pytest.raises(FileNotFoundError), results(out, Asked(), resumes=True):
        raise FileNotFoundError("--original is misspelt")
    with pytest.raises(ValueError, match=r"unfinished run of something else \(settings\.strength: 1\.0 then, 2\.0 now"):
        whole(out, Asked(2.0))
    with pytest.raises(ValueError, match=r"something else \(data: 'rows' then, 'other rows' now"):
        whole(out, of="other rows")
    with pytest.raises(ValueError, match="unfinished run of something else"), results(out, Asked()):
        pass  # a command that does not resume
    assert (part / "journal.jsonl").read_bytes() == kept
    # The folder may be written otherwise.
    assert whole(out, Asked(out=out)) == [3, 4]


@pytest.mark.parametrize("until", range(6))
def test_r23_a_killed_run_goes_on_where_it_was(tmp_path, until):
    out = tmp_path / "run"
    child = os.fork()
    if child == 0:
        # Killed at a place of the work, never at a time.
        with results(out, Asked(), resumes=True) as run:
            work(run, [], until=until, kill=lambda: os.kill(os.getpid(), signal.SIGKILL))
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not out.exists()
    assert read_manifest(tmp_path / ".run.part")["status"] == "unfinished"
    assert whole(out) == list(range(until, 5))
    whole(tmp_path / "at once")
    assert (out / "rows.jsonl").read_bytes() == (tmp_path / "at once" / "rows.jsonl").read_bytes()
    assert names(out) == ["manifest.json", "rows.jsonl"]


def test_r23_half_a_line_is_no_part(tmp_path):
    with pytest.raises(Killed):
        whole(tmp_path / "run", until=3, kill=stop)
    journal = tmp_path / ".run.part" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    assert whole(tmp_path / "run") == [2, 3, 4]
    with pytest.raises(Killed):
        whole(tmp_path / "other", until=3, kill=stop)
    (tmp_path / ".other.part" / "journal.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"journal\.jsonl:1: damaged; remove .*\.other\.part to begin anew"):
        whole(tmp_path / "other")


def test_r10_two_at_once_are_one_too_many(tmp_path):
    with results(tmp_path / "run", Asked(), resumes=True) as run:
        with pytest.raises(BlockingIOError, match=rf"is being written by process {os.getpid()} on .* since"):
            whole(tmp_path / "run")
        work(run, [])
    assert len((tmp_path / "run" / "rows.jsonl").read_text().splitlines()) == 5


def test_r11_f41_complete_is_written_last_and_what_failed_says_so(tmp_path):
    out, part = tmp_path / "run", tmp_path / ".run.part"
    with pytest.raises(Killed) as caught:
        whole(out, until=3, kill=stop)
    assert "what was finished is kept in" in caught.value.__notes__[0]
    told = read_manifest(part)
    assert (told["status"], told["stopped"]) == ("unfinished", "Killed: the power went")
    # Nothing is left to measure, and drawing fails.
    with pytest.raises(Killed), results(out, Asked(), resumes=True) as run:
        complete_and_stop(run)
    assert not out.exists()
    assert read_manifest(part)["status"] == "unfinished"
    assert whole(out) == []
    told = read_manifest(out)
    assert (told["status"], "stopped" in told, told["continued"]) == ("complete", False, True)


def complete_and_stop(run: Run) -> None:
    work(run, [])
    run.complete()
    stop()


def test_r12_what_a_killed_run_leaves_is_swept_or_reported(tmp_path):
    """A folder of the same name, as equal process ids on two hosts gave, is never written on."""
    part = tmp_path / ".run.part"
    (part / "model").mkdir(parents=True)
    (part / "model" / "weights").write_text("of a killed process")
    (part / "rows.jsonl").write_text("stale\n")
    with results(tmp_path / "run", Asked()) as run:
        assert names(run.folder) == ["lock", "manifest.json"]
    assert names(tmp_path) == ["run"]
    with pytest.raises(Killed), results(tmp_path / "next", Asked()) as run:
        stop()
    assert names(tmp_path) == ["run"]
    part.mkdir()
    with pytest.warns(UserWarning, match=r"also holds 1 unfinished: \.run\.part"):
        whole(tmp_path / "next")
    # One that is under way is not unfinished business.
    part.rmdir()
    with results(tmp_path / "again", Asked()), warnings.catch_warnings():
        warnings.simplefilter("error")
        whole(tmp_path / "beside")


def test_r19_a_place_that_cannot_take_results_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for out, message in (
        (Path(), "is the folder you are in"),
        (Path(""), "is the folder you are in"),
        (Path("file"), "file is a file; choose another"),
        (Path("loop"), "leads nowhere"),
        (Path("/proc"), "a disk is mounted"),
    ):
        with pytest.raises(ValueError, match=message):
            free(out)
    assert free(Path("folder")) == tmp_path / "folder"
    with pytest.raises(ValueError, match="cannot write to file/below"):
        whole(Path("file/below"))


@pytest.mark.parametrize("there", [True, False], ids=["to an empty folder", "to nothing"])
def test_r19_a_link_is_followed(tmp_path, there):
    target, out = tmp_path / "disk" / "target", tmp_path / "link"
    target.parent.mkdir()
    if there:
        target.mkdir()
    out.symlink_to(target)
    whole(out)
    assert out.is_symlink()
    assert names(target) == ["manifest.json", "rows.jsonl"]
    assert names(target.parent) == ["target"]


def test_what_was_begun_is_left_behind_if_a_run_is_not_to_be_resumed(tmp_path):
    with pytest.raises(Killed), results(tmp_path / "run", Asked(), resumes=True) as run:
        work(run, [], until=2, kill=stop)
    assert whole(tmp_path / "run", Asked(resume=False)) == [0, 1, 2, 3, 4]


class Interrupted:
    """Ctrl-C arrives while something is thrown away, where Python forgets what is raised."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


def lose(number: int) -> None:
    one = Interrupted(number)
    del one
    # Far longer than it takes; without the second signal nothing ends the wait.
    time.sleep(30)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["ctrl-c", "sigterm"]
)
def test_r19_an_interrupt_that_a_destructor_swallows_comes_again(number, error):
    # A suite that a shell started in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hook = sys.unraisablehook
    try:
        with signals_raised():
            with pytest.raises(error) as caught:
                lose(number)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sys.unraisablehook is hook
    if error is SystemExit:
        assert caught.value.code == 128 + signal.SIGTERM


def test_r19_what_is_no_signal_is_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Broken:
        def __del__(self) -> None:
            raise ValueError("mine")

    with signals_raised():
        Broken()
    assert [one.exc_type for one in told] == [ValueError]
