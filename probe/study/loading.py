"""From names of models and files to a study; everything is checked here, rows before models."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from probe.checkpoints import check_device, check_tokenizer, file_hash, load_model, load_tokenizer
from probe.data import Split, make_split
from probe.datasets import read_rows
from probe.dictionaries.folders import load_dictionary
from probe.interventions.attaching import attach
from probe.options import Compute, DictionaryOptions, Rows
from probe.ranges import check_ranges
from probe.sites import Site
from probe.study.study import Study
from probe.study.templates import Chosen, chosen
from probe.testbed.bed import load

_ROLES = ("original", "retrained")
# Rows on which a dictionary is tried at its site.
_TRIED = 32


def load_study(
    models: Mapping[str, str],
    rows: Rows,
    compute: Compute = Compute(),
    dictionary: DictionaryOptions = DictionaryOptions(),
    *,
    tokenizer: str | None = None,
    distinct: bool = True,
) -> Study:
    """A user's models with the user's rows.

    Args:
        models: folder or hub name by role: "original", optionally "retrained", and unlearned models by their names.
        rows: files, template and sizes.
        compute: device and dtype.
        dictionary: of the original; that it fits is measured.
        tokenizer: where the tokenizer lies, if not beside the original.
        distinct: whether two models may not have the same weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: rows, models, a dictionary or a device that cannot be used, or models that do not belong together.
    """
    for options in (rows, compute, dictionary):
        check_ranges(options)
    dictionary.check_dictionary()
    check_device(compute.device)
    # Small files first: a mistake in them should not cost the loading of a large model.
    split, code, template = read_split(models, rows, tokenizer)
    sae = None
    if dictionary.sae is not None:
        sae = load_dictionary(dictionary.sae, sae_id=dictionary.sae_id, device=compute.device)
    dtype = getattr(torch, compute.dtype)
    loaded = {name: load_model(path, dtype=dtype, device=compute.device) for name, path in models.items()}
    files = {"forget": rows.forget, "retain": rows.retain}
    study = Study(
        original=loaded.pop("original"),
        tokenizer=code,
        split=split,
        retrained=loaded.pop("retrained", None),
        unlearned=loaded,
        template=template,
        notes=(template.note, *_trial(rows)),
        files={on: file_hash(path) for on, path in files.items() if path is not None},
    )
    study.check(distinct=distinct)
    if sae is None:
        return study
    return with_dictionary(study, sae, None if dictionary.sae_layer is None else Site(dictionary.sae_layer))


def read_split(models: Mapping[str, str], rows: Rows, tokenizer: str | None = None) -> tuple[Split, Any, Chosen]:
    """Rows as text and tokens, the tokenizer, and the template, without a model being loaded.

    Without retain rows the tokens of the forget rows stand on both sides, and ``retain_rows`` is empty.

    Raises:
        FileNotFoundError: no such file.
        ValueError: rows that cannot be used, or tokenizers that differ.
    """
    if rows.forget is None:
        raise ValueError("rows to forget are needed: give forget, and retain if there are rows to keep")
    forget = read_rows(rows.forget)
    retain = forget if rows.retain is None else read_rows(rows.retain)
    code = load_tokenizer(tokenizer or models["original"])
    template = chosen(rows, code, list(models.values()))
    some = forget[: rows.limit], retain[: rows.limit]
    how: dict[str, Any] = {"template": template.template, "max_length": rows.max_length}
    split = make_split(code, *some, **how, allow_overlap=rows.retain is None)
    if rows.retain is None:
        split = replace(split, retain_rows=())
    for name in models.values():
        if has_tokenizer(name) and name != (tokenizer or models["original"]):
            check_tokenizer(code, load_tokenizer(name))
    return split, code, template


def has_tokenizer(name: str) -> bool:
    """Whether a model's folder holds a tokenizer; a model of the hub is taken to have one."""
    folder = Path(name)
    return not folder.is_dir() or any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))


def testbed(*, limit: int | None = None, device: str = "cpu", dtype: str = "float32") -> Study:
    """The model organism of the package: facts about 100 authors, a twin that never saw ten of them, and an SAE.

    Args:
        limit: only the first so many rows of each side.
        device: where models run.
        dtype: what weights are cast to.

    Raises:
        ValueError: a device or dtype that cannot be used, no rows, or damaged weights.

    >>> study = probe.testbed(limit=20)
    >>> len(study.split.forget), len(study.split.retain)
    (20, 20)
    """
    for options in (Rows(limit=limit), Compute(device=device, dtype=dtype)):  # type: ignore[arg-type]
        check_ranges(options)
    check_device(device, spread=False)
    bed = load()
    split = bed.split
    if limit is not None:
        rows = split.forget_rows[:limit], split.retain_rows[:limit]
        split = make_split(bed.tokenizer, *rows, template=split.template, max_length=split.max_length)
    cast = getattr(torch, dtype)
    return Study(
        original=bed.original.to(device, cast),
        tokenizer=bed.tokenizer,
        split=split,
        retrained=bed.retrained.to(device, cast),
        world=bed.world,
        sae=bed.sae if device == "cpu" else load_dictionary(bed.folder / "sae", device=device),
        sae_site=bed.sae_site,
        template=Chosen(split.template, "the testbed's own"),
        notes=("the testbed that comes with the package", *_trial(Rows(limit=limit))),
    )


