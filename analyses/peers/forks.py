"""Repositories in OpenUnlearning's layout with trainers of their own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Protocol

from torch import Tensor, nn

from analyses.peers.imported import attribute, imports_from
from analyses.peers.open_unlearning import ABSENT, on_both, on_forget, on_retain, trainer_loss
from analyses.peers.subject import (
    Comparison,
    Side,
    Sides,
    Subject,
    Values,
    alike,
    compared,
    hugging_face,
    stored_gradients,
)
from probe.methods.gru import Rectified
from probe.objectives.bootstrap import BSS, BST, BSTW
from probe.objectives.jensun import JensenShannon, JensenShannonToText
from probe.objectives.objective import Objective
from probe.objectives.robust import HardestRows, OfTokens, SoftWorst, summed_nll
from probe.objectives.sequence import NPO, SimNPO
from probe.objectives.token import TNPO, SatImp, ga, nll, sequence_sum
from probe.train import Step, Term
from probe.train.step import Piece


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
        # Their cache of drawn answers holds what both sides use.
        samples = of.padded.refusals
        drawn = {"augmented_data_cache": hugging_face(samples), "is_in_train": False, "lambda_bss": 0.5}
        times = {"state": SimpleNamespace(epoch=0.0), "regeneration_epochs": 2.0, "last_regeneration_epoch": 0.0}
        bss = on_forget(BSS(ga, 0.5, lambda model, batch: samples))
        yield beside("bs_s", "bss.BSS", bss, "weight=0.5, loss=ga, the same samples", **drawn, **times)
        for method, name, objective in (("ga_gru", "GradAscent", ga), ("npo_gru", "NPO", NPO(of.original, beta=0.1))):
            settings = "smoothing=0.8, second of two steps; gradients alone"
            yield alike(of, method, settings, _rectified(of, name), _rectify(objective))


# Rows of the two steps: forget, retain.
_STEPS = (("refusals", "retain_refusals"), ("forget", "retain"))


def _rectified(of: Subject, forget_loss: str) -> Values:
    trainer = object.__new__(attribute("trainer.unlearn.gru", "GRU"))
    given = {
        "ref_model": of.original,
        "forget_loss_type": forget_loss,
        "gamma_gru": 0.8,
        "gradient_accumulation_steps": 1,
        "args": SimpleNamespace(gradient_accumulation_steps=1),
        "optimizer": None,
        "_prepare_inputs": lambda inputs: inputs,
        "compute_loss_context_manager": nullcontext,
    }

    def gradients(model: nn.Module, sides: Sides) -> list[Tensor]:
        fresh = {"steps": 0, "gradient_accum": {}, "retain_grad": {}, "flattened_retain_prev": 0.0}
        for key, value in (given | fresh).items():
            setattr(trainer, key, value)
        with _on_cpu():
            for forget, retain in _STEPS:
                inputs = {
                    "forget": hugging_face(getattr(sides, forget)),
                    "retain": hugging_face(getattr(sides, retain)),
                }
                trainer.training_step(model, inputs)
                found = stored_gradients(model)
        model.eval()
        return found

    return gradients


def _rectify(objective: Objective) -> Values:
    def gradients(model: nn.Module, sides: Sides) -> list[Tensor]:
        way = Rectified(0.8)
        trained = dict(model.named_parameters())
        for number, (forget, retain) in enumerate(_STEPS):
            batches = (getattr(sides, forget), getattr(sides, retain))
            terms = [Term(1.0, objective, batches[0], "forget"), Term(1.0, nll, batches[1], "retain")]
            pieces = [[Piece(batch, 1.0)] for batch in batches]
            found = way(Step(number, 0, model, trained, terms, ("forget", "retain"), pieces))[1]
        return [found[name] for name in trained]

    return gradients


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Within it, a tensor that is sent to "cuda" stays where it is."""
    send = Tensor.to
    Tensor.to = lambda self, *to, **more: self if to[:1] == ("cuda",) else send(self, *to, **more)  # type: ignore
    try:
        yield
    finally:
        Tensor.to = send  # type: ignore[method-assign]


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
