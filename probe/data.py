"""What a model is shown: question-answer rows, the batches made of them, and the forget/retain split."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from probe.axes import GroupB, MaskBT, TokensBT


@dataclass(frozen=True)
class QA:
    """One question with its answer, in TOFU's layout; empty optional fields mean "not given".

    ``group`` is what must never lie on both sides of a probe's split: the author, say.
    """

    question: str
    answer: str
    paraphrased_question: str = ""
    paraphrased_answer: str = ""
    perturbed_answer: tuple[str, ...] = ()
    group: str = ""

    def paraphrased(self) -> "QA":
        """The same fact asked for in other words; the answer expected is the same."""
        return replace(self, question=self.paraphrased_question or self.question)


@dataclass(frozen=True)
class Template:
    """How a question and its answer become one text. The target starts where ``prompt`` ends."""

    prompt: str = "Question: {question}\nAnswer:"
    answer: str = " {answer}"

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt or "{answer}" not in self.answer:
            raise ValueError("a template needs {question} in its prompt and {answer} in its answer")


@dataclass(frozen=True)
class Batch:
    """Tokens with what is a target among them.

    Args:
        tokens_BT: token ids, padded on the right.
        target_BT: True where a token is a target (predicted from the position before it).
        attention_BT: True where a token is real. Never inferred from ids: padding may share the eos id.
        group_B: integer id of each row's group, for grouped cross-validation.
        prompt_B: length of each row's prompt in tokens, bos included.
        warn: whether to warn of rows without a target; batches made of a batch do not.
        preferred: the other answer of each row, for objectives on pairs of answers; made by ``paired``.

    Raises:
        ValueError: no rows, or no target behind a first token anywhere. Single rows without one are warned about:
            they count in no mean over tokens. Or ``preferred`` has another number of rows.
    """

    tokens_BT: TokensBT
    target_BT: MaskBT
    attention_BT: MaskBT
    group_B: GroupB
    prompt_B: GroupB
    warn: InitVar[bool] = True
    preferred: "Batch | None" = None

    def __post_init__(self, warn: bool) -> None:
        if self.tokens_BT.shape[0] == 0:
            raise ValueError("the batch is empty (0 rows); check the file or the filter that made it")
        if self.preferred is not None and len(self.preferred) != len(self):
            raise ValueError(f"{len(self.preferred)} preferred answers for {len(self)} rows; give one for each row")
        # Nothing predicts a first token, so a target there is none.
        empty = (~self.target_BT[:, 1:].any(1)).nonzero().flatten().tolist()
        if len(empty) == len(self):
            raise ValueError(
                f"none of the {len(self)} rows has a target token; every loss would be undefined. Mark the answer's "
                "tokens as targets, or choose rows that have some"
            )
        if empty and warn:
            listed = ", ".join(map(str, empty[:3])) + (", ..." if len(empty) > 3 else "")
            warnings.warn(
                f"{len(empty)} of {len(self)} rows have no target token (rows {listed}) and count in no mean over "
                "tokens; drop them",
                stacklevel=4,
            )

    def __len__(self) -> int:
        return self.tokens_BT.shape[0]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments for a model's forward; positions are explicit so that padding cannot shift them.

        Real tokens are counted from 0, and padding behind them counts on, as Hugging Face's models count by default.
        """
        behind_BT = self.attention_BT.flip(1).cumsum(1).flip(1) == 0
        position_BT = ((self.attention_BT | behind_BT).long().cumsum(1) - 1).clamp(min=0)
        return {"input_ids": self.tokens_BT, "attention_mask": self.attention_BT.long(), "position_ids": position_BT}

    def select(self, rows: Sequence[int] | Tensor) -> "Batch":
        """The given rows, trimmed to the longest of them."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.tokens_BT.device)
        longest = int(self.attention_BT[index].sum(1).max()) if len(index) else 0
        return Batch(
            self.tokens_BT[index, :longest],
            self.target_BT[index, :longest],
            self.attention_BT[index, :longest],
            self.group_B[index],
            self.prompt_B[index],
            warn=False,
            preferred=self.preferred and self.preferred.select(index),
        )

    def chunks(self, size: int) -> Iterator["Batch"]:
        """Consecutive pieces of at most ``size`` rows, each trimmed to its longest row."""
        if size < 1:
            raise ValueError(f"chunk size must be at least 1, got {size}")
        for start in range(0, len(self), size):
            yield self.select(range(start, min(start + size, len(self))))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            self.tokens_BT.to(device),
            self.target_BT.to(device),
            self.attention_BT.to(device),
            self.group_B.to(device),
            self.prompt_B.to(device),
            warn=False,
            preferred=self.preferred and self.preferred.to(device),
        )


def paired(preferred: Batch, dispreferred: Batch, *, same_prompt: bool = True) -> Batch:
    """``dispreferred`` with the answer of ``preferred`` beside each row, so that both are drawn together.

    For rows with several alternatives repeat the row once for each.

    Args:
        preferred: answers to move towards.
        dispreferred: answers to move away from, in the same order of rows.
        same_prompt: whether both answer the same question, row by row; False pairs rows of different questions.

    Raises:
        ValueError: another number of rows, prompts that differ, or a batch that is paired already.
    """
    if preferred.preferred is not None or dispreferred.preferred is not None:
        raise ValueError("one of the batches is paired already; pair the plain ones")
    both = replace(dispreferred, warn=False, preferred=preferred)
    for i in range(len(both)) if same_prompt else ():
        # A token that straddles prompt and answer belongs to the answer, so lengths may differ by it.
        n = int(min(preferred.prompt_B[i], dispreferred.prompt_B[i]))
        if not torch.equal(preferred.tokens_BT[i, :n], dispreferred.tokens_BT[i, :n]):
            raise ValueError(
                f"row {i} has another prompt among the preferred answers; give both in the same order, or pass "
                "same_prompt=False"
            )
    return both


@dataclass(frozen=True)
class Split:
    """What must be forgotten and what must not, as batches and as the rows they were made from."""

    forget: Batch
    retain: Batch
    forget_rows: tuple[QA, ...] = ()
    retain_rows: tuple[QA, ...] = ()
    template: Template = Template()
    max_length: int = 256


def make_split(
    tokenizer: Any,
    forget: Sequence[QA],
    retain: Sequence[QA],
    *,
    template: Template = Template(),
    max_length: int = 256,
    allow_overlap: bool = False,
) -> Split:
    """Tokenise both sides.

    Raises:
        ValueError: a side is empty, or rows lie on both sides and ``allow_overlap`` is not set.
    """
    for name, rows in (("forget", forget), ("retain", retain)):
        if not rows:
            raise ValueError(f"{name} set is empty (0 rows); check the file or the filter that made it")
    shared = sorted({(r.question, r.answer) for r in forget} & {(r.question, r.answer) for r in retain})
    if shared and not allow_overlap:
        examples = "; ".join(q for q, _ in shared[:3])
        raise ValueError(
            f"{len(shared)} rows are in both the forget and the retain set ({examples}); "
            "remove them from one, or pass allow_overlap=True"
        )
    return Split(
        encode(tokenizer, forget, template=template, max_length=max_length),
        encode(tokenizer, retain, template=template, max_length=max_length),
        tuple(forget),
        tuple(retain),
        template,
        max_length,
    )


def encode(tokenizer: Any, rows: Sequence[QA], *, template: Template = Template(), max_length: int = 256) -> Batch:
    """Tokenise prompt and answer as one text; targets are the answer's tokens and one eos.

    The boundary is found through the tokenizer's offsets, not by tokenising the prompt apart, which splits words
    differently. The tokenizer is not altered: a missing pad token is replaced by id 0 behind a mask.

    Raises:
        ValueError: no rows, a tokenizer without offsets or eos, or rows that lose their whole answer at ``max_length``.
    """
    if not rows:
        raise ValueError("no rows to encode (0 given); check the file or the filter that made them")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("a fast tokenizer is needed: the answer's first token is found through character offsets")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos token; set tokenizer.eos_token before encoding")
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prompts = [template.prompt.format(question=row.question) for row in rows]
    answers = [template.answer.format(answer=row.answer) for row in rows]
    coded = tokenizer(
        [p + a for p, a in zip(prompts, answers, strict=True)], add_special_tokens=False, return_offsets_mapping=True
    )
    sequences: list[list[int]] = []
    prompt_lengths: list[int] = []
    for prompt, ids, offsets in zip(prompts, coded["input_ids"], coded["offset_mapping"], strict=True):
        # A token that straddles the boundary belongs to the answer: it cannot be predicted from the prompt alone.
        n_prompt = sum(end <= len(prompt) for _, end in offsets)
        if bos and ids[:1] == bos:
            raise ValueError("two bos tokens: the template's text already begins with bos; remove it from the template")
        sequences.append([*bos, *ids, tokenizer.eos_token_id])
        prompt_lengths.append(len(bos) + n_prompt)
    _check_lengths(sequences, prompt_lengths, max_length)
    return _padded([s[:max_length] for s in sequences], prompt_lengths, rows, tokenizer.pad_token_id or 0)


def encode_text(tokenizer: Any, texts: Sequence[str], *, max_length: int = 256) -> Batch:
    """Plain text: every token after the first is a target.

    Texts of fewer than two tokens are left out, with a warning that counts them.

    Raises:
        ValueError: no text has two tokens, or ``max_length`` leaves nothing to predict.
    """
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, one token to read and one to predict, got {max_length}")
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []
    short = [i for i, s in enumerate(ids) if len(s) < 2]
    if len(short) == len(ids):
        raise ValueError(f"none of the {len(texts)} texts has two tokens; nothing could be predicted")
    if short:
        warnings.warn(
            f"{len(short)} of {len(texts)} texts have fewer than two tokens and are left out (first: text {short[0]})",
            stacklevel=2,
        )
    sequences = [(bos + s)[:max_length] for s in ids if len(s) > 1]
    return _padded(sequences, [1] * len(sequences), [QA("", "")] * len(sequences), tokenizer.pad_token_id or 0)


def _check_lengths(sequences: list[list[int]], prompt_lengths: list[int], max_length: int) -> None:
    lost = [i for i, n in enumerate(prompt_lengths) if n >= max_length]
    if lost:
        raise ValueError(
            f"{len(lost)} rows lose their whole answer at max_length {max_length} (the first is row {lost[0]}, whose "
            f"prompt has {prompt_lengths[lost[0]]} tokens); raise max_length or drop them"
        )
    cut = sum(len(s) > max_length for s in sequences)
    if cut:
        warnings.warn(f"{cut} of {len(sequences)} rows are cut at max_length {max_length}", stacklevel=3)


def _padded(sequences: list[list[int]], prompt_lengths: list[int], rows: Sequence[QA], pad_id: int) -> Batch:
    longest = max(len(s) for s in sequences)
    tokens_BT = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    attention_BT = torch.zeros(len(sequences), longest, dtype=torch.bool)
    target_BT = torch.zeros_like(attention_BT)
    for i, (sequence, start) in enumerate(zip(sequences, prompt_lengths, strict=True)):
        tokens_BT[i, : len(sequence)] = torch.tensor(sequence)
        attention_BT[i, : len(sequence)] = True
        target_BT[i, max(start, 1) : len(sequence)] = True
    # Rows without a group are groups of their own.
    names = [row.group or f"\0{i}" for i, row in enumerate(rows)]
    numbers = {name: k for k, name in enumerate(dict.fromkeys(names))}
    group_B = torch.tensor([numbers[name] for name in names])
    return Batch(tokens_BT, target_BT, attention_BT, group_B, torch.tensor(prompt_lengths))
