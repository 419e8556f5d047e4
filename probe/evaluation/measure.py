"""What a model says to one set of rows, from one forward pass a text, as samples of an evaluation log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from probe.commands.folder import Keep, unkept
from probe.data import QA, Batch, Template, encode
from probe.evaluation.log import EPS
from probe.metrics.arrays import ArrayN, ArrayNK
from probe.metrics.attacks import attack_scores, gradient_norm
from probe.metrics.choices import Form
from probe.metrics.generation import generate
from probe.metrics.memorisation import exact_memorisation, extraction_strength
from probe.metrics.text import rouge
from probe.metrics.tofu import normalised_probability, probability, truth_ratio
from probe.metrics.tokens import MatchT, TokenStats, token_stats

# Batches between two steps of the progress bar.
_STRIDE = 8


@dataclass(frozen=True)
class Asking:
    """How rows are asked: template, sizes, whether to generate, moments for Min-K%++, multiple choice, GradNorm."""

    template: Template
    batch_size: int
    max_length: int
    max_new_tokens: int
    generate: bool = True
    moments: bool = False
    choices: Form = "letter"
    gradnorm: bool = False


@dataclass(frozen=True)
class Measured:
    """One set under one model; entries in the order of the rows, None where the rows do not allow it.

    Args:
        rows: the questions.
        tokens: of the answers.
        right_loss_N: mean cross-entropy of the paraphrased answers.
        wrong_loss_NK: of the wrong answers.
        asked_loss_N: of the answers given the paraphrased questions.
        asked: argmax matches of these, eos left out.
        prompts, generations: what text was continued, and how.
    """

    rows: tuple[QA, ...]
    tokens: TokenStats
    right_loss_N: ArrayN | None
    wrong_loss_NK: ArrayNK | None
    asked_loss_N: ArrayN | None
    asked: tuple[MatchT, ...] | None
    prompts: tuple[str, ...] = ()
    generations: tuple[str, ...] | None = None

    @property
    def matches(self) -> tuple[MatchT, ...]:
        """Argmax matches of the answers' tokens, eos left out."""
        return self.tokens.without_eos().correct


def n_steps(rows: Sequence[QA], asking: Asking) -> int:
    """Steps of the progress bar: texts to score, and prompts to continue."""
    return len(_texts(rows)[0]) + (len(rows) if asking.generate else 0)


def measured(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[QA],
    asking: Asking,
    bar: tqdm,  # type: ignore[type-arg]
    keep: Keep = unkept,
) -> Measured:
    """Score every text of the rows once, and continue every question if asked to.

    Args:
        model: in any mode, which is restored.
        tokenizer: fast, not altered.
        rows: at least one, each with an answer.
        asking: template and sizes.
        bar: is moved on by ``n_steps``.
        keep: what each group of batches gives is kept by it.

    Raises:
        ValueError: rows too long for ``max_length`` or for the model, or a model that gives NaN.
    """
    texts, plain, right, wrong, asked = _texts(rows)
    # The answers come first, and only they are asked for moments.
    n = 1 + max(plain)
    ask = _Ask(model, tokenizer, asking, bar, keep)
    answers = _scored(ask, "answers", texts[:n], asking.moments)
    others = _scored(ask, "others", texts[n:], False) if texts[n:] else TokenStats((), ())
    ends = (answers.ends or ()) + (others.ends or ())
    every = TokenStats(answers.logp + others.logp, answers.correct + others.correct, ends=ends)
    loss_N = every.loss_N
    prompts: tuple[str, ...] = ()
    generations = None
    if asking.generate:
        prompts = tuple(asking.template.asked(row.question) for row in rows)
        generations = _continued(ask, prompts)
    return Measured(
        tuple(rows),
        answers.select(plain),
        None if right is None else loss_N[right],
        None if wrong is None else loss_N[wrong],
        None if asked is None else loss_N[asked],
        None if asked is None else every.select(asked).without_eos().correct,
        prompts,
        generations,
    )


def samples(name: str, found: Measured) -> dict[str, dict[str, Any]]:
    """The set's part of an evaluation log, without aggregates.

    Args:
        name: "forget", "retain", "ra" or "wf".
        found: what was measured.
    """
    loss_N = found.tokens.loss_N
    log = {f"{name}_Q_A_Prob": _indexed(prob=probability(loss_N), avg_loss=loss_N)}
    if found.right_loss_N is not None:
        log[f"{name}_Q_A_PARA_Prob"] = _indexed(prob=probability(found.right_loss_N), avg_loss=found.right_loss_N)
    if found.wrong_loss_NK is not None:
        wrong_NK = found.wrong_loss_NK
        log[f"{name}_Q_A_PERT_Prob"] = _indexed(prob=np.exp(-wrong_NK), avg_loss=wrong_NK)
        if name in ("ra", "wf"):
            log[f"{name}_Q_A_Prob_normalised"] = _indexed(prob=normalised_probability(loss_N, wrong_NK, eps=EPS))
        right_N = loss_N if found.right_loss_N is None else found.right_loss_N
        ratio = "forget_truth_ratio" if name == "forget" else f"{name}_Truth_Ratio"
        log[ratio] = _indexed(score=truth_ratio(right_N, wrong_NK, eps=EPS))
    if found.generations is not None:
        log[f"{name}_Q_A_ROUGE"] = _rouges(found)
    if name == "forget":
        log["extraction_strength"] = _indexed(score=[extraction_strength(m, floor="1/L") for m in found.matches])
        # An answer of one token has nothing besides eos that could be memorised.
        exact = [exact_memorisation(match_T) if len(match_T) else None for match_T in found.matches]
        log["exact_memorization"] = _indexed(score=exact)
    return log


