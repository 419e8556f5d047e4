"""Ctrl-C and SIGTERM: both are heard wherever they arrive, and let what is open be closed."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Seconds until a signal that was lost is sent again; by then the ``__del__`` it was lost in has returned.
_SOON = 0.05


@contextmanager
def heard() -> Iterator[None]:
    """SIGTERM becomes SystemExit(143); a signal that arrives inside a ``__del__`` or a callback comes again.

    Python prints what is raised there and forgets it, so that Ctrl-C would now and then do nothing. Only the main
    thread can catch signals; elsewhere nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hook, timers = sys.unraisablehook, []

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def lost(what: Any) -> None:
        numbers = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
        if what.exc_type not in numbers:
            hook(what)
            return
        timers.append(threading.Timer(_SOON, _thread.interrupt_main, [numbers[what.exc_type]]))
        timers[-1].daemon = True
        timers[-1].start()

    before = signal.signal(signal.SIGTERM, leave)
    sys.unraisablehook = lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)
        for timer in timers:
            timer.cancel()
