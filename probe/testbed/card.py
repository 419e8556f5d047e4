"""What the testbed's models know, measured."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from probe.data import QA, Batch, Template, encode
from probe.dictionaries.adapters import dictionary
from probe.dictionaries.fit import fvu
from probe.interventions.activations import activations, content
from probe.metrics.memorisation import answer_stats
from probe.metrics.suite import answer_suite
from probe.metrics.tokens import TokenStats
from probe.sites import Site, n_layers
from probe.testbed.bed import Bed


def card_numbers(bed: Bed) -> dict[str, Any]:
    """Every number of the card that can be had from the loaded testbed alone."""
    sides = {"forget": bed.split.forget_rows, "retain": bed.split.retain_rows, "world": bed.world}
    return {
        "knowledge": {
            name: {on: knowledge(model, bed.tokenizer, rows) for on, rows in sides.items()}
            for name, model in (("original", bed.original), ("retrained", bed.retrained))
        },
        "residual_norm": {
            "original": _residual_norms(bed, bed.original),
            "retrained": _residual_norms(bed, bed.retrained),
        },
        "sae": _sae_quality(bed),
    }


def knowledge(model: nn.Module, tokenizer: Any, rows: Sequence[QA]) -> dict[str, float]:
    """Means over rows of the suite's metrics, and greedy exact-answer recall in both wordings of the question."""
    suite = answer_suite(model, tokenizer, rows, Template(), with_generation=False)
    return {
        **suite.means(),
        "loss": float(suite.loss_N.mean()),
        "exact_recall": _exact(suite.tokens),
        "exact_recall_paraphrased": _exact(suite.paraphrased_tokens or suite.tokens),
    }


def exact_recall(model: nn.Module, tokenizer: Any, rows: Sequence[QA]) -> float:
    """Share of rows whose greedy continuation is the answer followed by eos, token by token.

    Greedy decoding gives exactly the answer if and only if each of its tokens is the argmax after the tokens before
    it, so one teacher-forced pass tells as much as generating.
    """
    return _exact(answer_stats(model, encode(tokenizer, rows)))


def _exact(tokens: TokenStats) -> float:
    return sum(bool(match_T.all()) for match_T in tokens.correct) / len(tokens)


def _residual_norms(bed: Bed, model: nn.Module) -> list[float]:
    """Mean Euclidean norm of each block's output over all tokens but the first, forget and retain rows alike."""
    sites = [Site(layer) for layer in range(n_layers(model))]
    states = activations(model, _all_rows(bed), sites, tokens=content, batch_size=128)
    return [states[site].norm(dim=1).mean().item() for site in sites]


def _sae_quality(bed: Bed) -> dict[str, Any]:
    """Fraction of variance unexplained at the SAE's block and its neighbours, active and dead features.

    Measured on the plain questions and answers (all but the first token of each).
    """
    layer = bed.sae_site.layer
    near = [Site(other) for other in (layer - 1, layer, layer + 1) if 0 <= other < n_layers(bed.original)]
    states = activations(bed.original, _all_rows(bed), near, tokens=content, batch_size=128)
    sae = dictionary(bed.sae)
    with torch.no_grad():
        active_NF = sae.active(sae.encode(states[bed.sae_site]))
    fvu_by_layer = {str(site.layer): fvu(bed.sae, states[site]) for site in near}
    return {
        "fvu": fvu_by_layer,
        "explained_variance": 1 - fvu_by_layer[str(layer)],
        "active": active_NF.sum(1).float().mean().item(),
        "dead": int((~active_NF.any(0)).sum()),
        "hook_name": sae.metadata["hook_name"],
        "hf_hook_name": sae.metadata["hf_hook_name"],
    }


def _all_rows(bed: Bed) -> Batch:
    return encode(bed.tokenizer, (*bed.split.forget_rows, *bed.split.retain_rows, *bed.world))
