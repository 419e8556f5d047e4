"""What methods ask for besides numbers and words: which flags give it, checked before any model is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from probe.checkpoints import load_tokenizer
from probe.data import QA
from probe.datasets import REFUSALS, read_rows
from probe.methods.answers import read_refusals
from probe.methods.method import Method
from probe.unlearning.job import Job


@dataclass(frozen=True)
class Need:
    """Where the value of a recipe's argument comes from.

    Args:
        flags: fields of ``Job`` that give it; without any it follows from model and rows.
        wanted: what the user has to name; empty if it can be done without.
        testbed: whether the testbed supplies it.
    """

    flags: tuple[str, ...] = ()
    wanted: str = ""
    testbed: bool = False


_REFUSALS = Need(("refusals",), "a file of refusals, one a line", testbed=True)
_SAE = Need(("sae", "sae_layer"), "an SAE as sae-lens's save_inference_model writes it, and its block", testbed=True)

NEEDS: Mapping[str, Need] = {
    "original": Need(),
    "tokenizer": Need(),
    "template": Need(),
    "forget_rows": Need(),
    "retain_rows": Need(),
    "special_ids": Need(),
    "score": Need(),
    "refusals": _REFUSALS,
    "retain_refusals": _REFUSALS,
    "refusal_texts": _REFUSALS,
    "alternatives": Need(("alternatives",)),
    "environment": Need(("environment",), "a file of rows of an unrelated task", testbed=True),
    "traces": Need(("traces",), "a file of rows whose answers are reasoning about what is to be forgotten"),
    "labels_K": Need(("labels",), "answers or vocabulary: the tokens that random labels are drawn from"),
    "unlearned": Need(("unlearned",), "a folder of the model after unlearning, as probe unlearn writes it"),
    "layer_scores": Need(
        ("retrained",), "a model trained without the forget rows, to compare truth ratios with", testbed=True
    ),
    "assistant": Need(
        ("assistant",),
        "a folder of a model with the same tokenizer. probe unlearn makes one; for logit_difference, where it has to "
        "know the forget rows and nothing else, and for whp, exchange the files of --forget and --retain there",
    ),
    "assistant_before": Need(("assistant_before",), "a folder of the assistant as it was before", testbed=True),
    "sae": _SAE,
    "site": _SAE,
    "saes": _SAE,
}
FLAGS = tuple(dict.fromkeys(flag for need in NEEDS.values() for flag in need.flags))
# Flags that name a model.
MODELS = ("unlearned", "retrained", "assistant", "assistant_before")


@dataclass(frozen=True, eq=False)
class Files:
    """What is read before any model: a mistake in a file should cost neither the loading of one nor a run."""

    refusals: tuple[str, ...] = ()
    alternatives: list[QA] | None = None
    environment: list[QA] | None = None
    traces: list[QA] | None = None
    tokenizers: Mapping[str, Any] = field(default_factory=dict, repr=False)


def flags(method: Method) -> tuple[str, ...]:
    """The fields of ``Job`` that are there for some methods only, as far as this one asks for them."""
    return tuple(dict.fromkeys(flag for name in method.needs for flag in NEEDS[name].flags))


def shell_facts(method: Method) -> dict[str, str]:
    """What ``probe methods`` says of the shell: flags besides the usual ones, and what is written."""
    asked = ", ".join(map(shown, flags(method)))
    writes = "model" if method.makes in ("model", "mixture") else "answers with and without it"
    return {**({"asks for": asked} if asked else {}), "writes": writes}


def read_files(method: Method, job: Job) -> Files:
    """What the method asks for and the job names, as far as it can be read without a model.

    Raises:
        ValueError: something that is missing, that the method has no use for, or that cannot be used.
        FileNotFoundError: no such file.
    """
    asked = flags(method)
    odd = [flag for flag in FLAGS if getattr(job, flag) is not None and flag not in asked]
    if odd:
        raise ValueError(f"{method.name} takes no {shown(odd[0])}; leave it out")
    for need in (NEEDS[name] for name in method.needs):
        absent = [flag for flag in need.flags if getattr(job, flag) is None]
        if need.wanted and absent and not (need.testbed and job.model is None):
            raise ValueError(f"{' and '.join(map(shown, absent))} missing: {method.name} needs {need.wanted}")
    refusals: tuple[str, ...] = ()
    if "refusals" in asked:
        refusals = REFUSALS if job.refusals is None else read_refusals(job.refusals)
    return Files(
        refusals,
        None if job.alternatives is None else read_rows(job.alternatives),
        None if job.environment is None else read_rows(job.environment),
        None if job.traces is None else read_rows(job.traces),
        {name: load_tokenizer(getattr(job, name)) for name in MODELS if getattr(job, name) is not None},
    )


def shown(flag: str) -> str:
    """A field of ``Job`` as it is written in the shell."""
    return f"--{flag.replace('_', '-')}"
