"""Repositories of which single functions can be run: ELM's target, LAT's attacker, R2MU's loop, UNDIAL's trainer."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BatchEncoding

from analyses.peers.imported import attribute, imports_from
from analyses.peers.open_unlearning import ABSENT, on_forget
from analyses.peers.subject import (
    WIDTH,
    Comparison,
    Sides,
    Subject,
    alike,
    compared,
    hugging_face,
    parameters,
    stored_gradients,
)
from probe.objectives.distribution import UNDIAL, ELMErase
from probe.objectives.logprobs import all_but_last
from probe.objectives.representation import NearOriginal, TowardsTarget, all_positions, real_tokens
from probe.objectives.token import nll
from probe.sites import Site
from probe.train import LAT, Step, Term
from probe.train.step import Piece

ETA, EXPERT, NOVICE = 7.0, (11, 12, 13), (21, 22)


def _read(texts: list[str], **options: Any) -> BatchEncoding:
    ids = torch.tensor([[int(word) for word in text.split()] for text in texts])
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def elm(of: Subject, folder: Path) -> Iterator[Comparison]:
    """rohitgandikota/erasing-llm, the code of Gandikota et al., arXiv 2410.02760: what it trains towards."""
    absent, empty = (*ABSENT, "lm_eval"), ("utils.metrics", "utils.lora")
    with imports_from(folder, absent=absent, bare=("utils", "trainscripts"), empty=empty):
        edited = attribute("trainscripts.erase", "get_edit_vector")

    def theirs(model: nn.Module, sides: Sides) -> Tensor:
        given, total = hugging_face(sides.forget), torch.zeros((), dtype=torch.float64)
        logits_BTV = model(given["input_ids"], attention_mask=given["attention_mask"]).logits
        for row, kept_T in enumerate(sides.forget.attention_BT):
            prompt = " ".join(map(str, given["input_ids"][row, kept_T].tolist()))
            prefaces = (" ".join(map(str, ids)) + " " for ids in (EXPERT, NOVICE))
            target_1TV = edited(of.original, _read, prompt, *prefaces, start_eta=1, end_eta=ETA, dtype=torch.float64)
            total = total + cross_entropy(logits_BTV[row, kept_T], target_1TV[0], reduction="sum")
        return total / sides.forget.attention_BT.sum()

    ours = on_forget(ELMErase(of.original, EXPERT, NOVICE, ETA, 0, real_tokens))
    yield compared(of, "elm (erase)", f"positions=all, eta={ETA:g}; its target, our cross-entropy", theirs, ours)


def lat(of: Subject, folder: Path) -> Iterator[Comparison]:
    """aengusl/latent-adversarial-training, the code of Sheshadri et al., arXiv 2407.15549: its attacker's module."""
    with imports_from(folder, absent=ABSENT, bare=("latent_at", "latent_at.laa")):
        adversary = attribute("latent_at.laa.attacks", "GDAdversary")
    # The loop around it stops in a debugger and has the width 4096 written out: here is its arithmetic.
    epsilon, lr, steps, decay = 0.5, 0.2, 4, 0.01

    def theirs(model: nn.Module, sides: Sides) -> list[Tensor]:
        rows = sides.forget
        module = adversary(WIDTH, epsilon, rows.attention_BT, device=rows.tokens_BT.device, dtype=torch.float64)
        hook = model.model.layers[1].register_forward_hook(  # type: ignore[union-attr,index]
            lambda block, given, output: module(output.clone())
        )
        optimiser = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=decay)
        with contextlib.closing(SimpleNamespace(close=hook.remove)):
            for _ in range(steps):
                module.zero_grad()
                nll(model, rows).backward(inputs=[module.attack])
                optimiser.step()
                module.clip_attack()
        return [module.attack.detach()]

    def ours(model: nn.Module, sides: Sides) -> list[Tensor]:
        way = LAT(Site(1), nll, epsilon=epsilon, lr=lr, steps=steps, on=("forget",), weight_decay=decay)
        terms = [Term(1.0, nll, sides.forget, "forget")]
        trained = dict(model.named_parameters())
        step = Step(0, 0, model, trained, terms, ("forget",), [[Piece(sides.forget, 1.0)]])
        return [way.perturbation(step, sides.forget)]

    yield alike(of, "rmu_lat (attacker)", "attack_weight_decay=0.01; perturbations", theirs, ours)


