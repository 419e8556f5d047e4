"""Train the testbed's SAE on activations that are given."""

from pathlib import Path

from probe.axes import HiddenND
from probe.dictionaries.folders import save_trained
from probe.features.architectures import TopK
from probe.features.training import fit_dictionary
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
    site = Site(recipe.sae_layer)
    metadata = {
        "model_name": "probe.testbed original",
        "hook_name": f"blocks.{site.layer}.hook_resid_post",
        "hf_hook_name": f"model.layers.{site.layer}",
    }
    fitted = fit_dictionary(
        hidden_ND,
        TopK(recipe.sae_active),
        n_features=recipe.sae_features,
        steps=recipe.sae_steps,
        batch_size=_BATCH,
        lr=recipe.sae_lr,
        seed=recipe.seed,
        metadata=metadata,
    )
    folder.mkdir(parents=True)
    save_trained(fitted, folder)
    _halve(folder / "sae_weights.safetensors")


def _halve(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor.half().contiguous() for name, tensor in load_file(path).items()}, path)
