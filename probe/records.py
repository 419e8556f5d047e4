"""JSON and text from disk: every record with the line it begins on, every fault with path and line."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

# How files begin that are often taken for rows.
_OTHER_FILES = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "gzipped",
    b"PK\x03\x04": "a zip archive (or was written by torch.save)",
    b"\x80": "a pickle, which can run code when loaded",
}

# Python itself stops at 4300, without a place; no row has a number of this length.
_DIGITS = 1000


@dataclass(frozen=True)
class Record:
    """One JSON value of a file of many.

    Args:
        where: "path:line: row n", what an error message begins with.
        value: what JSON made of it.
    """

    where: str
    value: Any


def read_text(path: str | Path) -> str:
    """A text file in UTF-8; a byte-order mark is accepted.

    Raises:
        FileNotFoundError: no such file.
        ValueError: Parquet, gzip, zip or pickle, or not UTF-8 (the message names the byte and a guess).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path} (resolved to {path.resolve()})")
    raw = path.read_bytes()
    kind = next((kind for start, kind in _OTHER_FILES.items() if raw.startswith(start)), None)
    if kind:
        raise ValueError(f"{path} is {kind}; write the rows as JSON lines in UTF-8, one object a line")
    try:
        text = raw.decode("utf-8-sig")
        # ASCII in UTF-16 without a byte-order mark is valid UTF-8, every other character a NUL.
        wrong = text.find("\0")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        guess = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw else "Latin-1"
        raise ValueError(f"{path}: byte {wrong} is not UTF-8 (perhaps {guess}); convert the file to UTF-8")
    return text


def read_records(path: str | Path) -> list[Record]:
    """Every value of a file of JSON lines or of one JSON array.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as ``read_text`` and ``parsed``, or no rows.
    """
    path = Path(path)
    text = read_text(path)
    found = _array(path, text) if text.lstrip().startswith("[") else _lines(path, text)
    if not found:
        raise ValueError(f"{path} holds no rows")
    return [Record(f"{path}:{line}: row {number}", value) for number, (line, value) in enumerate(found, 1)]


def parsed(path: str | Path, text: str, line: int = 1, *, nan_is_null: bool = False) -> Any:
    """What JSON makes of a text that begins on the given line of a file.

    Args:
        path: for messages.
        text: the JSON.
        line: number of its first line.
        nan_is_null: whether NaN and infinities, which Python's json writes though JSON has none, are read as null.

    Raises:
        ValueError: not JSON (with path, line and column), NaN, an object with a key twice, half of a surrogate pair, a
            number of thousands of digits, or lists nested without end.
    """
    with _placed(path, text, line):
        return _whole(f"{path}:{line}", _decoder(f"{path}:{line}", nan_is_null).decode(text), text)


