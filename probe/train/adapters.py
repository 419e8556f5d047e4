"""Low-rank adapters through peft, which is an extra of this package."""

import re
from collections.abc import Sequence
from typing import Any

import torch


def lora(model: Any, *, rank: int, alpha: float, targets: str | Sequence[str], seed: int) -> Any:
    """W x + (alpha / rank) B A x, with only A and B to be trained (Hu et al., arXiv 2106.09685).

    The model is changed in place and wrapped. Train with ``minimise(adapted, ..., parameters="lora_")``; afterwards
    ``adapted.merge_and_unload()`` gives a plain model back. There is no dropout: the loop trains in eval mode.

    Args:
        model: a Hugging Face decoder.
        rank: r, columns of B.
        alpha: the adapters' scale is alpha / rank.
        targets: names of the linear maps to adapt (``["q_proj", "v_proj"]``), or a regular expression.
        seed: fixes A; B starts at zero, so the adapted model computes the same as the model.

    Raises:
        ImportError: peft is not installed.
        ValueError: a rank below 1, targets that peft finds nowhere in the model, or one whose weight another module
            shares (a tied head): merged into the weight, its adapter would act there, too.

    >>> model = probe.lora(copy.deepcopy(s.original), rank=4, alpha=8.0, targets=["q_proj", "v_proj"], seed=0)
    >>> sum(p.requires_grad for p in model.parameters())
    32
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    _check_untied(model, targets)
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(
            "LoRA needs peft, which is not installed; install it with: pip install 'unlearn-probe[lora]'"
        ) from error
    chosen = targets if isinstance(targets, str) else list(targets)
    scale: Any = alpha  # annotated as a whole number there, used as any
    config = LoraConfig(r=rank, lora_alpha=scale, target_modules=chosen, lora_dropout=0.0, task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config).eval()


def _check_untied(model: Any, targets: str | Sequence[str]) -> None:
    """As peft reads targets: a regular expression for whole names, or names by their last part."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for p in module.parameters(recurse=False):
            users.setdefault(id(p), []).append(name)
    for names in users.values():
        for name in names if len(names) > 1 else ():
            if isinstance(targets, str):
                meant = re.fullmatch(targets, name) is not None
            else:
                meant = any(name == t or name.endswith(f".{t}") for t in targets)
            if meant:
                other = next(n for n in names if n != name)
                raise ValueError(
                    f"{name} shares its weight with {other}, where its adapter would act once merged; leave it out of "
                    "targets, or load the model with tie_word_embeddings=False and a weight of its own"
                )
