"""Options that several commands share, each declared once; ``probe.open`` takes those of rows and computing, too.

Plain values, importable without torch so that ``probe --help`` stays quick. A command inherits the groups it needs.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from probe.ranges import Count, Length, ModelName, Place, Positive, Seed, Threads


@dataclass(frozen=True, kw_only=True)
class Options:
    """A group of options."""

    def shared(self, *groups: type["Options"]) -> dict[str, Any]:
        """The values of some groups, for another command that has them, too.

        >>> Compute(batch_size=8).shared(Compute)["batch_size"]
        8
        """
        return {field.name: getattr(self, field.name) for group in groups for field in fields(group)}


@dataclass(frozen=True, kw_only=True)
class Rows(Options):
    """Rows to forget and to keep, and how a question and its answer become one text, and that text tokens."""

    forget: Path | None = None
    """Forget rows (JSON lines or array; question, answer, optionally TOFU's other fields and group)."""
    retain: Path | None = None
    """Retain rows in the same layout."""
    limit: Count | None = None
    """Only the first so many rows of each side: a trial run, and said to be one."""
    max_length: Length = 512
    """Longest question with answer, in tokens."""
    template: Literal["auto", "plain", "chat", "llama2", "llama3", "phi"] | None = None
    """Question and answer as a text: plain (Question: ... Answer: ...), chat (the tokenizer's own chat template), auto
    (chat where there is one, else plain), or a published prompt. By default what the manifest of an unlearned model
    says, else plain."""
    system: str | None = None
    """The system's message of a chat; by default what the chat template itself writes, if anything."""
    prompt: str | None = None
    """Text before the answer with {question} in it; takes precedence over --template. Other braces are text."""
    answer: str | None = None
    """The answer's text with {answer} in it; takes precedence over --template."""
    end: str | None = None
    """What ends an answer, and is a target too; by default eos, or what the chat template writes."""
    bos: Literal["auto", "always", "never"] = "auto"
    """What stands before a text: what the tokenizer itself puts there, always its bos, or nothing."""
    control_tokens: Literal["refused", "text"] = "refused"
    """Control tokens (<|im_end|>, say) inside of rows: refused, or written in ordinary tokens."""
    convention: Literal["template", "open-unlearning"] = "template"
    """Whose tokens a chat has: the template's own, or OpenUnlearning's (eos besides, pad tokens never attended to)."""

    @property
    def chooses_template(self) -> bool:
        """Whether a template was asked for, so that no manifest decides."""
        return any(value is not None for value in (self.template, self.system, self.prompt, self.answer, self.end))

    def check_rows(self, models: dict[str, str | None]) -> None:
        """Refuse half a description before anything is loaded: models and both files of rows, or the testbed.

        Args:
            models: flags of the models that belong to the rows, and what they were given.

        Raises:
            ValueError: some but not all of models and rows are given, or a template for the testbed.
        """
        needed = {**models, "--forget": self.forget, "--retain": self.retain}
        missing = [name for name, value in needed.items() if value is None]
        if missing and len(missing) < len(needed):
            raise ValueError(f"{', '.join(missing)} missing: your own model needs {', '.join(needed)}")
        if missing:
            self.check_no_template()

    def check_no_template(self) -> None:
        """Refuse a template that nothing would be written with.

        Raises:
            ValueError: a template for the testbed, whose rows have their own.
        """
        names = [field.name for field in fields(Rows)][4:]
        changed = [name for name in names if getattr(self, name) != getattr(Rows, name)]
        if changed:
            flag = changed[0].replace("_", "-")
            raise ValueError(f"--{flag} is for models of your own; the testbed is asked as it was trained")


@dataclass(frozen=True, kw_only=True)
class Processor(Options):
    """How much of the processor is used."""

    threads: Threads | None = None
    """CPU threads; by default torch's own choice, but one in reports on models under 10 M parameters, where a second
    brings a quarter on an idle machine and costs more than half on a busy one."""


@dataclass(frozen=True, kw_only=True)
class Passes(Processor):
    """How much is computed at once."""

    batch_size: Count | None = None
    """Rows a pass, 32 by default; in training rows of each term a step."""

    @property
    def rows_per_pass(self) -> int:
        """``batch_size``, or its default."""
        return self.batch_size or 32


@dataclass(frozen=True, kw_only=True)
class Machine(Processor):
    """Where models are computed, and in what numbers."""

    device: str = "cpu"
    """Where models run: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What weights are cast to."""


@dataclass(frozen=True, kw_only=True)
class Compute(Machine, Passes):
    """Where and how models are computed."""


@dataclass(frozen=True, kw_only=True)
class Out(Options):
    """Where results go."""

    out: Path | None = None
    """Folder of the results; it must not exist, or be empty, or hold what the same command left when it was stopped. By
    default results/COMMAND; a sweep's is named in its file."""


@dataclass(frozen=True, kw_only=True)
class Resumed(Out):
    """Results that are continued after a kill."""

    resume: bool = True
    """Go on with what the same command left when it was stopped; else begin anew."""


@dataclass(frozen=True, kw_only=True)
class Original(Options):
    """The model before unlearning."""

    original: ModelName | None = None
    """Folder (safetensors) or hub name of the model before unlearning; without it the testbed is studied."""


@dataclass(frozen=True, kw_only=True)
class Unlearned(Options):
    """Models after unlearning."""

    unlearned: tuple[ModelName, ...] = ()
    """Folders or hub names of models after unlearning, as `probe unlearn` writes them; only reports take several."""

    @property
    def one_unlearned(self) -> str | None:
        """The only one, where a command takes no more.

        Raises:
            ValueError: several.
        """
        if len(self.unlearned) > 1:
            raise ValueError(f"--unlearned takes one model here, got {len(self.unlearned)}; reports take several")
        return self.unlearned[0] if self.unlearned else None


@dataclass(frozen=True, kw_only=True)
class Retrained(Options):
    """The model that never knew."""

    retrained: ModelName | None = None
    """Folder or hub name of a model trained without the forget rows: what forgetting looks like. The testbed has one.
    `probe evaluate` takes its OpenUnlearning log (.json), too."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Options):
    """A tokenizer of its own."""

    tokenizer: str | None = None
    """Where the tokenizer lies, if not beside the model."""


@dataclass(frozen=True, kw_only=True)
class Seeded(Options):
    """What is drawn by chance."""

    seed: Seed = 0
    """Fixes all that is drawn by chance: the order of rows, random directions, resampling, halves."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """How long is trained, and how fast."""

    steps: Count | None = None
    """Optimiser steps."""
    lr: Positive | None = None
    """Learning rate."""


@dataclass(frozen=True, kw_only=True)
class Generated(Options):
    """Texts that models write."""

    max_new_tokens: Count | None = None
    """Longest generation, in tokens: 200 by default (OpenUnlearning's), 20 in reports, 40 in what unlearn shows."""

    @property
    def longest_generation(self) -> int:
        """``max_new_tokens``, or its default."""
        return self.max_new_tokens or 200


@dataclass(frozen=True, kw_only=True)
class DictionaryOptions(Options):
    """A sparse autoencoder or another dictionary of features."""

    sae: str | None = None
    """Folder of a dictionary of the original (sae-lens, sparsify, Gemma Scope or Llama Scope files), or a release of
    sae-lens with --sae-id; the testbed has one. That it fits there is measured before anything is done."""
    sae_id: str | None = None
    """Which dictionary of a release of sae-lens."""
    sae_layer: Place | None = None
    """The block, counted from 0, whose output the dictionary reads; by default what its metadata say."""

    def check_dictionary(self) -> None:
        """Refuse an id or a layer without a dictionary.

        Raises:
            ValueError: one of them without ``sae``.
        """
        if self.sae is None and (self.sae_id is not None or self.sae_layer is not None):
            raise ValueError("--sae-id and --sae-layer belong to --sae: name the dictionary, its model and the rows")


@dataclass(frozen=True, kw_only=True)
class RuleOptions(Options):
    """In which order features are taken."""

    rules: tuple[str, ...] = ("frequency:0.01", "attribution-ratio")
    """By name, a setting after a colon: frequency:T, mean-square-ratio:P, crisp:N, saeuron:P, mean-difference, auroc,
    attribution, attribution-ratio; squared-mean-ratio:P and crisp-released:N are the released codes' forms."""


@dataclass(frozen=True, kw_only=True)
class SetOptions(Options):
    """Arguments of a method, an attack or a diagnostic that have no option of their own."""

    set: tuple[str, ...] = ()
    """Arguments as key=value, lists with commas; they take precedence over --setting, where there is one."""
