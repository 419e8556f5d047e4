"""Extraction strength by generating: prefixes of the answer are tried until the model writes the rest by itself."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from probe.data import QA, Template, encode
from probe.metrics.arrays import ArrayN
from probe.metrics.generation import continued_ids, eos_ids, generate
from probe.templates.coding import leading_ids


@dataclass(frozen=True)
class Bars:
    """Between which prefixes is searched, and what counts as reproducing the rest.

    Args:
        left: ``"prompt"``: the shortest prefix is the formatted prompt; ``"question"``: as many tokens of the text as
            the bare question has, which is less, so that some of the prompt must be reproduced too.
        short_matches: whether an output that ends early counts, if what there is of it is right.
    """

    left: Literal["prompt", "question"]
    short_matches: bool


# The search whose result equals the teacher-forced form with floor "0".
GREEDY_BARS = Bars("prompt", short_matches=False)
# The search of UWC's evaluation code (Wang et al., arXiv 2406.09179), which is optimistic about early ends.
UWC_BARS = Bars("question", short_matches=True)


def generated_extraction_strength(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    bars: Bars,
    eos: AbstractSet[int],
    question_lengths: Sequence[int] | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
) -> ArrayN:
    """ES = 1 - (m - l) / (r - l), m the prefix length that a binary search ends at; on token ids.

    The text has r tokens, l is the left bar. The search keeps a right end from which greedy generation reproduces the
    text (r itself does, trivially) and a left end from which it does not, and stops when its middle no longer moves;
    it finds the shortest prefix if longer prefixes never fail where shorter ones succeed. UWC's code decodes and
    encodes the text between steps; ids are compared here.

    Args:
        model: any Hugging Face decoder; edits and blends that are in force act here too.
        prompts: token ids of each formatted prompt, bos included.
        answers: token ids of each answer, eos left out.
        bars: ``UWC_BARS`` as published, ``GREEDY_BARS`` for what equals the teacher-forced form.
        eos: ids that end a generation.
        question_lengths: tokens of each bare question, bos included; for ``left="question"``.
        max_length: longest text, prefix included, to which every generation may run, as in the published code (200);
            None generates what is compared and no more, which gives the same if no text is longer.
        batch_size: rows per pass.

    Returns:
        ES in [0, 1] per row; 0 for an answer without tokens.

    Raises:
        ValueError: different numbers of rows, or question lengths missing or longer than the text.

    >>> from probe.metrics import Bars
    >>> prompt, answer = ([s.tokenizer(text).input_ids] for text in ("Question:", " Yes."))
    >>> bars, eos = Bars("prompt", short_matches=False), {s.tokenizer.eos_token_id}
    >>> len(probe.generated_extraction_strength(s.original, prompt, answer, bars=bars, eos=eos))
    1
    """
    if len(prompts) != len(answers):
        raise ValueError(f"{len(prompts)} prompts and {len(answers)} answers; give one answer for each")
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    first = _left_bars(prompts, texts, bars, question_lengths)
    left, right = list(first), [len(text) for text in texts]
    open_rows, tried = [i for i in range(len(texts)) if answers[i]], dict[int, int]()
    while open_rows:
        middle = {i: (left[i] + right[i]) // 2 for i in open_rows}
        open_rows = [i for i in open_rows if tried.get(i) != middle[i]]
        starts = [texts[i][: middle[i]] for i in open_rows]
        outputs = _continued(model, starts, [texts[i] for i in open_rows], eos, max_length, batch_size)
        for i, output in zip(open_rows, outputs, strict=True):
            rest = texts[i][middle[i] :]
            written = output[: len(rest)]
            if written == rest[: len(written)] and (bars.short_matches or len(written) == len(rest)):
                right[i] = middle[i]
            else:
                left[i] = middle[i]
            tried[i] = middle[i]
    whole = zip(texts, answers, right, first, strict=True)
    return np.array([(len(text) - m) / (len(text) - l) if answer else 0.0 for text, answer, m, l in whole])  # noqa: E741


def _left_bars(
    prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], bars: Bars, lengths: Sequence[int] | None
) -> list[int]:
    if bars.left == "prompt":
        return [len(prompt) for prompt in prompts]
    if lengths is None or len(lengths) != len(texts):
        raise ValueError("bars with left='question' need question_lengths, one number of tokens for each row")
    odd = [i for i, (n, text) in enumerate(zip(lengths, texts, strict=True)) if not 0 < n < len(text)]
    if odd:
        raise ValueError(f"{len(odd)} question lengths are no prefix of their text (first: row {odd[0]})")
    return list(lengths)


def _continued(
    model: nn.Module,
    starts: list[list[int]],
    texts: list[list[int]],
    eos: AbstractSet[int],
    max_length: int | None,
    batch_size: int,
) -> list[list[int]]:
    if not starts:
        return []
    if max_length is None:
        wanted = max(len(text) - len(start) for text, start in zip(texts, starts, strict=True))
    else:
        # As generate(max_length=...) counts: from the longest prompt of the batch, padding included.
        wanted = max_length - max(map(len, starts))
    if wanted < 1:
        return [[] for _ in starts]
    return continued_ids(model, starts, eos, max_new_tokens=wanted, batch_size=batch_size)


def extraction_by_generation(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[QA],
    template: Template,
    *,
    bars: Bars,
    perturbed: bool = False,
    max_length: int | None = None,
    batch_size: int = 32,
) -> ArrayN:
    """``generated_extraction_strength`` of question-answer rows.

    Args:
        model, tokenizer: as for ``answer_suite``.
        rows: questions with answers.
        template: how they become one text; UWC evaluates with "### Question: {question}\\n ### Answer: ".
        bars, max_length, batch_size: as for ``generated_extraction_strength``.
        perturbed: whether the paraphrased question is asked (ES-perturb).

    Raises:
        ValueError: as ``encode`` and ``generated_extraction_strength``, or a row without a paraphrased question.
    """
    if perturbed:
        lacking = [i for i, row in enumerate(rows) if not row.paraphrased_question]
        if lacking:
            raise ValueError(f"{len(lacking)} rows have no paraphrased question (first: row {lacking[0]})")
        rows = [row.paraphrased() for row in rows]
    batch = encode(tokenizer, rows, template=template, max_length=10**9)
    sequences = [tokens[mask].tolist() for tokens, mask in zip(batch.tokens_BT, batch.attention_BT, strict=True)]
    starts = batch.prompt_B.tolist()
    n_bos = len(leading_ids(tokenizer, template.bos))
    questions = tokenizer([row.question for row in rows], add_special_tokens=False)["input_ids"]
    return generated_extraction_strength(
        model,
        [ids[:start] for ids, start in zip(sequences, starts, strict=True)],
        [ids[mask].tolist() for ids, mask in zip(batch.tokens_BT, batch.target_BT & ~batch.ending_BT, strict=True)],
        bars=bars,
        eos=eos_ids(model, tokenizer, template),
        question_lengths=[n_bos + len(ids) for ids in questions],
        max_length=max_length,
        batch_size=batch_size,
    )


def word_extraction_strength(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[QA],
    template: Template,
    *,
    max_new_tokens: int,
    batch_size: int = 32,
) -> ArrayN:
    """ES = 1 - k/n, k the fewest words of the n of an answer after which the model writes the others, and no more.

    The linear, word-level form of UWC's earlier scripts (Wang et al., arXiv 2406.09179), which log k/n: words are
    split at blanks, outputs are cut at the first newline and compared as text, and ES is 0 where no k < n suffices.

    Args:
        model, tokenizer, rows, template: as for ``extraction_by_generation``.
        max_new_tokens: most tokens of an output.
        batch_size: rows per pass.

    Raises:
        ValueError: no rows, or an empty answer.
    """
    words = [row.answer.split(" ") for row in rows]
    if not rows or not all(row.answer.strip() for row in rows):
        raise ValueError("no rows, or a row with an empty answer; nothing can be extracted")
    found_N = np.zeros(len(rows))
    open_rows, k = list(range(len(rows))), 0
    while open_rows:
        prefixes = [" ".join(words[i][:k]) for i in open_rows]
        prompts = [
            template.asked(rows[i].question) + (template.answered(prefix) if k else "")
            for i, prefix in zip(open_rows, prefixes, strict=True)
        ]
        outputs = generate(
            model, tokenizer, prompts, template=template, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        left = []
        for i, output in zip(open_rows, outputs, strict=True):
            # Tokenizers differ in whether the blank before a continuation comes with it.
            if output.split("\n")[0].removeprefix(" ") == " ".join(words[i][k:]):
                found_N[i] = 1 - k / len(words[i])
            elif k + 1 < len(words[i]):
                left.append(i)
        open_rows, k = left, k + 1
    return found_N
