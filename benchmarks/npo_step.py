"""What one NPO step costs with what the original says kept, against GA and NLL, and against two models.

NPO + NLL: goal 1.1 times a step of GA and NLL. NPO + KL on retain rows: goal 0.65 times the step of the published code,
which runs the model twice on retain rows and the original once on each side. Every side is a step on the same rows
with all parameters trained, without the optimiser.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from benchmarks import models
from benchmarks.timing import alternating, peak_mib, show
from probe.data import Batch
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO
from probe.objectives.token import ga, nll
from probe.train import Term, minimise
from probe.train.step import Gradient, Piece, Step, plain_gradient

BETA = 0.1


def sized(vocabulary: int) -> Any:
    """The benchmarks' Llama with another vocabulary."""
    from transformers import LlamaForCausalLM

    config = models.model().config
    config.vocab_size = vocabulary
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def moved(vocabulary: int) -> Any:
    """A model away from the original, where neither the log-ratio nor the divergence is zero."""
    model = sized(vocabulary)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.mul_(1 + 0.01 * (i % 3))
    return model


def terms(forget_objective: Objective, retain_objective: Objective, sides: tuple[Batch, Batch]) -> list[Term]:
    """One forget and one retain term of weight 1."""
    return [Term(1.0, forget_objective, sides[0], "forget"), Term(1.0, retain_objective, sides[1], "retain")]


def stepping(model: torch.nn.Module, listed: list[Term]) -> Callable[[], Gradient]:
    """One call computes losses and gradients as a step of ``minimise`` does."""
    pieces = [[Piece(term.data, 1.0)] for term in listed]
    step = Step(0, 0, model, dict(model.named_parameters()), listed, ("forget", "retain"), pieces)
    return lambda: plain_gradient(step)[1]


def two_models(model: Any, original: Any, sides: tuple[Batch, Batch]) -> tuple[float, float]:
    """NPO + KL as published codes compute it: five forwards, two of them without gradient; fills every ``.grad``."""
    forget, retain = sides

    def asked(one: Any, batch: Batch) -> Any:
        labels_BT = batch.tokens_BT.masked_fill(~batch.target_BT, -100)
        return one(**batch.inputs, labels=labels_BT, use_cache=False)

    def answer_nll(one: Any, batch: Batch) -> torch.Tensor:
        logits_BTV = asked(one, batch).logits[:, :-1]
        labels_BT = batch.tokens_BT.masked_fill(~batch.target_BT, -100)[:, 1:]
        return cross_entropy(logits_BTV.transpose(1, 2), labels_BT, reduction="none").sum(1)

    with torch.no_grad():
        before_B = answer_nll(original, forget)
    npo = -(2 / BETA) * logsigmoid(BETA * (answer_nll(model, forget) - before_B)).mean()
    asked(model, retain)  # its loss is not used with KL
    with torch.no_grad():
        before_BTV = asked(original, retain).logits.log_softmax(-1)
    logp_BTV = asked(model, retain).logits.log_softmax(-1)
    at_BT = torch.cat([retain.target_BT[:, 1:], torch.zeros_like(retain.target_BT[:, :1])], 1)
    kl = (before_BTV.exp() * (before_BTV - logp_BTV)).sum(-1)[at_BT].mean()
    (npo + kl).backward()
    return npo.item(), kl.item()


def check_training(vocabulary: int, sides: tuple[Batch, Batch], ours: list[Term], original: Any) -> None:
    """Four steps of AdamW give the same losses, and weights that differ by what Adam makes of rounding."""
    model, judge, lr = moved(vocabulary), moved(vocabulary), 1e-4
    start = [p.detach().clone() for p in model.parameters()]
    found = minimise(model, ours, steps=4, lr=lr, batch_size=len(sides[0]), seed=0, clip=None).losses
    optimiser = torch.optim.AdamW(judge.parameters(), lr=lr, weight_decay=0.0)
    expected = []
    for _ in range(4):
        expected.append(two_models(judge, original, sides))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    pairs = list(zip(model.parameters(), judge.parameters(), start, strict=True))
    change = torch.cat([(two - before).abs().flatten() for _, two, before in pairs]).mean().item()
    apart = torch.cat([(one - two).abs().flatten() for one, two, _ in pairs])
    assert apart.mean().item() < 0.01 * change
    print(
        f"  after 4 steps of AdamW: weights moved by {change:.1e}, sides apart by {apart.mean().item():.1e} (mean), ",
        end="",
    )
    print(f"{apart.max().item():.1e} (most)")


