"""A folder of results: one writer, continued after a kill, and there only when it is complete."""

import errno
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probe.rows import append_lines
from probe.runs.manifest import new_manifest, read_manifest, write_manifest
from probe.sweep.inputs import content_hash, model_hash
from probe.sweep.journal import changes, writable
from probe.sweep.lock import is_held, only_writer

_JOURNAL = "journal.jsonl"
_LOCK = "lock"
# What the manifest knows before anything is loaded; paths of results aside, it says whether two runs are the same.
_ASKED = ("settings", "probe", "versions")


Keep = Callable[[str, Callable[[], Any]], Any]
"""Takes a key and what makes a value of JSON, which is made once and read back after a kill; or see ``unkept``."""


def unkept(key: str, make: Callable[[], Any]) -> Any:
    """Where nothing is to outlive the process."""
    return make()


def within(keep: Keep, part: str) -> Keep:
    """The same for one part of the work, whose keys are its own."""
    return lambda key, make: keep(f"{part}, {key}", make)


def content_of(model: str) -> str:
    """The hash of a model's files; its name where it is one of the hub's that was not downloaded yet."""
    # A model may have been saved again under the name while this process lives.
    model_hash.cache_clear()
    content_hash.cache_clear()
    try:
        return model_hash(model)
    except ValueError:
        return model


