"""Train the testbed's SAE on activations that are given, with sae-lens."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from probe.axes import HiddenND
from probe.sites import Site
from probe.testbed.recipe import Recipe

_BATCH = 2048


def fit_sae(hidden_ND: HiddenND, recipe: Recipe, folder: Path) -> None:
    """Fit a TopK SAE (Gao et al., arXiv 2406.04093) and save its inference form in float16.

    Args:
        hidden_ND: activations at ``recipe.sae_layer`` of the model to be studied.
        recipe: width, active features, steps and seed.
        folder: gets ``cfg.json`` and ``sae_weights.safetensors``.
    """
    from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata

    site = Site(recipe.sae_layer)
    metadata = SAEMetadata(
        model_name="probe.testbed original",
        hook_name=f"blocks.{site.layer}.hook_resid_post",
        hf_hook_name=f"model.layers.{site.layer}",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        sae = TopKTrainingSAE(
            TopKTrainingSAEConfig(
                d_in=hidden_ND.shape[1],
                d_sae=recipe.sae_features,
                k=recipe.sae_active,
                # The scale is folded into the weights at the end, so that users feed raw activations.
                normalize_activations="expected_average_only_in",
                metadata=metadata,
            )
        )
        trainer = SAETrainerConfig(
            total_training_samples=recipe.sae_steps * _BATCH,
            train_batch_size_samples=_BATCH,
            lr=recipe.sae_lr,
            # sae-lens leaves this unset outside its own runner and then asserts that it is set.
            lr_end=recipe.sae_lr / 10,
            lr_decay_steps=recipe.sae_steps // 5,
            n_batches_for_norm_estimate=10,
            dead_feature_window=100,
            feature_sampling_window=10**9,
            logger=LoggingConfig(log_to_wandb=False),
        )
        fitted = SAETrainer(cfg=trainer, sae=sae, data_provider=_endless(hidden_ND, recipe.seed)).fit()
    folder.mkdir(parents=True)
    fitted.save_inference_model(folder)
    _halve(folder / "sae_weights.safetensors")


def _endless(hidden_ND: HiddenND, seed: int) -> Iterator[Tensor]:
    """Random batches for ever: the trainer has no notion of an end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield hidden_ND[torch.randint(len(hidden_ND), (_BATCH,), generator=generator)]


def _halve(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor.half().contiguous() for name, tensor in load_file(path).items()}, path)
