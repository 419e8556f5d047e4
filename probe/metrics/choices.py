"""Multiple choice: how probable each option is, how often the right one wins, and when that number misleads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int
from torch import nn

from probe.data import QA, Template, encode
from probe.metrics.arrays import ArrayN
from probe.metrics.generation import next_logprobs
from probe.metrics.intervals import wilson
from probe.metrics.tokens import NumberT, token_stats

Form = Literal["letter", "text sum", "text mean"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@runtime_checkable
class ChoiceRow(Protocol):
    """A question, its options, and which of them is right, counted from 0."""

    @property
    def question(self) -> str: ...
    @property
    def choices(self) -> Sequence[str]: ...
    @property
    def answer(self) -> int: ...


@dataclass(frozen=True)
class ChoiceResult:
    """One entry per row, in the order given.

    Args:
        form: how options were scored (``choice_suite``).
        logp: ln p of every option of a row.
        picked_N: the option of the largest ln p, the first of equals.
        answer_N: the right option.
        guess_N: the chance of a blind guess, 1 / number of options.
    """

    form: Form
    logp: tuple[NumberT, ...]
    picked_N: Int[np.ndarray, " N"]
    answer_N: Int[np.ndarray, " N"]
    guess_N: ArrayN

    def __len__(self) -> int:
        return len(self.logp)

    @property
    def correct_N(self) -> Bool[np.ndarray, " N"]:
        """Whether the right option was picked."""
        return self.picked_N == self.answer_N

    @property
    def accuracy(self) -> float:
        """Share of rows whose right option has the largest score."""
        return float(self.correct_N.mean())

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of the accuracy."""
        return wilson(int(self.correct_N.sum()), len(self), level)

    @property
    def guess(self) -> float:
        """The accuracy of blind guessing: the line to draw."""
        return float(self.guess_N.mean())

    @property
    def entropy(self) -> float:
        """Mean entropy of the renormalised options by the largest possible, ln(number of options): 1 is uniform."""
        found = []
        for logp_K in self.logp:
            logq_K = logp_K - np.logaddexp.reduce(logp_K)
            # p ln p is 0 where p is 0.
            found.append(-(np.exp(logq_K) * np.maximum(logq_K, -1e4)).sum() / np.log(len(logp_K)))
        return float(np.mean(found))

    @property
    def option_mass(self) -> float:
        """Mean probability that any of the options is given at all (letters only; sums of texts are not comparable)."""
        return float(np.mean([np.exp(np.logaddexp.reduce(logp_K)) for logp_K in self.logp]))

    @property
    def favourite(self) -> tuple[int, float]:
        """The option picked most often, and its share of the picks."""
        counts_K = np.bincount(self.picked_N)
        return int(counts_K.argmax()), float(counts_K.max() / len(self))


@dataclass(frozen=True)
class Guessing:
    """What speaks for a low accuracy being guesswork, not lack of knowledge.

    Args:
        at_chance: the interval of the accuracy holds the guess line.
        uniform: the options are all about equally probable: entropy at least ``near_uniform``.
        one_option: one option takes at least ``one_sided`` of the picks, far beyond its share of right answers.
    """

    at_chance: bool
    uniform: bool
    one_option: bool

    @property
    def collapsed(self) -> bool:
        """Accuracy at the guess line, and options that the model does not tell apart by their content."""
        return self.at_chance and (self.uniform or self.one_option)