@dataclass(frozen=True, eq=False)
class Run:
    """A run that is under way.

    Args:
        folder: where its files are written meanwhile.
        manifest: what is written down when it ends; to be filled.
        done: what was finished before, by key.
        before: the manifest of a process that was stopped, until it is known that this one goes on.
    """

    folder: Path
    manifest: dict[str, Any]
    done: dict[str, Any] = field(default_factory=dict, repr=False)
    before: dict[str, Any] = field(default_factory=dict, repr=False)
    started: float = field(default_factory=time.monotonic, repr=False)

    def about(self, **inputs: Any) -> None:
        """Note the hashes of what is read; to be called before the first ``kept``.

        Raises:
            ValueError: the unfinished results are of something else (the differences are listed).
        """
        if self.before:
            _check_same(self.folder, self.before, inputs)
            self.before.clear()
        self.manifest.update(inputs)
        write_manifest(self.folder, self.manifest)

    def kept(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, a value of JSON: made once, and read back by the process that goes on after a kill.

        Raises:
            OSError: the disk is full; what was kept before is safe.
        """
        if key not in self.done:
            value = make()
            append_lines(self.folder / _JOURNAL, [json.dumps({"key": key, "value": value})])
            self.done[key] = value
        return self.done[key]

    def complete(self) -> None:
        """Say in the manifest that nothing is left to measure; drawing may follow."""
        import torch

        seconds = round(time.monotonic() - self.started, 1)
        self.manifest.update({"status": "complete", "threads": torch.get_num_threads(), "seconds": seconds})
        write_manifest(self.folder, self.manifest)


@contextmanager
def results(out: Path, settings: Any, *, resumes: bool = False) -> Iterator[Run]:
    """A folder to write to and a manifest to fill: both are at ``out`` when the block ends, or nothing is.

    Meanwhile they are in ``.NAME.part`` beside it. A process that is stopped leaves that folder if it had kept
    something; the same command then goes on with it. What a killed one left that kept nothing is removed.

    Args:
        out: must not exist, or be empty.
        settings: a dataclass, written into the manifest; if it says ``resume=False``, what was begun is removed.
        resumes: whether the block says what it is about and keeps what it finishes.

    Raises:
        ValueError: the folder cannot be written, is in use, or unfinished results of something else are in the way.
        BlockingIOError: another process is writing there.
        OSError: the disk is full.
    """
    where = free(out)
    part = where.with_name(f".{where.name}.part")
    with writable(out):
        part.mkdir(parents=True, exist_ok=True)
    with only_writer(part, None):
        # Another process may have finished between the check and the lock.
        free(out)
        if not (part / _LOCK).is_file():
            raise BlockingIOError(errno.EAGAIN, f"{part} was removed by another process; run again")
        resume = getattr(settings, "resume", True)
        run = Run(part, new_manifest(settings), _read(part / _JOURNAL) if resume else {})
        try:
            with writable(out):
                _begin(run, resumes)
            _report_others(part)
            yield run
            if run.manifest["status"] != "complete":
                run.complete()
            _put_in_place(part, where)
        except BaseException as error:
            _stopped(run, error)
            raise


def free(out: Path) -> Path:
    """The place that results will appear at, with links followed.

    Args:
        out: what was asked for; a folder that does not exist or is empty, or a link to one.

    Raises:
        ValueError: something is there, or it is no place that a finished folder can be moved to.
    """
    try:
        where = out.resolve()
        exists, folder = where.exists(), where.is_dir()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"--out {str(out)!r} leads nowhere ({error}); choose another --out") from None
    if where == Path.cwd():
        raise ValueError(f"--out {str(out)!r} is the folder you are in; name a new one, such as --out results/first")
    if folder and where.is_mount():
        raise ValueError(f"{out} is where a disk is mounted, which cannot be replaced; name a folder in it")
    if exists and (not folder or any(where.iterdir())):
        what = "exists and is not empty" if folder else "is a file"
        raise ValueError(f"{out} {what}; choose another --out, or remove it first")
    return where


def _begin(run: Run, resumes: bool) -> None:
    """Go on with what a process left in the folder, or empty it and begin."""
    if run.done:
        run.before.update(read_manifest(run.folder))
        _check_same(run.folder, run.before, {key: run.manifest[key] for key in _ASKED if resumes} or {"settings": None})
        # The seconds will be those of this process alone.
        run.manifest["continued"] = True
        return
    for path in run.folder.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    write_manifest(run.folder, run.manifest)


def _read(journal: Path) -> dict[str, Any]:
    if not journal.is_file():
        return {}
    found = {}
    # A torn last line, from a kill, is left out.
    for number, line in enumerate(journal.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            found[record["key"]] = record["value"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{journal}:{number}: damaged; remove {journal.parent} to begin anew") from None
    return found


def _check_same(part: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    asked = json.loads(json.dumps(now, default=str))
    differ = list(changes(_without_out({key: before.get(key) for key in now}), _without_out(asked)))
    if differ:
        more = f" and {len(differ) - 2} more" if len(differ) > 2 else ""
        raise ValueError(
            f"{part} holds an unfinished run of something else ({'; '.join(one[:90] for one in differ[:2])}{more}); "
            "run its command again, remove it, or choose another --out"
        )


def _without_out(value: Any) -> Any:
    """The folder is the same, in whichever way it is written."""
    if not isinstance(value, dict):
        return value
    return {key: _without_out(one) for key, one in value.items() if key not in ("out", "resume")}


def _report_others(part: Path) -> None:
    """A killed run may leave a folder as large as a model, hidden by its name."""
    left = [one for one in sorted(part.parent.glob(".*.part")) if one != part and one.is_dir() and not _in_use(one)]
    if left:
        names = ", ".join(one.name for one in left[:3]) + (", ..." if len(left) > 3 else "")
        warnings.warn(
            f"{part.parent} also holds {len(left)} unfinished: {names}; the same command goes on with one, and what is "
            "not needed can be removed",
            stacklevel=5,
        )


def _in_use(part: Path) -> bool:
    return (part / _LOCK).is_file() and is_held(part / _LOCK)


def _put_in_place(part: Path, where: Path) -> None:
    if where.exists():
        where.rmdir()
    os.replace(part, where)
    # Only now: without them a kill before the move would lose everything.
    for name in (_JOURNAL, _LOCK):
        (where / name).unlink(missing_ok=True)


def _stopped(run: Run, error: BaseException) -> None:
    """Keep what was finished, and say so; remove the folder if that is nothing."""
    if not (run.folder / _JOURNAL).is_file():
        shutil.rmtree(run.folder, ignore_errors=True)
    # What lies there may be another run's.
    elif not run.before:
        run.manifest.update({"status": "unfinished", "stopped": f"{type(error).__name__}: {error}"})
        with suppress(OSError):
            write_manifest(run.folder, run.manifest)
        error.add_note(f"what was finished is kept in {run.folder}; the same command goes on with it, or remove it")
