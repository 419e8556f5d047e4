"""Make the testbed from nothing, measure it, and only then put it in its place."""

import copy
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from probe.checkpoints import save_model
from probe.data import encode
from probe.interventions.activations import activations, content
from probe.sites import Site
from probe.testbed.bed import load
from probe.testbed.card import card_numbers, exact_recall
from probe.testbed.dictionary import fit_sae
from probe.testbed.recipe import Recipe, TrainingRows, corpus, facts_hash, fit_answers, make_model, make_tokenizer

_NAMES = ("original", "retrained")
# Losses are averaged over the last steps: a single batch is noisy.
_LAST_STEPS = 50


def build(out: Path, recipe: Recipe) -> dict[str, Any]:
    """Train both models and the SAE, save them in ``out``, and return the card.

    Args:
        out: replaced as a whole once everything is made; untouched if anything fails before.
        recipe: what to make.
    """
    with _replacing(out) as folder:
        rows = corpus(recipe.seed)
        tokenizer = make_tokenizer((*rows.forget, *rows.retain, *rows.world), recipe.vocabulary)
        tokenizer.save_pretrained(folder / "tokenizer")
        card: dict[str, Any] = {
            "facts_sha256": facts_hash(rows),
            "recipe": asdict(recipe),
            "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "sae-lens")},
            "rows": {"forget": len(rows.forget), "retain": len(rows.retain), "world": len(rows.world)},
            "tokens": len(tokenizer),
            "seconds": {},
            "trained_rows": {},
            "final_loss": {},
            "exact_recall_before_float16": {},
        }
        for name in _NAMES:
            _train(name, rows, tokenizer, recipe, folder, card)
        _write(card, folder)
        # From here on everything is measured on what users will load.
        bed = load(folder)
        began = time.perf_counter()
        batch = encode(tokenizer, rows.original)
        site = Site(recipe.sae_layer)
        fit_sae(activations(bed.original, batch, [site], tokens=content, batch_size=128)[site], recipe, folder / "sae")
        card["seconds"]["sae"] = round(time.perf_counter() - began, 1)
        card |= card_numbers(bed)
        card["bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        _write(card, folder)
    return card


def _train(name: str, rows: TrainingRows, tokenizer: Any, recipe: Recipe, folder: Path, card: dict[str, Any]) -> None:
    began = time.perf_counter()
    model = make_model(recipe, len(tokenizer))
    data = encode(tokenizer, getattr(rows, name))
    history = fit_answers(model, data, recipe, progress=name)
    card["seconds"][name] = round(time.perf_counter() - began, 1)
    card["trained_rows"][name] = len(data)
    card["final_loss"][name] = fmean(losses[0] for losses in history.losses[-_LAST_STEPS:])
    card["parameters"] = sum(p.numel() for p in model.parameters())
    card["exact_recall_before_float16"][name] = {
        "forget": exact_recall(model, tokenizer, rows.forget),
        "retain": exact_recall(model, tokenizer, rows.retain),
    }
    _save_half(model, folder / name)


def _save_half(model: nn.Module, folder: Path) -> None:
    save_model(copy.deepcopy(model).half(), folder)


def _write(card: dict[str, Any], folder: Path) -> None:
    (folder / "card.json").write_text(json.dumps(card, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place when the block ends well, and vanishes otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        fresh = Path(temporary) / "fresh"
        fresh.mkdir()
        yield fresh
        if out.exists():
            out.rename(Path(temporary) / "old")
        shutil.move(fresh, out)
