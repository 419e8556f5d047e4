"""OpenUnlearning's metrics on forget rows, and on numbers where a metric is computed from other metrics."""

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from analyses.peers.imported import attribute, imports_from
from analyses.peers.open_unlearning import ABSENT
from analyses.peers.subject import Comparison, Sides, Subject, Values, alike, hugging_face
from probe.metrics.attacks import gradient_norm, loss_score, min_k, min_k_plus_plus
from probe.metrics.memorisation import answer_stats, exact_memorisation, extraction_strength
from probe.metrics.privacy import privleak, rel_diff
from probe.metrics.text import rouge_l_recall
from probe.metrics.tofu import (
    forget_quality,
    truth_ratio,
    truth_ratio_forget,
    truth_ratio_known,
    truth_ratio_retain,
)
from probe.metrics.tokens import token_stats

AUC, AUC_RETRAINED = 0.613, 0.457
# Added to denominators there.
TINY = 1e-10
MIA = "evals.metrics.mia"


def comparisons(of: Subject, folder: Path) -> Iterator[Comparison]:
    """Membership attacks, memorisation, truth ratio and its test, PrivLeak of locuslab/open-unlearning."""
    with imports_from(folder / "src", absent=ABSENT, bare=("evals",)):
        for name, where, options, ours in (
            ("LOSS", "loss.LOSSAttack", {}, lambda m, r: loss_score(token_stats(m, r))),
            ("Min-K%", "min_k.MinKProbAttack", {"k": 0.4}, lambda m, r: min_k(token_stats(m, r), 0.4)),
            (
                "Min-K%++",
                "min_k_plus_plus.MinKPlusPlusAttack",
                {"k": 0.4},
                lambda m, r: min_k_plus_plus(token_stats(m, r, moments=True), 0.4),
            ),
            *(
                ("GradNorm", "gradnorm.GradNormAttack", {"p": p}, lambda m, r, p=p: gradient_norm(m, r, p=p, eos=False))
                for p in (1, 2, math.inf)
            ),
        ):
            shown = ", ".join(f"{key}={value}" for key, value in options.items())
            more = ", eos=False" if name == "GradNorm" else ""
            yield alike(of, name, f"{shown}{more}; scores".lstrip("; "), _attack(where, options), _scored(ours))
        yield alike(of, "ES", "floor 1/L; scores", _metric("extraction_strength"), _scored(_extraction))
        yield alike(of, "EM", "scores", _metric("exact_memorization"), _scored(_exact))
        yield from _of_numbers(of)


def _scored(function: Any) -> Values:
    return lambda model, sides: [torch.as_tensor(function(model, sides.forget), dtype=torch.float64)]


def _extraction(model: nn.Module, rows: Any) -> list[float]:
    return [extraction_strength(match_T, floor="1/L") for match_T in answer_stats(model, rows).matches()]


def _exact(model: nn.Module, rows: Any) -> list[float]:
    return [exact_memorisation(match_T) for match_T in answer_stats(model, rows).matches()]


def _items(sides: Sides) -> list[dict[str, Tensor]]:
    given = hugging_face(sides.forget) | {"index": torch.arange(len(sides.forget))}
    return [{key: value[i] for key, value in given.items()} for i in range(len(sides.forget))]


