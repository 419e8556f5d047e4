"""From a study to a run folder: what is finished is kept as it comes, then figures, tables and the page."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from probe.checkpoints import weights_hash
from probe.hooks import our_hooks
from probe.modes import threads
from probe.report import conditions
from probe.report.condition import Condition, check_unlearned_names
from probe.report.doses import dose_rows, prepare_doses
from probe.report.measure import (
    DIAGNOSED,
    Sample,
    diagnosed,
    draw_sample,
)
from probe.report.settings import Settings
from probe.report.single_layers import by_layer, reference_fragility, single_layer_rows
from probe.report.suppression import suppression_rows
from probe.rows import Row, append, load, read_manifest
from probe.runs.folder import Run, results
from probe.runs.manifest import write_manifest
from probe.runs.memory import shown_size, training_memory, untold, weight_bytes
from probe.study.study import Study

# Below this many parameters one thread is the better default (see Settings.threads).
_SMALL = 10_000_000
ROWS = "rows.jsonl"


def run_report(
    make_study: Callable[[], Study], settings: Settings, out: Path, *, tell: Callable[[str], None] = untold
) -> Path:
    """Run every intervention with its diagnostics and write the run folder.

    A report that was stopped is continued by the same call: at most the diagnostic under way, and the training before
    it, are repeated. The rows are the same.

    Args:
        make_study: called after the folder proved writable, since loading models takes a while.
        settings: strengths, seeds and sizes; recorded in the manifest.
        out: folder of the run; it must not exist, or be empty.
        tell: takes a line that may be shown before the work: how much memory it needs.

    Returns:
        the path of ``index.html``.

    Raises:
        ValueError: a folder that is in use, cannot be written or holds an unfinished report of something else, models
            that do not belong together, or settings that do not fit them.
        RuntimeError: the original model was changed by the run (a defect of ours, never the user's).
    """
    with results(out, settings, resumes=True) as run:
        study = make_study()
        study.check()
        check_unlearned_names(study)
        conditions.check_layers(study, settings)
        before = weights_hash(study.original)
        with threads(_threads_for(study) if settings.threads is None else settings.threads):
            run.about(**_described(study))
            tell(_needs(study))
            _measure(study, settings, run)
            _check_untouched(study, before)
            run.complete()
        redraw(run.folder)
    return out / "index.html"


def redraw(out: Path, venue: str = "neurips") -> Path:
    """Draw figures, tables and page from what a run left on disk; no model is loaded.

    Raises:
        FileNotFoundError: the folder holds no rows or no manifest.
        ValueError: one of them is damaged.
    """
    rows: Sequence[Row] = load(out / ROWS)
    read_manifest(out)
    from probe.figures.folder import draw_folder
    from probe.report.page import write_page

    return write_page(out, rows, draw_folder(out, venue=venue))


class _Steps:
    """What is measured, one after another: rows are kept and written as they come, and the bar moves."""

    def __init__(self, run: Run, bar: Any) -> None:
        self.run, self.bar = run, bar
        # What was kept counts: the file of rows may lack the last ones, or end in half a line.
        (run.folder / ROWS).unlink(missing_ok=True)
        append(run.folder / ROWS, (Row(**row) for rows in run.done.values() for row in rows))

    def left(self, keys: Iterable[str]) -> bool:
        """Whether any of them is still to be measured."""
        return any(key not in self.run.done for key in keys)

    def take(self, key: str, measure: Callable[[], Iterable[Row]]) -> list[Row]:
        """The rows of one step, measured here or before."""
        self.bar.set_postfix_str(key)
        fresh = key not in self.run.done
        rows = [Row(**row) for row in self.run.kept(key, lambda: [asdict(row) for row in measure()])]
        if fresh:
            append(self.run.folder / ROWS, rows)
        self.bar.update()
        return rows

    def diagnose(self, study: Study, sample: Sample, condition: Condition, settings: Settings) -> None:
        """Every diagnostic of one condition; its model is made only if one is left."""
        keys = [f"{condition.name}, {diagnostic}" for diagnostic in DIAGNOSED]
        if self.left(keys):
            with condition.applied() as model:
                found = diagnosed(study, sample, condition, model, settings.measuring)
                for key, (_, rows) in zip(keys, found, strict=True):
                    self.take(key, lambda rows=rows: rows)  # type: ignore[misc]
        else:
            self.bar.update(len(keys))
        self.run.manifest.setdefault("conditions", []).append(
            {"name": condition.name, "kind": condition.kind, "what": condition.what}
        )
        write_manifest(self.run.folder, self.run.manifest)


def _measure(study: Study, settings: Settings, run: Run) -> None:
    """Every condition with its diagnostics, and the rows that belong to none of them."""
    sample, measuring = draw_sample(study, settings.measuring, settings.training.seed), settings.measuring
    with tqdm(total=_count(study, settings), desc="report", unit="step") as bar:
        steps = _Steps(run, bar)
        for condition in conditions.references(study):
            steps.diagnose(study, sample, condition, settings)
        steps.take("single layers of references", lambda: reference_fragility(study, sample, measuring))
        for condition in conditions.unlearned(replace(study, split=sample.training), settings):
            _one_unlearned(study, sample, condition, settings, steps)
        doses = prepare_doses(study, sample, settings)
        for condition in conditions.activation_edits(study, doses, settings):
            steps.diagnose(study, sample, condition, settings)
        steps.take("doses", lambda: dose_rows(study, sample, doses, settings))
        steps.take("SAE features", lambda: suppression_rows(study, sample, settings))


def _one_unlearned(study: Study, sample: Sample, condition: Condition, settings: Settings, steps: _Steps) -> None:
    measuring = settings.measuring
    steps.diagnose(study, sample, condition, settings)
    key = f"single layers of {condition.name}"
    score_L, changed = by_layer(steps.take(key, lambda: single_layer_rows(study, sample, condition, measuring)))
    if study.unlearned or condition.name in settings.editing.cru_from:
        for lent in conditions.patched(study, condition, score_L, changed, measuring.layers_replaced):
            steps.diagnose(study, sample, lent, settings)


def _needs(study: Study) -> str:
    """How much memory; the bar tells the time as soon as there is something to go by."""
    if study.unlearned:
        n, size = 1 + (study.retrained is not None) + len(study.unlearned), weight_bytes(study.original)
        return f"memory: {shown_size(n * size)} for the weights of {n} models; activations come on top"
    return training_memory(study.original, others=1 + (study.retrained is not None))


def _count(study: Study, settings: Settings) -> int:
    methods = len(study.unlearned) or len(conditions.TRAINED)
    lent = len(study.unlearned) or len(set(settings.editing.cru_from) & set(conditions.TRAINED))
    edits = 2 + (study.sae is not None and study.sae_site is not None)
    diagnosed_in_full = 1 + (study.retrained is not None) + methods + lent + edits
    return diagnosed_in_full * len(DIAGNOSED) + methods + 3


def _threads_for(study: Study) -> int:
    small = sum(p.numel() for p in study.original.parameters()) < _SMALL
    return 1 if small else torch.get_num_threads()


def _described(study: Study) -> dict[str, Any]:
    config = study.original.config.get_text_config()  # type: ignore[union-attr,operator]
    return {
        **study.described(),
        "model": {
            "architecture": type(study.original).__name__,
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
            "parameters": sum(p.numel() for p in study.original.parameters()),
        },
    }


def _check_untouched(study: Study, before: str) -> None:
    if weights_hash(study.original) != before:
        raise RuntimeError("the original model's weights changed during the report; please report this as a defect")
    left = our_hooks(study.original)
    if left:
        raise RuntimeError(f"a hook was left behind at {', '.join(left)}; please report this as a defect")
