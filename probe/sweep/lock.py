"""Who writes: one process a sweep, or one a shard."""

import errno
import fcntl
import os
import platform
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from probe.sweep.cell import Shard, named
from probe.sweep.journal import writable

# File systems of clusters are often mounted without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def only_writer(folder: Path, shard: Shard | None) -> Iterator[None]:
    """One process at a time for each journal: two would each miss what the other finishes.

    Shards do not wait for each other: they hold the sweep's lock together, and each its own.

    Raises:
        BlockingIOError: another process is writing here; the message says which and since when.
        ValueError: the folder cannot be written.
    """
    with ExitStack() as held:
        if shard is None:
            held.enter_context(_held(folder, "lock", fcntl.LOCK_EX))
        else:
            held.enter_context(_held(folder, "lock", fcntl.LOCK_SH))
            for path in _other_divisions(folder, shard):
                if is_held(path):
                    raise _refusal(folder, path, f"; it is split by {path.name.rpartition('-')[2]} there")
            held.enter_context(_held(folder, named("lock", shard), fcntl.LOCK_EX))
        yield


@contextmanager
def _held(folder: Path, name: str, kind: int) -> Iterator[None]:
    path = folder / name
    with writable(folder):
        handle = path.open("a+", encoding="utf-8")
    with handle:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            by = next((one for one in sorted(folder.glob("lock-*-of-*")) if is_held(one)), path)
            raise _refusal(folder, path if kind == fcntl.LOCK_SH else by) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            text = f"{folder} is on a file system without locks; see to it that nobody else writes there"
            warnings.warn(text, stacklevel=4)
        if kind == fcntl.LOCK_EX:
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            handle.flush()
        yield


def _refusal(folder: Path, path: Path, more: str = "") -> BlockingIOError:
    who = path.read_text(encoding="utf-8", errors="replace").strip()[:120]
    return BlockingIOError(errno.EAGAIN, f"{folder} is being written by {who}{more}")


def _other_divisions(folder: Path, shard: Shard) -> list[Path]:
    return [path for path in sorted(folder.glob("lock-*-of-*")) if not re.search(rf"-of-{shard[1]}$", path.name)]


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of that file; False where there are no locks."""
    with path.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False
