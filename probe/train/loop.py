"""The one training loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from probe.context import check_rows
from probe.train.averaging import Averaging, next_average
from probe.train.saved import Checkpointing, Saved, resume, save_checkpoint, tensors_of
from probe.train.schedules import Decay, scheduled
from probe.train.setup import (
    Stop,
    TrainingRun,
    check_run,
    configuration_of,
    counted_terms,
    n_processes,
    optimiser_of,
    trained_parameters,
    training,
)
from probe.train.step import Piece, Step, Stepping, check_gradient, drawn_seed, first_nonfinite, plain_gradient
from probe.train.terms import Count, History, Schedule, Term, constant, shuffled


def minimise(
    model: nn.Module,
    terms: Sequence[Term],
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    parameters: str = ".",
    weight_decay: float = 0.0,
    decay_all: bool = False,
    schedule: Schedule | Decay = constant,
    warmup: float | int = 0,
    replacement: bool = False,
    clip: float | None = 1.0,
    progress: str | None = None,
    every: int = 0,
    observe: Callable[[int, nn.Module], None] | None = None,
    stepping: Stepping = plain_gradient,
    accumulate: int = 1,
    mean_over: Mapping[str, Count] | None = None,
    autocast: torch.dtype | None = None,
    averaging: Averaging | None = None,
    checkpoint: Checkpointing | None = None,
    stop: Stop | None = None,
    accelerator: Any = None,
) -> History:
    """Minimise sum_k weight_k objective_k(model, batch_k) with AdamW, in place, deterministically by ``seed``.

    Args:
        model: trained in place; parameters that do not match keep their bits, and train/eval mode is restored. It is
            trained in eval mode, without dropout.
        terms: what to minimise; each term draws its own shuffled batches, epoch by epoch.
        steps: optimiser steps.
        lr: learning rate, multiplied by ``schedule(step / steps)``.
        batch_size: rows per term and step, and per process where there are several.
        seed: fixes the order of rows and whatever objectives draw at random.
        parameters: regular expression over parameter names; these are trained even if they came frozen, the rest
            is frozen meanwhile, and every flag is put back.
        weight_decay: AdamW's, on weights of two axes or more; norm weights and biases do not decay, as in Hugging
            Face's trainer.
        decay_all: let ``weight_decay`` act on norm weights and biases too, as torch's AdamW does by itself.
        schedule: factor of the learning rate, by how far the run is; or ``"constant"``, ``"linear"`` or ``"cosine"``,
            which are Hugging Face's (``probe.train.WarmUp``).
        warmup: steps over which a schedule by name first rises, or a share of the steps below 1.
        replacement: draw the rows of every term but the first one by one, with replacement, as OpenUnlearning draws a
            retain row to each forget row. Otherwise each term shuffles its rows anew each epoch.
        clip: largest gradient norm, or None.
        progress: text of the progress bar, which shows each term's loss; None shows none.
        every, observe: call ``observe(step, model)`` every so many steps, so that dynamics are recorded in one run. A
            resumed run calls it for its own steps only.
        stepping: how a step's gradient is found: ``plain_gradient``, or ``SAM``, ``Smoothing``, ``GradientPenalty``,
            ``CurvaturePenalty``, ``LAT`` or ``TAR`` with their numbers.
        accumulate: compute each batch in so many pieces of as many rows. The gradient is that of the whole batch, up
            to rounding, for objectives that are means over what ``mean_over`` counts: the share of a piece is its
            share of the count. It is not for means over padding, nor for losses that mix rows.
        mean_over: counts by term name (``{"forget": rows}``), before what the terms themselves say.
        autocast: run forwards in this dtype (``torch.bfloat16``) where torch thinks it safe; weights, gradients and
            optimiser keep theirs.
        averaging: ``SWA`` or ``EMA``: the run ends with the average in the model. Observers see the unaveraged weights.
        checkpoint: leave checkpoints, and go on from the last one the folder holds: on a CPU with the same bits as
            if the run had not been cut off.
        stop: ``stop(step, losses)`` after each step; True ends the run, and the history says so.
        accelerator: an ``accelerate.Accelerator``; each process computes its part of every batch, with the same
            gradient in all. The model must be on its device, with the same weights in every process; or it is split
            over them (``probe.train.sharded``), for the plain step without averaging.

    Returns:
        the loss of each term at each step.

    Raises:
        ValueError: no terms, no steps, a pattern that matches nothing, a quantised weight or only one name of tied
            weights, weights that are not loaded, a term that no trained parameter acts on, pieces that do not divide a
            batch, a checkpoint folder of another configuration, or what split weights do not allow.
        FloatingPointError: a loss, gradient or weight became NaN or infinite; the message names step, term and layer.
        OSError: a checkpoint could not be written; the one before it is whole.

    >>> model = copy.deepcopy(s.original)
    >>> forget = probe.Term(1.0, probe.ga, s.split.forget, "forget")
    >>> retain = probe.Term(5.0, probe.nll, s.split.retain, "retain")
    >>> history = probe.minimise(model, [forget, retain], steps=3, lr=3e-4, batch_size=8, seed=0)
    >>> history.names, len(history.losses)
    (('forget', 'retain'), 3)
    """
    if not terms or steps < 1 or batch_size < 1:
        raise ValueError(f"at least 1 term, step and row a step are needed; got {len(terms)}, {steps} and {batch_size}")
    model = model if accelerator is None else accelerator.unwrap_model(model)
    trained = trained_parameters(model, parameters)
    run = TrainingRun(
        model=model,
        trained=trained,
        terms=counted_terms(terms, mean_over or {}),
        names=tuple(term.name or f"term {k}" for k, term in enumerate(terms)),
        rows=tuple(min(batch_size * n_processes(accelerator), len(term.data)) for term in terms),
        steps=steps,
        lr=lr,
        seed=seed,
        schedule=scheduled(schedule, steps, warmup),
        clip=clip,
        stepping=stepping,
        accumulate=accumulate,
        autocast=autocast,
        averaging=averaging,
        accelerator=accelerator,
        weight_decay=weight_decay,
        decay_all=decay_all,
        replacement=replacement,
    )
    check_run(run)
    check_rows(model, *(term.data for term in terms))
    with training(model, trained):
        optimiser = optimiser_of(run)
        settings = {} if checkpoint is None else configuration_of(run, parameters, stop)
        saved = None if checkpoint is None else resume(checkpoint, trained, optimiser, settings)
        orders = _orders(run, saved)
        losses, average = ([], {}) if saved is None else (list(saved.losses), saved.average)
        stopped = None
        bar = tqdm(range(len(losses), steps), desc=progress, disable=progress is None, leave=False)
        for step in bar:
            losses.append(_take(run, optimiser, orders, step))
            average = next_average(averaging, average, trained, step + 1)
            shown = {name: f"{loss:.3g}" for name, loss in zip(run.names, losses[-1], strict=True)}
            bar.set_postfix(shown, refresh=False)
            if observe is not None and every and (step + 1) % every == 0:
                observe(step + 1, model)
            if stop is not None and stop(step + 1, dict(zip(run.names, losses[-1], strict=True))):
                stopped = step + 1
                break
            if checkpoint is not None and (step + 1) % checkpoint.every == 0:
                _save(
                    run, checkpoint, Saved(step + 1, tuple(losses), _drawn(run, step + 1), average), optimiser, settings
                )
        _check_weights(run, len(losses))
        with torch.no_grad():
            for name, mean in average.items():
                trained[name].copy_(mean)
    return History(run.names, tuple(losses), stopped)


def _take(run: TrainingRun, optimiser: torch.optim.Optimizer, orders: Sequence[Iterator[list[int]]], number: int):
    """One step: find the gradient, clip it, move the weights."""
    for group in optimiser.param_groups:
        group["lr"] = run.lr * run.schedule((number + 1) / run.steps)
    pieces = [_pieces(run, term, next(order)) for term, order in zip(run.terms, orders, strict=True)]
    step = Step(number, run.seed, run.model, run.trained, run.terms, run.names, pieces, run.autocast, run.accelerator)
    # What objectives draw must not depend on how often the run was cut off.
    torch.manual_seed(drawn_seed(run.seed, number))
    losses, gradient = run.stepping(step)
    total = check_gradient(step, gradient)
    for name, p in run.trained.items():
        p.grad = gradient.get(name)
    if run.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(list(run.trained.values()), run.clip, total)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return tuple(losses[k] for k in range(len(run.names)))


def _pieces(run: TrainingRun, term: Term, drawn: list[int]) -> list[Piece]:
    """This process's pieces of a batch; all processes know the whole batch, so shares need no exchange."""
    n = run.processes * run.accumulate
    if n == 1:
        return [Piece(term.data.select(drawn), 1.0)]
    size = len(drawn) // n
    data = [term.data.select(drawn[i * size : (i + 1) * size]) for i in range(n)]
    assert term.mean_over is not None
    counts = [term.mean_over(one) for one in data]
    first = 0 if run.accelerator is None else run.accelerator.process_index * run.accumulate
    mine = range(first, first + run.accumulate)
    return [Piece(data[i], counts[i] / sum(counts)) for i in mine]