def open(
    original: str,
    *,
    forget: str | Path,
    retain: str | Path,
    unlearned: str | Path | Sequence[str] | Mapping[str, str] = (),
    retrained: str | None = None,
    sae: str | None = None,
    sae_id: str | None = None,
    sae_layer: int | None = None,
    tokenizer: str | None = None,
    template: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    **more: Any,
) -> Study:
    """Your own models and rows as a study.

    Args:
        original: folder (safetensors) or hub name of the model before unlearning.
        forget: rows to forget (JSON lines or array; question, answer, optionally group and TOFU's other fields).
        retain: rows to keep, in the same layout.
        unlearned: models after unlearning: one, several (named by their folders), or by names of your own.
        retrained: a model trained without the forget rows.
        sae: a dictionary of the original: a folder, or a release of sae-lens.
        sae_id: which dictionary of the release.
        sae_layer: the block whose output it reads, if its metadata do not say.
        tokenizer: where the tokenizer lies, if not beside the original.
        template: plain, chat, auto, llama2, llama3 or phi; by default what the models' manifests say, else plain.
        device: where models run.
        dtype: float32, bfloat16 or float16.
        more: other options of rows: limit, max_length, system, prompt, answer, end, bos, control_tokens, convention.

    Raises:
        FileNotFoundError: no such file.
        TypeError: an argument of another name.
        ValueError: rows or models that cannot be used, or that do not belong together.

    >>> probe.save_model(s.original, "my-model", tokenizer=s.tokenizer)
    >>> probe.write_rows("forget.jsonl", s.split.forget_rows)
    >>> probe.write_rows("retain.jsonl", s.split.retain_rows)
    >>> study = probe.open("my-model", forget="forget.jsonl", retain="retain.jsonl")
    >>> len(study.split.forget), len(study.split.retain)
    (20, 20)
    """
    known = [field.name for field in fields(Rows)]
    for name in more:
        if name not in known:
            near = get_close_matches(name, [*signature(open).parameters, *known], n=1, cutoff=0)[0]
            raise TypeError(f"probe.open has no argument {name!r}; did you mean {near!r}?")
    rows = Rows(forget=Path(forget), retain=Path(retain), template=template, **more)  # type: ignore[arg-type]
    models = {
        "original": original,
        **({} if retrained is None else {"retrained": retrained}),
        **named_by_folder(unlearned),
    }
    compute = Compute(device=device, dtype=dtype)  # type: ignore[arg-type]
    return load_study(
        models, rows, compute, DictionaryOptions(sae=sae, sae_id=sae_id, sae_layer=sae_layer), tokenizer=tokenizer
    )


def named_by_folder(models: str | Path | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Unlearned models by the names of their folders.

    Raises:
        ValueError: two folders of one name, or a name that a role of the study has.
    """
    if isinstance(models, (str, Path)):
        models = [str(models)]
    if not isinstance(models, Mapping):
        # A folder that is called like a role of the study is the unlearned model all the same.
        names = [Path(name).name for name in models]
        names = ["unlearned" if name in _ROLES else name for name in names]
        if len(set(names)) < len(names):
            raise ValueError(f"two unlearned models share a folder name ({', '.join(names)}); rename one")
        models = dict(zip(names, models, strict=True))
    taken = [name for name in models if name in _ROLES]
    if taken:
        raise ValueError(f"an unlearned model is called {taken[0]!r}, as a role of the study is; rename it")
    return dict(models)


def with_models(
    study: Study, models: Mapping[str, str], compute: Compute = Compute(), *, distinct: bool = True
) -> Study:
    """The study with more unlearned models, loaded and checked.

    Raises:
        ValueError: models that do not belong to it.
    """
    dtype = getattr(torch, compute.dtype)
    for name in models.values():
        if has_tokenizer(name):
            check_tokenizer(study.tokenizer, load_tokenizer(name))
    loaded = {name: load_model(path, dtype=dtype, device=compute.device) for name, path in models.items()}
    more = replace(study, unlearned={**study.unlearned, **loaded})
    more.check(distinct=distinct)
    return more


def with_dictionary(study: Study, sae: Any, site: Site | None) -> Study:
    """The study with a dictionary, which is seen to belong to the original there (``probe.interventions.attach``).

    Raises:
        ValueError: a dictionary that does not fit, with the numbers.
    """
    retain = study.split.retain
    found = attach(study.original, sae, retain.select(range(min(_TRIED, len(retain)))), site)
    fvu = {one.layer: value for one, value in found.fvu_by_site.items()}
    return replace(study, sae=found.dictionary, sae_site=found.site, sae_fvu=fvu)


def _trial(rows: Rows) -> tuple[str, ...]:
    if rows.limit is None:
        return ()
    return (f"a trial run: only the first {rows.limit} rows of each side (--limit); no result to report",)