def _collated(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def _attack(where: str, options: dict[str, Any]) -> Values:
    module, name = where.split(".")
    kind = attribute(f"{MIA}.{module}", name)

    def scores(model: nn.Module, sides: Sides) -> list[Tensor]:
        # Progress bars; a row at a time, since its GradNorm goes back through one graph for every row of a batch.
        with contextlib.redirect_stderr(io.StringIO()):
            found = kind(model, _items(sides), _collated, 1, **options).attack()["value_by_index"]
        model.zero_grad(set_to_none=True)
        return [torch.tensor([found[str(i)]["score"] for i in range(len(sides.forget))], dtype=torch.float64)]

    return scores


def _metric(name: str) -> Values:
    function = attribute("evals.metrics.memorization", name)._metric_fn

    def scores(model: nn.Module, sides: Sides) -> list[Tensor]:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found = function(model, data=_items(sides), collators=_collated, batch_size=2)["value_by_index"]
        return [torch.tensor([found[i]["score"] for i in range(len(sides.forget))], dtype=torch.float64)]

    return scores


def _of_numbers(of: Subject) -> Iterator[Comparison]:
    """Metrics of losses that are given: eight rows, three wrong answers each."""
    generator = torch.Generator().manual_seed(0)
    right_N = torch.rand(8, generator=generator, dtype=torch.float64).numpy() * 3
    wrong_NK = torch.rand(8, 3, generator=generator, dtype=torch.float64).numpy() * 3
    losses = {
        "correct": {"value_by_index": {i: {"avg_loss": [right_N[i]]} for i in range(8)}},
        "wrong": {"value_by_index": {i: {"avg_loss": list(wrong_NK[i])} for i in range(8)}},
    }
    ratio_of = attribute("evals.metrics.memorization", "truth_ratio")._metric_fn
    ratio_N = truth_ratio(right_N, wrong_NK, eps=TINY)

    def same(name: str, settings: str, theirs: Any, ours: Any) -> Comparison:
        pair = [[torch.as_tensor(values, dtype=torch.float64).reshape(-1)] for values in (theirs, ours)]
        return alike(of, name, settings, lambda m, s: pair[0], lambda m, s: pair[1])

    for aggregator, ours in (
        ("closer_to_1_better", truth_ratio_forget(ratio_N)),
        ("true_better", truth_ratio_retain(ratio_N)),
        ("prob_mean", truth_ratio_known(ratio_N)),
    ):
        found = ratio_of(None, pre_compute=losses, aggregator=aggregator)["agg_value"]
        yield same("truth ratio", f"{aggregator}, eps=1e-10", found, ours)
    first, second = ratio_N, truth_ratio(right_N[::-1].copy() / 2, wrong_NK, eps=TINY)
    given = [{"value_by_index": {i: {"score": x} for i, x in enumerate(values)}} for values in (first, second)]
    logs = {"reference_logs": {"retain_model_logs": {"retain": given[1]}}}
    found = attribute("evals.metrics.privacy", "ks_test")._metric_fn(None, pre_compute={"forget": given[0]}, **logs)
    yield same("forget quality", "8 rows each; p", found["agg_value"], forget_quality(first, second).p)
    pair = {
        "pre_compute": {"forget": {"agg_value": AUC}},
        "reference_logs": {"retain_model_logs": {"retain": {"agg_value": AUC_RETRAINED}}},
    }
    found = attribute("evals.metrics.privacy", "rel_diff")._metric_fn(None, **pair)
    yield same("rel_diff", "eps=1e-10", found["agg_value"], rel_diff(AUC, AUC_RETRAINED, eps=TINY))
    found = attribute("evals.metrics.privacy", "privleak")._metric_fn(None, **pair)
    yield same("PrivLeak", "1e-10 in a denominator there", found["agg_value"], privleak(AUC, AUC_RETRAINED))
    yield same("ROUGE-L recall", "stemmed", *_rouge())


def _rouge() -> tuple[list[float], list[float]]:
    """Their generation function on a model that writes given texts, one word a token."""
    from analyses.peers.muse import TEXTS

    words = ["", *sorted({word for pair in TEXTS for text in pair for word in text.split()})]
    rows = [[[words.index(word) for word in text.split()] for text in pair] for pair in TEXTS]
    longest = max(len(ids) for pair in rows for ids in pair)
    truth, written = (
        torch.tensor([ids + [0] * (longest - len(ids)) for ids in side]) for side in zip(*rows, strict=True)
    )

    def decoded(batch: Any, **options: Any) -> list[str]:
        return [" ".join(words[i] for i in ids if i) for ids in batch]

    prompt = torch.zeros(len(TEXTS), 1, dtype=torch.long)
    model = SimpleNamespace(device="cpu", generate=lambda ids, **options: torch.cat([ids, written], dim=1))
    tokenizer = SimpleNamespace(batch_decode=decoded, decode=lambda ids: "", eos_token_id=0)
    labels = truth.masked_fill(truth == 0, -100)
    batch = {"input_ids": prompt, "labels": labels, "attention_mask": torch.ones_like(prompt)}
    similarity = attribute("evals.metrics.utils", "eval_text_similarity")
    similarity.__globals__["OmegaConf"] = SimpleNamespace(to_container=lambda given, resolve: dict(given))
    found = similarity(model, tokenizer, batch, {})
    return [row["rougeL_recall"] for row in found], [rouge_l_recall(right, output) for right, output in TEXTS]
