"""lm-evaluation-harness on the live model: what is patched, blended or edited is what is measured."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from probe.modes import evaluating
from probe.sites import unwrapped


def harness(model: nn.Module, tokenizer: Any, tasks: Sequence[str], *, batch_size: int = 8, **options: Any) -> dict:
    """Run lm-evaluation-harness tasks on the model as it is now; call it inside the intervention.

    Args:
        model: any Hugging Face decoder; used as it is, not loaded anew.
        tokenizer: the model's.
        tasks: names that the installed harness knows: "wmdp_bio", "mmlu", ...; they may download their data.
        batch_size: rows per pass.
        options: for ``lm_eval.simple_evaluate``: ``num_fewshot``, ``limit``, ``task_manager``, ...

    Returns:
        its "results", by task, as the harness names them.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: one string instead of several tasks, none, or tasks that the harness does not know.

    >>> probe.harness(s.original, s.tokenizer, ["mmlu"], limit=10)  # doctest: +SKIP
    """
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"tasks is a list of task names, got {tasks!r}")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError("lm-evaluation-harness is not installed; run: pip install lm-eval") from error
    with evaluating(model):
        wrapped = HFLM(pretrained=unwrapped(model), tokenizer=tokenizer, batch_size=batch_size)
        found = simple_evaluate(model=wrapped, tasks=list(tasks), **options)
    if found is None:
        raise ValueError("the harness gave no results; with several processes only the first one gets them")
    return found["results"]
