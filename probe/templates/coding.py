"""From questions and answers to token ids, with where the answer lies among them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probe.templates.template import Bos, Template

_Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Coded:
    """One text in tokens.

    Args:
        ids: of all tokens.
        spans: the characters of the text that each token stands for; those of bos and eos are empty.
        prompt: number of tokens before the first one of the answer.
        end: number of tokens after the last one of the answer: eos, or a turn's end.
        answer: where the answer itself, without what the template writes around it, begins and ends in the text.
    """

    ids: list[int]
    spans: _Spans
    prompt: int
    end: int
    answer: tuple[int, int]


def coded(tokenizer: Any, pairs: Sequence[tuple[str, str]], template: Template) -> list[Coded]:
    """Prompt, answer and end as one text each, in tokens.

    The boundaries are found through the tokenizer's offsets, not by tokenising the prompt apart, which splits words
    differently. The tokenizer is not altered.

    Args:
        tokenizer: fast.
        pairs: questions with answers.
        template: how they become one text.

    Raises:
        ValueError: a tokenizer without offsets, no eos where one is needed, an empty answer, control tokens inside a
            question or an answer, or two bos or two ends in a row.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("a fast tokenizer is needed: the answer's first token is found through character offsets")
    if template.end is None and tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos token; set tokenizer.eos_token, or give the template an end")
    empty = [i for i, (_, answer) in enumerate(pairs) if not answer.strip()]
    if empty:
        raise ValueError(f"{len(empty)} of {len(pairs)} rows have an empty answer (first: row {empty[0]}); drop them")
    lead = leading_ids(tokenizer, template.bos)
    prompts = [template.asked(question) for question, _ in pairs]
    answers = [template.answered(answer) for _, answer in pairs]
    texts = [p + a + (template.end or "") for p, a in zip(prompts, answers, strict=True)]
    check_controls(tokenizer, [text for pair in pairs for text in pair], template, per_row=2)
    parts = _tokens(tokenizer, texts, [_owned(template, p, a) for p, a in zip(prompts, answers, strict=True)], template)
    found = []
    for (_, answer), prompt, written, (ids, spans) in zip(pairs, prompts, answers, parts, strict=True):
        _check_one_bos(lead, ids, "the template's text")
        # A token that straddles the boundary belongs to the answer: it cannot be predicted from the prompt alone.
        n_prompt = len(lead) + sum(end <= len(prompt) for _, end in spans)
        stop = len(prompt) + len(written)
        n_end = sum(start >= stop and end > start for start, end in spans)
        begin = len(prompt) + template.answer.index("{answer}")
        answer_at = (begin, begin + len(template.cleaned(answer)))
        eos = _closing(
            tokenizer, template, [i for i, (start, _) in zip(ids, spans, strict=True) if start >= answer_at[1]]
        )
        whole = [(0, 0)] * len(lead) + spans + [(len(prompt + written), len(prompt + written))] * len(eos)
        # OpenUnlearning's metrics leave out the last token alone, whatever ends an answer.
        n_end = 1 if template.convention == "open-unlearning" else n_end + len(eos)
        found.append(Coded([*lead, *ids, *eos], whole, n_prompt, n_end, answer_at))
    return found


def prompt_ids(tokenizer: Any, prompts: Sequence[str], template: Template) -> list[list[int]]:
    """Texts to be continued, ``template.asked`` of questions say, in tokens; bos as the template wants it.

    Raises:
        ValueError: a text without any token, or two bos.
    """
    lead = leading_ids(tokenizer, template.bos)
    parts = _tokens(tokenizer, prompts, [_owned(template, prompt, "") for prompt in prompts], template)
    for i, (ids, _) in enumerate(parts):
        if not ids and not lead:
            raise ValueError(f"prompt {i} is empty and nothing stands before a text; nothing can be continued")
        _check_one_bos(lead, ids, f"prompt {i}")
    return [[*lead, *ids] for ids, _ in parts]


def leading_ids(tokenizer: Any, bos: Bos = "auto") -> list[int]:
    """What stands before every text: by default what the tokenizer itself puts there (bos, or nothing).

    Raises:
        ValueError: bos is wanted always and the tokenizer has none.
    """
    if bos == "never":
        return []
    if bos == "always":
        if tokenizer.bos_token_id is None:
            raise ValueError("bos is wanted always and the tokenizer has no bos token; choose auto")
        return [tokenizer.bos_token_id]
    own, plain = list(tokenizer("a")["input_ids"]), list(tokenizer("a", add_special_tokens=False)["input_ids"])
    return own[: next((k for k in range(len(own)) if own[k : k + len(plain)] == plain), 0)]


