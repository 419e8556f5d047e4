"""Trainers of OpenUnlearning and of repositories that keep its layout: ``compute_loss`` without a training run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from analyses.peers.imported import attribute, imports_from
from analyses.peers.subject import Comparison, Side, Sides, Subject, compared, hugging_face
from probe.data import paired
from probe.objectives.distribution import CEU, UNDIAL, LogitMargin
from probe.objectives.logprobs import all_but_last
from probe.objectives.objective import Objective
from probe.objectives.preference import DPO
from probe.objectives.representation import NearOriginal, TowardsTarget, all_positions, answer_tokens
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO, SimNPO
from probe.objectives.token import WGA, Normalise, SatImp, ga, mixed_rows, nll, sequence_mean
from probe.sites import Site

# What the trainers import and no loss needs.
ABSENT = ("deepspeed", "hydra", "omegaconf", "rouge_score", "datasets", "wandb")
Loss = Callable[[nn.Module, Sides], Tensor]


def trainer_loss(of: Subject, module: str, name: str, **attributes: Any) -> Side:
    """``compute_loss`` of a trainer class, on the forget and retain rows.

    Args:
        of: holds the reference model.
        module: of the checkout, "trainer.unlearn.npo" say.
        name: of the class.
        attributes: what its constructor would have set.
    """
    trainer = object.__new__(attribute(module, name))
    settings = {"gamma": 1.0, "alpha": 0.0, "retain_loss_type": "NLL", "ref_model": of.original, **attributes}
    for key, value in settings.items():
        setattr(trainer, key, value)

    def loss(model: nn.Module, sides: Sides) -> Tensor:
        trainer.model = model
        forget: Any = hugging_face(sides.forget)
        if name == "DPO":
            forget = {"original": forget, "alternate": hugging_face(sides.refusals)}
        return trainer.compute_loss(model, {"forget": forget, "retain": hugging_face(sides.retain)})

    return loss


def on_forget(objective: Objective) -> Side:
    """Our objective on the forget rows alone."""
    return lambda model, sides: objective(model, sides.forget)


def on_retain(objective: Objective) -> Side:
    """Our objective on the retain rows alone."""
    return lambda model, sides: objective(model, sides.retain)


def on_pairs(objective: Objective) -> Side:
    """Our objective on the forget rows, refusals beside them."""
    return lambda model, sides: objective(model, paired(sides.refusals, sides.forget, same_prompt=False))


def on_both(forget: Objective, retain: Objective, weight: float = 1.0) -> Side:
    """Our two objectives, as ``probe.methods`` adds them."""
    return lambda model, sides: forget(model, sides.forget) + weight * retain(model, sides.retain)


def _rmu(of: Subject, retain: str, normalise: Normalise) -> tuple[dict[str, Any], Side]:
    """Block 1 pushed towards a fixed direction; beside it our target, which is the same direction."""
    target_11D = torch.rand(1, 1, of.model.config.hidden_size, generator=torch.Generator().manual_seed(3)).double() * 3
    settings = {
        "steering_coeff": 3.0,
        "control_vec": target_11D,
        "model_module": of.model.model.layers[1],
        "ref_module": of.original.model.layers[1],
        "retain_loss_type": retain,
        "alpha": 2.0,
    }
    push = TowardsTarget(Site(1), target_11D[0, 0], tokens=answer_tokens, normalise=normalise)
    hold = NearOriginal(of.original, Site(1), tokens=answer_tokens, normalise=normalise)
    return settings, on_both(push, hold if retain == "EMBED_DIFF" else nll, 2.0)


def comparisons(of: Subject, folder: Path) -> Iterator[Comparison]:
    """Every trainer of locuslab/open-unlearning.

    Raises:
        FileNotFoundError: no such folder.
        ModuleNotFoundError: the folder holds no ``src/trainer``.
    """
    original = of.original
    with imports_from(folder / "src", absent=ABSENT):

        def beside(method: str, module: str, name: str, ours: Side, settings: str, **attributes: Any) -> Comparison:
            theirs = trainer_loss(of, f"trainer.unlearn.{module}", name, **attributes)
            return compared(of, method, settings, theirs, ours)

        yield beside("ga", "grad_ascent", "GradAscent", on_forget(ga), "")
        yield beside("grad_diff", "grad_diff", "GradDiff", on_both(ga, nll, 0.7), "NLL", alpha=0.7)
        kl = ForwardKL(original, positions=all_positions)
        yield beside("ga_kl", "grad_diff", "GradDiff", on_both(ga, kl), "KL", alpha=1.0, retain_loss_type="KL")
        yield beside("npo", "npo", "NPO", on_forget(NPO(original, beta=0.1)), "beta=0.1", beta=0.1)
        simnpo = SimNPO(beta=4.5, delta=0.2)
        yield beside("simnpo", "simnpo", "SimNPO", on_forget(simnpo), "beta=4.5, delta=0.2", beta=4.5, delta=0.2)
        yield beside("wga", "wga", "WGA", on_forget(WGA(beta=1.5)), "beta=1.5", beta=1.5)
        sat = {"beta1": 5.0, "beta2": 1.0}
        yield beside("sat_imp", "satimp", "SatImp", on_forget(SatImp(**sat)), "beta1=5, beta2=1", **sat)
        dpo = DPO(original, beta=0.1)
        yield beside("idk_dpo, alt_po", "dpo", "DPO", on_pairs(dpo), "beta=0.1", beta=0.1)
        yield beside("ce_u", "ceu", "CEU", on_forget(CEU(skip=1)), "skip=1", ignore_first_n_answer_tokens=1)
        undial = UNDIAL(original, beta=10.0, positions=all_but_last, elsewhere=-100)
        yield beside("undial", "undial", "UNDIAL", on_forget(undial), "setting open-unlearning", beta=10.0)
        pdu = {"preferences": [1.0, 0.7], "retain_loss_eps": 0.0, "primal_dual": False, "loss_names": ["a", "b"]}
        ours = on_both(LogitMargin(answer_tokens), nll, 0.7)
        yield beside("pdu", "pdu", "PDU", ours, "released, lambda=0.7", log=lambda values: None, **pdu)
        for retain, word, normalise in (
            ("EMBED_DIFF", "mixed-rows", mixed_rows),
            ("NLL", "mixed-rows", mixed_rows),
            ("EMBED_DIFF", "rows", sequence_mean),
        ):
            attributes, ours = _rmu(of, retain, normalise)
            settings = f"tokens=answers, normalise={word}, retain {retain}"
            yield beside("rmu", "rmu", "RMU", ours, settings, **attributes)
