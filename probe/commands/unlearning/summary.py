"""What `probe unlearn` says of what it did: answers before and after, or with and without a method."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probe.data import Template
from probe.hooks import edited
from probe.methods.method import Makes
from probe.methods.running import mixture
from probe.methods.uwc import Calibration
from probe.metrics.generation import generate, greedy_note
from probe.metrics.memorisation import answer_stats
from probe.metrics.suite import answer_suite
from probe.rows import read_manifest
from probe.sites import n_layers
from probe.study.study import Study

# Rows of each side, spread over all: enough to see failure, no evaluation.
_ROWS = 32


def preview(model: nn.Module, study: Study, batch_size: int, max_new_tokens: int) -> dict[str, Any]:
    """By side the mean probability of an answer's token over some rows, and what is answered to the first and last.

    A model that cannot be asked gives the reason instead: that is no reason to lose it.
    """
    found: dict[str, Any] = {}
    for side, batch, rows in (
        ("forget", study.split.forget, study.split.forget_rows),
        ("retain", study.split.retain, study.split.retain_rows),
    ):
        places = torch.linspace(0, len(rows) - 1, min(len(rows), _ROWS)).round().long().tolist()
        questions = [rows[i].question for i in dict.fromkeys((places[0], places[-1]))]
        try:
            stats = answer_stats(model, batch.select(places), batch_size)
            prompts = [study.split.template.prompt.format(question=question) for question in questions]
            texts = generate(model, study.tokenizer, prompts, max_new_tokens=max_new_tokens)
        except ValueError as error:
            found[side] = {"not asked": str(error)}
            continue
        answers = dict(zip(questions, texts, strict=True))
        found[side] = {"rows": len(places), "probability": float(stats.probability_N.mean()), "answers": answers}
    return found


def write_answers(
    makes: Makes, made: Any, study: Study, batch_size: int, max_new_tokens: int, folder: Path
) -> dict[str, Any]:
    """Ask all questions with and without what a method made, write ``answers.jsonl``; means of both sides.

    Raises:
        ValueError: prompts that no longer fit.
        OSError: the disk is full.
    """
    how: dict[str, Any] = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "max_length": study.split.max_length,
        "with_paraphrases": False,
        "with_wrong_answers": False,
    }
    lines, means = [], {}
    for side, rows in (("forget", study.split.forget_rows), ("retain", study.split.retain_rows)):
        template = study.split.template
        without = answer_suite(study.original, study.tokenizer, rows, template, with_generation=False, **how)
        with acting(makes, made, study.original, template) as (model, changed):
            acted = answer_suite(model, study.tokenizer, rows, changed, with_generation=True, **how)
        assert acted.generations is not None
        assert acted.rouge_N is not None
        columns = (without.probability_N.tolist(), acted.probability_N.tolist(), acted.rouge_N.tolist())
        for row, text, plain, p, rouge in zip(rows, acted.generations, *columns, strict=True):
            record = {"side": side, "question": row.question, "answer": row.answer}
            record |= {"probability_without": plain, "probability": p, "generated": text, "rouge": rouge}
            lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        means[side] = {
            "rows": len(rows),
            "probability_without": float(without.probability_N.mean()),
            "probability": float(acted.probability_N.mean()),
            "rouge": float(acted.rouge_N.mean()),
        }
    (folder / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    return {"made": _written(makes, made), "answers": means}


def summary(folder: Path) -> str:
    """What came of a run, for the shell: numbers before and after, and two answers of each side.

    Raises:
        FileNotFoundError: no manifest there.
    """
    manifest = read_manifest(folder)
    name, dtype = manifest["method"]["name"], manifest["settings"]["dtype"]
    if "scores" in manifest:
        return "\n".join(_shown(name, manifest["scores"], dtype)) + "\n"
    lines = [f"{'':8}{'rows':>6}  answer's probability without {name} -> with it; ROUGE-L of what is then written"]
    for side, mean in manifest["answers"].items():
        probabilities = f"{mean['probability_without']:.3f} -> {mean['probability']:.3f}"
        lines.append(f"{side:8}{mean['rows']:>6}  {probabilities}; {mean['rouge']:.3f}")
    told = [json.loads(line) for line in (folder / "answers.jsonl").read_bytes().splitlines()]
    for side in manifest["answers"]:
        own = [one for one in told if one["side"] == side]
        lines += [f"{side}: {one['question']}\n  with it: {one['generated'].strip()}" for one in (own[0], own[-1])]
    lines += greedy_note(dtype)
    return "\n".join(lines) + "\n"


@contextmanager
def acting(makes: Makes, made: Any, model: nn.Module, template: Template) -> Iterator[tuple[nn.Module, Template]]:
    """Model and template to ask with while a prompt, a wrapper or an edit is in force."""
    if makes == "edit":
        with edited(model, made):
            yield model, template
    else:
        yield (model, made) if makes == "prompt" else (made, template)


def _shown(name: str, scores: dict[str, Any], dtype: str) -> list[str]:
    """Lines for the shell.

    Args:
        name: of the method.
        scores: ``preview`` of the model, as ``before`` and ``after``.
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


def _written(makes: Makes, made: Any) -> Any:
    """What can be written down of it; a wrapper is told by the arguments."""
    if makes == "prompt":
        return asdict(made)
    if makes == "edit":
        return {repr(site): {"features": list(clamp.features), "value": clamp.value} for site, clamp in made.items()}
    return None


def mixture_facts(found: Any, study: Study) -> dict[str, Any]:
    """How much of the unlearned model was taken, and by which numbers."""
    alphas, rest = mixture(found, n_layers(study.original))
    if isinstance(found, Calibration):
        curve: dict[str, Any] = {"bar": found.bar, "score": found.score, "tried": found.tried}
    else:
        curve = {
            "layers": found.alpha_L.nonzero().flatten().tolist(),
            "forget_quality_L": found.forget_quality_L.tolist(),
            "utility_L": found.utility_L.tolist(),
        }
    return {"mixture": {"alpha_L": alphas, "alpha_rest": rest, **curve}}


def loss_ends(result: Any) -> dict[str, dict[str, float]]:
    """First and last value of every loss, over one run of the loop or several."""
    by_name: dict[str, dict[str, float]] = {}
    for history in getattr(result, "histories", (getattr(result, "history", result),)):
        found: Any = getattr(history, "losses", ())
        for k, name in enumerate(history.names if found else ()):
            by_name[name] = {"first": by_name.get(name, {"first": found[0][k]})["first"], "last": found[-1][k]}
    return by_name
