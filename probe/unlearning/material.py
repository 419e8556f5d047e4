"""The model to be unlearned, its rows, and what is made of them and of the named files for one method."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from probe.checkpoints import check_device, check_different, check_model, check_tokenizer, load_model, load_tokenizer
from probe.commands.templates import Chosen, chosen
from probe.context import check_rows
from probe.data import QA, Batch, Split, Template, encode, make_split
from probe.datasets import read_rows
from probe.dictionaries.folders import load_dictionary
from probe.methods.answers import needed_answers
from probe.methods.method import Method
from probe.sites import Site
from probe.testbed.bed import Bed, load
from probe.unlearning.job import Job
from probe.unlearning.needs import Files, shown
from probe.unlearning.scores import layer_scores, retention


@dataclass(frozen=True, eq=False)
class Material:
    """One model with its data.

    Args:
        model: the model before unlearning; training changes it.
        tokenizer: of the model.
        split: forget and retain rows.
        bed: the testbed, if it is the testbed's model.
        template: how rows became texts, and where that is from.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    split: Split = field(repr=False)
    bed: Bed | None = None
    template: Chosen = field(default_factory=lambda: Chosen(Template(), "plain"))


def material(job: Job) -> Material:
    """The user's model and rows, or the testbed's.

    Raises:
        ValueError: a model, rows or a device that cannot be used.
        FileNotFoundError: no such file.
    """
    if job.model is None:
        check_device(job.device, spread=False)
        bed = load()
        return Material(bed.original.to(job.device), bed.tokenizer, bed.split, bed)
    assert job.forget is not None
    assert job.retain is not None
    # Rows are read first: a mistake in them should not cost the loading of a model.
    forget, retain = read_rows(job.forget), read_rows(job.retain)
    tokenizer = load_tokenizer(job.model)
    template = chosen(job, tokenizer, [job.model])
    split = make_split(tokenizer, forget, retain, template=template.template, max_length=job.max_length)
    check_device(job.device)
    model = _loaded(job.model, job, tokenizer)
    check_rows(model, split.forget, split.retain)
    return Material(model, tokenizer, split, template=template)


def supplied(method: Method, job: Job, at: Material, files: Files) -> dict[str, Any]:
    """The arguments that the recipe needs, by name.

    Raises:
        ValueError: a model, an SAE or rows that do not belong to the model or do not allow what is asked for.
    """
    split, tokenizer = at.split, at.tokenizer
    other = cache(lambda name: _other(name, job, at, files))
    dictionary = cache(lambda: _dictionary(job, at))
    makers: dict[str, Callable[[], Any]] = {
        "original": lambda: copy.deepcopy(at.model).requires_grad_(False),
        "tokenizer": lambda: tokenizer,
        "template": lambda: split.template,
        "forget_rows": lambda: split.forget_rows,
        "retain_rows": lambda: split.retain_rows,
        "special_ids": lambda: tuple(tokenizer.all_special_ids),
        "refusal_texts": lambda: files.refusals,
        "environment": lambda: _encoded(at, files.environment) if files.environment else _world(at),
        "traces": lambda: _encoded(at, files.traces or ()),
        "labels_K": lambda: label_tokens(tokenizer, split, of_answers=job.labels == "answers"),
        "unlearned": lambda: other("unlearned"),
        "assistant": lambda: other("assistant"),
        "assistant_before": lambda: other("assistant_before"),
        "score": lambda: retention(split.retain, job.batch_size or 64),
        "layer_scores": lambda: partial(
            layer_scores, at.model, other("unlearned"), other("retrained"), tokenizer, split, job
        ),
        "sae": lambda: dictionary()[0],
        "site": lambda: dictionary()[1],
        "saes": lambda: {dictionary()[1]: dictionary()[0]},
    }
    answers = needed_answers(method.needs, tokenizer, split, files.refusals, files.alternatives, seed=job.seed)
    return {**answers, **{name: makers[name]() for name in method.needs if name not in answers}}


def label_tokens(tokenizer: Any, split: Split, *, of_answers: bool) -> Int[Tensor, " K"]:
    """The classes of a language model: all tokens of both sides' answers, or of the vocabulary, but special ones.

    Raises:
        ValueError: answers that hold special tokens only.
    """
    ids = set(tokenizer.get_vocab().values())
    if of_answers:
        ids = {int(token) for side in (split.forget, split.retain) for token in side.tokens_BT[side.target_BT].unique()}
    ids -= set(tokenizer.all_special_ids)
    if not ids:
        raise ValueError("the answers hold special tokens only, so that no label can be drawn; check the rows")
    return torch.tensor(sorted(ids))


def _encoded(at: Material, rows: Sequence[QA]) -> Batch:
    return encode(at.tokenizer, rows, template=at.split.template, max_length=at.split.max_length)


def _world(at: Material) -> Batch:
    assert at.bed is not None
    return at.bed.world_batch


def _other(name: str, job: Job, at: Material, files: Files) -> nn.Module:
    """The second model of that name, which must understand the same tokens."""
    folder = getattr(job, name)
    if folder is None:
        assert at.bed is not None
        bed_model: nn.Module = at.bed.retrained.to(job.device) if name == "retrained" else at.model
        return bed_model
    try:
        check_tokenizer(at.tokenizer, files.tokenizers[name])
    except ValueError as error:
        raise ValueError(f"{shown(name)} {folder} does not go with the model: {error}") from None
    model: nn.Module = _loaded(folder, job, at.tokenizer).requires_grad_(False)
    if name in ("unlearned", "retrained"):
        check_different(at.model, model, ("original", name))
    return model


def _loaded(name: str, job: Job, tokenizer: Any) -> Any:
    model = load_model(name, dtype=getattr(torch, job.dtype), device=job.device)
    check_model(model, tokenizer)
    return model


def _dictionary(job: Job, at: Material) -> tuple[Any, Site]:
    if job.sae is None or job.sae_layer is None:
        assert at.bed is not None
        return at.bed.sae.to(job.device), at.bed.sae_site
    return load_dictionary(job.sae, device=job.device), Site(job.sae_layer)
