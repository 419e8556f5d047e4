"""The shell's view of the library. Nothing heavy is imported before the arguments are read."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version
from typing import NoReturn

from probe.cli.parsing import parsed_command
from probe.cli.renamed import check_option_names
from probe.cli.signals import signals_raised, warnings_in_a_line
from probe.commands.command import command_named, command_names
from probe.rows import FULL

# Of a message, in characters.
_LONGEST = 385


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``probe`` and ``python -m probe``: exit code 2 for a user's mistake, 74 for a full disk."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(commands_overview())
        return
    if given[0] == "--version":
        print(f"probe {version('unlearn-probe')}")
        return
    name, rest = _split(given)
    try:
        check_option_names(name, rest)
        command = parsed_command(command_named(name), name, rest)
    except ValueError as error:
        _fail(error, 2)
    try:
        with signals_raised(), warnings_in_a_line():
            command.check()
            done = command.run()
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        _fail(error, 2)
    except OSError as error:
        if error.errno in FULL:
            _fail(error, 74, "; free some space and run again, or choose another folder")
        _fail(error, 2)
    except KeyboardInterrupt as stop:
        stop.args = ("stopped",)
        kept = "finished cells are kept; run again to go on" if name == "sweep" else "nothing was written"
        _fail(stop, 130, "" if hasattr(stop, "__notes__") else f"; {kept}")
    except SystemExit as end:
        if hasattr(end, "__notes__"):
            end.args = ("stopped by SIGTERM",)
            _fail(end, int(end.code or 0))
        raise
    print(done)


def commands_overview(first: str = "") -> str:
    """Every command with what it is for, a line each.

    Args:
        first: only commands whose name begins with this word.
    """
    names = [name for name in command_names() if name.split()[0] == first or not first]
    lines = [f"  {name:13} {_purpose(name)}" for name in names]
    return "\n".join(
        [
            "usage: probe COMMAND [options]",
            "",
            "Find out what unlearning really does inside a language model.",
            "",
            *lines,
            "",
            "probe COMMAND --help says more of one; probe --version.",
        ]
    )


def _purpose(name: str) -> str:
    text = (command_named(name).__doc__ or "").split("\n")[0].split("; ")[0].split(": ")[0].rstrip(".")
    return text if len(text) <= 95 else f"{text[:92]}..."


def _split(given: Sequence[str]) -> tuple[str, list[str]]:
    """The command, which may be of two words, and its arguments."""
    known = command_names()
    for words in (2, 1):
        if " ".join(given[:words]) in known:
            return " ".join(given[:words]), list(given[words:])
    groups = {name.split()[0] for name in known if " " in name}
    if given[0] in groups and given[1:] in ([], ["-h"], ["--help"]):
        print(commands_overview(given[0]))
        sys.exit(0)
    tried = " ".join(given[:2]) if given[0] in groups else given[0]
    near = get_close_matches(tried, known, n=1, cutoff=0)
    shown = tried if len(tried) <= 60 else f"{tried[:60]}..."
    return _fail(f"no command {shown!r}; did you mean {near[0]!r}? `probe --help` lists all {len(known)}", 2)


def _fail(reason: object, code: int, remedy: str = "") -> NoReturn:
    # One readable line: a traceback would bury what the user has to do. Notes say what was kept.
    text = "; ".join([f"{reason}{remedy}", *getattr(reason, "__notes__", ())])
    text = " ".join(text.split())
    # A word of thousands of characters would bury it, too.
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 145]} ... {text[-140:]}"
    print(f"probe: {text}", file=sys.stderr)
    sys.exit(code)
