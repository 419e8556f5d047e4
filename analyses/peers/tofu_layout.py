"""Repositories that grew out of TOFU's code: one trainer whose ``loss_type`` says which loss it computes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from analyses.peers.imported import attribute, imports_from
from analyses.peers.open_unlearning import ABSENT, on_both, on_forget, on_pairs
from analyses.peers.subject import Comparison, Side, Sides, Subject, compared, triple
from probe.objectives.preference import BatchFLAT, Divergence
from probe.objectives.representation import all_positions
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO
from probe.objectives.token import TNPO, WGA, WTNPO, SatImp, ga, nll, sim_imp, sim_sat

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