def _orders(run: TrainingRun, saved: Saved | None) -> list[Iterator[list[int]]]:
    """Each term's stream of row indices, behind the rows that were drawn already."""
    orders = [
        shuffled(t.data, n, run.seed + 1009 * k, replacement=run.replacement and k > 0)
        for k, (t, n) in enumerate(zip(run.terms, run.rows, strict=True))
    ]
    if saved is None:
        return orders
    assert saved.drawn == _drawn(run, saved.step)
    return [islice(order, saved.step, None) for order in orders]


def _drawn(run: TrainingRun, step: int) -> tuple[int, ...]:
    return tuple(step * rows for rows in run.rows)


def _check_weights(run: TrainingRun, step: int) -> None:
    broken = first_nonfinite(run.model, run.trained)
    if broken is not None:
        raise FloatingPointError(
            f"step {step - 1}: the update of {', '.join(run.names)} left a weight that is not finite, first in {broken}"
            "; lower the learning rate"
        )


def _save(
    run: TrainingRun, checkpoint: Checkpointing, saved: Saved, optimiser: Any, settings: Mapping[str, Any]
) -> None:
    _check_weights(run, saved.step)
    tensors = tensors_of(saved, run.trained, optimiser)
    if run.accelerator is None or run.accelerator.is_main_process:
        save_checkpoint(checkpoint, saved, tensors, settings)
    if run.accelerator is not None:
        run.accelerator.wait_for_everyone()
