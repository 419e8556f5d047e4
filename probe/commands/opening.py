"""The models and rows to look at: a user's, or the testbed's."""

from dataclasses import dataclass, field
from typing import Any

import torch

from probe.checkpoints import (
    check_device,
    check_different,
    check_tokenizer,
    check_usable,
    file_hash,
    load_model,
    load_tokenizer,
)
from probe.commands.data import Data
from probe.commands.templates import Chosen, chosen
from probe.context import check_rows
from probe.data import Split, make_split
from probe.datasets import read_rows, rows_hash
from probe.questions import repeated
from probe.weights import check_same_architecture


@dataclass(frozen=True, eq=False)
class Opened:
    """What is looked at.

    Args:
        models: by what the job calls them.
        tokenizer: of all of them.
        split: the rows.
        notes: what the result must say of itself.
        template: how rows became texts; None for the testbed's own.
    """

    models: dict[str, Any] = field(repr=False)
    tokenizer: Any = field(repr=False)
    split: Split = field(repr=False)
    notes: tuple[str, ...] = ()
    template: Chosen | None = None

    def described(self, data: Data) -> dict[str, Any]:
        """What the manifest says of the rows."""
        named = {"forget": data.forget, "retain": data.retain}
        sides = {"forget": self.split.forget_rows, "retain": self.split.retain_rows}
        return {
            "template": (self.template or Chosen(self.split.template, "plain")).described(),
            "data": {
                on: {"rows": len(rows), "sha256": rows_hash(rows), "repeated": repeated(rows)}
                for on, rows in sides.items()
            },
            "files": {on: file_hash(path) for on, path in named.items() if path is not None},
            "notes": list(self.notes),
        }


def opened(data: Data, models: dict[str, str]) -> Opened:
    """A user's models with the user's rows.

    Args:
        data: rows, template, device.
        models: name -> folder or hub name; the first one's tokenizer is used.

    Raises:
        ValueError: rows, models or a device that cannot be used, or models that do not belong together.
        FileNotFoundError: no such file.
    """
    assert data.forget is not None
    assert data.retain is not None
    # Rows are read first: a mistake in them should not cost the loading of a model.
    forget, retain = read_rows(data.forget), read_rows(data.retain)
    first, *others = models.values()
    tokenizer = load_tokenizer(first)
    template = chosen(data, tokenizer, list(models.values()))
    split = make_split(
        tokenizer, forget[: data.rows], retain[: data.rows], template=template.template, max_length=data.max_length
    )
    for name in others:
        check_tokenizer(tokenizer, load_tokenizer(name))
    check_device(data.device)
    loaded = {
        name: load_model(path, dtype=getattr(torch, data.dtype), device=data.device) for name, path in models.items()
    }
    for model in loaded.values():
        check_usable(model, tokenizer)
        check_rows(model, split.forget, split.retain)
    reference, *rest = loaded
    for name in rest:
        check_same_architecture(loaded[reference], loaded[name])
        check_different(loaded[reference], loaded[name], (reference, name))
    return Opened(loaded, tokenizer, split, (template.note, *_trial(data)), template)


def opened_testbed(data: Data) -> Opened:
    """The testbed's original model and rows.

    Raises:
        ValueError: a device that cannot be used.
    """
    from probe import testbed

    check_device(data.device, spread=False)
    bed = testbed.load()
    rows = bed.split.forget_rows[: data.rows], bed.split.retain_rows[: data.rows]
    split = make_split(bed.tokenizer, *rows, template=bed.split.template, max_length=bed.split.max_length)
    model = bed.original.to(data.device, getattr(torch, data.dtype))
    return Opened({"original": model}, bed.tokenizer, split, ("the testbed that comes with the package", *_trial(data)))


def _trial(data: Data) -> tuple[str, ...]:
    if data.rows is None:
        return ()
    return (f"a trial run: only the first {data.rows} rows of each side (--rows); no result to report",)
