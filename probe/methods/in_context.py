"""Unlearning by prompt: the model stays as it is, and every question is asked after a text.

All functions return a ``Template``; hand it to whatever encodes or asks questions, ``answer_suite(model, tokenizer,
rows, template)`` for one. Longer prompts need a larger ``max_length``.

>>> template = study.unlearn("instructed", instruction="Say that you do not know.")
>>> template.asked('Who?')[:25]
'Say that you do not know.'
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from probe.data import QA, Template
from probe.datasets import idk_rows
from probe.methods.method import method


def in_context(template: Template, forget: Sequence[QA], answers: Sequence[str], retain: Sequence[QA]) -> Template:
    """Prompt = (forget question, other answer) pairs, then (retain question, right answer) pairs, then the question.

    In-context unlearning (Pawelczyk et al., arXiv 2310.07579): there a flipped label, here whatever is in ``answers``.

    Args:
        template: how one question and its answer are written.
        forget: rows to be shown with another answer.
        answers: one a forget row, a refusal or a wrong answer.
        retain: rows to be shown with their own answer, so that not every question is answered so; the paper shows 2
            to 6. May be empty.

    Raises:
        ValueError: no forget rows, or not one answer for each.
    """
    if not forget or len(answers) != len(forget):
        raise ValueError(f"expected one answer for each of {len(forget)} forget rows (at least 1), got {len(answers)}")
    shown = [*(replace(row, answer=answer) for row, answer in zip(forget, answers, strict=True)), *retain]
    return instructed(
        template,
        "\n\n".join(template.written(row.question, row.answer) for row in shown),
    )


@method(
    "no gradient",
    "prompt = (forget question, other answer) pairs, (retain question, answer) pairs, question",
    "Pawelczyk et al., arXiv 2310.07579",
    name="in_context",
    makes="prompt",
)
def in_context_drawn(
    template: Template,
    forget_rows: Sequence[QA],
    retain_rows: Sequence[QA],
    refusal_texts: Sequence[str],
    *,
    forget_shown: int,
    retain_shown: int,
    seed: int,
) -> Template:
    """``in_context`` with rows drawn at random, the forget rows answered by refusals.

    Args:
        template: how one question and its answer are written.
        forget_rows, retain_rows: to draw from.
        refusal_texts: what forget questions are answered with, drawn anew for each.
        forget_shown: how many forget rows are shown, at least 1.
        retain_shown: how many retain rows; the paper shows 2 to 6.
        seed: fixes the draws.

    Raises:
        ValueError: more rows than there are, or what ``in_context`` raises.
    """
    for name, shown, least, rows in (
        ("forget", forget_shown, 1, forget_rows),
        ("retain", retain_shown, 0, retain_rows),
    ):
        if not least <= shown <= len(rows):
            raise ValueError(f"{name}_shown must lie in {least}..{len(rows)} (the {name} rows), got {shown}")
    random = Random(seed)
    forget, retain = random.sample(list(forget_rows), forget_shown), random.sample(list(retain_rows), retain_shown)
    answers = [row.answer for row in idk_rows(forget, seed, refusal_texts)]
    return in_context(template, forget, answers, retain)


@method("no gradient", "prompt = instruction, question", "Thaker et al., arXiv 2403.03329", makes="prompt")
def instructed(template: Template, instruction: str) -> Template:
    """Prompt = the instruction, an empty line, the question (guardrails; Thaker et al., arXiv 2403.03329).

    In a chat the instruction stands in the turn of the question.

    Args:
        template: how one question and its answer are written.
        instruction: what the model is told before every question.

    Raises:
        ValueError: an empty instruction.
    """
    if not instruction.strip():
        raise ValueError("the instruction is empty; the prompt would be that without unlearning")
    return template.led(f"{instruction}\n\n")
