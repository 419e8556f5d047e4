"""What a model is shown: question-answer rows, the batches made of them, and the forget/retain split."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from probe.axes import GroupB, MaskBT, TokensBT
from probe.questions import QA, check_apart, warn_repeated
from probe.templates.coding import check_controls, coded, leading_ids
from probe.templates.template import Bos, Template


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
        end_B: how many of each row's last targets end its answer (eos, or a turn's end); None: one each.
        unseen_BT: True where a real token is not attended to; None: nowhere (``Template.convention``).

    Raises:
        ValueError: no rows, or no target behind a first token anywhere. Single rows without one are warned about:
            they count in no mean over tokens. Or ``preferred`` has another number of rows.

    >>> batch = probe.encode(s.tokenizer, s.split.forget_rows[:4])
    >>> tuple(batch.tokens_BT.shape), len(batch), len(batch.select([0, 2]))
    ((4, 26), 4, 2)
    """

    tokens_BT: TokensBT
    target_BT: MaskBT
    attention_BT: MaskBT
    group_B: GroupB
    prompt_B: GroupB
    warn: InitVar[bool] = True
    preferred: "Batch | None" = None
    end_B: GroupB | None = None
    unseen_BT: MaskBT | None = None

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

    def __repr__(self) -> str:
        n_targets = int(self.target_BT[:, 1:].sum())
        return f"Batch({len(self)} rows of at most {self.tokens_BT.shape[1]} tokens, {n_targets} of them targets)"

    @property
    def ending_BT(self) -> MaskBT:
        """True where a target ends its row's answer: eos, or a chat's end of turn."""
        after_BT = self.target_BT.flip(1).long().cumsum(1).flip(1)
        end_B = torch.ones_like(self.prompt_B) if self.end_B is None else self.end_B
        return self.target_BT & (after_BT <= end_B[:, None])

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments for a model's forward; positions are explicit so that padding cannot shift them.

        Real tokens are counted from 0, and padding behind them counts on, as Hugging Face's models count by default.
        """
        behind_BT = self.attention_BT.flip(1).cumsum(1).flip(1) == 0
        position_BT = ((self.attention_BT | behind_BT).long().cumsum(1) - 1).clamp(min=0)
        seen_BT = self.attention_BT if self.unseen_BT is None else self.attention_BT & ~self.unseen_BT
        return {"input_ids": self.tokens_BT, "attention_mask": seen_BT.long(), "position_ids": position_BT}

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
            end_B=None if self.end_B is None else self.end_B[index],
            unseen_BT=None if self.unseen_BT is None else self.unseen_BT[index, :longest],
        )

    def chunks(self, batch_size: int) -> Iterator["Batch"]:
        """Consecutive pieces of at most ``batch_size`` rows, each trimmed to its longest row."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        for start in range(0, len(self), batch_size):
            yield self.select(range(start, min(start + batch_size, len(self))))

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
            end_B=None if self.end_B is None else self.end_B.to(device),
            unseen_BT=None if self.unseen_BT is None else self.unseen_BT.to(device),
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

    >>> refusals = probe.encode(s.tokenizer, probe.idk_rows(s.split.forget_rows, seed=0))
    >>> batch = probe.paired(refusals, s.split.forget)
    >>> len(batch), len(batch.preferred)
    (20, 20)
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
    """What must be forgotten and what must not, as batches and as the rows they were made from.

    >>> len(s.split.forget), len(s.split.retain), s.split.forget_rows[0].question
    (20, 20, 'In which town was Wendel Upwood born?')
    """

    forget: Batch
    retain: Batch
    forget_rows: tuple[QA, ...] = ()
    retain_rows: tuple[QA, ...] = ()
    template: Template = field(default_factory=Template)
    max_length: int = 256

    def __repr__(self) -> str:
        return f"Split({len(self.forget)} forget and {len(self.retain)} retain rows)"


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

    >>> split = probe.make_split(s.tokenizer, s.split.forget_rows[:4], s.split.retain_rows[:8])
    >>> len(split.forget), len(split.retain)
    (4, 8)
    """
    for name, rows in (("forget", forget), ("retain", retain)):
        if not rows:
            raise ValueError(f"{name} set is empty (0 rows); check the file or the filter that made it")
        warn_repeated(rows, name)
    check_apart(forget, retain, allow_overlap=allow_overlap)
    return Split(
        encode(tokenizer, forget, template=template, max_length=max_length),
        encode(tokenizer, retain, template=template, max_length=max_length),
        tuple(forget),
        tuple(retain),
        template,
        max_length,
    )


def encode(tokenizer: Any, rows: Sequence[QA], *, template: Template = Template(), max_length: int = 256) -> Batch:
    """Tokenise prompt and answer as one text (``probe.templates.coding.coded``); targets are the answer and its end.

    The tokenizer is not altered: a missing pad token is replaced by id 0 behind a mask.

    Raises:
        ValueError: no rows, what ``coded`` refuses, or rows that lose their whole answer at ``max_length``.

    >>> batch = probe.encode(s.tokenizer, [probe.QA("Who wrote it?", "Ann did.")])
    >>> s.tokenizer.decode(batch.tokens_BT[batch.target_BT])
    ' Ann did.</s>'
    """
    if not rows:
        raise ValueError("no rows to encode (0 given); check the file or the filter that made them")
    texts = coded(tokenizer, [(row.question, row.answer) for row in rows], template)
    _check_lengths([text.ids for text in texts], [text.prompt for text in texts], max_length)
    batch = _padded([t.ids[:max_length] for t in texts], [t.prompt for t in texts], rows, tokenizer.pad_token_id or 0)
    end_B = torch.tensor([max(0, t.end - max(0, len(t.ids) - max_length)) for t in texts])
    unseen_BT = None
    if template.convention == "open-unlearning" and tokenizer.pad_token_id is not None:
        unseen_BT = batch.attention_BT & (batch.tokens_BT == tokenizer.pad_token_id)
    return replace(batch, warn=False, end_B=end_B, unseen_BT=unseen_BT)


def encode_text(tokenizer: Any, texts: Sequence[str], *, max_length: int = 256, bos: Bos = "auto") -> Batch:
    """Plain text: every token after the first is a target.

    Texts of fewer than two tokens are left out, with a warning that counts them.

    Args:
        tokenizer: not altered.
        texts: each a row.
        max_length: longest text in tokens.
        bos: what stands before a text; by default what the tokenizer itself puts there.

    Raises:
        ValueError: no text has two tokens, ``max_length`` leaves nothing to predict, or a text holds control tokens.

    >>> batch = probe.encode_text(s.tokenizer, ["Any text at all."])
    >>> int(batch.target_BT.sum()) == batch.tokens_BT.shape[1] - 1
    True
    """
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, one token to read and one to predict, got {max_length}")
    check_controls(tokenizer, texts, Template())
    lead = leading_ids(tokenizer, bos)
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []
    short = [i for i, s in enumerate(ids) if len(s) < 2]
    if len(short) == len(ids):
        raise ValueError(f"none of the {len(texts)} texts has two tokens; nothing could be predicted")
    if short:
        warnings.warn(
            f"{len(short)} of {len(texts)} texts have fewer than two tokens and are left out (first: text {short[0]})",
            stacklevel=2,
        )
    sequences = [(lead + s)[:max_length] for s in ids if len(s) > 1]
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
