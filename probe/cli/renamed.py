"""Options and commands that had other names once are answered with the new ones."""

from collections.abc import Sequence

# By command; "" for every command that has the new one.
_RENAMED: dict[str, dict[str, str]] = {
    "unlearn": {"--model": "--original", "--sae-layer": "--layer", "--compare": "--retrained"},
    "g-effect": {"--model": "--unlearned, beside --original", "--rows": "--limit"},
    "layers": {"--rows": "--limit"},
    "sae train": {"--model": "--original", "--rows": "--limit"},
    "sae rank": {"--model": "--original", "--rows": "--limit"},
    "sae suppress": {"--model": "--original", "--rows": "--limit"},
    "sae audit": {"--model": "--original", "--rows": "--limit", "--edited": "--unlearned"},
}


def check_option_names(command: str, given: Sequence[str]) -> None:
    """Refuse an option by its old name.

    Raises:
        ValueError: with the new name.
    """
    renamed = _RENAMED.get(command, {})
    for word in given:
        option = word.split("=")[0].replace("_", "-")
        if option in renamed:
            raise ValueError(f"{option} of `probe {command}` is now {renamed[option]}")