def attacks(forget: Measured, holdout: Measured) -> dict[str, dict[str, Any]]:
    """The attacks' part of an evaluation log, without aggregates."""
    sides = {
        side: attack_scores(found.tokens, [row.answer for row in found.rows])
        for side, found in (("forget", forget), ("holdout", holdout))
    }
    return {
        f"mia_{name}": {
            side: {"agg_value": float(np.mean(scores[name])), **_indexed(score=scores[name])}
            for side, scores in sides.items()
        }
        for name in sides["forget"]
    }


def gradient_attack(
    model: nn.Module, tokenizer: Any, sides: Mapping[str, Sequence[QA]], asking: Asking, keep: Keep = unkept
) -> dict[str, dict[str, Any]]:
    """``mia_gradnorm`` of an evaluation log: the 2-norms of OpenUnlearning's form, with dropout off.

    A backward pass for each row.

    Raises:
        ValueError: an answer of one token, which this form leaves nothing of, or what ``gradient_norm`` raises.
    """
    found = {}
    for side, rows in sides.items():
        batch = encode(tokenizer, rows, template=asking.template, max_length=asking.max_length)
        score = keep(f"{side}, gradient norms", partial(_gradient_norms, model, batch))
        found[side] = {"agg_value": float(np.mean(score)), **_indexed(score=score)}
    return {"mia_gradnorm": found}


def _gradient_norms(model: nn.Module, batch: Batch) -> list[float]:
    found: list[float] = gradient_norm(model, batch, eos=False).tolist()
    return found


def _indexed(**columns: Any) -> dict[str, Any]:
    plain = {field: np.asarray(c).tolist() if isinstance(c, np.ndarray) else list(c) for field, c in columns.items()}
    n = len(next(iter(plain.values())))
    return {"value_by_index": {str(i): {field: column[i] for field, column in plain.items()} for i in range(n)}}


def _rouges(found: Measured) -> dict[str, Any]:
    assert found.generations is not None
    by_index = {}
    for i, (row, prompt, text) in enumerate(zip(found.rows, found.prompts, found.generations, strict=True)):
        score = rouge(row.answer, text)
        by_index[str(i)] = {
            "rouge1_recall": score.rouge1_recall,
            "rougeL_f1": score.rouge_l_f1,
            "rougeL_recall": score.rouge_l_recall,
            "input": prompt,
            "ground_truth": row.answer,
            "generation": text,
        }
    return {"value_by_index": by_index}


_Places = np.ndarray | None


def _texts(rows: Sequence[QA]) -> tuple[list[QA], list[int], _Places, _Places, _Places]:
    """The distinct texts, and where each row's answer, paraphrased answer, wrong answers and rephrasing are."""
    texts: dict[tuple[str, str], int] = {}

    def entry(question: str, answer: str) -> int:
        return texts.setdefault((question, answer), len(texts))

    plain = [entry(row.question, row.answer) for row in rows]
    right = wrong = asked = None
    if all(row.paraphrased_answer for row in rows):
        right = np.array([entry(row.question, row.paraphrased_answer) for row in rows])
    if all(row.perturbed_answer for row in rows):
        wrong = np.array([[entry(row.question, answer) for answer in row.perturbed_answer] for row in rows])
    if all(row.paraphrased_question for row in rows):
        asked = np.array([entry(row.paraphrased_question, row.answer) for row in rows])
    return [QA(question, answer) for question, answer in texts], plain, right, wrong, asked


@dataclass(frozen=True)
class _Ask:
    model: nn.Module
    tokenizer: Any
    asking: Asking
    bar: Any
    keep: Keep


def _scored(ask: _Ask, what: str, texts: list[QA], moments: bool) -> TokenStats:
    size = ask.asking.batch_size
    batch = encode(ask.tokenizer, texts, template=ask.asking.template, max_length=ask.asking.max_length)
    order = torch.argsort(batch.attention_BT.sum(1), stable=True)
    kept: list[list[Any]] = [[]] * len(batch)

    def stats(places: torch.Tensor) -> list[Any]:
        part = token_stats(ask.model, batch.select(places), batch_size=size, moments=moments)
        columns = (part.logp, part.correct, part.mean or (), part.variance or ())
        return [[values_T.tolist() for values_T in column] for column in columns if column]

    for k, places in enumerate(order.split(size * _STRIDE)):
        found = ask.keep(f"{what} {k}", partial(stats, places))
        for place, *column in zip(places.tolist(), *found, strict=True):
            kept[place] = column
        ask.bar.update(len(places))
    columns = [tuple(map(np.array, column)) for column in zip(*kept, strict=True)]
    found = dict(zip(("logp", "correct", "mean", "variance"), columns, strict=False))
    return TokenStats(**found, ends=None if batch.end_B is None else tuple(batch.end_B.tolist()))


def _continued(ask: _Ask, prompts: Sequence[str]) -> tuple[str, ...]:
    size, texts = ask.asking.batch_size, [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))

    def written(places: list[int]) -> list[str]:
        some, longest = [prompts[i] for i in places], ask.asking.max_new_tokens
        template = ask.asking.template
        return generate(ask.model, ask.tokenizer, some, max_new_tokens=longest, batch_size=size, template=template)

    for start in range(0, len(order), size):
        places = order[start : start + size]
        for place, text in zip(places, ask.keep(f"texts {start}", partial(written, places)), strict=True):
            texts[place] = text
        ask.bar.update(len(places))
    return tuple(texts)
