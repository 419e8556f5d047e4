"""Studies: the shipped testbed, or a user's own models and data."""

from pathlib import Path

from probe.checkpoints import check_device, check_tokenizer, load_model, load_tokenizer
from probe.commands.templates import chosen
from probe.context import check_rows
from probe.data import make_split
from probe.datasets import read_rows
from probe.dictionaries.folders import load_dictionary
from probe.report.settings import OwnModels
from probe.report.study import Study
from probe.sites import Site


def testbed_study() -> Study:
    """The model organism that comes with the package."""
    from probe import testbed

    bed = testbed.load()
    return Study(bed.original, bed.tokenizer, bed.split, bed.retrained, {}, bed.world, bed.sae, bed.sae_site)


def user_study(own: OwnModels) -> Study:
    """Load a user's models and rows.

    Raises:
        ValueError: files or models that cannot be read or do not belong together.
        FileNotFoundError: a rows file that does not exist.
    """
    own.check()
    assert own.original is not None
    assert own.forget is not None
    assert own.retain is not None
    check_device(own.device)
    # Rows are read first: a mistake in them should not cost the loading of models.
    forget, retain = read_rows(own.forget), read_rows(own.retain)
    tokenizer = load_tokenizer(own.original)
    template = chosen(own, tokenizer, [*own.unlearned, own.retrained, own.original])
    split = make_split(tokenizer, forget, retain, template=template.template, max_length=own.max_length)
    others = [*own.unlearned, *([own.retrained] if own.retrained else [])]
    for name in others:
        check_tokenizer(tokenizer, load_tokenizer(name))
    names = [Path(name).name for name in own.unlearned]
    if len(set(names)) != len(names):
        raise ValueError(f"two unlearned models share a folder name ({', '.join(names)}); rename one")
    models = {name: load_model(path, device=own.device) for name, path in zip(names, own.unlearned, strict=True)}
    original = load_model(own.original, device=own.device)
    check_rows(original, split.forget, split.retain)
    return Study(
        original,
        tokenizer,
        split,
        load_model(own.retrained, device=own.device) if own.retrained else None,
        models,
        sae=load_dictionary(own.sae, device=own.device) if own.sae else None,
        sae_site=None if own.sae_layer is None else Site(own.sae_layer),
    )
