"""Soft prompt: vectors in front of the question, trained to bring answers out."""

from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from probe.attacks.facts import Facts, Studied, prepared
from probe.attacks.placeholders import Placeholders, VectorsPD, initial, with_placeholders
from probe.attacks.recovery import AttackOutcome, Recovery, compared
from probe.data import Batch, encode
from probe.hooks import edited
from probe.modes import evaluating
from probe.objectives.token import nll
from probe.sites import unwrapped
from probe.train.terms import shuffled


def soft_prompt(
    model: nn.Module,
    study: Facts | Studied,
    *,
    length: int,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int = 0,
    retrained: nn.Module | None = None,
    progress: bool = False,
) -> Recovery:
    """Minimise the NLL of the shown answers over the embeddings of ``length`` tokens in front of every prompt.

    Prompt tuning (Lester et al., arXiv 2104.08691) as an attack (Schwinn et al., arXiv 2402.09063). Such prompts can
    extract what was never known, so the retrained model gets one of its own, trained alike.

    Args:
        model: its weights are not trained.
        study: a study, whose forget rows are divided (``facts_of``) and whose retrained model is compared with, or
            your own ``Facts``; trained on the shown rows, scored on the held-out ones.
        length: vectors in front of the prompt.
        steps: AdamW steps; 0 leaves random tokens in front.
        lr: learning rate, in units of the embeddings' entries.
        batch_size: rows a step.
        seed: fixes the first vectors and the order of rows.
        retrained: a model that never knew the facts.
        progress: show a bar.

    Returns:
        ``found`` holds ``losses``, one a step before it was taken, and ``vectors_PD``.

    Raises:
        ValueError: negative numbers, or a tokenizer without room for vectors.
        FloatingPointError: the loss is not finite; lower lr.

    >>> found = probe.soft_prompt(s.original, s, length=2, steps=2, lr=0.05, batch_size=4)
    >>> found.model.found["vectors_PD"].shape
    torch.Size([2, 128])
    """
    if steps < 0 or not lr > 0 or batch_size < 1:
        raise ValueError(f"expected steps >= 0, lr > 0 and rows in a batch, got {steps}, {lr} and {batch_size}")
    facts, never = prepared(study, retrained)
    room = with_placeholders(facts.tokenizer, facts.template, length)
    batch = encode(facts.tokenizer, facts.shown, template=room.template, max_length=facts.max_length + length)

    def act(one: nn.Module) -> AttackOutcome:
        before = facts.score(one, facts.held, facts.template)
        vectors_PD, losses = _train(one, room, batch, steps, lr, batch_size, seed, progress)
        with edited(one, room.edits(vectors_PD)):
            after = facts.score(one, facts.held, room.template)
        return AttackOutcome(before, after, {"losses": losses, "vectors_PD": vectors_PD})

    settings = {"length": length, "steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed}
    return compared("soft prompt", settings, act, facts, model, never)


def _train(
    model: nn.Module,
    room: Placeholders,
    batch: Batch,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    progress: bool,
) -> tuple[VectorsPD, tuple[float, ...]]:
    inner: Any = unwrapped(model)
    weight_VD = inner.get_input_embeddings().weight
    vectors_PD = initial(weight_VD, room.length, seed).requires_grad_()
    optimiser = torch.optim.AdamW([vectors_PD], lr=lr, weight_decay=0.0)
    order = shuffled(batch, batch_size, seed)
    losses: list[float] = []
    with evaluating(model), torch.enable_grad():
        for step in tqdm(range(steps), desc="soft prompt", disable=not progress, leave=False):
            rows = batch.select(next(order)).to(weight_VD.device)
            with edited(model, room.edits(vectors_PD)):
                loss = nll(model, rows)
                # Asked for by name: the model's own weights gather no gradient.
                (vectors_PD.grad,) = torch.autograd.grad(loss, [vectors_PD])
            losses.append(loss.item())
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(f"step {step}: the soft prompt's loss is {losses[-1]}; lower lr")
            optimiser.step()
    return vectors_PD.detach(), tuple(losses)