def fields(record: Record, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """The record's object, with every required field in it and no optional one misspelt.

    Fields of other names are left alone: files carry more than one reader wants.

    Raises:
        ValueError: not an object, a required field that is missing (with the fields found and the nearest name), a
            field that is nearly an optional one, or an infinite number.
    """
    value = record.value
    if not isinstance(value, dict):
        expected = " and ".join(required) or "fields"
        raise ValueError(f"{record.where} is a {type(value).__name__}; expected an object with {expected}")
    for name in required:
        if name not in value:
            near = get_close_matches(name, list(value), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; rename or add it"
            raise ValueError(f"{record.where} has no field {name!r}; found {listed(value)}{hint}")
    known = {*required, *optional}
    for name, content in value.items():
        meant = get_close_matches(name, optional, n=1, cutoff=0.87)
        if name not in known and meant and meant[0] not in value:
            raise ValueError(f"{record.where} has a field {name!r}; did you mean {meant[0]!r}?")
        if isinstance(content, float) and not math.isfinite(content):
            raise ValueError(f"{record.where}, field {name!r} is {content}; only finite numbers are accepted")
    return value


def listed(names: Iterable[str], most: int = 120) -> str:
    """Names for a message, cut where they would fill it; "nothing" where there are none."""
    text = ", ".join(name if name.isprintable() and name.strip() else repr(name) for name in names)
    return f"{text[:most]}..." if len(text) > most else text or "nothing"


def text_of(record: Record, name: str, *, needed: bool = False) -> str:
    """A field that must be a text; null and a missing field are "".

    Args:
        record: of which row.
        name: of the field.
        needed: whether null and a text of blanks are refused.

    Raises:
        ValueError: anything else, or nothing where something is needed.
    """
    value = record.value.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{record.where}, field {name!r} is {value_shown(value)}; expected a text")
    if needed and not value.strip():
        raise ValueError(f"{record.where}, field {name!r} is empty; write a text or drop the row")
    return value


def texts_of(record: Record, name: str) -> tuple[str, ...]:
    """A field that must be a list of texts; one text is a list of one, null and a missing field an empty one.

    Raises:
        ValueError: anything else.
    """
    value = record.value.get(name)
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,) if value else ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{record.where}, field {name!r} is {value_shown(value)}; expected a list of texts")
    if not all(text.strip() for text in value):
        raise ValueError(f"{record.where}, field {name!r} holds an empty text; leave it out of the list")
    return tuple(value)


def value_shown(value: Any) -> str:
    """The beginning of a JSON value, and of which type it is, for a message."""
    return "null" if value is None else f"{json.dumps(value, ensure_ascii=False)[:40]} (a {type(value).__name__})"


def _lines(path: Path, text: str) -> list[tuple[int, Any]]:
    pieces = enumerate(text.split("\n"), 1)
    return [(line, parsed(path, piece, line)) for line, piece in pieces if piece.strip()]


def _array(path: Path, text: str) -> list[tuple[int, Any]]:
    # The whole is read first, so that what follows walks over valid JSON.
    with _placed(path, text, 1):
        json.loads(text, parse_int=str)
    found: list[tuple[int, Any]] = []
    place, line = text.index("[") + 1, 1 + text[: text.index("[")].count("\n")
    while True:
        start = place
        while text[place] in " \t\r\n,":
            place += 1
        line += text.count("\n", start, place)
        if text[place] == "]":
            return found
        value, end = _decoder(f"{path}:{line}").raw_decode(text, place)
        found.append((line, _whole(f"{path}:{line}", value, text[place:end])))
        line += text.count("\n", place, end)
        place = end


@contextmanager
def _placed(path: str | Path, text: str, line: int) -> Iterator[None]:
    """Faults that the parser finds in a text get the place where they stand."""
    try:
        yield
    except json.JSONDecodeError as error:
        where = f"{path}:{line + error.lineno - 1}:{error.colno}"
        excerpt = text[max(0, error.pos - 30) : error.pos + 30]
        raise ValueError(f"{where}: not JSON ({error.msg}) near {excerpt!r}; mend or remove the line") from None
    except RecursionError:
        raise ValueError(f"{path}:{line}: nested too deeply to be a row; mend or remove the line") from None


@dataclass(frozen=True)
class _Strict:
    """Refuses what Python takes in silence, or fails on without a place."""

    where: str
    nan_is_null: bool = False

    def constant(self, name: str) -> None:
        if self.nan_is_null:
            return
        raise ValueError(f"{self.where}: holds {name}, which is not JSON; write null or drop the row")

    def number(self, digits: str) -> int:
        if len(digits) > _DIGITS:
            n = len(digits)
            raise ValueError(f"{self.where}: holds a number of {n} digits; write it as a text, or drop the row")
        return int(digits)

    def once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            n = names.count(twice)
            raise ValueError(f"{self.where}: an object has the key {twice!r} {n} times; keep one of them")
        return found


def _decoder(where: str, nan_is_null: bool = False) -> json.JSONDecoder:
    strict = _Strict(where, nan_is_null)
    return json.JSONDecoder(parse_constant=strict.constant, parse_int=strict.number, object_pairs_hook=strict.once)


def _whole(where: str, value: Any, text: str) -> Any:
    """The value, if all its texts are Unicode. A file in UTF-8 holds half a character only as an escape."""
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise ValueError(
                f"{where}: holds {half}, half of a surrogate pair and no character; mend the text"
            ) from None
    return value
