"""Each method trains a copy of the model; the gradients of its objectives are measured on the way."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from analyses.g_effects.claims import judged, smaller_is_harder
from analyses.g_effects.pictures import draw
from analyses.shared import choice_of, conclude, finished, probability
from analyses.subjects import Options, Subject, subject
from probe.data import Batch, encode
from probe.diagnostics.g_effect import GEffect, g_effects
from probe.diagnostics.reweighting import Weighting, best_weighting, best_weightings, reweighting_map, weighting_of
from probe.diagnostics.token_effects import TokenEffects, token_effects
from probe.methods.answers import drawn_refusals
from probe.modes import threads
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO, SimNPO
from probe.objectives.token import TNPO, WGA, WTNPO, SatImp, SelectedTokens, ga, nll
from probe.sweep import load, sweep
from probe.train import Term, minimise

# forget objective and retain objective; GA and NPO also alone, for the claims on what they do by themselves
METHODS = {
    "GA": ("GA", None),
    "NPO": ("NPO", None),
    "GA + NLL": ("GA", "NLL"),
    "GA + KL": ("GA", "KL"),
    "NPO + NLL": ("NPO", "NLL"),
    "WGA + NLL": ("WGA", "NLL"),
    "TNPO + NLL": ("TNPO", "NLL"),
    "IDK + NLL": ("IDK", "NLL"),
}
ALONE = ("GA", "NPO")
OBSERVED = 6
# Largest token weight of the ideal weighting, in multiples of the uniform one.
PEAK = 5.0
# Methods and numbers of forget rows for claim G8.
SIZED, SIZES = ("GA", "GA + NLL"), (10, 50, 100)


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """What is run."""

    steps: int = 50
    """Optimiser steps of methods with a retain term; a fifth of it for those without."""
    lr: float = 3e-4
    """Learning rate."""
    batch_size: int = 16
    """Rows of each term a step."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Only these methods."""
    beside: Path | None = None
    """Folder of this study on a smaller model: claim G8 is about sizes too."""


def objectives(original: nn.Module, known: Batch) -> dict[str, Objective]:
    """Forget and retain objectives by name, at the settings of ``analyses.method_families``."""
    reference = OriginalAnswers(original, known, states=True)
    return {
        "GA": ga,
        "NPO": NPO(reference, beta=0.1),
        "WGA": WGA(beta=1.0),
        "TNPO": TNPO(reference, beta=4.0),
        "IDK": nll,
        "NLL": nll,
        "KL": ForwardKL(reference),
    }


def reweightings(reference: OriginalAnswers) -> dict[tuple[str, float], Objective]:
    """Every published way of weighting tokens at many hyper-parameters."""
    found: dict[tuple[str, float], Objective] = {("GA", 0.0): ga}
    found |= {("WGA", b): WGA(beta=b) for b in (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)}
    found |= {("TNPO", b): TNPO(reference, beta=b) for b in (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)}
    found |= {("WTNPO", b): WTNPO(reference, beta=b, alpha=1.5) for b in (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)}
    found |= {("NPO", b): NPO(reference, beta=b) for b in (0.01, 0.05, 0.1, 0.5, 1.0, 2.0)}
    found |= {("SimNPO", b): SimNPO(beta=b) for b in (0.1, 0.5, 1.0, 2.5, 5.0, 10.0)}
    found |= {("SatImp", b): SatImp(beta1=5.0, beta2=b) for b in (0.1, 0.25, 0.5, 1.0, 2.0)}
    found |= {("likely tokens", s): SelectedTokens(ga, keep="likely", share=s) for s in (0.2, 0.5, 0.8)}
    found |= {("unlikely tokens", s): SelectedTokens(ga, keep="unlikely", share=s) for s in (0.2, 0.5, 0.8)}
    return found


