"""Repositories with a layout of their own: circuit breakers, TAR, LoKU."""

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from analyses.peers.imported import attribute, imports_from
from analyses.peers.open_unlearning import ABSENT, on_both, on_forget
from analyses.peers.subject import VOCABULARY, WIDTH, Comparison, Sides, Subject, compared, hugging_face
from analyses.peers.tofu_layout import loss_of
from probe.methods.adversarial import TowardsRandom
from probe.objectives.distribution import KLToUniform
from probe.objectives.hinge import InvertedHinge
from probe.objectives.representation import (
    HiddenStatesFromOriginal,
    OrthogonalToOriginal,
    all_positions,
    real_tokens,
)
from probe.objectives.token import nll, position_mean
from probe.sites import Site


class _WithAdapter:
    """The model as the circuit breakers' loss asks for it: with its adapter off it is the one before."""

    def __init__(self, model: nn.Module, original: nn.Module) -> None:
        self.model, self.original = model, original

    def __call__(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        trained, self.model = self.model, self.original
        try:
            yield
        finally:
            self.model = trained

    def eval(self) -> None: ...

    def train(self) -> None: ...


def circuit_breakers(of: Subject, folder: Path) -> Iterator[Comparison]:
    """ks-fahad/CircuitBreakers, which keeps the loss of the code of Zou et al., arXiv 2406.04313."""
    unused = ("cb_train_dataset", "utils", "args")
    with imports_from(folder / "src", absent=ABSENT, empty=unused):
        compute = attribute("lorra_circuit_breaker", "compute_loss")
    # It takes norms in float32, which torch refuses of float64 states.
    single = Subject(of.model.float(), of.original.float(), of.even, of.padded)
    # Their hidden state l is what enters block l.
    turned = OrthogonalToOriginal(single.original, (Site(0), Site(1)))
    held = HiddenStatesFromOriginal(single.original, None, real_tokens, position_mean)
    trainer = SimpleNamespace(current_training_step=0, get_training_progress=lambda: 0.5)

    def loss(model: nn.Module, sides: Sides) -> Tensor:
        forget, retain = hugging_face(sides.forget), hugging_face(sides.retain)
        inputs = {key: retain[key] for key in ("input_ids", "attention_mask")}
        inputs |= {f"{key}_circuit_breaker": forget[key] for key in ("input_ids", "attention_mask")}
        # It prints how far it is.
        with contextlib.redirect_stdout(io.StringIO()):
            return compute(trainer, _WithAdapter(model, single.original), inputs, [1, 2], 2.0)

    settings = "released, hidden states 1 and 2 there, sites 0 and 1 here, weights 1 and 1, float32"
    yield compared(single, "rr", settings, loss, on_both(turned, held))


def tar(of: Subject, folder: Path) -> Iterator[Comparison]:
    """rishub-tamirisa/tamper-resistance, the code of Tamirisa et al., arXiv 2408.00761: its four objectives."""
    with imports_from(folder / "modules", absent=ABSENT):
        entropy, held, random, plain = (
            attribute("objectives", name)
            for name in (
                "obj_max_entropy_next_token",
                "obj_model_mse_representations",
                "random_vector_cosine_obj",
                "obj_standard_max_next_token",
            )
        )
    uniform = KLToUniform(positions=all_positions)
    # Entropy there, KL to uniform here: log V apart, with one gradient.
    yield compared(
        of,
        "tar (entropy)",
        "all positions; the loss differs by log V",
        lambda model, sides: entropy(model, hugging_face(sides.forget))[0],
        on_forget(uniform),
    )
    near = HiddenStatesFromOriginal(of.original, None, all_positions)
    yield compared(
        of,
        "tar (retain)",
        "released",
        lambda model, sides: held(model, hugging_face(sides.retain), of.original),
        lambda model, sides: nll(model, sides.retain) + near(model, sides.retain),
    )
    yield compared(
        of, "tar (attacker)", "", lambda model, sides: plain(model, hugging_face(sides.forget)), on_forget(nll)
    )
    directions_VD = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def mapped(model: nn.Module, sides: Sides) -> Tensor:
        found: list[Tensor] = []
        backward = SimpleNamespace(backward=found.append)
        random(model, None or {}, hugging_face(sides.forget), backward, 1, directions_VD)
        return found[0]

    yield compared(
        of, "tar (mapping)", "released", mapped, on_forget(TowardsRandom(directions_VD, None, all_positions))
    )


def loku(of: Subject, folder: Path) -> Iterator[Comparison]:
    """csm9493/efficient-llm-unlearning, the code of LoKU; it needs the package torchmetrics."""
    unused = ("evaluate_util", "data_module", "utils")
    with imports_from(folder / "TOFU", absent=ABSENT, empty=unused):
        theirs = loss_of(of, "dataloader", "IHL")
        yield compared(of, "ihl, loku", "", theirs, on_both(InvertedHinge(), nll))
