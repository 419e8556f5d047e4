"""Ctrl-C, SIGTERM and warnings: what arrives from outside of a command, and how it is told."""

import _thread
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Seconds between two looks at whether the main thread has left the place where a signal was lost.
_SOON = 0.05


@contextmanager
def signals_raised() -> Iterator[None]:
    """SIGTERM becomes SystemExit(143); a signal that arrives inside a ``__del__`` or a callback comes again.

    Python prints what is raised there and forgets it, so that Ctrl-C would now and then do nothing. Only the main
    thread can catch signals; elsewhere nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hook, over, main = sys.unraisablehook, threading.Event(), threading.get_ident()

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def again(number: int) -> None:
        while not over.wait(_SOON):
            frame = sys._current_frames().get(main)
            while frame is not None and frame.f_code is not lost.__code__ and frame.f_code.co_name != "__del__":
                frame = frame.f_back
            if frame is None:
                _thread.interrupt_main(signal.Signals(number))
                return

    def lost(what: Any) -> None:
        numbers = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
        if what.exc_type not in numbers:
            hook(what)
            return
        threading.Thread(target=again, args=[numbers[what.exc_type]], daemon=True).start()

    before = signal.signal(signal.SIGTERM, leave)
    sys.unraisablehook = lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)
        over.set()


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """What users are warned of is one line, without a place in the code."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"probe: note: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
