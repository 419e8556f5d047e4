"""What a dictionary's file says of the place it belongs to, so that others find it again."""

from torch import nn

from probe.interventions.attaching import named_site
from probe.sites import Part, Side, Site, place_of, unwrapped

# TransformerLens's names, which sae-lens uses.
_HOOKS: dict[tuple[Part, Side], str] = {
    ("block", "out"): "hook_resid_post",
    ("block", "in"): "hook_resid_pre",
    ("attention", "out"): "hook_attn_out",
    ("mlp", "in"): "mlp.hook_in",
    ("mlp", "out"): "hook_mlp_out",
    ("heads", "out"): "attn.hook_z",
}


def metadata_of(model: nn.Module, site: Site, model_name: str) -> dict[str, str]:
    """The model's name (its class without one) and those of the site: ``named_site`` leads back to it.

    ``hf_hook_name`` is the module's, with ``.input`` behind it where it is the input that is read. ``hook_name`` is
    TransformerLens's, left out where it has none or where it means another place of this family.

    Args:
        model: any Hugging Face decoder.
        site: where the dictionary reads.
        model_name: may be empty.

    Raises:
        ValueError: a site outside the model, or a single head, which has no name.
    """
    place = place_of(model, site)
    if site.head is not None:
        raise ValueError(f"a dictionary of a single head ({site}) could not be put back: its place has no name")
    found = {
        "model_name": model_name or type(unwrapped(model)).__name__,
        "hf_hook_name": place.name if place.side == "out" else f"{place.name}.input",
    }
    named = "hook_embed" if site.part == "embedding" else f"blocks.{site.layer}.{_HOOKS.get((site.part, site.side))}"
    try:
        return {**found, "hook_name": named} if named_site(model, named) == site else found
    except ValueError:
        return found
