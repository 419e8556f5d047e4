"""What a sweep says while it runs: a bar where somebody looks, a line a cell in a log."""

import sys
import time
import traceback
from types import TracebackType

from tqdm.auto import tqdm

from probe.sweep.cell import Cell, shown
from probe.sweep.outcome import OddResultError, Outcome

_BAR = "{desc} |{bar}| {n_fmt} of {total_fmt} cells{postfix}, about {remaining} to go"
# Of more cells than this a log takes one line in so many seconds only.
_MANY, _APART = 200, 5.0


class Shown:
    """The progress of one sweep on standard error.

    Args:
        total: cells of this run and of those before.
        finished: cells of those before.
        progress: whether anything is said.
    """

    def __init__(self, total: int, finished: int, progress: bool) -> None:
        # In a log a bar is a mess. A notebook shows one, though it is no terminal.
        seen = progress and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self._bar = tqdm(total=total, initial=finished, desc="sweep", bar_format=_BAR, disable=not seen)
        self._lines = progress and not seen
        self._total, self._before, self._done, self._failed = total, finished, 0, 0
        self._start = self._cell_start = time.monotonic()
        self._last = -_APART

    def __enter__(self) -> "Shown":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._bar.close()

    def begins(self, cell: Cell) -> None:
        """Say which cell runs now."""
        self._cell_start = time.monotonic()
        self._bar.set_postfix_str(self._left(shown(cell)))
        self._say(f"cell {self._before + self._done + 1} of {self._total}: {shown(cell)}")

    def ended(self, cell: Cell, found: Outcome) -> None:
        """Say how a cell ended, and how long those that are left may take."""
        now, self._done = time.monotonic(), self._done + 1
        if found.cause is not None:
            self._failed += 1
            self._why(cell, found)
        left = self._total - self._before - self._done
        ahead = f"; {left} left, about {_span((now - self._start) / self._done * left)}" if left else ""
        status = found.record["status"]
        took = _span(now - self._cell_start)
        self._say(f"cell {self._before + self._done} of {self._total}: {status}, {took}{ahead}", always=not left)
        self._bar.set_postfix_str(self._left(), refresh=False)
        self._bar.update()

    def _why(self, cell: Cell, found: Outcome) -> None:
        if self._lines or not self._bar.disable:
            own = isinstance(found.cause, OddResultError)
            text = "" if found.cause is None or own else "\n" + "".join(traceback.format_exception(found.cause))
            said = f"cell {shown(cell)} failed; the sweep goes on: {found.record['error']}{text}"
            tqdm.write(said, file=sys.stderr)

    def _left(self, running: str = "") -> str:
        left = f"{self._total - self._before - self._done} left"
        return left + (f", {self._failed} failed" if self._failed else "") + (f", {running}" if running else "")

    def _say(self, text: str, *, always: bool = False) -> None:
        now = time.monotonic()
        if self._lines and (always or self._total <= _MANY or now - self._last >= _APART):
            self._last = now
            print(text, file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    """A time as people say it: "41 s", "6 min", "2 h 10 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
