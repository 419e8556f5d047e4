"""The model to be unlearned, its rows, and what is made of them and of the named files for one method."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from probe.checkpoints import check_device, check_different, check_tokenizer, check_usable, load_model, load_tokenizer
from probe.commands.templates import Chosen, chosen
from probe.context import check_rows
from probe.data import Split, Template, make_split
from probe.datasets import read_rows
from probe.dictionaries.folders import load_dictionary
from probe.methods import supplies
from probe.methods.method import Method
from probe.methods.supplies import handed_in
from probe.sites import Site
from probe.testbed.bed import Bed, load
from probe.unlearning.job import Job
from probe.unlearning.needs import Files, shown
from probe.unlearning.scores import layer_scores


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
    other = cache(lambda name: _other(name, job, at, files))
    dictionary = cache(lambda: _dictionary(job, at))
    world = None if at.bed is None else at.bed.world_batch
    makers: dict[str, Callable[[], Any]] = {
        "original": lambda: None,
        "score": lambda: None,
        "refusals": lambda: files.refusals,
        "alternatives": lambda: files.alternatives,
        "environment": lambda: files.environment or world,
        "traces": lambda: files.traces,
        "labels": lambda: job.labels,
        "unlearned": lambda: other("unlearned"),
        "assistant": lambda: other("assistant"),
        "assistant_before": lambda: other("assistant_before"),
        "layer_scores": lambda: partial(
            layer_scores, at.model, other("unlearned"), other("retrained"), at.tokenizer, at.split, job
        ),
        "sae": lambda: dictionary()[0],
        "site": lambda: dictionary()[1],
    }
    values = {name: makers[name]() for name in handed_in(method)}
    return supplies.supplied(
        method, at.model, at.split, at.tokenizer, values, seed=job.seed, batch_size=job.batch_size or 64
    )


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
    if name == "retrained":
        check_different(at.model, model, ("original", name))
    return model


def _loaded(name: str, job: Job, tokenizer: Any) -> Any:
    model = load_model(name, dtype=getattr(torch, job.dtype), device=job.device)
    check_usable(model, tokenizer)
    return model


def _dictionary(job: Job, at: Material) -> tuple[Any, Site]:
    if job.sae is None or job.sae_layer is None:
        assert at.bed is not None
        return at.bed.sae.to(job.device), at.bed.sae_site
    return load_dictionary(job.sae, device=job.device), Site(job.sae_layer)
