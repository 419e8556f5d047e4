"""Train a dictionary on a model's activations through sae-lens, offline; save it only if it is what was asked for."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from probe.archive import mapped
from probe.axes import HiddenND
from probe.checkpoints import weights_hash
from probe.data import Batch
from probe.dictionaries.dictionary import Dictionary
from probe.dictionaries.folders import load_dictionary, save_trained
from probe.features.architectures import Architecture, BatchTopK, JumpReLU, Matryoshka, settle
from probe.features.naming import metadata_of
from probe.features.quality import Quality, quality
from probe.sites import Site, unwrapped

CARD = "card.json"
# Batches from which the mean norm of activations is estimated before the first step.
_NORM_BATCHES = 10


@dataclass(frozen=True, eq=False)
class Trained:
    """A dictionary as it was saved and loaded again.

    Args:
        dictionary: inference form, frozen.
        quality: measured on the judged rows with the dictionary as loaded.
        folder: ``cfg.json`` and ``sae_weights.safetensors`` as sae-lens writes them, and ``card.json``.
    """

    dictionary: Dictionary = field(repr=False)
    quality: Quality
    folder: Path


def train_dictionary(
    model: nn.Module,
    site: Site,
    hidden: HiddenND | str | Path,
    judged: Batch,
    folder: str | Path,
    *,
    architecture: Architecture,
    n_features: int,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    least_variance: float,
    l0_tolerance: float = 0.1,
    model_name: str = "",
    progress: bool = False,
) -> Trained:
    """Train on activations of any Hugging Face model, check what comes out, and save it.

    Adam; the learning rate falls to a tenth over the last fifth of the steps; activations are scaled to a mean norm
    of sqrt(width) meanwhile, and the scale is folded into the weights.

    Args:
        model: whose activations they are; used for the card, unchanged.
        site: where they were read.
        hidden: activations in memory, or the folder that ``probe.archive.harvest_to_files`` wrote, which may be larger
            than memory: each batch reads its rows only. Leave the first token of each row out (``not_first``).
        judged: rows that the dictionary is judged on; not those of ``hidden``.
        folder: must not exist. It appears whole, or not at all.
        architecture: ``TopK``, ``BatchTopK``, ``Matryoshka`` or ``JumpReLU`` with its numbers.
        n_features: features of the dictionary.
        steps, batch_size: each step draws so many activations by chance.
        lr: 1e-3 for TopK and BatchTopK and 3e-3 for JumpReLU worked at widths of 64 and 128.
        seed: fixes initial weights and the order of activations.
        least_variance: share of variance to be explained on the judged rows; 0 saves whatever comes out.
        l0_tolerance: how far the active features a token may be from the target, as a share of it.
        model_name: written into the metadata.
        progress: show a bar.

    Raises:
        ValueError: what cannot be trained, or L0 or variance off target: the numbers, and what to do.
        FloatingPointError: the loss became NaN or infinite.
        OSError: the disk is full, say; nothing is left behind.

    >>> from probe.features import TopK
    >>> hidden = probe.harvest(s.original, [s.split.retain], [probe.Site(4)], positions=probe.not_first)[probe.Site(4)]
    >>> trained = probe.train_dictionary(
    ...     s.original, probe.Site(4), hidden, s.split.retain, "sae", architecture=TopK(8), n_features=256, steps=40,
    ...     batch_size=128, lr=3e-3, seed=0, least_variance=0.01, l0_tolerance=0.9,
    ... )
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; name a new folder, dictionaries are not overwritten")
    if not (0 <= least_variance < 1 and 0 < l0_tolerance < 1):
        raise ValueError(
            f"least_variance must lie in [0, 1), l0_tolerance in (0, 1); got {least_variance} and {l0_tolerance}"
        )
    whole = unwrapped(model)
    weights = weights_hash(whole)
    hidden_ND = hidden if isinstance(hidden, Tensor) else _stored(Path(hidden), site, weights)
    metadata = metadata_of(model, site, model_name) | {"model_sha256": weights}
    numbers: dict[str, Any] = {
        "n_features": n_features,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
    }
    device = str(next(model.parameters()).device)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        began = time.perf_counter()
        said = type(architecture).__name__ if progress else None
        fitted = fit_dictionary(hidden_ND, architecture, **numbers, metadata=metadata, device=device, progress=said)
        seconds = round(time.perf_counter() - began, 1)
        save_trained(fitted, partial)
        # Judged as users will load it: a saved BatchTopK is another function than the trained one.
        loaded = load_dictionary(partial, device=device, dtype=torch.float32)
        measured = quality(model, loaded, site, judged, hidden_ND, l0_target=architecture.l0)
        if least_variance:
            _check(measured, architecture, least_variance, l0_tolerance)
        card = {
            "architecture": {"name": type(architecture).__name__, **asdict(architecture)},
            "training": {**numbers, "activations": len(hidden_ND), "tokens": steps * batch_size, "seconds": seconds},
            "metadata": metadata,
            "quality": measured.as_json(),
            "versions": {name: version(name) for name in ("torch", "transformers", "sae-lens", "unlearn-probe")},
        }
        (partial / CARD).write_text(json.dumps(card, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Trained(loaded, measured, folder)


def fit_dictionary(
    hidden_ND: HiddenND,
    architecture: Architecture,
    *,
    n_features: int,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    metadata: Mapping[str, Any],
    device: str = "cpu",
    progress: str | None = None,
) -> Any:
    """The training alone: an object of sae-lens whose ``save_inference_model`` takes raw activations.

    The steps are those of ``SAETrainer.fit``, whose bars cannot be switched off and which trains on after a NaN.

    Args:
        hidden_ND: activations; rows are drawn with replacement.
        architecture, n_features, steps, batch_size, lr, seed: as for ``train_dictionary``.
        metadata: kept in the saved configuration.
        device: where it is trained.
        progress: text of the bar; None shows none.

    Raises:
        ValueError: numbers that allow no training.
        FloatingPointError: the loss became NaN or infinite.
    """
    _check_numbers(hidden_ND, architecture, n_features, steps, batch_size, lr)
    from sae_lens import LoggingConfig, SAETrainer
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata

    shared = {
        "d_in": hidden_ND.shape[1],
        "d_sae": n_features,
        # Folded into the weights at the end, so that users feed raw activations.
        "normalize_activations": "expected_average_only_in",
        "metadata": SAEMetadata(**metadata),
    }
    batches = _endless(hidden_ND, batch_size, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae = architecture.trainee(shared).to(device)
        trainer = SAETrainer(
            cfg=SAETrainerConfig(
                total_training_samples=steps * batch_size,
                train_batch_size_samples=batch_size,
                lr=lr,
                # sae-lens leaves this unset outside its own runner and then asserts that it is set.
                lr_end=lr / 10,
                lr_decay_steps=steps // 5,
                n_batches_for_norm_estimate=_NORM_BATCHES,
                dead_feature_window=100,
                feature_sampling_window=10**9,
                device=device,
                logger=LoggingConfig(log_to_wandb=False),
            ),
            sae=sae,
            data_provider=batches,
        )
        factor = trainer.activation_scaler.scaling_factor = _norm_factor(batches, hidden_ND.shape[1])
        bar = tqdm(range(steps), desc=progress, unit="step", disable=progress is None, leave=False)
        for step in bar:
            output = trainer.step(next(batches))
            trainer.n_training_steps += 1
            loss = output.loss.item()
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"step {step}: the SAE's loss is {loss}; lower the learning rate ({lr:g}), or look for NaN in the "
                    "activations"
                )
            if progress is not None and step % 20 == 0:
                active = float((output.feature_acts != 0).sum(-1).float().mean())
                bar.set_postfix(loss=f"{loss:.3g}", l0=f"{active:.1f}")
        settle(sae, (batch.to(device) * factor for batch in batches))
        sae.fold_activation_norm_scaling_factor(factor)
        trainer.set_final_sae_metadata()
    return sae


def _stored(folder: Path, site: Site, weights: str) -> HiddenND:
    """The activations at ``site`` from a folder of ``harvest_to_files``.

    Raises:
        ValueError: another model's, edited ones, or another site's.
    """
    found = mapped(folder)
    card = json.loads((folder / "harvest.json").read_text(encoding="utf-8"))
    if card["weights_sha256"] != weights:
        raise ValueError(
            f"the activations in {folder} are those of another model (weights sha256 {card['weights_sha256'][:12]}, "
            f"here {weights[:12]}); harvest them from this one"
        )
    if site not in found:
        raise ValueError(f"{folder} holds no activations at {site}; it has {', '.join(map(str, found))}")
    return found[site]


def _endless(hidden_ND: HiddenND, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Random batches for ever: the trainer has no notion of an end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield hidden_ND[torch.randint(len(hidden_ND), (batch_size,), generator=generator)].float()


def _norm_factor(batches: Iterator[Tensor], width: int) -> float:
    """What scales activations to a mean norm of sqrt(width), summed as sae-lens sums it."""
    total, count = 0.0, 0
    for _ in range(_NORM_BATCHES):
        norms = next(batches).norm(dim=-1)
        total, count = total + norms.sum().item(), count + len(norms)
    if not 0 < total < math.inf:
        raise ValueError(f"the activations have a mean norm of {total / count}; check them for NaN, or for zeros only")
    return math.sqrt(width) / (total / count)


def _check_numbers(
    hidden_ND: HiddenND, architecture: Architecture, n_features: int, steps: int, batch_size: int, lr: float
) -> None:
    if steps < 1 or batch_size < 1 or not 0 < lr < math.inf:
        raise ValueError(f"steps, batch_size and lr must be above 0, got {steps}, {batch_size} and {lr}")
    if len(hidden_ND) < batch_size:
        raise ValueError(
            f"{len(hidden_ND)} activations are fewer than one batch of {batch_size}; "
            "harvest more rows, or draw fewer a step"
        )
    if not architecture.l0 < n_features:
        raise ValueError(
            f"{architecture} cannot be sparse in a dictionary of {n_features} features; make it wider, or ask for "
            "fewer active features"
        )


def _check(found: Quality, architecture: Architecture, least_variance: float, tolerance: float) -> None:
    """Raise where a dictionary is not what was asked for."""
    off = found.l0 / architecture.l0 - 1
    faults = []
    if abs(off) > tolerance:
        faults.append(f"{found.l0:.3g} features are active a token, the target is {architecture.l0:g} ({off:+.0%})")
    if found.explained_variance < least_variance:
        faults.append(f"{found.explained_variance:.3f} of the variance is explained, the least is {least_variance:g}")
    if not faults:
        return
    remedy = "train for more steps, with more features, or with another lr"
    if abs(off) > tolerance and isinstance(architecture, JumpReLU):
        remedy = "train for more steps or with a larger lr (3e-3 worked), or change threshold and bandwidth"
    elif abs(off) > tolerance and isinstance(architecture, BatchTopK | Matryoshka):
        remedy = "train for more steps or with larger batches, so that the threshold that is saved settles"
    raise ValueError(
        f"the {type(architecture).__name__} dictionary is off target on {found.tokens} judged tokens, as loaded: "
        f"{'; '.join(faults)}; {found.dead} of {found.n_features} features are dead. Nothing was saved; {remedy}"
    )
