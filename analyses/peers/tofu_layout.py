"""Repositories that grew out of TOFU's code: one trainer whose ``loss_type`` says which loss it computes."""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from analyses.peers.imported import attribute, imports_from
from analyses.peers.open_unlearning import ABSENT, on_both, on_forget, on_pairs
from analyses.peers.subject import WIDTH, Comparison, Side, Sides, Subject, compared, triple
from probe.objectives.kto import KTO
from probe.objectives.logprobs import before_targets
from probe.objectives.masked import TowardsMasked
from probe.objectives.preference import BatchFLAT, Divergence
from probe.objectives.representation import all_positions
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO
from probe.objectives.token import TNPO, WGA, WTNPO, SatImp, ga, nll, sim_imp, sim_sat
from probe.sites import Site

# What their divergences are called here.
DIVERGENCES = {
    "total-variation": "Total-Variation",
    "kl": "KL",
    "reverse-kl": "Reverse-KL",
    "jeffreys": "Jeffrey",
    "squared-hellinger": "Squared-Hellinger",
    "pearson": "Pearson",
    "neyman": "Neyman",
    "jensen-shannon": "Jenson-Shannon",
}
# Modules of the folder that read evaluation data and no loss needs.
_UNUSED = ("evaluate_util", "data_module", "data_module_base")


def tofu(of: Subject, folder: Path) -> Iterator[Comparison]:
    """locuslab/tofu, the code of Maini et al., arXiv 2401.06121; its DPO reads a name that it does not set."""
    kl = ForwardKL(of.original, positions=all_positions)
    with imports_from(folder, absent=ABSENT, empty=("evaluate_util", "data_module", "utils")):
        yield compared(of, "ga", "", loss_of(of, "dataloader", "grad_ascent"), on_forget(ga))
        yield compared(of, "grad_diff", "retain_weight=1", loss_of(of, "dataloader", "grad_diff"), on_both(ga, nll))
        theirs = loss_of(of, "dataloader", "KL")
        yield compared(of, "ga_kl", "positions=all, retain_weight=1", theirs, on_both(ga, kl))


def g_effect(of: Subject, folder: Path) -> Iterator[Comparison]:
    """tmlr-group/G-effect, the code of Wang et al., arXiv 2502.19301."""
    original, kl = of.original, ForwardKL(of.original, positions=all_positions)
    with imports_from(folder, absent=ABSENT, empty=(*_UNUSED, "utils")):
        for method, settings, name, ours, beta in (
            ("ga", "", "ga", on_forget(ga), "None"),
            ("ga_kl", "KL over all positions", "ga_kl", on_both(ga, kl), "None"),
            ("npo", "beta=0.5", "npo", on_forget(NPO(original, beta=0.5)), 0.5),
            ("tnpo", "beta=4, epsilon=1e-5", "tnpo", on_forget(TNPO(original, 4.0, 1e-5)), 4.0),
            ("wtnpo", "beta=4, alpha=1.5, epsilon=1e-5", "wtnpo_1.5", on_forget(WTNPO(original, 4.0, 1.5, 1e-5)), 4.0),
            ("wga", "beta=5", "wga", on_forget(WGA(beta=5.0)), 5.0),
        ):
            theirs = loss_of(of, "dataloader", name, hyper_param=beta)
            yield compared(of, method, settings, theirs, ours)


class _Name(str):
    """A ``loss_type`` whose tests by ``in`` find the one branch that is meant; an earlier one would catch it."""

    def __contains__(self, part: object) -> bool:
        return part == "rmu_mask_"


