"""Repositories in OpenUnlearning's layout with trainers of their own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Protocol

from analyses.peers.imported import imports_from
from analyses.peers.open_unlearning import ABSENT, on_both, on_forget, on_retain, trainer_loss
from analyses.peers.subject import Comparison, Side, Subject, compared
from probe.objectives import Objective
from probe.objectives.bootstrap import BST, BSTW
from probe.objectives.jensun import JensenShannon, JensenShannonToText
from probe.objectives.robust import HardestRows, OfTokens, SoftWorst, summed_nll
from probe.objectives.sequence import NPO, SimNPO
from probe.objectives.token import TNPO, SatImp, nll, sequence_sum


class _Beside(Protocol):
    def __call__(self, method: str, where: str, ours: Side, settings: str, **attributes: Any) -> Comparison: ...


def bootstrapping(of: Subject, folder: Path) -> Iterator[Comparison]:
    """kemoulee/open-unlearning, the code of Li et al., arXiv 2510.19422."""
    with _trainers(of, folder) as beside:
        given = {"lambda_bst": 0.2, "top_k": 20, "bst_mode": "token"}
        for detach, word in ((True, "yes"), (False, "no")):
            ours = on_forget(BST(0.2, k=20, detach=detach))
            settings = f"weight=0.2, k=20, detach={detach}"
            yield beside("bs_t", "bst.BST", ours, settings, detach_mode=word, **given)
        bstw = on_forget(BSTW(of.original, 0.2, k=20, beta=0.1))
        yield beside("bstw", "bstw.BSTW", bstw, "weight=0.2, k=20, beta=0.1", beta=0.1, detach_mode="yes", **given)
        tnpo = on_forget(TNPO(of.original, beta=0.1, normalise=sequence_sum))
        yield beside("tnpo", "tnpo.TNPO", tnpo, "beta=0.1, summed over answers", beta=0.1)


def baldro(of: Subject, folder: Path) -> Iterator[Comparison]:
    """nxZhai/BalDRO, the code of Shao et al., arXiv 2601.09172."""
    soft = SoftWorst(2.0, easiest=True)
    weights: dict[str, tuple[Objective, Objective, Objective, dict[str, float]]] = {
        "npo.{}NPO": (NPO(of.original, 0.1, soft), NPO(of.original, 0.1), summed_nll, {"beta": 0.1}),
        "simnpo.{}SimNPO": (
            SimNPO(4.5, 0.0, 0.2, soft),
            SimNPO(4.5, 0.0, 0.2),
            nll,
            {"beta": 4.5, "delta": 0.2},
        ),
        "satimp.{}SatImp": (
            SatImp(5.0, 1.0, OfTokens(soft)),
            SatImp(5.0, 1.0),
            summed_nll,
            {"beta1": 5.0, "beta2": 1.0},
        ),
    }
    # The two files of one repository name one setting differently.
    temperature = {"beta_dv_forget": 2.0, "beta_dv_retain": 1.0, "sigma_forget": 2.0, "sigma_retain": 1.0}
    flags = {"forget_dro": True, "retain_dro": False, "log_ori_loss": False}
    with _trainers(of, folder) as beside:
        for where, (dv, plain, retain, given) in weights.items():
            name = where.split(".")[1].format("dr_").lower().replace("satimp", "sat_imp")
            shown = ", ".join(f"{key}={value:g}" for key, value in given.items())
            attributes = {**given, **temperature, **flags, "alpha": 0.5}
            ours = on_both(dv, retain, 0.5)
            yield beside(name, where.format("Dr"), ours, f"{shown}, temperature=2, released", **attributes)
            group = on_forget(HardestRows(plain, 0.5, "likelihood"))
            yield beside(
                name, where.format("Group"), group, f"{shown}, share=0.5, released", sampling_ratio=0.5, **given
            )


def jensun(of: Subject, folder: Path) -> Iterator[Comparison]:
    """nmndeep/JensUn-Unlearning, the code of Singh et al., arXiv 2509.02820."""
    with _trainers(of, folder, missing={"trainer.utils": "new_jensun_multitok_loss"}) as beside:
        text = (5, 9)
        forget = on_forget(JensenShannonToText(text))
        yield beside("jensun_released", "jensun.GradJSDiff", forget, "text of two tokens", tok_id=list(text))
        retain = on_retain(JensenShannon(of.original))
        attributes = {"tok_id": list(text), "gamma": 0.0, "alpha": 1.0, "retain_loss_type": "JensUn"}
        yield beside("jensun (retain)", "jensun.GradJSDiff", retain, "", **attributes)


@contextmanager
def _trainers(of: Subject, folder: Path, missing: Mapping[str, str] = MappingProxyType({})) -> Iterator[_Beside]:
    """Trainers of a checkout; ``missing``: module -> a name that others import from it and that it does not have."""
    quiet = {"log": lambda values: None, "accelerator": SimpleNamespace(is_local_main_process=False)}
    # The package's __init__ imports every trainer, and some want packages of their own.
    with imports_from(folder / "src", absent=ABSENT, bare=("trainer", "trainer.unlearn")):
        for module, name in missing.items():
            setattr(import_module(module), name, None)

        def beside(method: str, where: str, ours: Side, settings: str, **attributes: Any) -> Comparison:
            module, name = where.split(".")
            theirs = trainer_loss(of, f"trainer.unlearn.{module}", name, **quiet, **attributes)
            return compared(of, method, settings, theirs, ours)

        yield beside
