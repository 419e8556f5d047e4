"""What is asked for: plain values, importable without torch so that ``probe --help`` stays quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probe.commands.out import free
from probe.commands.prompting import Prompting
from probe.ranges import Count, Length, Place, Positive, Seed, Weight, check_ranges


@dataclass(frozen=True, kw_only=True)
class Job(Prompting):
    """What is unlearned, how, and where the result goes."""

    model: str | None = None
    """Folder (safetensors) or hub name of the model; without it the testbed is unlearned."""
    forget: Path | None = None
    """Forget rows (JSON lines or array; question, answer, optionally TOFU's other fields and group)."""
    retain: Path | None = None
    """Retain rows in the same layout."""
    out: Path
    """Folder for the unlearned model, or for answers where there is none; it must not exist, or be empty."""
    setting: str | None = None
    """Start from published settings, by name (`probe methods` lists them)."""
    set: tuple[str, ...] = ()
    """Hyper-parameters as key=value; they take precedence over --setting."""
    steps: Count | None = None
    """Optimiser steps."""
    lr: Positive | None = None
    """Learning rate."""
    schedule: Literal["constant", "linear", "cosine"] | None = None
    """How the learning rate goes on after the warm-up; constant unless given here or by --setting."""
    warmup: Weight | None = None
    """Steps over which the learning rate first rises, or a share of the steps below 1."""
    batch_size: Count | None = None
    """Rows of each term a step; where nothing is trained, rows a pass of what is measured (64 by default)."""
    seed: Seed = 0
    """Fixes the order of rows, random directions and which refusal each question gets."""
    parameters: str | None = None
    """Regular expression over the names of the parameters to be trained; the method's own choice by default."""
    refusals: Path | None = None
    """Refusals, one a line, for methods that answer with them; 100 come with the testbed."""
    alternatives: Path | None = None
    """Rows that answer the forget questions otherwise (AltPO); without it their perturbed answers are used."""
    environment: Path | None = None
    """Rows of an unrelated task that shall stay as it is (NPO+IRM, R2MU); the testbed has its world facts."""
    traces: Path | None = None
    """Rows whose answers are reasoning about what is to be forgotten (R2MU)."""
    labels: Literal["answers", "vocabulary"] | None = None
    """Tokens that random labels are drawn from: those of all answers, or the whole vocabulary."""
    unlearned: str | None = None
    """Folder of a model after unlearning, to be mixed with --model (UWC, CRU); `probe unlearn` writes one."""
    retrained: str | None = None
    """Folder of a model trained without the forget rows, which CRU's forget quality compares with; the testbed has one.
    """
    assistant: str | None = None
    """Folder of the small model whose logits are added (after unlearning) or taken away (it knows the forget rows)."""
    assistant_before: str | None = None
    """Folder of the assistant before unlearning; on the testbed the testbed's model unless given."""
    sae: Path | None = None
    """Folder of a sae-lens SAE on a block's output (written by save_inference_model); the testbed has one."""
    sae_layer: Place | None = None
    """The block that --sae was trained on."""
    max_length: Length = 256
    """Longest text in tokens."""
    max_new_tokens: Count = 40
    """Longest answer generated in tokens, where answers are measured."""
    device: str = "cpu"
    """Where the model is trained."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What weights are cast to."""

    def check(self) -> None:
        """Refuse half a description, and a folder that holds something.

        Raises:
            ValueError: some but not all of model, forget and retain are given, an SAE without its layer, a number
                outside of its range, or out is in use.
        """
        check_ranges(self)
        missing = [f"--{name}" for name in ("model", "forget", "retain") if getattr(self, name) is None]
        if missing and len(missing) < 3:
            raise ValueError(f"{', '.join(missing)} missing: your own model needs --model, --forget and --retain")
        self.check_prompting(own=not missing)
        if (self.sae is None) != (self.sae_layer is None):
            raise ValueError("--sae and --sae-layer belong together: name the block that the SAE was trained on")
        free(self.out)
