"""MUSE's baselines and scores, and the sharpness-aware trainer that another repository put beside its baselines."""

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from analyses.peers.imported import attribute, imports_from
from analyses.peers.open_unlearning import ABSENT
from analyses.peers.subject import (
    Comparison,
    Sides,
    Subject,
    alike,
    compared,
    hugging_face,
    parameters,
    stored_gradients,
)
from probe.data import Batch
from probe.methods.whp import whp_logits
from probe.metrics.attacks import min_k
from probe.metrics.muse import rouge_l_f1
from probe.metrics.tokens import token_stats
from probe.objectives.sequence import LogitNPO
from probe.objectives.token import nll
from probe.train import SAM, Step, Term
from probe.train.step import Piece
from probe.weights import negate

# Texts for ROUGE: truth, and what was written.
TEXTS = (
    ("The author was born in Lisbon on 3 May 1950.", "She was born in Lisbon in May."),
    ("Her novels describe storms, running ships and sailors.", "The novel describes a stormy sea and a sailor."),
    ("No.", "He did not say so."),
)


def muse(of: Subject, folder: Path) -> Iterator[Comparison]:
    """swj0419/muse_bench, the code of Shi et al., arXiv 2407.06460."""
    baselines = ("baselines", "baselines.baselines")
    with imports_from(folder, absent=ABSENT, bare=(*baselines, "metrics")):
        yield compared(of, "whp_logits", "alpha=1.7; through the NLL", *_lowered(of))
        vector = attribute("baselines.baselines.task_vector", "TaskVector")

        def negated(model: nn.Module, sides: Sides) -> list[Tensor]:
            taken = vector(pretrained_state_dict=of.original.state_dict(), finetuned_state_dict=model.state_dict())
            return list((-taken).apply_to(of.original, scaling_coef=0.7).values())

        def ours(model: nn.Module, sides: Sides) -> list[Tensor]:
            changed = copy.deepcopy(of.original)
            negate(changed, model, 0.7)
            return list(changed.state_dict().values())

        yield alike(of, "task_vector", "scale=0.7; weights", negated, ours)
        yield alike(of, "Min-K%", "k=0.4, whole texts; scores", _min_k(), _our_min_k)
        logger = attribute("metrics.logger", "RougeEvalLogger")()
        for truth, output in TEXTS:
            logger.log("", truth, output)
        scores = torch.tensor([row["rougeL"] for row in logger.history])
        mine = torch.tensor([rouge_l_f1(truth, output, "unstemmed") for truth, output in TEXTS])
        yield alike(of, "ROUGE-L F1", "unstemmed; scores", lambda m, s: [scores], lambda m, s: [mine])


def _lowered(of: Subject) -> tuple[Any, Any]:
    wrapper = object.__new__(attribute("baselines.baselines.whos_harry_potter", "WHPModelForCausalLM"))
    nn.Module.__init__(wrapper)
    wrapper.baseline, wrapper.alpha, wrapper.config = of.original, 1.7, of.original.config

    def theirs(model: nn.Module, sides: Sides) -> Tensor:
        wrapper.reinforced = model
        return wrapper(**hugging_face(sides.forget)).loss

    return theirs, lambda model, sides: nll(whp_logits(of.original, model, alpha=1.7), sides.forget)


class _Ids:
    """Reads a text of numbers as its token ids."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]


def _rows(batch: Batch) -> list[list[int]]:
    return [row_T[kept_T].tolist() for row_T, kept_T in zip(batch.tokens_BT, batch.attention_BT, strict=True)]


def _min_k() -> Any:
    inference = attribute("metrics.privleak", "inference")

    def theirs(model: Any, sides: Sides) -> list[Tensor]:
        texts = [" ".join(map(str, row)) for row in _rows(sides.forget)]
        with warnings.catch_warnings():
            # Its Min-5% of a text of fewer than 20 tokens is the mean of nothing.
            warnings.simplefilter("ignore", RuntimeWarning)
            return [torch.tensor([inference(text, model, _Ids())["Min-40%"] for text in texts])]

    return theirs


def _our_min_k(model: nn.Module, sides: Sides) -> list[Tensor]:
    rows = sides.forget
    whole_BT = rows.attention_BT.clone()
    whole_BT[:, 0] = False
    one_B = torch.ones_like(rows.prompt_B)
    # A text has no end of an answer that would be left out.
    whole = Batch(rows.tokens_BT, whole_BT, rows.attention_BT, rows.group_B, one_B, end_B=0 * one_B)
    return [torch.tensor(min_k(token_stats(model, whole), 0.4))]


def smooth(of: Subject, folder: Path) -> Iterator[Comparison]:
    """OPTML-Group/Unlearn-Smooth, the code of Fan et al., arXiv 2502.05374: its trainer for MUSE."""
    packages = ("baselines", "baselines.baselines")
    with imports_from(folder / "MUSE", absent=ABSENT, bare=packages):
        trainer = object.__new__(attribute("baselines.baselines.sam_iterative", "SAMIterativeUnlearner"))
        given = {
            "loss_type": "npo_gdr",
            "ref_model": of.original,
            "beta": 0.1,
            "npo_coeff": 1.0,
            "coeff": 1.3,
            "gamma": 0.0,
            "sam_rho": 0.01,
            "args": SimpleNamespace(gradient_accumulation_steps=1),
            "accelerator": SimpleNamespace(backward=lambda loss: loss.backward()),
            "_prepare_inputs": lambda inputs: inputs,
        }
        for key, value in given.items():
            setattr(trainer, key, value)

        def theirs(model: nn.Module, sides: Sides) -> list[Tensor]:
            before = [p.detach().clone() for p in parameters(model)]
            # It prints its losses.
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.training_step(model, (hugging_face(sides.forget), hugging_face(sides.retain)))
            model.eval()
            # It adds what it moved by and takes it away again, which rounds.
            with torch.no_grad():
                for p, value in zip(parameters(model), before, strict=True):
                    p.copy_(value)
            return stored_gradients(model)

        objective = LogitNPO(of.original, 0.1)

        def ours(model: nn.Module, sides: Sides) -> list[Tensor]:
            trained = dict(model.named_parameters())
            terms = [Term(1.0, objective, sides.forget, "forget"), Term(1.3, nll, sides.retain, "retain")]
            pieces = [[Piece(sides.forget, 1.0)], [Piece(sides.retain, 1.0)]]
            step = Step(0, 0, model, trained, terms, ("forget", "retain"), pieces)
            found = SAM(0.01, ("forget",))(step)[1]
            return [found[name] for name in trained]

        yield alike(of, "npo_sam (its step)", "rho=0.01, around LogitNPO; gradients alone", theirs, ours)
