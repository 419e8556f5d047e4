"""What a run needs before its first step: which weights, which shares, and what it must refuse."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from probe.checkpoints import weights_hash
from probe.modes import check_loaded
from probe.quantised import is_coded
from probe.sites import compiled, matching_parameters
from probe.train.averaging import Averaging
from probe.train.configuration import configuration_hash, identity_of
from probe.train.sharding import is_sharded, site_in, whole
from probe.train.step import Stepping, plain_gradient
from probe.train.terms import Count, Schedule, Term
from probe.weights import check_present

Stop = Callable[[int, dict[str, float]], bool]

# Kinds of launch in which every process holds the whole model.
_REPLICATED = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU")


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """Everything that stays the same from step to step."""

    model: nn.Module = field(repr=False)
    trained: dict[str, nn.Parameter] = field(repr=False)
    terms: tuple[Term, ...]
    names: tuple[str, ...]
    rows: tuple[int, ...]
    steps: int
    lr: float
    seed: int
    schedule: Schedule
    clip: float | None
    stepping: Stepping
    accumulate: int
    autocast: torch.dtype | None
    averaging: Averaging | None
    accelerator: Any
    weight_decay: float = 0.0
    decay_all: bool = False
    replacement: bool = False

    @property
    def processes(self) -> int:
        """How many processes share each batch."""
        return n_processes(self.accelerator)


def trained_parameters(model: nn.Module, parameters: str) -> dict[str, nn.Parameter]:
    """Parameters whose names match, once each.

    Raises:
        ValueError: weights that are not loaded or quantised, no regular expression, no match, or only one
            name of tied weights matches.
    """
    check_loaded(model)
    check_present(model)
    _check_ties(model, parameters)
    trained = matching_parameters(model, parameters)
    coded = [name for name, p in trained.items() if is_coded(p) or not p.is_floating_point()]
    if coded:
        raise ValueError(
            f"{len(coded)} of the {len(trained)} parameters to be trained are quantised and have no gradient (the "
            f"first is {coded[0]}); load the model without a quantization_config, or name others in parameters"
        )
    return trained


def _check_ties(model: nn.Module, parameters: str) -> None:
    """Refuse to train a weight under one of its names while another name of it is not meant."""
    wanted = compiled(parameters)
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    for tied in names.values():
        matched = [name for name in tied if wanted.search(name)]
        if matched and len(matched) < len(tied):
            others = ", ".join(name for name in tied if name not in matched)
            raise ValueError(
                f"pattern {parameters!r} matches {matched[0]}, which is tied to {others}: training one trains the "
                "other; let the pattern match all of these names, or untie them"
            )


def n_processes(accelerator: Any) -> int:
    """How many processes share each batch."""
    return 1 if accelerator is None else accelerator.num_processes


def counted_terms(terms: Sequence[Term], mean_over: Mapping[str, Count]) -> tuple[Term, ...]:
    """The terms with their counts, those in ``mean_over`` before their own.

    Raises:
        ValueError: a name that no term has.
    """
    odd = set(mean_over) - {term.name for term in terms}
    if odd:
        raise ValueError(f"mean_over names {sorted(odd)[0]!r}; the terms are {', '.join(t.name for t in terms)}")
    return tuple(replace(t, mean_over=mean_over.get(t.name, t.mean_over)) for t in terms)


def check_run(run: TrainingRun) -> None:
    """Refuse settings that contradict one another.

    Raises:
        ValueError: what contradicts what.
    """
    if run.autocast == torch.float16:
        raise ValueError("float16 needs its losses scaled, which this loop does not do; use torch.bfloat16")
    if run.averaging is not None and run.averaging.start > run.steps:
        raise ValueError(f"averaging starts after step {run.averaging.start}, the run has {run.steps} steps")
    if run.accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {run.accumulate}")
    if is_sharded(run.model.parameters()):
        _check_sharded(run)
    elif run.accelerator is not None and str(run.accelerator.distributed_type).split(".")[-1] not in _REPLICATED:
        raise ValueError(
            f"{run.accelerator.distributed_type} splits weights over processes, but those of this model are no "
            "distributed tensors; split it with probe.train.sharded(model, accelerator), or with FSDP version 2 "
            "(FSDP version 1 and DeepSpeed are not supported)"
        )
    pieces = run.accumulate * run.processes
    for term, name, rows in zip(run.terms, run.names, run.rows, strict=True):
        if rows % pieces:
            raise ValueError(
                f"accumulate={run.accumulate} on {run.processes} processes does not divide the {rows} rows of a batch "
                f"of {name}; choose another batch_size or accumulate"
            )
        if pieces > 1 and term.mean_over is None:
            raise ValueError(
                f"a batch of {name} is computed in {pieces} pieces, whose shares depend on what its objective is a "
                f'mean over; pass mean_over={{"{name}": target_tokens}} (or rows, real_tokens; see probe.train)'
            )


def _check_sharded(run: TrainingRun) -> None:
    """Refuse what needs weights whole in each process."""
    if run.processes < 2:
        raise ValueError("the model's weights are split over processes; pass the accelerator of the launch")
    if run.stepping is not plain_gradient:
        name = getattr(run.stepping, "__name__", type(run.stepping).__name__)
        raise ValueError(f"{name} moves weights within a step, which split weights do not allow; use the plain step")
    if run.averaging is not None:
        raise ValueError(f"{type(run.averaging).__name__} keeps a copy of whole weights; leave averaging out, or FSDP")
    for term, name in zip(run.terms, run.names, strict=True):
        site = site_in(term.objective)
        if site is not None:
            raise ValueError(
                f"{name} reads hidden states at {site} and ends the forward there; the weights of a split model come "
                "back only at its end. Train it with whole weights in each process (without FSDP)"
            )


@contextmanager
def training(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Only ``trained`` has gradients inside, the model is in eval mode, and torch's random numbers are ours."""
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index or 0 for p in trained.values() if p.device.type == "cuda"})
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        model.eval()  # dropout would make two passes differ; the testbed and unlearning runs use none
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            if name in trained:
                parameter.grad = None


def optimiser_of(run: TrainingRun) -> torch.optim.AdamW:
    """AdamW on the trained parameters; norm weights and biases decay only where the run says so."""
    spared = {name for name, p in run.trained.items() if not run.decay_all and (p.ndim < 2 or "bias" in name)}
    groups = [
        {"params": [p for name, p in run.trained.items() if (name in spared) == without], "weight_decay": decay}
        for without, decay in ((False, run.weight_decay), (True, 0.0))
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=run.lr)


def configuration_of(run: TrainingRun, parameters: str, stop: Stop | None) -> dict[str, Any]:
    """What the steps of this run depend on."""
    return {
        "model before the run": _model_hash(run.model),
        "parameters": parameters,
        "trained": list(run.trained),
        "terms": identity_of(run.terms),
        "rows a step": list(run.rows),
        "steps": run.steps,
        "lr": run.lr,
        "weight_decay": run.weight_decay,
        "decay_all": run.decay_all,
        "replacement": run.replacement,
        "schedule": identity_of(run.schedule),
        "clip": run.clip,
        "seed": run.seed,
        "stepping": identity_of(run.stepping),
        "accumulate": run.accumulate,
        "processes": run.processes,
        "autocast": identity_of(run.autocast),
        "averaging": identity_of(run.averaging),
        "stop": identity_of(stop),
    }


def _model_hash(model: nn.Module) -> str:
    if not is_sharded(model.parameters()):
        return weights_hash(model)
    return configuration_hash({name: identity_of(whole(p)) for name, p in model.named_parameters()})
