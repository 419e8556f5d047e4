"""What a dictionary is trained on and judged by: question rows, or a corpus of texts."""

from dataclasses import dataclass, field
from typing import Any

import torch

from probe.checkpoints import check_device, check_model, file_hash, load_model, load_tokenizer
from probe.commands.data import Data
from probe.commands.opening import opened, opened_testbed
from probe.data import Batch, encode, encode_windows
from probe.readers import read_texts
from probe.sae.job import TrainJob

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
    check_model(model, tokenizer)
    described = {"data": {"text": {"texts": len(texts)}}, "files": {"text": file_hash(job.text)}}
    trial = () if data.rows is None else (f"a trial run: only the first {data.rows} texts (--rows)",)
    return Corpus(model, shown, judged, described, trial)
