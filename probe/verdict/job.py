"""What is asked for: plain values, importable without torch so that ``probe --help`` stays quick."""

from dataclasses import dataclass
from pathlib import Path

from probe.commands.prompting import Prompting
from probe.ranges import Length


@dataclass(frozen=True, kw_only=True)
class VerdictJob(Prompting):
    """The models and rows of one verdict."""

    original: str
    """The model before unlearning: a folder or a hub name."""
    forget: Path
    """Rows that were to be forgotten (JSON lines or array; question, answer, and perturbed_answer: wrong answers)."""
    retain: Path | None = None
    """Rows that were to be kept. Without them a broken model is harder to tell from one that forgot."""
    retrained: str | None = None
    """A model that never saw the forget rows: what forgetting looks like here, instead of chance."""
    tokenizer: str | None = None
    """Where the tokenizer lies, if not beside the original."""
    max_length: Length = 256
    """Longest question with answer, in tokens."""
    device: str = "cpu"
    """Where the models run."""
    fitted: Path | None = None
    """Another fit than the one that ships with the package (fitted.json of a zoo)."""
    out: Path | None = None
    """JSON file for the verdict with all its numbers. Only with it a verdict that was stopped can be continued."""
