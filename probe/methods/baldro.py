"""BalDRO (Shao et al., arXiv 2601.09172): NPO, SimNPO and SatImp on the rows that are hardest to forget.

``temperature`` weighs all rows of a batch smoothly (BalDRO-DV; DrNPO and its kin in the code), ``share`` keeps a part
of them (BalDRO-G; GroupNPO and its kin); give one of the two. ``form`` is the paper's, or that of the published code,
which differs: its smooth weights are largest for the *easiest* rows (for SatImp: tokens), the retain loss beside it is
a sum over each answer, and its part is the rows with the largest mean log-probability, whatever the loss. ``training``
is as in ``probe.methods.unlearn``.

>>> unlearned = study.unlearn("dr_npo", beta=0.1, temperature=1, retain_weight=1, lr=3e-4, steps=2, batch_size=4)
"""

from collections.abc import Callable

from torch import nn

from probe.methods.published import Argument, Published
from probe.methods.unlearn import Loss, forget_loss
from probe.methods.words import Form, meant
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.robust import HardestRows, OfRows, OfTokens, SoftWorst, summed_nll
from probe.objectives.sequence import NPO, OverRows, SimNPO, row_mean
from probe.objectives.token import SatImp, nll, token_mean

_SOURCE = "configuration in the code of Shao et al., arXiv 2601.09172"


def _published(**more: Argument) -> dict[str, Published]:
    """The code's two ways to weigh rows."""
    ways: dict[str, dict[str, Argument]] = {"soft": {"temperature": 1.0}, "group": {"share": 0.5}}
    return {name: Published(_SOURCE, {"form": "released", **way, **more}) for name, way in ways.items()}


@forget_loss(
    "divergence",
    "NPO, rows weighed by softmax(loss / temperature) or the hardest share of them, + w NLL(retain)",
    "Shao et al., arXiv 2601.09172",
    published=_published(),
)
def dr_npo(
    original: nn.Module | OriginalAnswers,
    beta: float,
    temperature: float | None = None,
    share: float | None = None,
    form: Form = "paper",
) -> Loss:
    """NPO on the hardest rows, with the retain NLL; see the module's text."""
    return _on_hard_rows(lambda over: NPO(original, beta, over or row_mean), temperature, share, form)


@forget_loss(
    "divergence",
    "SimNPO, rows weighed by softmax(loss / temperature) or the hardest share of them, + w NLL(retain)",
    "Shao et al., arXiv 2601.09172",
    published=_published(),
)
def dr_simnpo(
    beta: float,
    gamma: float = 0.0,
    delta: float = 0.0,
    temperature: float | None = None,
    share: float | None = None,
    form: Form = "paper",
) -> Loss:
    """SimNPO on the hardest rows, with the retain NLL; see the module's text."""
    return _on_hard_rows(
        lambda over: SimNPO(beta, gamma, delta, over or row_mean), temperature, share, form, released_retain=nll
    )


@forget_loss(
    "divergence",
    "SatImp, rows weighed by softmax(loss / temperature) or the hardest share of them, + w NLL(retain)",
    "Shao et al., arXiv 2601.09172",
    published=_published(beta1=5.0, beta2=1.0),
)
def dr_sat_imp(
    beta1: float, beta2: float, temperature: float | None = None, share: float | None = None, form: Form = "paper"
) -> Loss:
    """SatImp on the hardest rows, with the retain NLL; see the module's text."""
    across = OfRows if form == "paper" else OfTokens
    return _on_hard_rows(
        lambda over: SatImp(beta1, beta2, across(over) if over else token_mean), temperature, share, form
    )


def _on_hard_rows(
    make: Callable[[OverRows | None], Objective],
    temperature: float | None,
    share: float | None,
    form: Form,
    released_retain: Objective = summed_nll,
) -> Loss:
    if (temperature is None) == (share is None):
        raise ValueError(f"give either temperature or share, got temperature={temperature} and share={share}")
    released = meant("form", form, {"paper": False, "released": True})
    if temperature is not None:
        return Loss(make(SoftWorst(temperature, easiest=released)), released_retain if released else nll)
    assert share is not None
    return Loss(HardestRows(make(None), share, "likelihood" if released else "loss"))
