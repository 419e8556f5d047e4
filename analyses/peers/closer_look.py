"""The losses of sail-sg/closer-look-LLM-unlearning (arXiv 2410.08109): functions of (model, reference, batches)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from analyses.peers.imported import attribute, imports_from
from analyses.peers.open_unlearning import on_forget, on_pairs
from analyses.peers.subject import Comparison, Side, Sides, Subject, compared, triple
from probe.data import paired
from probe.objectives.distribution import KLFromUniform
from probe.objectives.logprobs import all_but_last
from probe.objectives.preference import DPO, AnswerPreservation, idk
from probe.objectives.representation import all_positions
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO
from probe.objectives.token import ga, nll


def comparisons(of: Subject, folder: Path) -> Iterator[Comparison]:
    """Every loss of ``trainer/losses.py``.

    Raises:
        FileNotFoundError: no such folder.
        ModuleNotFoundError: the folder holds no ``trainer/losses.py``.
    """
    original = of.original
    # The package's __init__ imports a trainer that no loss needs.
    with imports_from(folder / "trainer"):

        def theirs(name: str, **more: Any) -> Side:
            function = attribute("losses", name)
            reference = [original] if name in ("npo_loss", "dpo_loss", "kl_loss") else []

            def loss(model: nn.Module, sides: Sides) -> Tensor:
                order = (sides.forget, sides.retain, sides.refusals, sides.retain_refusals, sides.refusals)
                return function(model, *reference, [triple(batch) for batch in order], **more)

            return loss

        yield compared(of, "ga", "", theirs("ga_loss"), on_forget(ga))
        yield compared(of, "npo", "beta=0.1", theirs("npo_loss", beta=0.1), on_forget(NPO(original, beta=0.1)))
        yield compared(of, "idk", "", theirs("idk_loss"), on_pairs(idk))
        yield compared(of, "idk_dpo", "beta=0.1", theirs("dpo_loss", beta=0.1), on_pairs(DPO(original, beta=0.1)))
        yield compared(of, "max_entropy", "direction=from-uniform", theirs("me_loss"), on_forget(KLFromUniform()))
        everywhere = KLFromUniform(positions=all_but_last)
        entropy = attribute("losses", "me_loss")

        def labelled(model: nn.Module, sides: Sides) -> Tensor:
            tokens_BT, _, attention_BT = triple(sides.forget)
            return entropy(model, [(tokens_BT, tokens_BT, attention_BT)])

        settings = "direction=from-uniform, positions=all: every token a label there"
        yield compared(of, "max_entropy", settings, labelled, on_forget(everywhere))
        preserving = AnswerPreservation(beta=0.1)

        def preserved(model: nn.Module, sides: Sides) -> Tensor:
            return preserving(model, paired(sides.retain, sides.retain_refusals, same_prompt=False))

        yield compared(of, "idk_ap (AP)", "beta=0.1", theirs("ap_loss", beta=0.1), preserved)
        kl = ForwardKL(original, positions=all_positions)
        yield compared(of, "llmu (KL)", "all positions", theirs("kl_loss"), lambda m, s: kl(m, s.retain))
        yield compared(of, "llmu (mismatch)", "", theirs("mismatch_loss"), lambda m, s: nll(m, s.refusals))
