"""What some methods ask for besides model and rows: files, other models and a dictionary, as options name them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from probe.checkpoints import check_different, check_tokenizer, check_usable, load_model, load_tokenizer, weights_hash
from probe.data import QA
from probe.datasets import REFUSALS, read_rows
from probe.dictionaries.autoencoder import Autoencoder, dictionary_hash
from probe.dictionaries.folders import load_dictionary
from probe.methods.answers import read_refusals
from probe.methods.method import Method
from probe.methods.supplies import HANDED_IN, handed_in
from probe.sites import Site
from probe.study.layer_scores import layer_scores
from probe.study.study import Study

# By what a method may be handed, the options that name it; the rest follows from model and rows.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "refusals": ("refusals",),
    "alternatives": ("alternatives",),
    "environment": ("environment",),
    "traces": ("traces",),
    "labels": ("labels",),
    "unlearned": ("unlearned",),
    "layer_scores": ("retrained",),
    "assistant": ("assistant",),
    "assistant_before": ("assistant_before",),
    "sae": ("sae", "sae_layer"),
}
# What else the shell's user has to know.
_HINTS = {
    "refusals": ": a file, one a line",
    "labels": ": answers or vocabulary",
    "unlearned": "; probe unlearn writes its folder",
    "layer_scores": ", made with the help of a model trained without the forget rows",
    "assistant": ". probe unlearn makes one; for logit_difference, where it has to know the forget rows and nothing "
    "else, and for whp, exchange the files of --forget and --retain there",
}
# What can be done without, and what the testbed supplies.
_OPTIONAL = ("alternatives",)
_TESTBED = ("refusals", "environment", "layer_scores", "assistant_before", "sae")
_MODELS = ("unlearned", "retrained", "assistant", "assistant_before")


@dataclass(frozen=True, eq=False)
class Files:
    """What is read before any model: a mistake in a file should cost neither the loading of one nor a run."""

    refusals: tuple[str, ...] = ()
    alternatives: list[QA] | None = None
    environment: list[QA] | None = None
    traces: list[QA] | None = None
    tokenizers: Mapping[str, Any] = field(default_factory=dict, repr=False)


def special_options(method: Method) -> tuple[str, ...]:
    """The options that are there for some methods only, as far as this one asks for them."""
    return tuple(option for name in handed_in(method) for option in _OPTIONS.get(name, ()))


def shell_facts(method: Method) -> dict[str, str]:
    """What ``probe methods`` says of the shell: options besides the usual ones, and what is written."""
    asked = ", ".join(map(_flag, special_options(method)))
    writes = "model" if method.makes in ("model", "mixture") else "answers with and without it"
    return {**({"asks for": asked} if asked else {}), "writes": writes}


def read_files(method: Method, options: Any) -> Files:
    """What the method asks for and the options name, as far as it can be read without a model.

    Raises:
        ValueError: something that is missing, that the method has no use for, or that cannot be used.
        FileNotFoundError: no such file.
    """
    asked = special_options(method)
    every = {option for names in _OPTIONS.values() for option in names}
    odd = [option for option in sorted(every) if _value(options, option) is not None and option not in asked]
    if odd:
        raise ValueError(f"{method.name} takes no {_flag(odd[0])}; leave it out")
    for name in handed_in(method):
        absent = [option for option in _OPTIONS.get(name, ()) if _value(options, option) is None]
        if absent and name not in _OPTIONAL and not (name in _TESTBED and options.original is None):
            wanted = f"{HANDED_IN[name]}{_HINTS.get(name, '')}"
            raise ValueError(f"{' and '.join(map(_flag, absent))} missing: {method.name} needs {wanted}")
    refusals: tuple[str, ...] = ()
    if "refusals" in asked:
        refusals = REFUSALS if options.refusals is None else read_refusals(options.refusals)
    return Files(
        refusals,
        None if options.alternatives is None else read_rows(options.alternatives),
        None if options.environment is None else read_rows(options.environment),
        None if options.traces is None else read_rows(options.traces),
        {name: load_tokenizer(path) for name in _MODELS if (path := _value(options, name)) is not None},
    )


def supplies(method: Method, options: Any, study: Study, files: Files) -> dict[str, Any]:
    """What the method may be handed (``probe.methods.supplies.HANDED_IN``), by name.

    Raises:
        ValueError: a model or an SAE that does not belong to the original.
    """
    other = partial(_other, options=options, study=study, files=files)
    makers: dict[str, Callable[[], Any]] = {
        "refusals": lambda: files.refusals,
        "alternatives": lambda: files.alternatives,
        "environment": lambda: files.environment or study.world,
        "traces": lambda: files.traces,
        "labels": lambda: options.labels,
        "assistant": lambda: other("assistant"),
        "assistant_before": lambda: other("assistant_before"),
        "sae": lambda: _dictionary(options, study),
        "site": lambda: study.sae_site if options.sae_layer is None else Site(options.sae_layer),
    }
    found = {name: makers[name]() for name in handed_in(method) if name in makers}
    if "unlearned" in handed_in(method):
        found["unlearned"] = other("unlearned")
    if "layer_scores" in handed_in(method):
        size, new = options.rows_per_pass, options.max_new_tokens or 40
        retrained = other("retrained")
        found["layer_scores"] = partial(layer_scores, study, found["unlearned"], retrained, size, new)
    return found


def _other(name: str, options: Any, study: Study, files: Files) -> Any:
    """The second model of that name, which must understand the same tokens."""
    folder = _value(options, name)
    if folder is None:
        return study.retrained if name == "retrained" else study.original
    try:
        check_tokenizer(study.tokenizer, files.tokenizers[name])
    except ValueError as error:
        raise ValueError(f"{_flag(name)} {folder} does not go with the model: {error}") from None
    model = load_model(folder, dtype=getattr(torch, options.dtype), device=options.device).requires_grad_(False)
    check_usable(model, study.tokenizer)
    if name == "retrained":
        check_different(study.original, model, ("original", name))
    return model


def _value(options: Any, name: str) -> Any:
    return options.one_unlearned if name == "unlearned" else getattr(options, name)


def _dictionary(options: Any, study: Study) -> Any:
    if options.sae is None:
        return study.sae
    return load_dictionary(options.sae, sae_id=options.sae_id, device=options.device)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def hash_of(value: Any) -> Any:
    """The hash of a second model or of an SAE; nothing for other values."""
    if isinstance(value, Autoencoder):
        return dictionary_hash(value)
    return weights_hash(value) if isinstance(value, nn.Module) else None
