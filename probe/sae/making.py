"""`probe sae train` and `probe sae audit`: a dictionary with its card, and what an edit of weights did to one."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from probe.attacks.curves import Training
from probe.attacks.facts import divided
from probe.checkpoints import weights_hash
from probe.commands.data import Data
from probe.commands.folder import appearing
from probe.features.architectures import Architecture, BatchTopK, JumpReLU, TopK
from probe.features.quality import Quality
from probe.features.training import train_dictionary
from probe.harvest import harvest
from probe.positions import not_first
from probe.rows import Row, append
from probe.sae.audit import audit
from probe.sae.corpus import of_rows, of_texts
from probe.sae.job import AuditJob, TrainJob
from probe.sae.opening import fitted
from probe.sites import Site, n_layers

# Small, so that a trial takes seconds; the testbed's own dictionary is wider and was trained for longer.
_TESTBED: dict[str, Any] = {"layer": 4, "active": 16, "features": 256, "steps": 150, "lr": 3e-3, "least_variance": 0.7}
# CRISP's numbers (arXiv 2508.13650), with which the testbed's features are chosen.
_FEATURES, _RATIO = 30, 3.0


def run_train(job: TrainJob, data: Data) -> Path:
    """Train a dictionary on what a model makes of both sides' rows or of a corpus; save it if it is what was asked for.

    Args:
        job: model and dictionary, and the corpus, if one is given.
        data: rows, and where to.

    Returns:
        the folder: cfg.json, sae_weights.safetensors and card.json under sae/, rows.jsonl, table.txt, manifest.json.

    Raises:
        FileNotFoundError: rows that are not there.
        ValueError: models or rows that cannot be used, or a dictionary off target, with its numbers.
        FloatingPointError: the loss became NaN or infinite.
        OSError: the disk is full.
    """
    job.check()
    if job.text is not None and (data.forget is not None or data.retain is not None):
        raise ValueError("--text and --forget or --retain are given; choose one: a corpus, or question rows")
    data.check(job.models if job.text is None else {})
    with appearing(job, data) as (folder, manifest):
        if job.model is None:
            job = replace(job, **{key: value for key, value in _TESTBED.items() if getattr(job, key) is None})
        at = of_rows(job, data) if job.text is None else of_texts(job, data)
        assert job.layer is not None
        assert job.steps is not None
        if not 0 <= job.layer < n_layers(at.model):
            raise ValueError(f"--layer {job.layer}: the model has blocks 0 to {n_layers(at.model) - 1}")
        site = Site(job.layer)
        hidden_ND = harvest(at.model, at.shown.chunks(data.batch_size), [site], positions=not_first)[site]
        made = train_dictionary(
            at.model, site, hidden_ND, at.judged, folder / "sae", **_numbers(job), model_name=job.model or "testbed",
            progress=True,
        )  # fmt: skip
        append(folder / "rows.jsonl", _quality_rows(made.quality, job))
        times = job.steps * job.tokens_per_step / len(hidden_ND)
        drawn = f"trained on {len(hidden_ND)} activations, each drawn about {times:.2g} times"
        (folder / "table.txt").write_text("\n".join((_card(made.quality), drawn, *at.notes)) + "\n", encoding="utf-8")
        manifest |= {**at.described, "weights": {"model": weights_hash(at.model)}}
    return data.out


def _numbers(job: TrainJob) -> dict[str, Any]:
    assert job.active is not None
    made: dict[str, Callable[[int], Architecture]] = {"topk": TopK, "batchtopk": BatchTopK, "jumprelu": JumpReLU}
    return {
        "architecture": made[job.architecture](job.active),
        "n_features": job.features,
        "steps": job.steps,
        "batch_size": job.tokens_per_step,
        "lr": job.lr,
        "seed": job.seed,
        "least_variance": job.least_variance,
    }


def _card(found: Quality) -> str:
    by_layer = ", ".join(f"{value:.3g} at layer {layer}" for layer, value in found.fvu_by_layer.items())
    return (
        f"variance explained {found.explained_variance:.3f}; features on at a token {found.l0:.1f}; dead {found.dead} "
        f"of {found.n_features}\nloss {found.loss:.4f}, with the reconstruction {found.loss_spliced:.4f}, with the "
        f"mean {found.loss_mean:.4f}\nvariance unexplained: {by_layer} ({found.tokens} tokens that were not trained on)"
    )


def _quality_rows(found: Quality, job: TrainJob) -> list[Row]:
    numbers = {
        "explained_variance": found.explained_variance,
        "l0": found.l0,
        "dead": float(found.dead),
        "loss": found.loss,
        "loss_spliced": found.loss_spliced,
        "loss_mean": found.loss_mean,
        "recovered": found.recovered,
    }
    rows = [
        Row("original", "sae_quality", name, value, layer=job.layer, n=found.tokens) for name, value in numbers.items()
    ]
    fits = found.fvu_by_layer.items()
    return rows + [
        Row("original", "sae_quality", "fvu", value, layer=int(layer), n=found.tokens) for layer, value in fits
    ]


def run_audit(job: AuditJob, data: Data) -> Path:
    """Say what an edit of weights did to features that were to fall silent, and to the answers; no hook is open.

    Args:
        job: the model before and after, the dictionary, its features.
        data: rows, and where to; retain rows should be ones that the edit was not trained on.

    Returns:
        the folder: rows.jsonl, table.txt, manifest.json.

    Raises:
        FileNotFoundError: rows or a dictionary that are not there.
        ValueError: models, rows, dictionary or features that cannot be used.
        OSError: the disk is full.
    """
    job.check()
    data.check(job.models)
    with appearing(job, data) as (folder, manifest):
        at = fitted(job, data, edited=job.edited, retrained=job.retrained)
        split, original = at.at.split, at.model
        features, edited, name = job.features, at.at.models.get("edited"), "edited"
        if edited is None:
            from probe.methods.orthogonalised import orthogonalised

            edited, name = copy.deepcopy(original), "orthogonalised"
            features = orthogonalised(
                edited, split, sae=at.sae, site=at.site, special_ids=at.special_ids, features=_FEATURES, ratio=_RATIO
            ).features
        facts = divided(
            at.at.tokenizer, split.forget_rows, share=0.2, by="row", seed=job.seed, template=split.template,
            batch_size=data.batch_size, max_length=split.max_length,
        )  # fmt: skip
        training = None
        if job.steps:
            assert job.lr is not None
            training = Training(job.steps, job.lr, min(data.batch_size, len(facts.shown)))
        found = audit(
            original, edited, at.sae, at.site, features, facts, split.retain_rows, name=name,
            retrained=at.at.models.get("retrained"), training=training, batch_size=data.batch_size,
        )  # fmt: skip
        append(folder / "rows.jsonl", found.rows())
        (folder / "table.txt").write_text("\n".join([*found.findings, *at.at.notes]) + "\n", encoding="utf-8")
        (folder / "features.json").write_text(json.dumps({name: list(features)}) + "\n", encoding="utf-8")
        weights = {key: weights_hash(model) for key, model in {**at.at.models, name: edited}.items()}
        manifest |= {**at.described(data, job), "weights": weights}
    return data.out
