"""Each method unlearns; layer maps, CRU's choice and texts of what it did."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from analyses.layer_maps.claims import judged
from analyses.layer_maps.measures import Half, halves, memorised
from analyses.layer_maps.pictures import draw
from analyses.method_families.study import SETTINGS
from analyses.shared import conclude, finished
from analyses.stories import Unlearning
from analyses.subjects import Options, Subject, Where, subject
from probe.axes import PerLayerL
from probe.checkpoints import weights_hash
from probe.data import Split
from probe.datasets import read_rows
from probe.diagnostics.layer_maps import ReplacementMap, every_span, replacement_map
from probe.diagnostics.replaced_texts import ReplacedTexts, replaced_texts, words_in
from probe.diagnostics.screening import screened
from probe.methods.cru import best_layers, changed_blocks, held_out_cru
from probe.modes import threads
from probe.sites import blocks, n_layers
from probe.sweep import load, sweep

METHODS = ("GA", "GradDiff", "NPO", "RMU")
RULES: tuple[Literal["rank_sum", "pareto"], ...] = ("rank_sum", "pareto")
# Questions whose answers are written out, and how many tokens an answer may take.
N_TEXTS = 12
NEW_TOKENS = {"testbed": 24, "stories": 100}
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """What is run."""

    subject: Literal["testbed", "stories"] = "testbed"
    """What is unlearned from."""


def recipes(name: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Method -> its entry in the catalogue and its hyper-parameters."""
    if name != "stories":
        entries = {"GA": "ga", "GradDiff": "grad_diff", "NPO": "npo", "RMU": "rmu"}
        return {method: (entry, {**SETTINGS[entry], "batch_size": 16}) for method, entry in entries.items()}
    found = Unlearning()
    common = {"steps": found.steps, "batch_size": found.batch_size}
    diverging = {**common, "lr": found.npo_lr, "retain_weight": found.retain_weight}
    trained = "".join(map(str, range(found.rmu_layer + 1)))
    return {
        # Without a retain term as many steps as elsewhere would leave nothing: a fifth, as on the testbed.
        "GA": ("ga", {**common, "lr": found.npo_lr, "steps": found.steps // 5}),
        "GradDiff": ("grad_diff", diverging),
        "NPO": ("npo", {**diverging, "beta": found.npo_beta}),
        "RMU": (
            "adaptive_rmu",
            {
                **common,
                "lr": found.rmu_lr,
                "layer": found.rmu_layer,
                "scale": found.rmu_scale,
                "alpha": found.rmu_alpha,
                "parameters": rf"^model\.layers\.[{trained}]\.",
            },
        ),
    }


def maps(original: nn.Module, unlearned: nn.Module, rows: Half) -> dict[str, ReplacementMap]:
    """Every span of blocks, and attention or mlp of single blocks, both ways; forget quality of single blocks alone.

    Forget quality takes seven times the rows, so it is asked for where layers are chosen by it.
    """
    both: dict[str, Any] = {"into": ("original", "unlearned"), "batch_size": 128}
    asked: dict[str, dict[str, Any]] = {
        "block": {"spans": every_span(n_layers(original))},
        "parts": {"parts": ("attention", "mlp")},
    }
    found = {
        f"{on}/{what}": replacement_map(original, unlearned, batch, memorised, **both, **how)
        for on, batch in (("forget", rows.split.forget), ("retain", rows.split.retain))
        for what, how in asked.items()
    }
    return found | {"forget/single": replacement_map(original, unlearned, rows.asked, rows.forget, batch_size=128)}


def map_numbers(found: Mapping[str, ReplacementMap]) -> dict[str, float]:
    """``INTO/PART/FIRST-LAST/ON/METRIC``, and ``whole/MODEL/ON/METRIC``."""
    numbers: dict[str, float] = {}
    for key, one in found.items():
        on = key.split("/")[0]
        for row in one.rows():
            metric, where = row.quantity.split(", ")
            part, into = where.split(" into ")
            place = f"whole/{into}" if row.layer is None else f"{into}/{part}/{row.layer}-{row.item}"
            numbers[f"{place}/{on}/{metric}"] = row.value
    return numbers


def chosen_layers(
    original: nn.Module, unlearned: nn.Module, found: Mapping[str, ReplacementMap], rows: tuple[Half, Half]
) -> dict[str, float | str]:
    """CRU by both rules at three sizes: chosen on the validation half, scored on the report half."""
    validation, report = rows
    score_LL = (
        found["forget/single"].score_L("", "forget_quality"),
        found["retain/block"].score_L("", "probability"),
    )
    depth = len(score_LL[0])
    numbers: dict[str, float | str] = {}
    seen: dict[tuple[int, ...], Mapping[str, float]] = {}
    scored: dict[str, dict[str, float]] = {}

    def choose_by(split: Split) -> tuple[PerLayerL, PerLayerL]:
        return score_LL

    def score(model: nn.Module, split: Split) -> dict[str, float]:
        # Both models are asked about with every choice; the same weights are scored once.
        key = weights_hash(model)
        if key not in scored:
            scored[key] = report.scores(model)
        return scored[key]

    changed = changed_blocks(original, unlearned)
    for k in sorted({1, depth // 4, depth // 2} - {0}):
        for rule in RULES:
            layers = best_layers(*score_LL, k, rule=rule, among=changed)
            if tuple(sorted(layers)) not in seen:
                outcome = held_out_cru(
                    original,
                    unlearned,
                    validation.split,
                    report.split,
                    choose_by=choose_by,
                    score=score,
                    k=k,
                    rule=rule,
                )
                seen[tuple(sorted(layers))] = outcome.replaced
                for end in ("original", "unlearned"):
                    numbers |= {f"cru/{end}/{name}": value for name, value in getattr(outcome, end).items()}
            numbers[f"cru/{rule}/{k}/layers"] = ",".join(map(str, layers))
            numbers |= {f"cru/{rule}/{k}/{name}": v for name, v in seen[tuple(sorted(layers))].items()}
    return numbers


def text_numbers(found: ReplacedTexts) -> dict[str, float | str]:
    """Means over each third of the depth and of the models as they are; a few texts in full."""
    numbers: dict[str, float | str] = {
        f"text/{where}/{name}": value for where, means in found.by_depth().items() for name, value in means.items()
    }
    for model in ("original", "unlearned"):
        numbers |= {f"text/{model}/{name}": value for name, value in found.means(model).items()}
    # Where the answers vary most, they show most; the choice is by the texts themselves, and the means are over all.
    per_span = [found.of((layer, layer)) for layer in range(found.depth)]
    varied = [sum(texts[i].same_as_original for texts in per_span) for i in range(len(per_span[0]))]
    shown = sorted(sorted(range(len(varied)), key=lambda i: varied[i])[:SHOWN])
    for place, i in enumerate(shown):
        numbers[f"shown/{place}/question"] = per_span[0][i].question
        for model in ("original", "unlearned"):
            numbers[f"shown/{place}/{model}"] = found.of(model)[i].text
        for layer, texts in enumerate(per_span):
            numbers[f"shown/{place}/layer {layer}"] = texts[i].text
    return numbers


def study(chosen: Subject, words: frozenset[str]) -> Any:
    """The function of one cell: unlearn, map, choose, write."""
    rows = halves(chosen)
    entries = recipes(chosen.name)
    asked = rows[0].split.forget_rows
    asked = asked[:: max(1, len(asked) // N_TEXTS)][:N_TEXTS]
    retrained = {f"whole/retrained/{name}": value for name, value in rows[0].scores(chosen.retrained).items()}

    def run(method: str, seed: int) -> dict[str, Any]:
        entry, settings = entries[method]
        model = chosen.unlearned(entry, settings, seed=seed)
        found = maps(chosen.original, model, rows[0])
        depth = found["forget/block"].depth
        numbers: dict[str, Any] = {"depth": depth, "changed": ",".join(map(str, changed(chosen.original, model)))}
        numbers |= retrained | map_numbers(found)
        for on, batch in (("forget", rows[0].split.forget), ("retain", rows[0].split.retain)):
            guess = screened(chosen.original, model, batch)
            numbers |= {f"screening/{on}/spearman": guess.spearman, f"screening/{on}/p": guess.p_value}
            numbers |= {f"screening/{on}/predicted {i}": float(v) for i, v in enumerate(guess.predicted_L)}
            numbers |= {f"screening/{on}/exact {i}": float(v) for i, v in enumerate(guess.exact_L)}
        numbers |= chosen_layers(chosen.original, model, found, rows)
        written = replaced_texts(
            chosen.original,
            model,
            asked,
            tokenizer=chosen.tokenizer,
            known_words=words,
            max_new_tokens=NEW_TOKENS[chosen.name],
            template=chosen.split.template,
        )
        return numbers | text_numbers(written)

    return run


def changed(original: nn.Module, unlearned: nn.Module) -> list[int]:
    """The blocks with other weights."""
    pairs = zip(blocks(original), blocks(unlearned), strict=True)
    return [
        layer
        for layer, (ours, theirs) in enumerate(pairs)
        if any(not torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    ]


def known_words(chosen: Subject, where: Where) -> frozenset[str]:
    """Every word of the data that the model was trained on; on stories all of TOFU, for its own texts are not here."""
    rows = [*chosen.split.forget_rows, *chosen.split.retain_rows]
    if chosen.name == "stories":
        rows += read_rows(where.shared / "data" / "tofu" / "full.json")
    texts = (text for row in rows for text in (row.question, row.answer, row.paraphrased_answer, *row.perturbed_answer))
    return words_in(texts)


def main(arguments: Arguments) -> None:
    """Run what is missing, then draw and judge."""
    out = arguments.folder("layer_maps")
    with threads(1):
        chosen = subject(arguments.subject, arguments.where)
        cells = [{"method": method, "seed": seed} for seed in range(arguments.seeds) for method in METHODS]
        words = known_words(chosen, arguments.where)
        sweep(study(chosen, words), cells, out, identity=chosen.identity() | {"settings": recipes(chosen.name)})
    records = load(out)
    runs = finished(records)
    draw(runs, out, arguments.subject)
    conclude(out, judged(runs, arguments.subject), records)
