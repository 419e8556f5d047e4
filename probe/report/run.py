"""From a study to a run folder: manifest first, rows as they come, then figures, tables and the page."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from probe.checkpoints import weights_hash
from probe.commands.manifest import open_run, write_manifest
from probe.datasets import rows_hash
from probe.hooks import our_hooks
from probe.modes import threads
from probe.report import conditions
from probe.report.doses import dose_rows, prepare
from probe.report.measure import Sample, diagnosed, draw_sample, reference_fragility, single_layers
from probe.report.settings import Settings
from probe.report.study import Condition, Study
from probe.report.suppression import suppression_rows
from probe.rows import Row, append, load

# Below this many parameters one thread is the better default (see Settings.threads).
_SMALL = 10_000_000


def run_report(make_study: Callable[[], Study], settings: Settings, out: Path) -> Path:
    """Run every intervention with its diagnostics and write the run folder.

    Args:
        make_study: called after the folder proved writable, since loading models takes a while.
        settings: strengths, seeds and sizes; recorded in the manifest.
        out: folder of the run; an earlier run there is replaced.

    Returns:
        the path of ``index.html``.

    Raises:
        ValueError: an unwritable folder, models that do not belong together, or settings that do not fit them.
        RuntimeError: the original model was changed by the run (a defect of ours, never the user's).
    """
    started = time.monotonic()
    manifest = open_run(out, settings)
    rows_path = out / "rows.jsonl"
    rows_path.unlink(missing_ok=True)
    study = make_study()
    study.check()
    conditions.check_layers(study, settings)
    before = weights_hash(study.original)
    with threads(_threads_for(study) if settings.threads is None else settings.threads):
        _describe(manifest, study)
        write_manifest(out, manifest)
        made = _measure(study, settings, rows_path)
    _check_untouched(study, before)
    manifest["conditions"] = [{"name": c.name, "kind": c.kind, "what": c.what} for c in made]
    manifest["seconds"] = round(time.monotonic() - started, 1)
    manifest["status"] = "complete"
    write_manifest(out, manifest)
    return redraw(out)


def _measure(study: Study, settings: Settings, rows_path: Path) -> list[Condition]:
    """Every condition with its diagnostics, written as they come."""
    sample = draw_sample(study, settings.measuring, settings.training.seed)
    made: list[Condition] = []
    total = _count(study, settings)
    with tqdm(total=total, desc="report", unit="intervention") as bar:
        for condition in _conditions(study, sample, settings, rows_path):
            bar.set_description(condition.name)
            append(rows_path, diagnosed(study, sample, condition, settings.measuring))
            made.append(condition)
            bar.update()
    return made


def _threads_for(study: Study) -> int:
    small = sum(p.numel() for p in study.original.parameters()) < _SMALL
    return 1 if small else torch.get_num_threads()


def redraw(out: Path, venue: str = "neurips") -> Path:
    """Draw figures, tables and page from what a run left on disk; no model is loaded.

    Raises:
        FileNotFoundError: the folder holds no rows.
    """
    rows: Sequence[Row] = load(out / "rows.jsonl")
    if not (out / "manifest.json").is_file():
        raise FileNotFoundError(f"no manifest.json in {out}; the folder is not one that `probe report` wrote")
    from probe.figures.folder import draw_folder
    from probe.report.page import write_page

    return write_page(out, rows, draw_folder(out, venue=venue))


def _conditions(study: Study, sample: Sample, settings: Settings, rows_path: Path) -> Iterator[Condition]:
    """Each condition as it is made; rows that belong to none of them are written on the way."""
    yield from conditions.references(study)
    append(rows_path, reference_fragility(study, sample, settings.measuring))
    for condition in conditions.unlearned(study, settings):
        yield condition
        score_L, rows = single_layers(study, sample, condition, settings.measuring)
        append(rows_path, rows)
        if study.unlearned or condition.name in settings.editing.cru_from:
            yield from conditions.patched(study, condition, score_L, settings.measuring.layers_replaced)
    doses = prepare(study, sample, settings)
    yield from conditions.activation_edits(study, doses, settings)
    append(rows_path, dose_rows(study, sample, doses, settings))
    append(rows_path, suppression_rows(study, sample, settings))


def _count(study: Study, settings: Settings) -> int:
    trained = 2 * len(study.unlearned) or 5 + len(settings.editing.cru_from)
    return 1 + (study.retrained is not None) + trained + 2 + (study.sae is not None)


def _describe(manifest: dict[str, Any], study: Study) -> None:
    manifest["threads"] = torch.get_num_threads()
    manifest["data"] = {
        "forget": {"rows": len(study.split.forget_rows), "sha256": rows_hash(study.split.forget_rows)},
        "retain": {"rows": len(study.split.retain_rows), "sha256": rows_hash(study.split.retain_rows)},
        "world": {"rows": len(study.world), "sha256": rows_hash(study.world)},
    }
    models = {"original": study.original, "retrained": study.retrained, **study.unlearned}
    manifest["weights"] = {name: weights_hash(model) for name, model in models.items() if model is not None}
    config = study.original.config  # type: ignore[union-attr]
    manifest["model"] = {
        "architecture": type(study.original).__name__,
        "layers": config.get_text_config().num_hidden_layers,  # type: ignore[union-attr,operator]
        "width": config.get_text_config().hidden_size,  # type: ignore[union-attr,operator]
        "parameters": sum(p.numel() for p in study.original.parameters()),
    }


def _check_untouched(study: Study, before: str) -> None:
    if weights_hash(study.original) != before:
        raise RuntimeError("the original model's weights changed during the report; please report this as a defect")
    left = our_hooks(study.original)
    if left:
        raise RuntimeError(f"a hook was left behind at {', '.join(left)}; please report this as a defect")