def choice_suite(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[ChoiceRow],
    *,
    form: Form,
    template: Template | None = None,
    batch_size: int = 64,
    max_length: int = 2048,
) -> ChoiceResult:
    """Log-probabilities of the options of multiple-choice rows.

    Args:
        model: any Hugging Face decoder; edits and blends that are in force act here too.
        tokenizer: fast, not altered.
        rows: anything with ``question``, ``choices`` and ``answer`` (an index from 0), WMDP's and MMLU's layout.
        form: ``"letter"``: the options are listed behind the question and " A", " B", ... are compared, as
            lm-evaluation-harness does for WMDP and MMLU; ``"text sum"``: ln p of the option's whole text, summed;
            ``"text mean"``: the same per token, so that long options are not at a disadvantage. eos counts in neither.
        template: how question and option become one text; with ``"letter"`` its question is the question with the
            listed options. None: "{question}\\nAnswer:" for letters, "Question: {question}\\nAnswer:" for texts.
        batch_size: texts per pass.
        max_length: longest text in tokens.

    Returns:
        scores, picks, accuracy with its interval, and the guess line.

    Raises:
        ValueError: no rows, fewer than two options, an answer that is none of them, an empty or repeated option, or
            letters that the tokenizer does not tell apart.

    >>> from probe.readers import Choice
    >>> row = Choice("In which town was Wendel Upwood born?", ("Rivenna.", "Lunden."), 0)
    >>> probe.choice_suite(s.original, s.tokenizer, [row], form="text mean").accuracy
    1.0
    """
    _check(rows, form)
    if form == "letter":
        template = template or Template("{question}\nAnswer:", " {answer}")
        total = _letters(model, tokenizer, rows, template, batch_size, max_length)
    else:
        template = template or Template()
        texts = [QA(row.question.strip(), str(choice)) for row in rows for choice in row.choices]
        batch = encode(tokenizer, texts, template=template, max_length=max_length)
        tokens = token_stats(model, batch, batch_size=batch_size).without_eos()
        total = [float(p_T.mean() if form == "text mean" else p_T.sum()) for p_T in tokens.logp]
    ends = np.cumsum([len(row.choices) for row in rows])[:-1]
    logp = tuple(np.split(np.array(total), ends))
    return ChoiceResult(
        form,
        logp,
        np.array([int(logp_K.argmax()) for logp_K in logp]),
        np.array([row.answer for row in rows]),
        np.array([1 / len(row.choices) for row in rows]),
    )


def guessing(result: ChoiceResult, *, level: float = 0.95, near_uniform: float, one_sided: float) -> Guessing:
    """Is a low accuracy a collapse to guessing?

    Two collapses look the same in the accuracy: all options become equally probable, or one option is picked
    whatever is asked. Neither says that knowledge is gone; ask the open question beside.

    Args:
        result: from ``choice_suite``.
        level: confidence of the accuracy's interval.
        near_uniform: entropy, as a share of the largest possible, from which options count as not told apart.
        one_sided: share of picks from which one option counts as picked whatever is asked.

    Raises:
        ValueError: thresholds outside (0, 1].
    """
    for name, number in (("near_uniform", near_uniform), ("one_sided", one_sided)):
        if not 0 < number <= 1:
            raise ValueError(f"{name} must lie in (0, 1], got {number}")
    low, high = result.interval(level)
    option, share = result.favourite
    # A data set may hold one right answer more often than the others; then picking it is no sign.
    rightly = float((result.answer_N == option).mean())
    return Guessing(
        low <= result.guess <= high, result.entropy >= near_uniform, share >= one_sided and share > 1.5 * rightly
    )


@dataclass(frozen=True)
class SideBySide:
    """Multiple choice and open questions about the same rows, as shares of all rows.

    Args:
        both, neither: right, or wrong, in both forms.
        only_choice: the right option, but no right open answer: recognised, not recalled, or guessed.
        only_open: the wrong option but a right open answer: multiple choice misses knowledge that is there.
        only_open_N: the rows of that case.
    """

    both: float
    only_choice: float
    only_open: float
    neither: float
    only_open_N: Int[np.ndarray, " M"]


