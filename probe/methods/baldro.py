"""BalDRO (Shao et al., arXiv 2601.09172): NPO, SimNPO and SatImp on the rows that are hardest to forget.

``temperature`` weighs all rows of a batch smoothly (BalDRO-DV; DrNPO and its kin in the code), ``share`` keeps a part
of them (BalDRO-G; GroupNPO and its kin); give one of the two. ``form`` is the paper's, or that of the published code,
which differs: its smooth weights are largest for the *easiest* rows (for SatImp: tokens), the retain loss beside it is
a sum over each answer, and its part is the rows with the largest mean log-probability, whatever the loss. ``training``
is as in ``probe.methods.baselines``.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from probe.data import Split
from probe.methods.baselines import check_apart, unlearn
from probe.methods.method import Method
from probe.methods.published import Argument, Published
from probe.methods.words import Form, meant
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.robust import HardestRows, OfRows, OfTokens, SoftWorst, summed_nll
from probe.objectives.sequence import NPO, OverRows, SimNPO, row_mean
from probe.objectives.token import SatImp, nll, token_mean
from probe.train import History

_SOURCE = "configuration in the code of Shao et al., arXiv 2601.09172"


def _published(**more: Argument) -> dict[str, Published]:
    """The code's two ways to weigh rows."""
    ways: dict[str, dict[str, Argument]] = {"soft": {"temperature": 1.0}, "group": {"share": 0.5}}
    return {name: Published(_SOURCE, {"form": "released", **way, **more}) for name, way in ways.items()}


PUBLISHED = {
    "dr_npo": _published(),
    "dr_simnpo": _published(),
    "dr_sat_imp": _published(beta1=5.0, beta2=1.0),
}


def dr_npo(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module | OriginalAnswers,
    beta: float,
    retain_weight: float,
    temperature: float | None = None,
    share: float | None = None,
    form: Form = "paper",
    **training: Any,
) -> History:
    """NPO on the hardest rows, with the retain NLL; see the module's text."""
    check_apart(model, original)
    return _on_hard_rows(
        model,
        split,
        lambda over: NPO(original, beta, over or row_mean),
        retain_weight,
        temperature,
        share,
        form,
        training,
    )


def dr_simnpo(
    model: nn.Module,
    split: Split,
    *,
    beta: float,
    retain_weight: float,
    gamma: float = 0.0,
    delta: float = 0.0,
    temperature: float | None = None,
    share: float | None = None,
    form: Form = "paper",
    **training: Any,
) -> History:
    """SimNPO on the hardest rows, with the retain NLL; see the module's text."""
    return _on_hard_rows(
        model,
        split,
        lambda over: SimNPO(beta, gamma, delta, over or row_mean),
        retain_weight,
        temperature,
        share,
        form,
        training,
        released_retain=nll,
    )


def dr_sat_imp(
    model: nn.Module,
    split: Split,
    *,
    beta1: float,
    beta2: float,
    retain_weight: float,
    temperature: float | None = None,
    share: float | None = None,
    form: Form = "paper",
    **training: Any,
) -> History:
    """SatImp on the hardest rows, with the retain NLL; see the module's text."""
    across = OfRows if form == "paper" else OfTokens
    return _on_hard_rows(
        model,
        split,
        lambda over: SatImp(beta1, beta2, across(over) if over else token_mean),
        retain_weight,
        temperature,
        share,
        form,
        training,
    )


def _on_hard_rows(
    model: nn.Module,
    split: Split,
    make: Callable[[OverRows | None], Objective],
    retain_weight: float,
    temperature: float | None,
    share: float | None,
    form: Form,
    training: dict[str, Any],
    released_retain: Objective = summed_nll,
) -> History:
    if (temperature is None) == (share is None):
        raise ValueError(f"give either temperature or share, got temperature={temperature} and share={share}")
    released = meant("form", form, {"paper": False, "released": True})
    if temperature is not None:
        retain = released_retain if released else nll
        forget = make(SoftWorst(temperature, easiest=released))
        return unlearn(model, split, forget, retain, retain_weight=retain_weight, **training)
    assert share is not None
    forget = HardestRows(make(None), share, "likelihood" if released else "loss")
    return unlearn(model, split, forget, retain_weight=retain_weight, **training)


METHODS = (
    Method(
        "dr_npo",
        "divergence",
        "NPO, rows weighed by softmax(loss / temperature) or the hardest share of them, + w NLL(retain)",
        "Shao et al., arXiv 2601.09172",
        "all parameters",
        dr_npo,
        PUBLISHED["dr_npo"],
        unlearn,
    ),
    Method(
        "dr_simnpo",
        "divergence",
        "SimNPO, rows weighed by softmax(loss / temperature) or the hardest share of them, + w NLL(retain)",
        "Shao et al., arXiv 2601.09172",
        "all parameters",
        dr_simnpo,
        PUBLISHED["dr_simnpo"],
        unlearn,
    ),
    Method(
        "dr_sat_imp",
        "divergence",
        "SatImp, rows weighed by softmax(loss / temperature) or the hardest share of them, + w NLL(retain)",
        "Shao et al., arXiv 2601.09172",
        "all parameters",
        dr_sat_imp,
        PUBLISHED["dr_sat_imp"],
        unlearn,
    ),
)
