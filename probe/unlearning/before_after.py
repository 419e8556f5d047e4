"""What a model says before unlearning and after it: shown when a run ends, so that a failure is seen at once."""

from typing import Any

import torch
from torch import nn

from probe.commands.data import greedy_note
from probe.metrics.generation import generate
from probe.metrics.memorisation import answer_stats
from probe.unlearning.job import Job
from probe.unlearning.material import Material

# Rows of each side, spread over all: enough to see failure, no evaluation.
_ROWS = 32


def said(model: nn.Module, at: Material, job: Job) -> dict[str, Any]:
    """By side the mean probability of an answer's token over some rows, and what is answered to the first and last.

    A model that cannot be asked gives the reason instead: that is no reason to lose it.
    """
    found: dict[str, Any] = {}
    for side, batch, rows in (
        ("forget", at.split.forget, at.split.forget_rows),
        ("retain", at.split.retain, at.split.retain_rows),
    ):
        places = torch.linspace(0, len(rows) - 1, min(len(rows), _ROWS)).round().long().tolist()
        questions = [rows[i].question for i in dict.fromkeys((places[0], places[-1]))]
        try:
            stats = answer_stats(model, batch.select(places), job.batch_size or 32)
            prompts = [at.split.template.prompt.format(question=question) for question in questions]
            texts = generate(model, at.tokenizer, prompts, max_new_tokens=job.max_new_tokens)
        except ValueError as error:
            found[side] = {"not asked": str(error)}
            continue
        answers = dict(zip(questions, texts, strict=True))
        found[side] = {"rows": len(places), "probability": float(stats.probability_N.mean()), "answers": answers}
    return found


def shown(name: str, scores: dict[str, Any], dtype: str) -> list[str]:
    """Lines for the shell.

    Args:
        name: of the method.
        scores: ``said`` of the model, as ``before`` and ``after``.
        dtype: of the model.
    """
    lines = [f"{'':8}{'rows':>6}  mean probability of an answer's token before {name} -> after it"]
    answers = []
    for side, before in scores["before"].items():
        after = scores["after"][side]
        reason = before.get("not asked") or after.get("not asked")
        if reason:
            lines.append(f"{side:8} not asked: {reason}")
            continue
        lines.append(f"{side:8}{before['rows']:>6}  {before['probability']:.3f} -> {after['probability']:.3f}")
        for question, text in before["answers"].items():
            later = after["answers"][question].strip()
            answers.append(f"{side}: {question}\n  before: {text.strip()}\n  after:  {later}")
    lines.append("some of the rows that were trained on, spread over each side; `probe evaluate` measures all of them")
    return [*lines, *answers, *greedy_note(dtype)]
