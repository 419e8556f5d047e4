"""What G-effects cost: by token, by row and layer, of many objectives, and of every reweighting at once.

F is a bare forward of the same rows. Each part prints passes (forwards of the model and backward passes through it,
counted) beside times, and asserts that its sides agree.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.timing import Timing, alternating, peak_mib, show
from probe.data import Batch
from probe.diagnostics.g_effect import g_effect, g_effects
from probe.diagnostics.reweighting import reweighting_map
from probe.diagnostics.sample_effects import sample_effects
from probe.diagnostics.token_effects import token_effects
from probe.figures.style import new_figure, paper_style
from probe.objectives.logprobs import target_logprobs
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.sequence import NPO, SimNPO
from probe.objectives.token import TNPO, WGA, SatImp, ga, nll
from probe.sites import layer_of

Gradient = dict[str, torch.Tensor]


def deep(layers: int = 12) -> Any:
    """The benchmarks' Llama with another number of layers."""
    from transformers import LlamaForCausalLM

    config = models.model().config
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def answers(rows: int, length: int, *, seed: int) -> Batch:
    """Rows of one length whose last 45 of 64 tokens are targets, so that 16 rows of 64 have 720."""
    whole = models.batch(rows, length, seed=seed)
    start = length - length * 45 // 64
    target_BT = whole.target_BT & (torch.arange(length) >= start)
    return Batch(whole.tokens_BT, target_BT, whole.attention_BT, whole.group_B, torch.full((rows,), start))