@dataclass(frozen=True, eq=False)
class Measuring:
    """What is asked of a model on the way; keys of the record are ``step/quantity/...``."""

    study: Subject
    forget: Batch
    retain: Batch
    held_out: Batch
    reference: OriginalAnswers
    named: Mapping[str, Objective]

    @property
    def risks(self) -> dict[str, tuple[Objective, Batch]]:
        """Losses whose change is predicted."""
        return {"forget": (nll, self.forget), "retain": (nll, self.retain)}

    def dynamics(self, model: nn.Module, step: int, method: str, refusals: Batch) -> dict[str, float]:
        """Probabilities and the G-effects of what the method minimises, whole and by layer."""
        found: dict[str, float] = {}
        for on, batch in (("forget", self.forget), ("retain", self.retain)):
            found[f"{step}/probability/{on}"] = probability(model, batch)
        forget, keep = METHODS[method]
        rows = refusals if forget == "IDK" else self.forget
        sides = [(forget, {forget: self.named[forget]}, rows)]
        if keep is not None:
            kept = {name: self.named[name] for name in ("NLL", "KL")}
            if step == 0:
                del kept["KL"]  # its gradient is zero where nothing has changed yet
            sides.append(("retain terms", kept, self.retain))
        for side, losses, on in sides:
            for name, effects in g_effects(model, losses, on, self.risks).items():
                for risk, effect in effects.items():
                    found |= _numbers(f"{step}/{side if name == forget else name}/{risk}", effect)
        return found

    def tokens(self, model: nn.Module, step: int) -> dict[str, float]:
        """Which tokens and answers do the harm (G2, G6), and where every reweighting lies (G9, G10)."""
        effects = token_effects(model, self.forget, {**self.risks, "held out": (nll, self.held_out)})
        found: dict[str, float] = {f"{step}/{k}": v for k, v in harm_by_probability(effects).items()}
        found |= {f"{step}/{key}": value for key, value in harm_by_weight(effects, self.reference).items()}
        for (name, number), one in reweighting_map(effects, reweightings(self.reference)).items():
            try:
                point = weighting_of(effects, one, unlearn="forget", retain="held out")
            except ValueError:
                continue  # every weight is 0: this objective has stopped
            found[f"{step}/map/{name}/{number}/forgetting"] = point.forgetting
            found[f"{step}/map/{name}/{number}/harm"] = point.harm
        curve = best_weightings(effects, unlearn="forget", retain="retain", peak=PEAK, n_points=12)
        for number, best in enumerate(curve):
            # Chosen by the harm to some rows, reported by that to others: an optimum flatters itself.
            found[f"{step}/map/ideal/{number}/forgetting"] = best.forgetting
            found[f"{step}/map/ideal/{number}/bound"] = best.harm
            found[f"{step}/map/ideal/{number}/harm"] = harm_of(effects, best)
        try:
            harmless = best_weighting(effects, unlearn="forget", retain="retain", peak=PEAK)
            found[f"{step}/ideal without harm/forgetting"] = harmless.forgetting
            found[f"{step}/ideal without harm/harm"] = harm_of(effects, harmless)
        except ValueError:
            pass  # every weighting does some harm
        return found


def harm_of(effects: TokenEffects, weighting: Weighting) -> float:
    """Rise of the loss on retain rows that the weights were not chosen by."""
    return -float((weighting.weight_BT * effects.pg_BT["held out"].double()).sum())


def _numbers(key: str, effect: GEffect) -> dict[str, float]:
    found = {f"{key}/total": effect.total, f"{key}/cosine": effect.cosine, f"{key}/rest": effect.rest}
    found |= {f"{key}/norm": effect.gradient_norm}
    found |= {f"{key}/layer {layer}": float(value) for layer, value in enumerate(effect.layer_L)}
    return found


def harm_by_probability(effects: TokenEffects) -> dict[str, float]:
    """GA's retain harm from tokens that are forgotten already (p < 0.1), beside their share of all tokens (G2)."""
    mask_BT = effects.batch.target_BT.clone()
    mask_BT[:, 0] = False
    p_N = effects.logp_BT[mask_BT].exp().double().numpy()
    # GA weighs every token alike, so pg is a token's part of the harm.
    harm_N = -effects.pg_BT["retain"][mask_BT].double().numpy()
    low_N = p_N < 0.1
    return {
        "forgotten tokens/share": float(low_N.mean()),
        "forgotten tokens/share of harm": float(harm_N[low_N].sum() / harm_N.sum()),
        "forgotten tokens/share of size": float(np.abs(harm_N[low_N]).sum() / np.abs(harm_N).sum()),
    }


