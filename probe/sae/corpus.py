"""What a dictionary is trained on and judged by: question rows, or a corpus of texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from probe.checkpoints import check_device, check_usable, file_hash, load_model, load_tokenizer
from probe.commands.data import Data
from probe.commands.opening import opened, opened_testbed
from probe.data import Batch, encode
from probe.readers import read_texts
from probe.sae.job import TrainJob
from probe.templates.coding import leading_ids

# Every so many-th row or text is left out of training, to judge by.
_JUDGED = 10


@dataclass(frozen=True, eq=False)
class Corpus:
    """A model and what it is shown.

    Args:
        model: whose activations are taken.
        shown: what the dictionary is trained on.
        judged: what it is judged by; none of it is trained on.
        described: what the manifest says of it.
        notes: what the result must say of itself.
    """

    model: Any = field(repr=False)
    shown: Batch = field(repr=False)
    judged: Batch = field(repr=False)
    described: dict[str, Any]
    notes: tuple[str, ...] = ()


def of_rows(job: TrainJob, data: Data) -> Corpus:
    """Both sides' question rows, of an own model or of the testbed.

    Raises:
        FileNotFoundError, ValueError: as ``opened``.
    """
    at = opened_testbed(data) if job.model is None else opened(data, {"model": job.model})
    rows = [*at.split.forget_rows, *at.split.retain_rows]
    coded: dict[str, Any] = {"template": at.split.template, "max_length": at.split.max_length}
    shown = encode(at.tokenizer, [row for i, row in enumerate(rows) if i % _JUDGED], **coded)
    judged = encode(at.tokenizer, rows[::_JUDGED], **coded)
    (model,) = at.models.values()
    return Corpus(model, shown, judged, at.described(data), at.notes)


def of_texts(job: TrainJob, data: Data) -> Corpus:
    """A corpus, each text in windows of ``data.max_length`` tokens.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no texts, fewer than two, or a model or device that cannot be used.
    """
    assert job.model is not None
    assert job.text is not None
    texts = read_texts(job.text)[: data.rows]
    if len(texts) < 2:
        raise ValueError(
            f"{job.text} holds one text; every tenth is left out to judge by, so part it by blank lines, or write JSON "
            "lines of texts"
        )
    tokenizer = load_tokenizer(job.model)
    shown = encode_windows(tokenizer, [s for i, s in enumerate(texts) if i % _JUDGED], max_length=data.max_length)
    judged = encode_windows(tokenizer, texts[::_JUDGED], max_length=data.max_length)
    check_device(data.device)
    model = load_model(job.model, dtype=getattr(torch, data.dtype), device=data.device)
    check_usable(model, tokenizer)
    described = {"data": {"text": {"texts": len(texts)}}, "files": {"text": file_hash(job.text)}}
    trial = () if data.rows is None else (f"a trial run: only the first {data.rows} texts (--rows)",)
    return Corpus(model, shown, judged, described, trial)


def encode_windows(tokenizer: Any, texts: Sequence[str], *, max_length: int = 256) -> Batch:
    """Plain text of any length, nothing cut off: each text in windows of ``max_length`` tokens, bos before each.

    Every token after the first is a target. A last window of a single token is left out; so is a text of one token.

    Raises:
        ValueError: no text has two tokens, or ``max_length`` has no room for two besides bos.
    """
    bos = leading_ids(tokenizer)
    room = max_length - len(bos)
    if room < 2:
        raise ValueError(f"max_length must leave room for two tokens besides bos, got {max_length}")
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []
    windows = [torch.tensor(bos + s[start : start + room]) for s in ids for start in range(0, len(s) - 1, room)]
    if not windows:
        raise ValueError(f"none of the {len(texts)} texts has two tokens; nothing could be predicted")
    tokens_BT = pad_sequence(windows, batch_first=True, padding_value=tokenizer.pad_token_id or 0)
    attention_BT = pad_sequence([torch.ones(len(w), dtype=torch.bool) for w in windows], batch_first=True)
    target_BT = attention_BT.clone()
    target_BT[:, 0] = False
    return Batch(
        tokens_BT, target_BT, attention_BT, torch.arange(len(windows)), torch.ones(len(windows), dtype=torch.long)
    )