@contextmanager
def counted(model: Any) -> Iterator[dict[str, int]]:
    """How often the model runs forward and how often a gradient is asked for, inside."""
    found = {"forwards": 0, "backwards": 0}
    forward, grad = model.forward, torch.autograd.grad

    def run(*args: Any, **kwargs: Any) -> Any:
        found["forwards"] += 1
        return forward(*args, **kwargs)

    # transformers reads the signature of what it runs.
    run.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]

    def back(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        got = grad(outputs, inputs, *args, **kwargs)
        # The derivative of an objective in log-probabilities alone is no pass: one or two matrices.
        reached = [g for g in got if g is not None]
        found["backwards"] += len(reached) > 2 or any(g.ndim == 3 for g in reached)
        return got

    try:
        model.forward, torch.autograd.grad = run, back
        yield found
    finally:
        del model.forward
        torch.autograd.grad = grad


def report(title: str, model: Any, sides: dict[str, Callable[[], Any]], repeats: int, *, peaks: bool = True) -> Any:
    """Passes, times and memory of all sides."""
    for name, side in sides.items():
        with counted(model) as passes:
            side()
        print(f"  {name}: {passes['forwards']} forwards, {passes['backwards']} backwards")
    timings = alternating(sides, repeats)
    show(title, timings, {name: peak_mib(side) for name, side in sides.items()} if peaks else None)
    return {name: timing.seconds for name, timing in timings.items()}


def gradient(model: Any, loss: Objective, batch: Batch) -> Gradient:
    """One backward pass."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss(model, batch), parameters, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


def product(ours: Gradient, theirs: Gradient) -> float:
    """<ours, theirs>."""
    return sum((ours[name] * theirs[name]).sum().item() for name in ours.keys() & theirs.keys())


def bare(model: Any, batch: Batch) -> None:
    """F."""
    with torch.no_grad():
        model(**batch.inputs, use_cache=False)


def tokens(repeats: int, layers: int = 12, rows: int = 16, length: int = 64, timed: int = 8) -> None:
    """All tokens at once, against a backward pass for each of them; both are given grad R."""
    model, on, over = deep(layers), answers(rows, length, seed=0), answers(rows, length, seed=1)
    n = int(on.target_BT.sum())
    places = on.target_BT.nonzero()[:: max(1, n // timed)][:timed].tolist()
    direction = gradient(model, nll, over)

    def one_by_one() -> list[float]:
        found = []
        for row, column in places:
            single = on.select([row])
            found.append(
                product(gradient(model, lambda m, b, t=column: target_logprobs(m, b)[0, t], single), direction)
            )
        return found

    effects = token_effects(model, on, {"r": (nll, over)})
    judged = torch.tensor(one_by_one())
    mine = torch.tensor([effects.pg_BT["r"][row, column].item() for row, column in places])
    torch.testing.assert_close(mine, judged, rtol=1e-4, atol=1e-4 * judged.abs().max().item())
    sides = {
        "F": lambda: bare(model, on),
        "F+B, batch gradient": lambda: gradient(model, nll, over),
        f"one backward a token, {timed} of {n}": one_by_one,
        "all tokens, grad R included": lambda: token_effects(model, on, {"r": (nll, over)}),
    }
    found = report(f"tokens: {layers} layers, {rows} x {length}, {n} targets", model, sides, repeats)
    f, batch_gradient, some, ours = found.values()
    alone = ours - batch_gradient
    print(
        f"  all tokens without grad R {alone / f:.2f} F; "
        f"{n} backwards, extrapolated from {timed}, by it {some * n / timed / alone:.1f}"
    )


def six(original: Any) -> dict[str, Objective]:
    """The objectives of arXiv 2502.19301 and two more."""
    return {
        "GA": ga,
        "WGA": WGA(5.0),
        "NPO": NPO(original, 0.1),
        "SimNPO": SimNPO(2.5),
        "TNPO": TNPO(original, 4.0),
        "SatImp": SatImp(5.0, 1.0),
    }


def official(model: Any, objectives: dict[str, Objective], forget: Batch, retain: Batch) -> dict[str, list[float]]:
    """The published script's passes: for every objective both risks anew, and a step that is multiplied by zero."""
    found = {}
    for name, objective in objectives.items():
        risks = gradient(model, nll, forget), gradient(model, nll, retain)
        ours = gradient(model, objective, forget)
        gradient(model, lambda m, b: 0 * nll(m, b), forget)
        found[name] = [product(ours, risk) for risk in risks]
    return found


def objectives(repeats: int) -> None:
    """Six objectives and two risks, the original's log-probabilities computed within the time."""
    model, original = deep(8), deep(8)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.mul_(1 + 0.01 * (i % 3))
    forget, retain = models.batch(16, 64, seed=0), models.batch(16, 64, seed=1)
    risks = {"u": (nll, forget), "r": (nll, retain)}

    def split() -> dict[str, list[float]]:
        found = g_effects(model, six(OriginalAnswers(original, forget)), forget, risks)
        return {name: [effect[risk].total for risk in risks] for name, effect in found.items()}

    def basis() -> dict[str, list[float]]:
        found = reweighting_map(token_effects(model, forget, risks), six(OriginalAnswers(original, forget)))
        return {name: [one.effect[risk] for risk in risks] for name, one in found.items()}

    judged = official(model, six(original), forget, retain)
    for side in (split, basis):
        for name, values in side().items():
            torch.testing.assert_close(torch.tensor(values), torch.tensor(judged[name]), rtol=1e-3, atol=1e-5)
    sides = {
        "official procedure": lambda: official(model, six(original), forget, retain),
        "g_effects, by layer and part": split,
        "token effects and their basis": basis,
        "F+B, batch gradient": lambda: gradient(model, nll, forget),
    }
    found = list(report("objectives: 6 x 2 risks, 8 layers, 16 x 64", model, sides, repeats).values())
    print(f"  official by ours: split {found[0] / found[1]:.2f}, totals {found[0] / found[2]:.2f}")


def surface(repeats: int) -> None:
    """5 objectives at 20 hyper-parameters, against one G-effect each, of which some are timed."""
    model, original = deep(8), deep(8)
    forget, retain = models.batch(16, 64, seed=0), models.batch(16, 64, seed=1)
    kept = OriginalAnswers(original, forget)
    betas = torch.linspace(0.1, 10, 20).tolist()
    makers: dict[str, Callable[[float], Objective]] = {
        "WGA": WGA,
        "TNPO": lambda b: TNPO(kept, b),
        "SatImp": lambda b: SatImp(b, 1.0),
        "NPO": lambda b: NPO(kept, b),
        "SimNPO": SimNPO,
    }
    all_of_them = {(name, beta): make(beta) for name, make in makers.items() for beta in betas}
    some = [(name, betas[3]) for name in makers]

    def ours() -> dict[Any, Any]:
        return reweighting_map(token_effects(model, forget, {"r": (nll, retain)}), all_of_them)

    def each() -> list[float]:
        return [g_effect(model, all_of_them[key], forget, over=retain).total for key in some]

    found = ours()
    torch.testing.assert_close(
        torch.tensor([found[key].effect["r"] for key in some]), torch.tensor(each()), rtol=1e-3, atol=1e-6
    )
    sides = {"F": lambda: bare(model, forget), "5 of 100 G-effects, one each": each, "the map": ours}
    f, few, whole = report("map: 5 objectives x 20 hyper-parameters, 8 layers, 16 x 64", model, sides, repeats).values()
    print(f"  the map {whole / f:.2f} F; 100 G-effects, extrapolated from 5, by the map {20 * few / whole:.1f}")


def samples(repeats: int, layers: int = 12, rows: int = 16, length: int = 64) -> None:
    """Every row and layer at once, against a backward pass for each row; both are given grad R."""
    model, on, over = deep(layers), models.batch(rows, length, seed=0), models.batch(rows, length, seed=1)
    direction = gradient(model, nll, over)

    def each() -> torch.Tensor:
        found_BL = torch.zeros(rows, layers)
        for i in range(rows):
            for name, g in gradient(model, ga, on.select([i])).items():
                layer = layer_of(model, name)
                if layer is not None:
                    found_BL[i, layer] += (g * direction[name]).sum() / rows
        return found_BL

    def ours() -> torch.Tensor:
        return sample_effects(model, ga, on, {"r": (nll, over)}).layer_BL("r").float()

    judged_BL = each()
    torch.testing.assert_close(ours(), judged_BL, rtol=1e-3, atol=1e-3 * judged_BL.abs().max().item())
    sides = {
        "F": lambda: bare(model, on),
        "F+B, batch gradient": lambda: gradient(model, nll, over),
        "one backward a row": each,
        "all rows, grad R included": ours,
    }
    f, batch_gradient, by_row, all_rows = report(
        f"samples: {layers} layers, {rows} x {length}", model, sides, repeats
    ).values()
    alone = all_rows - batch_gradient
    print(f"  without grad R {alone / f:.2f} F; one backward a row by it {by_row / alone:.2f}")


def scaling(repeats: int) -> None:
    """Point-wise and per-row effects against depth, rows and tokens; three sizes each, printed and drawn."""
    found: dict[str, list[tuple[int, dict[str, Timing]]]] = {}
    for what, sizes in (
        ("layers", [(4, 8, 64), (8, 8, 64), (16, 8, 64)]),
        ("rows", [(8, 4, 64), (8, 8, 64), (8, 16, 64)]),
        ("length", [(8, 8, 32), (8, 8, 64), (8, 8, 128)]),
    ):
        for layers, rows, length in sizes:
            model = deep(layers)
            on, over = answers(rows, length, seed=0), answers(rows, length, seed=1)
            sides: dict[str, Callable[[], Any]] = {
                "F": lambda model=model, on=on: bare(model, on),
                "F+B": lambda model=model, over=over: gradient(model, nll, over),
                "tokens, grad R included": lambda m=model, on=on, over=over: token_effects(m, on, {"r": (nll, over)}),
                "samples, grad R included": lambda m=model, on=on, over=over: sample_effects(
                    m, ga, on, {"r": (nll, over)}
                ),
            }
            timings = alternating(sides, repeats)
            title = f"scaling in {what}: {layers} layers, {rows} x {length}"
            show(title, timings, {name: peak_mib(side) for name, side in sides.items()})
            found.setdefault(what, []).append(({"layers": layers, "rows": rows, "length": length}[what], timings))
    draw_scaling(found)


def draw_scaling(found: Mapping[str, Sequence[tuple[int, dict[str, Timing]]]]) -> None:
    """Cost in bare forwards against size, with quartiles: benchmarks/g_effects_scaling.png."""
    with paper_style() as venue:
        figure = new_figure(venue.page, 1.9)
        axes = figure.subplots(1, len(found), sharey=True)
        for ax, (what, points) in zip(axes, found.items(), strict=True):
            for name, marker in (("F+B", "s"), ("tokens, grad R included", "o"), ("samples, grad R included", "^")):
                x = [size for size, _ in points]
                own = [timings[name] for _, timings in points]
                arms = [[t.ratio - t.low for t in own], [t.high - t.ratio for t in own]]
                ax.errorbar(x, [t.ratio for t in own], yerr=arms, marker=marker, markersize=4, linewidth=1, label=name)
            ax.set_xscale("log", base=2)
            ax.set_xticks([size for size, _ in points], [str(size) for size, _ in points])
            ax.set_xlabel(
                {"layers": "layers (8 x 64)", "rows": "rows (8 layers, 64)"}.get(what, "tokens (8 layers, 8)")
            )
            ax.set_ylim(0, 9)
        axes[0].set_ylabel("cost in bare forwards")
        axes[0].legend(fontsize=6)
        figure.savefig(Path(__file__).with_name("g_effects_scaling.png"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {"tokens": tokens, "objectives": objectives, "map": surface, "samples": samples, "scaling": scaling}
    parser.add_argument("parts", nargs="*", choices=list(parts), default=["tokens", "objectives", "map", "samples"])
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args()
    for name in settings.parts:
        parts[name](settings.repeats)


if __name__ == "__main__":
    main()