def harm_by_weight(effects: TokenEffects, reference: OriginalAnswers) -> dict[str, float]:
    """NPO's weight w = 2 p^b / (p^b + p0^b) of each answer against what unlearning the answer does (G5, G6)."""
    from scipy.stats import spearmanr

    logp_B = effects.logp_BT.double().sum(1)
    before_B = reference.logprobs(effects.batch).double().sum(1)
    w_B = 2 * torch.sigmoid(0.1 * (logp_B - before_B)).numpy()
    found = {"NPO weight/mean": float(w_B.mean()), "NPO weight/p": float(logp_B.exp().mean())}
    fell_B = (before_B - logp_B).numpy()
    if np.ptp(w_B) > 1e-9:
        for risk in ("forget", "retain"):
            raised_B = -effects.pg_BT[risk].double().sum(1).numpy()
            found[f"NPO weight/rank correlation/{risk}"] = float(spearmanr(w_B, raised_B).statistic)
            for quarter, rows in enumerate(np.array_split(np.argsort(w_B), 4)):
                found[f"NPO weight/quarter {quarter}/{risk}"] = float(raised_B[rows].mean())
        for quarter, rows in enumerate(np.array_split(np.argsort(w_B), 4)):
            found[f"NPO weight/quarter {quarter}/weight"] = float(w_B[rows].mean())
            found[f"NPO weight/quarter {quarter}/fall"] = float(fell_B[rows].mean())
    return found


def study(arguments: Arguments, chosen: Subject) -> Any:
    """The function of one cell: train, and measure on the way."""
    split = chosen.split
    n_forget, n_retain = chosen.rows
    forget = split.forget.select(range(n_forget))
    end = len(split.retain)
    retain, held_out = (split.retain.select(range(end - k * n_retain, end - (k - 1) * n_retain)) for k in (1, 2))
    rows = (*split.forget_rows, *split.retain_rows)
    known = encode(chosen.tokenizer, rows, template=split.template, max_length=split.max_length)
    named = objectives(chosen.original, known)
    measuring = Measuring(chosen, forget, retain, held_out, named["NPO"].original, named)  # type: ignore[attr-defined]
    refusals = drawn_refusals(chosen.tokenizer, split, "forget", seed=0)

    def run(method: str, seed: int, n_forget: int) -> dict[str, float]:
        model = copy.deepcopy(chosen.original)
        away, keep = METHODS[method]
        data = refusals if away == "IDK" else split.forget
        data = data.select(range(min(n_forget, len(data))))
        terms = [Term(1.0, named[away], data, "forget")]
        if keep is not None:
            terms.append(Term(3.0, named[keep], split.retain, "retain"))
        steps = arguments.steps if keep else max(OBSERVED - 1, arguments.steps // 5)
        every = max(1, steps // (OBSERVED - 1))
        found: dict[str, float] = {"steps": steps}
        sized = n_forget < len(split.forget)

        def observe(step: int, model: nn.Module) -> None:
            if sized:
                for on, batch in (("forget", data), ("retain", retain)):
                    found[f"{step}/probability/{on}"] = probability(model, batch)
                return
            found.update(measuring.dynamics(model, step, method, refusals.select(range(len(forget)))))
            if method in ALONE and step in (every, (OBSERVED - 1) * every):
                found.update(measuring.tokens(model, step))

        observe(0, model)
        training: dict[str, Any] = {"lr": arguments.lr, "batch_size": arguments.batch_size, "seed": seed}
        minimise(model, terms, steps=steps, every=every, observe=observe, **training)
        return found

    return run


def main(arguments: Arguments) -> None:
    """Run what is missing, then draw and judge."""
    out = arguments.folder("g_effects")
    choice_of(arguments.methods, METHODS)
    with threads(1):
        chosen = subject(arguments.subject, arguments.where)
        whole = len(chosen.split.forget)
        cells = [{"method": m, "seed": k, "n_forget": whole} for k in range(arguments.seeds) for m in arguments.methods]
        cells += [
            {"method": m, "seed": k, "n_forget": n}
            for k in range(arguments.seeds)
            for m in SIZED
            for n in SIZES
            if n < whole
        ]
        settings = {"steps": arguments.steps, "lr": arguments.lr, "batch_size": arguments.batch_size}
        sweep(study(arguments, chosen), cells, out, identity=chosen.identity() | settings)
    records = load(out)
    runs = finished(records)
    if set(arguments.methods) == set(METHODS):
        draw(runs, out / "figures", arguments.subject)
        lines = judged(runs, arguments.subject, whole)
    else:
        lines = [f"only {', '.join(arguments.methods)} were run, so claims are not judged"]
    if arguments.beside is not None:
        lines += smaller_is_harder(runs, finished(load(arguments.beside)), whole)
    conclude(out, lines, records)
