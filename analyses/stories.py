"""stories260K, a real pretrained model, after it learned TOFU rows, its twin without forget01, and both unlearned."""

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analyses.shared import cached
from probe.checkpoints import file_hash, load_model, load_tokenizer
from probe.data import QA, Split, encode, make_split
from probe.datasets import read_rows, rows_hash
from probe.methods.baselines import npo
from probe.methods.rmu import adaptive_coefficient, block_parameters, rmu
from probe.metrics.generation import generate
from probe.objectives.token import nll
from probe.study.study import Study
from probe.train import Term, minimise, one_cycle

ROWS, PER_AUTHOR, MAX_LENGTH = 200, 20, 512


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """How the model learns TOFU."""

    epochs: int = 60
    batch_size: int = 16
    lr: float = 4e-3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Unlearning:
    """How forget01 is unlearned; the values were found on this very model, so its report shows no held-out tuning."""

    steps: int = 60
    batch_size: int = 8
    seed: int = 0
    npo_lr: float = 1e-3
    npo_beta: float = 0.1
    retain_weight: float = 1.0
    rmu_layer: int = 2
    rmu_scale: float = 2.0
    """Length of the target in units of the mean forget activation (adaptive RMU)."""
    rmu_alpha: float = 10.0
    rmu_lr: float = 1e-3


def tofu_rows(folder: Path) -> tuple[tuple[QA, ...], tuple[QA, ...]]:
    """(forget01, the other 160 of the last 200 rows), each with its author as group.

    forget01 comes with paraphrases and wrong answers; the file of wrong answers for retain rows holds other rows.
    """
    forget = read_rows(folder / "forget01_perturbed.json")
    last = read_rows(folder / "full.json")[-ROWS:]
    grouped = [replace(row, group=f"author {i // PER_AUTHOR}") for i, row in enumerate(last)]
    n_retain = ROWS - len(forget)
    if [row.question for row in last[n_retain:]] != [row.question for row in forget]:
        raise ValueError("forget01_perturbed.json does not hold the last 40 questions of full.json; is this TOFU?")
    groups = [row.group for row in grouped[n_retain:]]
    return tuple(replace(r, group=g) for r, g in zip(forget, groups, strict=True)), tuple(grouped[:n_retain])


def finetuned(base: Path, cache: Path, settings: Finetuning, rows: tuple[QA, ...], tokenizer: Any, name: str) -> Any:
    """stories260K after it learned ``rows``."""
    recipe = {
        "base": file_hash(base / "model.safetensors"),
        "rows": rows_hash(rows),
        "finetuning": asdict(settings),
        "torch": torch.__version__,
    }

    def make() -> nn.Module:
        model = load_model(base)
        data = encode(tokenizer, rows, max_length=MAX_LENGTH)
        minimise(
            model,
            [Term(1.0, nll, data, "nll")],
            steps=settings.epochs * len(rows) // settings.batch_size,
            lr=settings.lr,
            batch_size=settings.batch_size,
            seed=settings.seed,
            schedule=one_cycle,
            progress=f"fine-tuning: {name}",
        )
        return model

    return cached(cache, recipe, make, tokenizer)


def unlearned(original: nn.Module, split: Split, settings: Unlearning) -> dict[str, nn.Module]:
    """The model after RMU and after NPO."""
    common: dict[str, Any] = {"steps": settings.steps, "batch_size": settings.batch_size, "seed": settings.seed}
    by_npo = copy.deepcopy(original)
    npo(
        by_npo,
        split,
        original=original,
        beta=settings.npo_beta,
        retain_weight=settings.retain_weight,
        lr=settings.npo_lr,
        progress="NPO",
        **common,
    )
    by_rmu = copy.deepcopy(original)
    rmu(
        by_rmu,
        split,
        original=original,
        layer=settings.rmu_layer,
        coefficient=adaptive_coefficient(
            original, split.forget.select(range(8)), settings.rmu_layer, scale=settings.rmu_scale
        ),
        alpha=settings.rmu_alpha,
        lr=settings.rmu_lr,
        parameters=block_parameters(by_rmu, range(settings.rmu_layer + 1)),
        progress="RMU",
        **common,
    )
    return {"NPO": by_npo, "RMU": by_rmu}


def study(
    shared: Path, cache: Path, finetuning: Finetuning = Finetuning(), unlearning: Unlearning | None = None
) -> Study:
    """Load, check, fine-tune, and unlearn where told how.

    Args:
        shared: folder with models/stories260K and data/tofu.
        cache: folder of fine-tuned models.
        finetuning: how the model learns.
        unlearning: how RMU and NPO unlearn; none of them if None.

    Raises:
        ValueError: the pretrained model does not reproduce its reference text, so it was loaded wrongly.
    """
    base = shared / "models" / "stories260K"
    tokenizer = load_tokenizer(base)
    told = generate(load_model(base), tokenizer, [""], max_new_tokens=200)[0]
    if told.strip() != (base / "expected_greedy.txt").read_text(encoding="utf-8").strip():
        raise ValueError("stories260K does not reproduce expected_greedy.txt; the model was not loaded rightly")
    forget, retain = tofu_rows(shared / "data" / "tofu")
    split = make_split(tokenizer, forget, retain, max_length=MAX_LENGTH)
    original = finetuned(base, cache, finetuning, (*retain, *forget), tokenizer, "original")
    retrained = finetuned(base, cache, finetuning, retain, tokenizer, "retrained")
    models = {} if unlearning is None else unlearned(original, split, unlearning)
    return Study(original, tokenizer, split, retrained, models)
