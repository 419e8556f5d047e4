"""One bar a sweep: the bars of what its cells do are left out."""

from typing import Any


class NoBars:
    """A text stream that lets everything through but progress bars: they begin with a carriage return.

    Args:
        stream: where the rest goes.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._fresh = True

    def write(self, text: str) -> int:
        # A bar below another one is reached by line feeds, and left by the escape sequence for going up.
        bar = text.startswith("\r") or (self._fresh and not text.replace("\x1b[A", "").strip("\n"))
        if not bar:
            self._stream.write(text)
            self._fresh = text.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
