"""A check, a table of checks, and the ways of running a model that checks compare."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from probe.axes import LogitsBTV, TokensBT
from probe.sites import unwrapped

Outcome = Literal["passed", "failed", "refused", "absent"]
Answer: TypeAlias = tuple[Outcome, str]

# Largest difference, as a share of the largest number, that another order of the same sums explains. Several families
# normalise in float32 whatever the dtype.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Check:
    """One promise.

    Args:
        name: what was asked.
        outcome: ``"passed"``; ``"failed"``; ``"refused"`` (the package says no, with a reason, rather than give a
            wrong answer); ``"absent"`` (there is nothing to ask, or no way to ask it here).
        detail: what was found.
    """

    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """Every check of one subject, in the order in which they ran, and facts about it that are no promises."""

    subject: str
    checks: tuple[Check, ...]
    facts: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.outcome == "failed")

    def table(self) -> str:
        """One line a check and a fact, and a last line with the counts."""
        width = max(len(check.name) for check in self.checks)
        lines = [f"{check.outcome:<8}{check.name:<{width}}  {check.detail}" for check in self.checks]
        counts = ", ".join(
            f"{n} {outcome}"
            for outcome in ("passed", "failed", "refused", "absent")
            if (n := sum(check.outcome == outcome for check in self.checks))
        )
        return "\n".join([self.subject, *lines, *self.facts, f"{len(self.checks)} checks: {counts}"])

    def raise_for_failure(self) -> None:
        """Do nothing if no check failed.

        Raises:
            AssertionError: the table.
        """
        if self.failed:
            raise AssertionError(self.table())


def ask(name: str, question: Callable[[], Answer]) -> Check:
    """Run one check. Whatever it raises is a failure of the subject, not of the suite."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            outcome, detail = question()
        except Exception as error:
            outcome, detail = "failed", f"{type(error).__name__}: {error}"
    return Check(name, outcome, " ".join(detail.split()))


@dataclass(frozen=True, eq=False)
class TokenRows:
    """A model and a few rows of unlike length, and the ways of showing it those rows.

    Args:
        model: in eval mode.
        rows: token ids, each of one dimension.
        pad: fills the shorter rows; hidden from the model by the attention mask.
        new: how many tokens generation adds.
    """

    model: nn.Module
    rows: tuple[Tensor, ...]
    pad: int
    new: int = 4

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row."""
        return tuple(len(row) for row in self.rows)

    def batch(self, side: Literal["left", "right"], rows: tuple[Tensor, ...] | None = None) -> dict[str, Tensor]:
        """Ids, attention mask and position ids, padded on ``side``."""
        rows = self.rows if rows is None else rows
        device = next(self.model.parameters()).device
        width = max(len(row) for row in rows)
        tokens_BT = torch.full((len(rows), width), self.pad, device=device)
        attention_BT = torch.zeros(len(rows), width, dtype=torch.long, device=device)
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
            tokens_BT[i, place], attention_BT[i, place] = row.to(device), 1
        position_BT = (attention_BT.cumsum(1) - 1).clamp(min=0)
        return {"input_ids": tokens_BT, "attention_mask": attention_BT, "position_ids": position_BT}

    def logits(
        self, side: Literal["left", "right"] = "right", rows: tuple[Tensor, ...] | None = None, **more: Any
    ) -> LogitsBTV:
        """Logits of one plain forward."""
        return self.model(**self.batch(side, rows), use_cache=False, **more).logits

    def real(self, logits_BTV: LogitsBTV, side: Literal["left", "right"], rows: tuple[Tensor, ...]) -> list[Tensor]:
        """The logits of each row without its padding."""
        mask_BT = self.batch(side, rows)["attention_mask"].bool()
        return [logits_TV[mask_T] for logits_TV, mask_T in zip(logits_BTV, mask_BT, strict=True)]

    def decoded(self, *, use_cache: bool) -> tuple[TokensBT, LogitsBTV]:
        """New tokens and the logits of every step, greedily, from left-padded rows."""
        given, inner = self.batch("left"), unwrapped(self.model)
        out = inner.generate(  # type: ignore[operator]
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=self.new,
            min_new_tokens=self.new,
            do_sample=False,
            num_beams=1,
            use_cache=use_cache,
            pad_token_id=self.pad,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return out.sequences[:, -self.new :], torch.stack(out.logits, 1)


def distance(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| / max |expected|; infinity where one of them is not finite."""
    if not (bool(torch.isfinite(found).all()) and bool(torch.isfinite(expected).all())):
        return float("inf")
    largest = expected.abs().max().item()
    return (found.double() - expected.double()).abs().max().item() / (largest if largest > 0 else 1.0)


def agreed(distances: dict[str, float], dtype: torch.dtype) -> Answer:
    """Passed if every distance is within the dtype's tolerance; all of them are told either way."""
    limit = TOLERANCE[dtype]
    told = ", ".join(f"{name} {value:.1e}" for name, value in distances.items())
    bad = [name for name, value in distances.items() if not value <= limit]
    if bad:
        return "failed", f"differs ({', '.join(bad)}): {told}; expected at most {limit:.0e} of the largest number"
    return "passed", f"{told} of the largest number"


def hooks_of(model: nn.Module) -> list[int]:
    """What hooks the model carries and in which order; those that transformers keeps for itself are left out."""
    return [
        id(hook)
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for hook in hooks.values()
        if not (getattr(hook, "__module__", "") or "").startswith("transformers")
    ]