def compare_kl(vocabulary: int, sides: tuple[Batch, Batch], repeats: int, title: str) -> None:
    """NPO + KL against two models, GA + NLL beside."""
    original = sized(vocabulary).requires_grad_(False)
    judge = moved(vocabulary)

    def references() -> tuple[OriginalAnswers, OriginalAnswers]:
        return OriginalAnswers(original, sides[0]), OriginalAnswers(original, sides[1], states=True)

    def naive() -> None:
        judge.zero_grad(set_to_none=True)
        two_models(judge, original, sides)

    forget_kept, retain_kept = references()
    listed = terms(NPO(forget_kept, BETA), ForwardKL(retain_kept), sides)
    kept = stepping(moved(vocabulary), listed)
    naive()
    for (name, p), found in zip(judge.named_parameters(), kept().values(), strict=True):
        torch.testing.assert_close(found, p.grad, rtol=1e-4, atol=2e-5 * p.grad.abs().max().item(), msg=name)
    print(title)
    check_training(vocabulary, sides, listed, original)
    measured: dict[str, Callable[[], Any]] = {
        "NPO + KL, two models": naive,
        "NPO + KL, reference kept": kept,
        "GA + NLL": stepping(moved(vocabulary), terms(ga, nll, sides)),
        "computing the references": references,
    }
    timings, peaks = alternating(measured, repeats), {}
    for name, side in measured.items():
        judge.zero_grad(set_to_none=True)
        peaks[name] = peak_mib(side)
    show("  (no optimiser)", timings, peaks)
    states = sum(held.numel() for _, held in retain_kept.distributions.values())
    assert retain_kept.head is not None
    head = sum(p.numel() for p in retain_kept.head.shell.parameters())
    whole = sum(len(held) for _, held in retain_kept.distributions.values()) * vocabulary
    print(f"  kept: {states * 4 / 2**20:.2f} MiB of states, {head * 4 / 2**20:.1f} MiB head; ", end="")
    print(f"whole distributions: {whole * 4 / 2**20:.1f} MiB; a second model: ", end="")
    print(f"{sum(p.numel() for p in original.parameters()) * 4 / 2**20:.0f} MiB")


def compare_nll(sides: tuple[Batch, Batch], repeats: int, title: str) -> None:
    """NPO + NLL against GA + NLL, and against NPO with a second model."""
    original = models.model()
    reference = OriginalAnswers(original, sides[0])
    objectives = {"GA + NLL": ga, "NPO + NLL, reference kept": NPO(reference, BETA)}
    objectives["NPO + NLL, two models"] = NPO(original, BETA)
    measured: dict[str, Callable[[], Any]] = {
        name: stepping(moved(models.VOCABULARY), terms(objective, nll, sides)) for name, objective in objectives.items()
    }
    expected = measured["NPO + NLL, two models"]()
    for name, found in measured["NPO + NLL, reference kept"]().items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5 * expected[name].abs().max().item())
    del expected
    measured["computing the reference"] = lambda: OriginalAnswers(original, sides[0])
    timings = alternating(measured, repeats)
    show(title, timings, {name: peak_mib(side) for name, side in measured.items()})
    kept_by_two = timings["NPO + NLL, reference kept"].seconds / timings["NPO + NLL, two models"].seconds
    print(f"  reference kept, by two models: {kept_by_two:.3f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    settings = parser.parse_args()
    forget, retain = (models.batch(settings.rows, settings.length, seed=seed) for seed in (0, 1))
    size = f"{models.LAYERS} layers, {settings.rows} x {settings.length}"
    compare_nll((forget, retain), settings.repeats, f"npo_step: {size}, no optimiser")
    compare_kl(
        models.VOCABULARY,
        (forget, retain),
        settings.repeats,
        f"npo_step, KL: {size}, vocabulary {models.VOCABULARY}, all tokens are targets",
    )
    answered_T = torch.arange(settings.length) >= settings.length // 2
    answers = [replace(batch, target_BT=batch.target_BT & answered_T) for batch in (forget, retain)]
    compare_kl(
        8192,
        (answers[0], answers[1]),
        settings.repeats,
        f"npo_step, KL: {size}, vocabulary 8192, the second half of each row is the answer",
    )


if __name__ == "__main__":
    main()
