"""Weights split over processes, so that a model larger than one device can be trained: PyTorch's ``fully_shard``."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from probe.sites import Site, blocks, unwrapped


def sharded(model: nn.Module, accelerator: Any) -> nn.Module:
    """Split every weight over the processes, block by block (Zhao et al., arXiv 2304.11277), in place.

    A block's weights are gathered while it runs and let go afterwards; gradients and AdamW's state stay split. Start
    several processes with ``accelerate launch`` or ``torchrun``, call this in each before the model has run, then
    ``minimise(model, ..., accelerator=accelerator)``. A model that ``accelerate`` has split itself (FSDP version 2 in
    its configuration; on GPUs only) is trained likewise.

    Args:
        model: the same weights in every process; left on the CPU, only its parts go to the accelerator's device.
        accelerator: an ``accelerate.Accelerator`` with more than one process.

    Returns:
        the model.

    Raises:
        ValueError: one process only, or no decoder blocks.
    """
    from torch.distributed.fsdp import fully_shard

    if accelerator.num_processes < 2:
        raise ValueError("splitting weights needs several processes; start with accelerate launch or torchrun")
    mesh = torch.distributed.init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(unwrapped(model), mesh=mesh)
    return model


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether any of these is split over processes."""
    return any(isinstance(p, DTensor) for p in parameters)


def whole(value: Tensor) -> Tensor:
    """All of a split tensor, in every process, which all have to ask; other tensors as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def own_part(value: Tensor) -> Tensor:
    """This process's part of a split tensor, without asking the others; other tensors as they are."""
    return value.to_local() if isinstance(value, DTensor) else value


def like(value: Tensor, template: Tensor) -> Tensor:
    """A whole tensor on the template's device, split as the template is."""
    there = value.to(template.device)
    if not isinstance(template, DTensor):
        return there
    return distribute_tensor(there, template.device_mesh, template.placements, src_data_rank=None)


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """Every weight, whole, on the CPU of every process; every process has to call it.

    For ``model.save_pretrained(folder, state_dict=gathered(model))`` in one of them.
    """
    return {name: whole(value.detach()).cpu() for name, value in model.state_dict().items()}


def site_in(value: Any) -> Site | None:
    """A site that an objective reads at, if it says so in one of its fields."""
    if isinstance(value, Site):
        return value
    if isinstance(value, (tuple, list)):
        parts = list(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        return None
    return next((found for part in parts if (found := site_in(part)) is not None), None)
