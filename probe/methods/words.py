"""What a word of the shell means among the choices of objectives: which positions count, and how they are averaged."""

from collections.abc import Mapping
from typing import Any, Literal

from probe.objectives.logprobs import before_targets
from probe.objectives.representation import TokenChoice, all_positions, answer_tokens, real_tokens
from probe.objectives.token import Normalise, mixed_rows, sequence_mean, token_mean

Form = Literal["paper", "released"]
"""A published formula, or what its published code computes where that is something else."""

Tokens = Literal["real", "answers", "all"]
TOKENS: Mapping[str, TokenChoice] = {"real": real_tokens, "answers": answer_tokens, "all": all_positions}
Average = Literal["tokens", "rows", "mixed-rows"]
AVERAGES: Mapping[str, Normalise] = {"tokens": token_mean, "rows": sequence_mean, "mixed-rows": mixed_rows}
Read = Literal["answers", "all"]
# Where whole distributions are compared: before each answer token, or everywhere (prompts and padding too).
READ: Mapping[str, TokenChoice] = {"answers": before_targets, "all": all_positions}


def meant(name: str, choice: Any, among: Mapping[str, Any]) -> Any:
    """The value that a word stands for; what is no word is meant as it is.

    Raises:
        ValueError: an unknown word.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in among:
        raise ValueError(f"{name} must be one of {', '.join(among)}, got {choice!r}")
    return among[choice]
