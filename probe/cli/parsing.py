"""From words of the shell to a command's options; a mistake is told in one line."""

import io
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import fields
from difflib import get_close_matches

import tyro

from probe.commands.command import Command


def parsed_command(kind: type[Command], name: str, given: Sequence[str]) -> Command:
    """The command with the options that were given.

    Raises:
        ValueError: an unknown option, one that is given twice, a value that cannot be read, or a missing one.
    """
    _check_names(kind, name, given)
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            return tyro.cli(kind, prog=f"probe {name}", args=given)
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(f"{_one_line(told.getvalue())}; `probe {name} --help` lists all options") from None


def _check_names(kind: type[Command], name: str, given: Sequence[str]) -> None:
    words = [word.split("=")[0] for word in given if word.startswith("--") and len(word) > 2]
    flags = [word.replace("_", "-") for word in words]
    # A flag that is given twice would keep its last values only, and nobody would know.
    twice = [flag for flag, count in Counter(flags).items() if count > 1]
    if twice:
        raise ValueError(
            f"{twice[0]} is given {flags.count(twice[0])} times; give it once, with all its values after it"
        )
    known = ["--help", *(f"--{field.name.replace('_', '-')}" for field in fields(kind))]
    for flag in flags:
        if flag not in known and flag.replace("--no-", "--", 1) not in known:
            near = get_close_matches(flag, known, n=1, cutoff=0)
            raise ValueError(
                f"`probe {name}` has no option {flag}; did you mean {near[0]}? `probe {name} --help` lists all"
            )


def _one_line(box: str) -> str:
    """What stands in the box that tyro draws around a mistake, without its title and its pointer to the help."""
    lines = [line.strip(" │") for line in box.split("\n")]
    kept = [line for line in lines if line.strip("╭╮╰╯─├┤- ") and not line.startswith("╭")]
    text = " ".join(" ".join(kept).split("For full helptext")[0].split())
    unreadable = re.search(r"Error parsing (--[\w-]+): .*?'([^']*)'(?! does).*? --[\w-]+ (\S+)", text)
    if unreadable:
        flag, value, kind = unreadable.groups()
        expected = kind.replace("{None}|", "").replace("INT", "a whole number").replace("FLOAT", "a number")
        return f"{flag} {value!r} cannot be read; expected {expected}"
    text = re.sub(r"^(Required options|Missing argument|Invalid choice|Unrecognized options|Value error) ", "", text)
    text = re.sub(r"^Missing from (probe [a-z -]+): (\S+)(.*?)(?= Unrec|$)", r"`\1` needs \2:\3", text)
    text = re.sub(r" ?Unrecognized options: (.*)", r"; \1 is not expected", text).removeprefix("; ")
    text = text.replace("Missing value for argument", "no value for").replace(
        ". Expected 1 values", "; one is expected"
    )
    text = text.replace(" [STR [STR ...]]", "").replace(": [STR [STR ...]]", ":").replace(". Expected", "; expected")
    return text.replace(" (required)", "").rstrip(" .")