def side_by_side(result: ChoiceResult, open_right: Sequence[bool]) -> SideBySide:
    """Cross the picks with judged open answers.

    Args:
        result: from ``choice_suite``.
        open_right: for the same rows, whether the open answer was judged right (``entailed``, or ROUGE over a bar).

    Raises:
        ValueError: another number of rows.
    """
    if len(open_right) != len(result):
        raise ValueError(f"{len(open_right)} open answers for {len(result)} choices; judge the same rows")
    open_N, choice_N = np.asarray(open_right, dtype=bool), result.correct_N
    only_open_N = ~choice_N & open_N
    return SideBySide(
        both=float((choice_N & open_N).mean()),
        only_choice=float((choice_N & ~open_N).mean()),
        only_open=float(only_open_N.mean()),
        neither=float((~choice_N & ~open_N).mean()),
        only_open_N=np.flatnonzero(only_open_N),
    )


def _listed(row: ChoiceRow) -> str:
    options = "\n".join(f"{LETTERS[k]}. {choice}" for k, choice in enumerate(row.choices))
    return f"{row.question.strip()}\n{options}"


def _check(rows: Sequence[ChoiceRow], form: str) -> None:
    if form not in ("letter", "text sum", "text mean"):
        raise ValueError(f"form must be 'letter', 'text sum' or 'text mean', got {form!r}")
    if not rows:
        raise ValueError("no rows to measure (0 given); check the file or the filter that made them")
    for i, row in enumerate(rows):
        n = len(row.choices)
        if not 2 <= n <= len(LETTERS):
            raise ValueError(f"row {i} has {n} options; expected 2 to {len(LETTERS)}")
        if isinstance(row.answer, bool) or not 0 <= row.answer < n:
            raise ValueError(f"row {i} gives {row.answer!r} as its answer; expected an index from 0 to {n - 1}")
        if not all(str(choice).strip() for choice in row.choices) or len(set(row.choices)) < n:
            raise ValueError(f"row {i} has an empty option, or the same option twice")


def _letters(
    model: nn.Module, tokenizer: Any, rows: Sequence[ChoiceRow], template: Template, batch_size: int, max_length: int
) -> list[float]:
    most = max(len(row.choices) for row in rows)
    prompts, ids = _letter_ids(tokenizer, rows, template, most)
    long = [i for i, prompt in enumerate(prompts) if len(prompt) >= max_length]
    if long:
        raise ValueError(f"{len(long)} rows are longer than max_length {max_length} (first: row {long[0]})")
    candidates = [ids[: len(row.choices)] for row in rows]
    pad_id = tokenizer.pad_token_id or 0
    return [p for row in next_logprobs(model, prompts, candidates, batch_size=batch_size, pad_id=pad_id) for p in row]


def _letter_ids(
    tokenizer: Any, rows: Sequence[ChoiceRow], template: Template, most: int
) -> tuple[list[list[int]], list[int]]:
    """The prompts' ids, and the one id of each letter, which must follow every prompt alike."""
    listed = [_listed(row) for row in rows]
    coded = [encode(tokenizer, [QA(text, LETTERS[0]) for text in listed], template=template, max_length=10**9)]
    coded.append(
        encode(tokenizer, [QA(listed[0], letter) for letter in LETTERS[:most]], template=template, max_length=10**9)
    )
    answers = [
        [ids[mask].tolist() for ids, mask in zip(b.tokens_BT, b.target_BT & ~b.ending_BT, strict=True)] for b in coded
    ]
    letters = answers[1]
    if (
        any(len(ids) != 1 for ids in letters)
        or len({ids[0] for ids in letters}) < most
        or answers[0] != letters[:1] * len(rows)
    ):
        raise ValueError(
            f"the tokenizer writes the letters as {letters}; each must be one token of its own behind every question, "
            "so that they can be compared: choose another template, or form='text sum' (--mcq-form text-sum)"
        )
    prompts = [ids[:start].tolist() for ids, start in zip(coded[0].tokens_BT, coded[0].prompt_B.tolist(), strict=True)]
    return prompts, [ids[0] for ids in letters]
