"""Which weights a method changed, and the folder of the model that has them."""

from pathlib import Path
from typing import Any

from torch import nn

from probe.checkpoints import check_usable, save_model, weight_hashes, weights_hash


def saved(model: nn.Module, tokenizer: Any, folder: Path, before: dict[str, str], remedy: str) -> dict[str, Any]:
    """Save an unlearned model; what the manifest says of it.

    Args:
        model: as it is to be saved.
        tokenizer: saved beside it.
        folder: of the run.
        before: ``weight_hashes`` of the model before unlearning.
        remedy: what to do if nothing changed.

    Raises:
        ValueError: no weight changed, or one is NaN or infinite.
        OSError: the disk is full.
    """
    changed = [name for name, digest in weight_hashes(model).items() if digest != before[name]]
    if not changed:
        raise ValueError(f"the method changed no weight; {remedy}")
    check_usable(model, tokenizer)
    save_model(model, folder, tokenizer=tokenizer)
    return {
        "changed": {"tensors": len(changed), "of": len(before), "names": changed},
        "weights": {"unlearned": weights_hash(model)},
    }
