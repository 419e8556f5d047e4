"""Whose rows: plain values, importable without torch so that ``probe --help`` stays quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probe.commands.out import free
from probe.commands.prompting import Prompting
from probe.ranges import Count, Length, check_ranges


@dataclass(frozen=True, kw_only=True)
class Data(Prompting):
    """Whose rows are looked at, and where the result goes."""

    forget: Path | None = None
    """Forget rows (JSON lines or array; question, answer, optionally TOFU's other fields and group)."""
    retain: Path | None = None
    """Retain rows in the same layout."""
    out: Path
    """Folder of the results; it must not exist, or be empty."""
    rows: Count | None = None
    """Only the first so many rows of each side: a trial run, and said to be one."""
    max_length: Length = 256
    """Longest text in tokens."""
    batch_size: Count = 32
    """Rows a pass."""
    device: str = "cpu"
    """Where models run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What weights are cast to."""

    def check(self, models: dict[str, str | None]) -> None:
        """Refuse half a description before anything is loaded.

        Args:
            models: flags of the models that belong to the rows, and what they were given.

        Raises:
            ValueError: some but not all of models and rows are given, numbers outside of their range, out is in use,
                or a template for the testbed.
        """
        given = {**models, "--forget": self.forget, "--retain": self.retain}
        missing = [name for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ValueError(f"{', '.join(missing)} missing: your own model needs {', '.join(given)}")
        self.check_prompting(own=not missing)
        check_ranges(self)
        free(self.out)


def greedy_note(dtype: str) -> tuple[str, ...]:
    """What has to stand beside texts that a model wrote in short numbers."""
    if dtype == "float32":
        return ()
    return (
        f"texts are greedy in {dtype}: where two tokens nearly tie they change with --batch-size, and ROUGE with them; "
        "compare at one batch size, or in float32",
    )
