"""The model, its dictionary and the rows: a user's, or the testbed's; the dictionary is seen to fit first."""

from dataclasses import dataclass, field
from typing import Any

import torch

from probe.checkpoints import file_hash
from probe.commands.data import Data
from probe.commands.opening import Opened, opened, opened_testbed
from probe.dictionaries.dictionary import Dictionary
from probe.dictionaries.folders import load_dictionary
from probe.interventions.attaching import attach
from probe.sae.job import Attachment
from probe.sites import Site

# Rows on which a dictionary is tried at its site.
_ROWS = 32


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a command works on.

    Args:
        at: models and rows.
        sae, site: the dictionary and where it belongs.
        fvu_by_layer: fraction of variance unexplained there and one block before and after.
    """

    at: Opened = field(repr=False)
    sae: Dictionary = field(repr=False)
    site: Site
    fvu_by_layer: dict[int, float]

    @property
    def model(self) -> Any:
        """The model that the dictionary is of."""
        return self.at.models["model"]

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Tokens that count nowhere and are not edited."""
        return tuple(self.at.tokenizer.all_special_ids)

    def described(self, data: Data, job: Attachment) -> dict[str, Any]:
        """What the manifest says of rows and dictionary."""
        metadata = {key: str(value) for key, value in self.sae.metadata.items()}
        found = {"site": str(self.site), "features": self.sae.n_features, "metadata": metadata}
        found["fvu by layer"] = {str(layer): value for layer, value in self.fvu_by_layer.items()}
        if job.sae is not None and job.sae_id is None:
            from pathlib import Path

            found["files"] = {p.name: file_hash(p) for p in sorted(Path(job.sae).glob("*.safetensors"))}
        return {**self.at.described(data), "sae": found}


def fitted(job: Attachment, data: Data, **others: str | None) -> Fitted:
    """Load what the job names, or the testbed, and measure that the dictionary belongs to the model.

    Args:
        job: model and dictionary.
        data: rows, device.
        others: more models by name, for those that were given.

    Raises:
        FileNotFoundError: rows or a dictionary that are not there.
        ValueError: models or rows that cannot be used; a dictionary that does not fit, with the numbers.
    """
    site: Site | None
    if job.model is None:
        from probe import testbed

        found = opened_testbed(data)
        bed = testbed.load()
        given = {"model": found.models["original"]}
        if "retrained" in others:
            given["retrained"] = bed.retrained.to(data.device, getattr(torch, data.dtype))
        at = Opened(given, found.tokenizer, found.split, found.notes)
        sae, site = load_dictionary(bed.folder / "sae", device=data.device), Site(bed.sae_site.layer)
    else:
        assert job.sae is not None
        # Before the model: a mistake in a small folder should not cost the loading of a large one.
        sae = load_dictionary(job.sae, sae_id=job.sae_id, device=data.device)
        named = {"model": job.model} | {name: path for name, path in others.items() if path is not None}
        at = opened(data, named)
        site = None if job.layer is None else Site(job.layer)
    retain = at.split.retain
    found_at = attach(at.models["model"], sae, retain.select(range(min(_ROWS, len(retain)))), site)
    by_layer = {one.layer: value for one, value in found_at.fvu_by_site.items()}
    return Fitted(at, found_at.dictionary, found_at.site, by_layer)