def stop_ids(tokenizer: Any, template: Template) -> set[int]:
    """Tokens at which a generation ends: eos, and the first control token of the template's end."""
    found = {tokenizer.eos_token_id} - {None}
    controls = _control_tokens(tokenizer)
    match = _pattern(controls).search(template.end or "")
    return found | ({controls[match.group()]} if match else set())


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    """Texts that the tokenizer turns into tokens of control (bos, eos, turns, ...), with their ids."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    listed = {token.content: i for i, token in added.items() if token.special}
    return listed | {text: tokenizer.convert_tokens_to_ids(text) for text in tokenizer.all_special_tokens}


def check_controls(tokenizer: Any, texts: Sequence[str], template: Template, *, per_row: int = 1) -> None:
    """Refuse control tokens inside of rows: they would end a turn in its middle, or begin another.

    Args:
        tokenizer: whose control tokens.
        texts: questions and answers.
        template: says whether they are refused.
        per_row: how many texts a row has, so that the message counts rows.

    Raises:
        ValueError: a text holds one.
    """
    if template.control_tokens == "text":
        return
    pattern = _pattern(_control_tokens(tokenizer))
    found = [(i, match.group()) for i, text in enumerate(texts) if (match := pattern.search(text))]
    if found:
        raise ValueError(
            f"{len({i // per_row for i, _ in found})} rows hold control tokens of the tokenizer in their text (first: "
            f"{found[0][1]!r} in row {found[0][0] // per_row}), which would act as such; drop them, or write them as "
            "text with --control-tokens text (Template(control_tokens='text'))"
        )


def _pattern(controls: dict[str, int]) -> re.Pattern[str]:
    listed = "|".join(re.escape(text) for text in sorted(controls, key=len, reverse=True) if text)
    # Without control tokens nothing may match.
    return re.compile(listed or r"(?!)")


def _owned(template: Template, prompt: str, answer: str) -> _Spans:
    """Which characters of prompt and answer come from a row; the others are the template's."""
    found = []
    for text, written, name, at in (
        (prompt, template.prompt, "{question}", 0),
        (answer, template.answer, "{answer}", 1),
    ):
        before, after = written.split(name)[0], written.split(name)[-1]
        if text and text.startswith(before) and text.endswith(after):
            start = len(prompt) * at
            found.append((start + len(before), start + len(text) - len(after)))
    return found


def _tokens(
    tokenizer: Any, texts: Sequence[str], owned: Sequence[_Spans], template: Template
) -> list[tuple[list[int], _Spans]]:
    asked: dict[str, Any] = {"add_special_tokens": False}
    if getattr(tokenizer, "is_fast", False):
        asked["return_offsets_mapping"] = True
    whole = tokenizer(list(texts), **asked)
    parts = list(zip(whole["input_ids"], whole.get("offset_mapping", [[] for _ in texts]), strict=True))
    if template.control_tokens == "text":
        pattern = _pattern(_control_tokens(tokenizer))
        for i, (text, ranges) in enumerate(zip(texts, owned, strict=True)):
            if any(pattern.search(text[start:stop]) for start, stop in ranges):
                parts[i] = _as_text(tokenizer, text, ranges, pattern)
    return parts


def _as_text(tokenizer: Any, text: str, ranges: _Spans, pattern: re.Pattern[str]) -> tuple[list[int], _Spans]:
    """A text in which control tokens of rows are written in ordinary tokens, and those of the template act."""
    acting = [m for m in pattern.finditer(text) if not any(a < m.end() and m.start() < b for a, b in ranges)]
    ids: list[int] = []
    spans: _Spans = []
    before, place = "", 0
    for start, stop, token in [*((m.start(), m.end(), m.group()) for m in acting), (len(text), len(text), "")]:
        piece = text[place:start]
        lead, cut = _lead(tokenizer, before, pattern.sub("x", piece))
        coded = tokenizer(
            lead + piece, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        ids += coded["input_ids"][cut:]
        spans += [(max(a - len(lead), 0) + place, b - len(lead) + place) for a, b in coded["offset_mapping"][cut:]]
        if token:
            ids.append(tokenizer.convert_tokens_to_ids(token))
            spans.append((start, stop))
        before, place = token, stop
    return ids, spans


def _lead(tokenizer: Any, before: str, piece: str) -> tuple[str, int]:
    """What to put in front of a piece so that it is written as it is behind a control token, and how many tokens go."""
    if not before or not piece:
        return "", 0
    whole = tokenizer(before + piece, add_special_tokens=False)["input_ids"][1:]
    # SentencePiece puts a blank before a text, but not behind a line break.
    for lead in ("", "\n"):
        cut = len(tokenizer(lead, add_special_tokens=False)["input_ids"]) if lead else 0
        if tokenizer(lead + piece, add_special_tokens=False)["input_ids"][cut:] == whole:
            return lead, cut
    raise ValueError(
        f"control tokens cannot be written as text with {type(tokenizer).__name__}: what follows {before!r} is "
        "written as nothing else is; drop the rows that hold control tokens"
    )


def _closing(tokenizer: Any, template: Template, after: list[int]) -> list[int]:
    """The eos behind the text, where the template writes no end of its own; ``after``: ids behind the answer."""
    eos = tokenizer.eos_token_id
    if template.end is not None:
        again = template.convention == "open-unlearning" and eos is not None and after[-1:] != [eos]
        return [eos] if again else []
    if eos in after:
        raise ValueError(
            f"two ends of text: the template already writes {tokenizer.eos_token} after an answer, and eos follows; "
            "remove it from the answer's template, or give it as the template's end (--end)"
        )
    return [eos]


def _check_one_bos(lead: list[int], ids: list[int], what: str) -> None:
    if lead and ids[: len(lead)] == lead:
        raise ValueError(
            f"two bos tokens: {what} already begins with bos; remove it from the text, or choose --bos never"
        )
