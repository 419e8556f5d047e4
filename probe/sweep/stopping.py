"""How a sweep ends when it is told to: Ctrl-C after the cell under way, SIGTERM at once, nothing half written."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Terminated(SystemExit):
    """The end that SIGTERM asks for; a cell's own ``sys.exit`` is not one."""


@dataclass
class Wish:
    """Whether the user has asked for an end after the cell under way."""

    uttered: bool = False

    def obeyed(self) -> None:
        """To be called between two cells.

        Raises:
            KeyboardInterrupt: the user has asked.
        """
        if self.uttered:
            raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Wish]:
    """SIGTERM becomes SystemExit(143), so that what is open is closed; a first Ctrl-C a wish, a second one an end.

    Only the main thread can catch signals; elsewhere nothing is done. A Ctrl-C that the program has a handler of its
    own for is left to it.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    def ask(number: int, frame: FrameType | None) -> None:
        if wish.uttered:
            raise KeyboardInterrupt
        wish.uttered = True
        print("\nstopping after the cell under way; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, leave)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, ask)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