class _Taken(Exception):
    """The step whose gradients were asked for has come."""


class _Stop:
    """Stands for the optimiser: ends the loop where it would step."""

    def __init__(self, *given: Any, **options: Any) -> None: ...

    def zero_grad(self) -> None: ...

    def step(self) -> None:
        raise _Taken


def r2mu(of: Subject, folder: Path) -> Iterator[Comparison]:
    """OPTML-Group/Unlearn-R2MU, the code of Wang et al., arXiv 2506.12963: its training loop up to the first step."""
    with imports_from(folder, absent=ABSENT, itself=("rmu",), empty=("rmu.metrics",)):
        run = attribute("unlearn_r2mu", "run_rmu")
    run.__globals__["AdamW"] = _Stop
    run.__globals__["wandb"] = SimpleNamespace(init=lambda **given: None, log=lambda values: None)
    args = SimpleNamespace(
        output_dir="",
        wandb_group="",
        layer_ids=[1],
        param_ids=[6],
        lr=1.0,
        module_str="{model_name}.model.layers[{layer_id}]",
        layer_id=1,
        steering_coeff_list=[3.0],
        max_num_batches=1,
        alpha=[2.0],
        assist_loss=0.7,
    )
    # In the order of its arguments; questions and questions with reasoning enter no loss.
    order = ("forget", "retain", "refusals", "retain", "retain_refusals", "retain")

    def theirs(model: nn.Module, sides: Sides) -> list[Tensor]:
        def tokenizer(side: str, **options: Any) -> BatchEncoding:
            given = hugging_face(getattr(sides, side))
            return BatchEncoding({key: given[key] for key in ("input_ids", "attention_mask")})

        texts = [[[side]] for side in order]
        with contextlib.suppress(_Taken), contextlib.redirect_stderr(io.StringIO()):
            run(model, of.original, tokenizer, *texts, args)
        model.eval()
        return stored_gradients(model)

    def ours(model: nn.Module, sides: Sides) -> list[Tensor]:
        drawn_D = torch.rand(WIDTH, dtype=torch.float64)
        push = TowardsTarget(Site(1), 3 * drawn_D / drawn_D.norm(), all_positions)
        hold = NearOriginal(of.original, Site(1), all_positions)
        loss = push(model, sides.forget) + push(model, sides.refusals)
        loss = loss + 2 * hold(model, sides.retain) + 0.7 * hold(model, sides.retain_refusals)
        found = torch.autograd.grad(loss, list(parameters(model)), allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters(model), found, strict=True)]

    yield alike(of, "r2mu", "tokens=all, trace_weight=1; gradients alone", theirs, ours)


def undial(of: Subject, folder: Path) -> Iterator[Comparison]:
    """dong-river/LLM_unlearning, the code of Dong et al., arXiv 2402.10052."""
    # Its folder holds a fork of transformers, which is loaded already and so not looked for there.
    with imports_from(folder, absent=ABSENT, bare=("utils",)):
        trainer = object.__new__(attribute("utils.ft_utils", "DITrainer"))
    trainer.device, trainer.di_kwargs = "cpu", {"di_strength": 10.0, "focus": False}
    trainer.unlearn_teacher_model = of.original
    yield compared(
        of,
        "undial",
        "positions=all, beta=10",
        lambda model, sides: trainer.compute_loss(model, hugging_face(sides.forget)),
        on_forget(UNDIAL(of.original, beta=10.0, positions=all_but_last)),
    )
