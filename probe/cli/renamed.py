"""Options and commands that had other names once are answered with the new ones."""

from collections.abc import Sequence

# By command; an old name that ends in a dot stands for all that begin with it.
_RENAMED: dict[str, dict[str, str]] = {
    "report": {
        "--measuring.rows": "--sample",
        "--measuring.new-tokens": "--max-new-tokens",
        "--measuring.batch-size": "--batch-size",
        "--measuring.layers-replaced": "--cru-layers",
        "--measuring.generated": "--generated",
        "--training.seed": "--seed",
        "--editing.layer": "--steer-layer",
        "--editing.": "spelt without editing.",
        "--training.": "a setting of a method, as in --methods npo:steps=30",
    },
    "unlearn": {"--model": "--original", "--compare": "--retrained"},
    "g-effect": {"--model": "--unlearned, beside --original", "--rows": "--limit"},
    "layers": {"--rows": "--limit"},
    "sae train": {"--model": "--original", "--rows": "--limit", "--features": "--n-features"},
    "sae rank": {"--model": "--original", "--rows": "--limit", "--layer": "--sae-layer"},
    "sae suppress": {"--model": "--original", "--rows": "--limit", "--layer": "--sae-layer"},
    "sae audit": {"--model": "--original", "--rows": "--limit", "--layer": "--sae-layer", "--edited": "--unlearned"},
}


def check_option_names(command: str, given: Sequence[str]) -> None:
    """Refuse an option by its old name.

    Raises:
        ValueError: with the new name.
    """
    renamed = _RENAMED.get(command, {})
    for word in given:
        option = word.split("=")[0].replace("_", "-")
        begins = (new for old, new in renamed.items() if old.endswith(".") and option.startswith(old))
        new = renamed.get(option) or next(begins, None)
        if new is not None:
            raise ValueError(f"{option} of `probe {command}` is now {new}")
