"""Any diagnostics and attacks at chosen steps of one training run, which goes on as if nobody had looked."""

import math
import random
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from probe.checkpoints import weights_hash
from probe.display import Result, ResultTable
from probe.hooks import foreign_hooks, our_hooks
from probe.rows import Row
from probe.train import History

# What is asked of the model at a step: numbers by name, or rows.
Question = Callable[[nn.Module], Mapping[str, float] | Sequence[Row]]


@dataclass(frozen=True, eq=False)
class Dynamics(Result):
    """What a run went through.

    Args:
        history: losses of the run, as ``minimise`` returned them.
        found: what was found, as rows; ``item`` is the step, ``diagnostic`` the question's name unless its rows have
            their own. A question that raised has one row without a value, quantity "failed", whose ``status`` says why.
        steps: the steps at which the model was asked.
    """

    history: History
    found: tuple[Row, ...] = field(repr=False)
    steps: tuple[int, ...]

    def rows(self, name: str | None = None) -> list[Row]:
        """What was found, under the run's own name unless another is given."""
        return [row if name is None else replace(row, intervention=name) for row in self.found]

    def table(self) -> ResultTable:
        """The value of each quantity at each step, where it is one number."""
        heads = list(dict.fromkeys(f"{row.diagnostic}: {row.quantity}" for row in self.found if row.layer is None))
        value = {(row.item, f"{row.diagnostic}: {row.quantity}"): row.value for row in self.found if row.layer is None}
        columns = {head: [value.get((step, head)) for step in self.steps] for head in heads}
        return ResultTable({"step": self.steps, **columns})


def dynamics(
    run: Callable[..., History],
    model: nn.Module,
    questions: Mapping[str, Question],
    *,
    at: Collection[int],
    name: str,
) -> Dynamics:
    """Train, and ask the model everything at chosen steps of that run.

    Attacks that train (``relearn``) work on the model itself and put it back, so a step costs no second model but
    what the attack keeps. Losses, weights, optimiser and random numbers are bit for bit those of a run that nobody
    watched: random states, gradients, modes and ``requires_grad`` flags are put back after each question, and a
    question that leaves other weights or a hook behind ends the run. To ask after a run instead, keep checkpoints
    and use ``probe.train.at_checkpoint``.

    Example::

        found = dynamics(
            partial(npo, model, split, original=original, beta=0.1, retain_weight=1.0, steps=60, lr=3e-4,
                    batch_size=16, seed=0),
            model,
            {
                "squeezing": lambda m: squeezing(m, responses).gain(before),
                "relearning": lambda m: relearn(m, facts, training).recovery.model.after.means(),
            },
            at=(0, 20, 40, 60),
            name="NPO",
        )

    Args:
        run: trains ``model`` and returns its history; it is called with ``every`` and ``observe``, which any recipe
            in ``probe.methods`` and ``minimise`` itself take.
        model: what is trained, the very object.
        questions: by name, functions of the model that give numbers by name, or rows without an ``item``.
        at: steps; 0 is before the first one.
        name: what rows call the run ("NPO").

    Returns:
        the rows in the order of steps and questions.

    Raises:
        ValueError: no questions, no steps or a negative one, rows with an ``item``, or a run that trains twice.
        RuntimeError: a question changed the weights or left a hook; its name and the step are given.

    >>> from functools import partial
    >>> terms = [probe.Term(1.0, probe.ga, s.split.forget, "forget")]
    >>> model = copy.deepcopy(s.original)
    >>> run = partial(probe.minimise, model, terms, steps=2, lr=3e-4, batch_size=8, seed=0)
    >>> found = probe.dynamics(run, model, {"separability": lambda model: []}, at=[0, 2], name="GA")
    """
    if not questions or not at or min(at) < 0:
        raise ValueError(f"expected questions and steps of at least 0, got {list(questions)} and {sorted(at)}")
    rows: list[Row] = []
    seen: list[int] = []

    def look(step: int, current: nn.Module) -> None:
        if step not in at:
            return
        if step in seen:
            raise ValueError(
                f"step {step} came twice, so this run trains more than once; watch each training by itself"
            )
        seen.append(step)
        for asked, question in questions.items():
            with state_restored(current, f"{asked!r} at step {step}"):
                rows.extend(_answer(question, current, step, asked, name))

    look(0, model)
    history = run(every=math.gcd(*at) or 1, observe=look)
    missed = sorted(set(at) - set(seen))
    if missed:
        warnings.warn(
            f"{name} was not asked at steps {missed}: the run ended earlier, was resumed after them, or does not pass "
            "every and observe on to minimise",
            stacklevel=2,
        )
    return Dynamics(history, tuple(rows), tuple(seen))


@contextmanager
def state_restored(model: nn.Module, who: str) -> Iterator[None]:
    """Whatever is asked inside, training can go on afterwards as if it had not been.

    Random states (Python, NumPy, torch), gradients, modes and flags are put back; weights and hooks are compared.

    Args:
        model: may be moved inside, but must come back bit for bit.
        who: what an error calls the code inside.

    Raises:
        RuntimeError: other weights or hooks than before.
    """
    states = random.getstate(), np.random.get_state()
    before, hooks = weights_hash(model), _hooks(model)
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index or 0 for p, *_ in parameters if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices), torch.enable_grad():
            yield
        for thing, now, then in (("weights", weights_hash(model), before), ("hooks", _hooks(model), hooks)):
            if now != then:
                raise RuntimeError(
                    f"{who} left other {thing} behind, so the run would not be the one that nobody watched; put them "
                    "back (probe.attacks.restoring.weights_restored, probe.weights.blended) or work on a copy"
                )
    finally:
        for module, training in modes:
            module.training = training
        for p, flag, grad in parameters:
            p.requires_grad_(flag)
            p.grad = grad
        random.setstate(states[0])
        np.random.set_state(states[1])


def _hooks(model: nn.Module) -> tuple[list[str], list[str]]:
    return foreign_hooks(model), our_hooks(model)


def _answer(question: Question, model: nn.Module, step: int, asked: str, name: str) -> list[Row]:
    try:
        found = question(model)
    except Exception as error:
        # A model may be beyond a diagnostic in mid-run; the run and the other questions are not to be lost with it.
        warnings.warn(f"{asked!r} failed at step {step}: {type(error).__name__}: {error}", stacklevel=4)
        return [Row(name, asked, "failed", None, item=step, status=f"{type(error).__name__}: {error}")]
    if isinstance(found, Mapping):
        return [Row(name, asked, quantity, float(value), item=step) for quantity, value in found.items()]
    taken = [row for row in found if row.item is not None]
    if taken:
        raise ValueError(
            f"{asked!r} gave a row ({taken[0].quantity}) with item {taken[0].item}, where the step goes; leave item "
            "empty, and tell examples apart by quantity, layer or dose"
        )
    return [replace(row, intervention=name, item=step) for row in found]
