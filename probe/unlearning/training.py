"""Methods that train: the model in place, then its folder."""

from pathlib import Path
from typing import Any

from probe.checkpoints import weight_hashes
from probe.methods.method import Method
from probe.unlearning.before_after import said
from probe.unlearning.job import Job
from probe.unlearning.material import Material
from probe.unlearning.saving import saved


def train(method: Method, job: Job, at: Material, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the recipe and save the model; what changed, the losses, and what is said before and after.

    Raises:
        ValueError: what the recipe raises, or no weight changed.
    """
    before, scores = weight_hashes(at.model), {"before": said(at.model, at, job)}
    result = method.run(at.model, at.split, **arguments, progress=method.name)
    facts = saved(at.model, at.tokenizer, folder, before, "raise --steps, --lr or the method's strength")
    scores["after"] = said(at.model, at, job)
    # One run of the loop, or several.
    histories = getattr(result, "histories", (getattr(result, "history", result),))
    losses: dict[str, dict[str, float]] = {}
    for history in histories:
        found: Any = getattr(history, "losses", ())
        for k, name in enumerate(history.names if found else ()):
            losses[name] = {"first": losses.get(name, {"first": found[0][k]})["first"], "last": found[-1][k]}
    return {**facts, "losses": losses, "scores": scores}
