"""Methods made to last against an adversary who perturbs activations (LAT) or fine-tunes weights (TAR).

>>> numbers = {"layer": 3, "coefficient": 5, "alpha": 10, "lr": 3e-4, "steps": 2, "batch_size": 4}
>>> attack = {"attack_layer": 2, "epsilon": 1, "attack_steps": 2, "attack_lr": 0.05}
>>> unlearned = study.unlearn("rmu_lat", **numbers, **attack)
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from probe.axes import Scalar
from probe.data import Batch, Split
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.rmu import MLP_OUTPUTS, RMUResult, rmu
from probe.methods.unlearn import check_original
from probe.methods.words import Form, meant
from probe.objectives.distribution import KLToUniform
from probe.objectives.objective import Objective
from probe.objectives.representation import (
    DistanceFromOriginal,
    HiddenStatesFromOriginal,
    TokenChoice,
    all_positions,
    hidden_states,
    real_tokens,
    states_at,
)
from probe.objectives.token import nll
from probe.sites import Site, n_layers, unwrapped
from probe.train import LAT, TAR, FineTuning, History, Term, minimise

_FORGET = ("forget",)
# What the mapping before a run takes from it; checkpoints, observers, schedules and averages belong to the run itself.
_SHARED = (
    "batch_size",
    "seed",
    "parameters",
    "clip",
    "weight_decay",
    "decay_all",
    "replacement",
    "autocast",
    "accelerator",
)


@method(
    "representation",
    "RMU under the activation perturbation |delta| <= epsilon that brings answers back",
    "Sheshadri et al., arXiv 2407.15549",
    trains=MLP_OUTPUTS,
    published={
        "zephyr-7b": Published(
            "code of Sheshadri et al., arXiv 2407.15549, WMDP, Zephyr-7B",
            {
                "layer": 8,
                "coefficient": 6.5,
                "alpha": 1200.0,
                "attack_layer": 7,
                "epsilon": 2.0,
                "attack_steps": 16,
                "attack_lr": 5e-2,
                "attack_weight_decay": 0.01,
                "tokens": "all",
                "steps": 200,
                "lr": 5e-5,
                "batch_size": 4,
            },
        )
    },
    training=rmu,
)
def rmu_lat(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    attack_layer: int,
    epsilon: float,
    attack_steps: int,
    attack_lr: float,
    attack_weight_decay: float = 0.0,
    **rmu_arguments: Any,
) -> RMUResult:
    """RMU whose forget term holds under a perturbation of activations that brings the answers back.

    Sheshadri et al., arXiv 2407.15549. The attacker minimises the forget NLL; the published one also raises the loss
    of retain tokens, and four steps of the model follow each attack there, one here.

    Args:
        model: trained in place.
        split: forget and retain rows.
        original: the model before unlearning.
        attack_layer: the block whose MLP output is perturbed; not above ``layer``, or the attack has no effect.
        epsilon: L2 radius of the perturbation at each position.
        attack_steps, attack_lr, attack_weight_decay: the attacker's AdamW; the published code leaves torch's weight
            decay of 0.01 on.
        rmu_arguments: those of ``probe.methods.rmu.rmu``.
    """
    attack = LAT(Site(attack_layer, "mlp"), nll, epsilon, attack_steps, attack_lr, _FORGET, attack_weight_decay)
    return rmu(model, split, original=original, stepping=attack, **rmu_arguments)


@dataclass(frozen=True)
class TowardsRandom:
    """L = mean over sites and tokens of 1 - |cos(h, r_token)|: one random direction for each token of the vocabulary.

    What the published run of Tamirisa et al. (arXiv 2408.00761) starts from, on forget rows; its code reads Hugging
    Face's hidden states, at padding too.

    Args:
        directions_VD: a direction a token.
        sites: where hidden states are read; None takes Hugging Face's hidden states.
        tokens: which positions are averaged over.
    """

    directions_VD: Tensor = field(repr=False)
    sites: tuple[Site, ...] | None
    tokens: TokenChoice = real_tokens

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        if self.sites is None:
            states = hidden_states(model, batch)
        else:
            found = states_at(model, batch, self.sites)
            states = [found[site] for site in self.sites]
        wanted_BTD = self.directions_VD.to(batch.tokens_BT.device)[batch.tokens_BT]
        away = [1 - cosine_similarity(h_BTD, wanted_BTD.to(h_BTD.dtype), -1).abs() for h_BTD in states]
        return torch.stack([away_BT[self.tokens(batch)].mean() for away_BT in away]).mean()


@method(
    "representation",
    "-entropy(forget) along simulated fine-tuning + w NLL(retain) + v |h - h0|",
    "Tamirisa et al., arXiv 2408.00761",
    published={
        "llama-3-8b": Published(
            "Tamirisa et al., arXiv 2408.00761, WMDP, Llama-3-8B, bio",
            {
                "attack_lrs": (2e-6, 2e-5, 4e-5),
                "attack_weight_decay": 0.01,
                "form": "released",
                "attack_steps": 64,
                "every": 4,
                "growth": 0.0625,
                "forget_weight": 4.0,
                "retain_weight": 1.0,
                "distance_weight": 1.0,
                "steps": 750,
                "lr": 2e-5,
                "batch_size": 8,
            },
        )
    },
)
def tar(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    attack_lrs: tuple[float, ...],
    attack_batch_size: int,
    attack_steps: int,
    every: int,
    growth: float,
    forget_weight: float,
    retain_weight: float,
    distance_weight: float,
    mapping_steps: int = 0,
    mapping_lr: float | None = None,
    attack_weight_decay: float = 0.0,
    form: Form = "paper",
    **training: Any,
) -> History:
    """Entropy of forget rows that stays high while an attacker fine-tunes on them (TAR; arXiv 2408.00761).

    Tamirisa et al.: forget_weight * sum over attack steps of growing weight * (-entropy) + retain_weight * NLL +
    distance_weight * mean |h - h0| over all blocks, at the weights before the attack. The published run starts from a
    model whose forget activations were first mapped to random vectors (``mapping_steps``; ``TowardsRandom`` + NLL of
    retain rows), and its attackers also use other corpora. Its code takes entropy at padding too, and compares Hugging
    Face's hidden states (embeddings, blocks, and the last one normed) at every position, padding too.

    Args:
        model: trained in place.
        split: forget and retain rows.
        original: the model before unlearning.
        attack_lrs: learning rates of the attackers, one of whom is drawn at each step.
        attack_batch_size, attack_steps: rows a step and steps of an attack.
        every, growth: at which of its steps the gradient is taken, and how later ones weigh more.
        forget_weight, retain_weight, distance_weight: of the three terms.
        mapping_steps, mapping_lr: steps of random mapping before, with the run's rows a step, seed and parameters.
        attack_weight_decay: of the attackers; the published code leaves torch's 0.01 on.
        form: real tokens and the blocks' outputs (``"paper"``), or every position and hidden state (``"released"``).
        training: keyword arguments of ``minimise``.
    """
    check_original(model, original)
    if mapping_steps < 0 or (mapping_steps > 0 and mapping_lr is None):
        raise ValueError(f"mapping_steps must be at least 0 and needs a mapping_lr, got {mapping_steps}, {mapping_lr}")
    attacks = [FineTuning(nll, split.forget, lr, attack_batch_size, attack_weight_decay) for lr in attack_lrs]
    code = meant("form", form, {"paper": False, "released": True})
    counted = all_positions if code else real_tokens
    sites = None if code else tuple(Site(layer) for layer in range(n_layers(model)))
    held: Objective = HiddenStatesFromOriginal(original, tokens=counted)
    if sites is not None:
        held = DistanceFromOriginal(original, sites)
    if mapping_steps and mapping_lr is not None:
        _map_randomly(model, split, sites, counted, mapping_steps, mapping_lr, training)
    terms = [
        # Of KL(model || uniform) only the entropy depends on the model.
        Term(forget_weight, KLToUniform(counted), split.forget, "forget"),
        Term(retain_weight, nll, split.retain, "retain"),
        Term(distance_weight, held, split.retain, "distance"),
    ]
    return minimise(model, terms, stepping=TAR(attacks, attack_steps, every, growth, _FORGET), **training)


def _map_randomly(
    model: nn.Module,
    split: Split,
    sites: tuple[Site, ...] | None,
    tokens: TokenChoice,
    steps: int,
    lr: float,
    training: dict[str, Any],
) -> None:
    config: Any = unwrapped(model).config
    config = config.get_text_config()
    generator = torch.Generator().manual_seed(training["seed"])
    directions_VD = torch.randn(config.vocab_size, config.hidden_size, generator=generator)
    terms = [
        Term(1.0, TowardsRandom(directions_VD, sites, tokens), split.forget, "mapping"),
        Term(1.0, nll, split.retain, "retain"),
    ]
    minimise(model, terms, steps=steps, lr=lr, **{key: training[key] for key in _SHARED if key in training})
