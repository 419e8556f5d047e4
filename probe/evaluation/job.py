"""What is asked for: plain values, importable without torch so that ``probe --help`` stays quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probe.commands.out import free
from probe.commands.prompting import Prompting
from probe.ranges import Count, Length, check_ranges


@dataclass(frozen=True, kw_only=True)
class EvaluationJob(Prompting):
    """What the model is asked, against whom it is compared, and where the result goes."""

    tofu: str | None = None
    """Folder with TOFU's files, or owner/name on the hub (locuslab/TOFU)."""
    split: str = "forget10"
    """Which of TOFU's splits was to be forgotten: forget01, forget05 or forget10."""
    forget: Path | None = None
    """Forget rows of other data (JSON lines or array; question, answer, optionally TOFU's other fields)."""
    retain: Path | None = None
    """Retain rows in the same layout."""
    retrained: str | None = None
    """Model trained without the forget rows: a folder, a hub name, or its OpenUnlearning log (.json)."""
    holdout: Path | None = None
    """Rows that no model was trained on, for membership attacks; TOFU's holdout01/05/10 is used where it is there."""
    gradnorm: bool = False
    """Whether the GradNorm attack is run on rows held out, too: a backward pass a row."""
    mcq: Path | None = None
    """Multiple-choice questions in the layout of WMDP and MMLU (question, choices, answer)."""
    mcq_form: Literal["letter", "text-sum", "text-mean"] = "letter"
    """What is compared: the letters A, B, ... behind the listed choices, as lm-evaluation-harness does, or the choices'
    own texts, summed or per token."""
    tokenizer: str | None = None
    """Where the tokenizer lies, if not beside the model."""
    out: Path | None = None
    """Folder of the results; it must not exist, or be empty. By default results/evaluation/MODEL-SPLIT."""
    limit: Count | None = None
    """Only the first so many rows of each set: a trial run, and said to be one."""
    generate: bool = True
    """Whether ROUGE is measured; most of the time goes to it, and there is no model utility without it."""
    batch_size: Count = 32
    """Rows a forward pass."""
    max_length: Length = 512
    """Longest question with answer, in tokens."""
    max_new_tokens: Count = 200
    """Longest generation, in tokens (OpenUnlearning's 200)."""
    device: str = "cpu"
    """Where the model runs."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What weights are cast to."""

    def check(self) -> None:
        """Refuse half a description before anything is loaded.

        Raises:
            ValueError: no data or data of two kinds, half of a pair, or numbers outside of their range.
        """
        if self.tofu is not None and (self.forget is not None or self.retain is not None):
            raise ValueError("--tofu and --forget/--retain are given; choose one: TOFU has its own retain rows")
        if self.tofu is None and (self.forget is None) != (self.retain is None):
            absent = "retain" if self.retain is None else "forget"
            raise ValueError(f"--{absent} missing: rows of your own need --forget and --retain")
        if self.tofu is None and self.forget is None and self.mcq is None:
            raise ValueError("no data given: pass --tofu FOLDER --split forget10, or --forget and --retain, or --mcq")
        if (self.retrained or self.holdout) and self.tofu is None and self.forget is None:
            raise ValueError("--retrained and --holdout compare forget rows; pass --tofu, or --forget and --retain")
        if self.gradnorm and self.holdout is None and self.tofu is None:
            raise ValueError("--gradnorm compares forget rows with rows held out; pass --holdout")
        check_ranges(self)

    def folder(self, model: str) -> Path:
        """Where results go.

        Raises:
            ValueError: the folder is in use.
        """
        data = self.split if self.tofu is not None else "rows" if self.forget is not None else "choices"
        out = self.out or Path("results/evaluation") / f"{model.rstrip('/').split('/')[-1]}-{data}"
        free(out)
        return out
