"""What a dictionary is trained on and judged by: question rows, or a corpus of texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from probe.checkpoints import check_device, check_usable, file_hash, load_model, load_tokenizer, weights_hash
from probe.data import Batch, encode
from probe.options import Compute, Rows
from probe.readers import read_texts
from probe.study.study import Study
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


def of_rows(study: Study) -> Corpus:
    """Both sides' question rows."""
    split = study.split
    rows = [*split.forget_rows, *split.retain_rows]
    how: dict[str, Any] = {"template": split.template, "max_length": split.max_length}
    shown = encode(study.tokenizer, [row for i, row in enumerate(rows) if i % _JUDGED], **how)
    judged = encode(study.tokenizer, rows[::_JUDGED], **how)
    return Corpus(study.original, shown, judged, study.described(), study.notes)


def of_texts(model: str, path: Path, rows: Rows, compute: Compute) -> Corpus:
    """A corpus, each text in windows of ``rows.max_length`` tokens.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no texts, fewer than two, or a model or device that cannot be used.
    """
    texts = read_texts(path)[: rows.limit]
    if len(texts) < 2:
        raise ValueError(
            f"{path} holds one text; every tenth is left out to judge by, so part it by blank lines, or write JSON "
            "lines of texts"
        )
    tokenizer = load_tokenizer(model)
    shown = encode_windows(tokenizer, [s for i, s in enumerate(texts) if i % _JUDGED], max_length=rows.max_length)
    judged = encode_windows(tokenizer, texts[::_JUDGED], max_length=rows.max_length)
    check_device(compute.device)
    loaded = load_model(model, dtype=getattr(torch, compute.dtype), device=compute.device)
    check_usable(loaded, tokenizer)
    described = {
        "data": {"text": {"texts": len(texts)}},
        "files": {"text": file_hash(path)},
        "weights": {"original": weights_hash(loaded)},
    }
    trial = () if rows.limit is None else (f"a trial run: only the first {rows.limit} texts (--limit)",)
    return Corpus(loaded, shown, judged, described, trial)


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