def g_effect_masked(of: Subject, folder: Path) -> Iterator[Comparison]:
    """The branch ``rmu_mask_`` of the same repository, which none of its own names reaches."""
    noise_11D = torch.rand(1, 1, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ours = TowardsMasked(Site(1), noise_11D[0, 0] > 0.5, before_targets)
    with imports_from(folder, absent=ABSENT, empty=("evaluate_util", "data_module_ge", "utils")):
        module: Any = importlib.import_module("dataloader_ge")
        found: list[Tensor] = []
        for name in ("unlearn_gradient_fcn", "retain_gradient_fcn", "gradient_unlearn_effect"):
            setattr(module, name, lambda *given: None)
        for name in ("gradient_retain_effect", "risk_report"):
            setattr(module, name, lambda *given: None)
        module.objective_gradient_fcn = lambda model, loss: found.append(loss)
        run = loss_of(of, "dataloader_ge", _Name("rmu_mask_2"), rmu_noise=noise_11D)

        def theirs(model: nn.Module, sides: Sides) -> Tensor:
            run(model, sides)
            return found.pop()

        yield compared(of, "rmu_mask", "positions=answers, block 1; index 2 there", theirs, on_forget(ours))


def npo(of: Subject, folder: Path) -> Iterator[Comparison]:
    """licong-lin/negative-preference-optimization, the code of Zhang et al., arXiv 2404.05868."""
    original, order = of.original, ("refusals", "forget", "retain")
    with imports_from(folder / "TOFU", absent=ABSENT, empty=("evaluate_util", "utils")):
        theirs = loss_of(of, "dataloader", "npo", beta=0.1, ref_policy="fine_tuned")
        yield compared(of, "npo", "beta=0.1", theirs, on_forget(NPO(original, beta=0.1)))
        for kto, name in (
            (KTO(original, 0.1, "npo-repo"), "kto_sigmoid"),
            (KTO(original, 0.1, "npo-repo-log"), "kto_logsigmoid"),
        ):
            theirs = loss_of(of, "dataloader", name, order=order, beta=0.1)
            yield compared(of, "kto", f"beta=0.1, form={kto.form}", theirs, on_pairs(kto))


def satimp(of: Subject, folder: Path) -> Iterator[Comparison]:
    """tmlr-group/SatImp, the code of Yang et al., arXiv 2505.11953."""
    with imports_from(folder / "dataloader", absent=ABSENT, empty=(*_UNUSED, "utils")):
        for method, settings, name, ours, given in (
            (
                "sat_imp",
                "beta1=5, beta2=0.1, retain_weight=0.1",
                "satimp_gd",
                on_both(SatImp(5.0, 0.1), nll, 0.1),
                {"hyper_param": 5.0, "beta_param": 0.1, "coeff": 0.1},
            ),
            (
                "sim_sat",
                "beta=2",
                "simsat_gd",
                on_both(sim_sat(2.0), nll),
                {"hyper_param": 2.0, "beta_param": 2.0, "coeff": 1.0},
            ),
            ("sim_imp", "beta=2", "simimp_ga", on_forget(sim_imp(2.0)), {"hyper_param": 2.0}),
        ):
            yield compared(of, method, settings, loss_of(of, "dataloader_sat", name, **given), ours)


def flat(of: Subject, folder: Path) -> Iterator[Comparison]:
    """UCSC-REAL/FLAT, the code of Wang et al., arXiv 2410.11143: each of its eight divergences."""
    with imports_from(folder, absent=ABSENT, empty=(*_UNUSED, "utils")):
        for divergence in get_args(Divergence):
            theirs = loss_of(of, "dataloader", "cl", order=("forget", "refusals"), cl_div=DIVERGENCES[divergence])
            yield compared(of, "flat", f"{divergence}, released", theirs, on_pairs(BatchFLAT(divergence)))


def loss_of(
    of: Subject, module: str, name: str, order: Sequence[str] = ("forget", "retain"), **attributes: Any
) -> Side:
    """``compute_loss`` of the folder's trainer for one ``loss_type``, on the sides named."""
    trainer = object.__new__(attribute(module, "CustomTrainerForgetting"))
    settings = {"loss_type": name, "oracle_model": of.original, "log_dir": "/dev", **attributes}
    for key, value in settings.items():
        setattr(trainer, key, value)

    def loss(model: nn.Module, sides: Sides) -> Tensor:
        return trainer.compute_loss(model, [triple(getattr(sides, one)) for one in order])

    return loss
