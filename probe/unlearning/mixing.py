"""Methods that mix the model with an unlearned one: the weights are set for a while, and saved."""

from pathlib import Path
from typing import Any

from probe.checkpoints import weight_hashes
from probe.methods.method import Method
from probe.methods.running import mixture
from probe.methods.uwc import Calibration
from probe.sites import n_layers
from probe.unlearning.before_after import said
from probe.unlearning.job import Job
from probe.unlearning.material import Material
from probe.unlearning.saving import saved
from probe.weights import blended


def mix(method: Method, job: Job, at: Material, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Find the mixture and save the mixed model; what was taken from the unlearned one, and by which numbers.

    Raises:
        ValueError: what the recipe raises, or nothing is taken from the unlearned model.
    """
    model = at.model
    scores = {"before": said(model, at, job)}
    found = method.run(model=model, **arguments)
    alphas, rest = mixture(found, n_layers(model))
    if isinstance(found, Calibration):
        curve: dict[str, Any] = {"bar": found.bar, "score": found.score, "tried": found.tried}
    else:
        curve = {
            "layers": found.alpha_L.nonzero().flatten().tolist(),
            "forget_quality_L": found.forget_quality_L.tolist(),
            "utility_L": found.utility_L.tolist(),
        }
    before = weight_hashes(model)
    with blended(model, arguments["unlearned"], alphas, rest):
        remedy = "nothing is taken from the unlearned model; ask for less to be kept, or for more layers"
        facts = saved(model, at.tokenizer, folder, before, remedy)
        scores["after"] = said(model, at, job)
    return {**facts, "scores": scores, "mixture": {"alpha_L": alphas, "alpha_rest": rest, **curve}}
