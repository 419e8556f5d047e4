"""Relearning curves of k seeds: one call beside one call a seed, and k copies with stacked weights beside one by one.

Both sides of the first comparison attack a model and one that never knew, score the same rows at the same steps, and
give the same curves, asserted to 1e-6. The second shows why copies are not trained as one (``torch.vmap`` over
weights): gradients agree, and no time is gained on a CPU, where a step is bound by its matrix products.
"""

import argparse
import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import pad

from benchmarks.timing import alternating, peak_mib, show
from probe.attacks.curves import Curves, Training
from probe.attacks.facts import Facts, divided
from probe.attacks.relearning import relearn
from probe.data import Batch, encode
from probe.objectives.token import nll
from probe.testbed import load as load_testbed


def curves_of_seeds(bed: Any, facts: Facts, training: Training, repeats: int) -> None:
    """One call for all seeds, with and without the retrained model's curves kept from before, beside a call a seed."""

    def one_by_one() -> list[Curves]:
        alone = [replace(training, seeds=(seed,)) for seed in training.seeds]
        return [relearn(bed.original, facts, retrained=bed.retrained, **vars(one)) for one in alone]

    def together() -> Curves:
        return relearn(bed.original, facts, retrained=bed.retrained, **vars(training))

    kept = together().retrained

    def reused() -> Curves:
        return relearn(bed.original, facts, retrained=kept, **vars(training))

    judge, found, again = one_by_one(), together(), reused()
    for of in ("model", "retrained"):
        expected_KS = np.concatenate([curves.curve(of=of) for curves in judge])
        for curves in (found, again):
            np.testing.assert_allclose(curves.curve(of=of), expected_KS, rtol=0, atol=1e-6)
    scored = len(training.scored)
    sides = {"a call a seed": one_by_one, "one call": together, "one call, the retrained model's curves kept": reused}
    show(
        f"relearning: {len(training.seeds)} seeds, {training.steps} steps of {training.batch_size} rows, "
        f"{len(facts.shown) + len(facts.held)} rows scored at {scored} steps",
        alternating(sides, repeats),
        {name: peak_mib(side) for name, side in sides.items()},
    )
    rows = (*facts.held, *facts.shown)
    texts = [
        replace(row, answer=a) for row in rows for a in (row.answer, row.paraphrased_answer, *row.perturbed_answer)
    ]
    parts: dict[str, Callable[[], Any]] = {
        "scoring the rows once": lambda: facts.score(bed.original, rows, facts.template),
        "... of that, encoding them": lambda: encode(bed.tokenizer, texts),
    }
    show("  parts", alternating(parts, max(repeats, 3)))


def stacked_copies(bed: Any, data: Batch, copies: int, rows: int, repeats: int) -> None:
    """Loss and gradient of k copies on k batches: one after another, and with stacked weights."""
    models = [copy.deepcopy(bed.original).requires_grad_(True) for _ in range(copies)]
    shell = copy.deepcopy(models[0])
    generator = torch.Generator().manual_seed(0)
    batches = [data.select(torch.randperm(len(data), generator=generator)[:rows].tolist()) for _ in range(copies)]
    width = max(batch.tokens_BT.shape[1] for batch in batches)

    def stacked(name: str) -> Tensor:
        tensors = [getattr(batch, name) for batch in batches]
        return torch.stack([pad(one, (0, width - one.shape[1])) for one in tensors])

    tokens_KBT, target_KBT = stacked("tokens_BT"), stacked("target_BT").float()
    # A mask that is made inside would branch on its values, which a stacked call cannot.
    seen_KBTT = stacked("attention_BT")[:, :, None] & torch.ones(width, width, dtype=torch.bool).tril()
    mask_KB1TT = torch.where(seen_KBTT, 0.0, torch.finfo(torch.float32).min)[:, :, None]
    position_BT = torch.arange(width).expand(rows, width)

    def loss(weights: dict[str, Tensor], tokens_BT: Tensor, mask_B1TT: Tensor, target_BT: Tensor) -> Tensor:
        inputs = {"input_ids": tokens_BT, "attention_mask": mask_B1TT, "position_ids": position_BT, "use_cache": False}
        logits_BTV = functional_call(shell, weights, (), inputs).logits[:, :-1]
        logp_BT = logits_BTV.log_softmax(-1).gather(-1, tokens_BT[:, 1:, None])[..., 0]
        return -(logp_BT * target_BT[:, 1:]).sum() / target_BT[:, 1:].sum()

    weights = {name: value.detach() for name, value in stack_module_state(models)[0].items()}

    def at_once() -> dict[str, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that attention has no stacked kernel
            return vmap(grad(loss))(weights, tokens_KBT, mask_KB1TT, target_KBT)

    def one_by_one() -> list[tuple[Tensor, ...]]:
        return [
            torch.autograd.grad(nll(model, batch), list(model.parameters()))
            for model, batch in zip(models, batches, strict=True)
        ]

    found, judge = at_once(), one_by_one()
    for k, gradients in enumerate(judge):
        for (name, _), expected in zip(models[k].named_parameters(), gradients, strict=True):
            torch.testing.assert_close(found[name][k], expected, rtol=1e-3, atol=1e-6)
    sides: dict[str, Callable[[], Any]] = {"one by one": one_by_one, "stacked weights": at_once}
    show(
        f"loss and gradient of {copies} copies, {rows} rows each",
        alternating(sides, repeats),
        {name: peak_mib(side) for name, side in sides.items()},
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    bed = load_testbed()
    facts = divided(bed.tokenizer, bed.split.forget_rows[: settings.rows], share=0.5, by="row", seed=0)
    middle = settings.steps // 2
    training = Training(settings.steps, 3e-4, 8, at=(middle,), seeds=tuple(range(settings.seeds)))
    curves_of_seeds(bed, facts, training, settings.repeats)
    for rows in (4, 16):
        stacked_copies(bed, bed.split.forget, settings.seeds, rows, settings.repeats)


if __name__ == "__main__":
    main()
