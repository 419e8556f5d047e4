"""From a study to a run folder: what is finished is kept as it comes, then figures, tables and the page."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from probe.checkpoints import weights_hash
from probe.hooks import our_hooks
from probe.methods.catalogue import method_named
from probe.modes import threads
from probe.ranges import check_ranges
from probe.report import conditions
from probe.report.conditions import Condition, Methods
from probe.report.doses import activation_edits, dose_rows, prepare_doses
from probe.report.measure import DIAGNOSED, Sample, diagnosed, draw_sample
from probe.report.settings import TESTBED_METHODS, Settings
from probe.report.single_layers import by_layer, reference_fragility, single_layer_rows
from probe.report.suppression import suppression_rows
from probe.rows import Row, append, load, read_manifest
from probe.runs.folder import Run, results
from probe.runs.manifest import write_manifest
from probe.runs.memory import shown_size, training_memory, untold, weight_bytes
from probe.study.study import Study

# Below this many parameters one thread is the better default (see probe.options.Passes).
_SMALL = 10_000_000
ROWS = "rows.jsonl"
_BORROWED = (
    "methods ran with settings found on the testbed, which suit no other model: give methods with settings of your "
    "own, or unlearned models"
)


def report(
    study: Study,
    folder: str | Path,
    methods: Methods | None = None,
    *,
    tell: Callable[[str], None] = untold,
    **settings: Any,
) -> Path:
    """Interventions one after another, each with its diagnostics: rows, figures, tables and one page to read.

    Args:
        study: models and rows; its unlearned models are looked at.
        folder: of the results; it must not exist, or be empty. A report that was stopped is continued by the same call.
        methods: what is unlearned besides, as {method of the catalogue: its settings}; "setting" among them starts from
            a published one. By default nothing where the study has unlearned models, else
            ``probe.report.settings.TESTBED_METHODS``, whose numbers suit no other model than the testbed.
        tell: takes a line that may be shown before the work: how much memory it needs.
        settings: sizes, doses and seed; see ``probe.report.settings.Settings``.

    Returns:
        the path of ``index.html``.

    Raises:
        ValueError: methods or settings that are unknown or do not fit the study, a folder that is in use, cannot be
            written or holds an unfinished report of something else, or models that do not belong together.

    >>> settings = {"beta": 0.1, "retain_weight": 10, "lr": 3e-4, "steps": 30, "batch_size": 16}
    >>> print(probe.report(study, "results/npo", {"npo": settings}, sample=20, seed=1))  # doctest: +SKIP
    results/npo/index.html
    """
    return run_report(lambda: study, Settings(**settings), Path(folder), methods, tell=tell)


def run_report(
    make_study: Callable[[], Study],
    settings: Settings,
    out: Path,
    methods: Methods | None = None,
    *,
    tell: Callable[[str], None] = untold,
) -> Path:
    """The same where models are loaded by ``make_study``, after the folder proved writable.

    At most the diagnostic under way, and the training before it, are repeated after a kill. The rows are the same.

    Raises:
        ValueError: as ``report``.
        RuntimeError: the original model was changed by the run (a defect of ours, never the user's).
    """
    check_ranges(settings)
    for name in settings.cru_from:
        method_named(name)
    table = None if methods is None else conditions.resolved_methods(methods, settings.seed)
    with results(out, settings, resumes=True) as run:
        study = make_study()
        if table is None:
            table = {} if study.unlearned else conditions.resolved_methods(TESTBED_METHODS, settings.seed)
            study = replace(study, notes=(*study.notes, _BORROWED)) if table else study
        study.check()
        conditions.check_fits(study, table, settings)
        before = weights_hash(study.original)
        with threads(_threads_for(study) if settings.threads is None else settings.threads):
            run.about(**_described(study), methods=table)
            for line in (*study.notes, _needs(study, table)):
                tell(line)
            _measure(study, table, settings, run)
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
    rows = load(out / ROWS)
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
                found = diagnosed(study, sample, condition, model, settings)
                for key, (_, rows) in zip(keys, found, strict=True):
                    self.take(key, lambda rows=rows: rows)  # type: ignore[misc]
        else:
            self.bar.update(len(keys))
        self.run.manifest.setdefault("conditions", []).append(
            {"name": condition.name, "kind": condition.kind, "what": condition.what}
        )
        write_manifest(self.run.folder, self.run.manifest)


def _measure(study: Study, methods: Methods, settings: Settings, run: Run) -> None:
    """Every condition with its diagnostics, and the rows that belong to none of them."""
    sample = draw_sample(study, settings)
    with tqdm(total=_count(study, methods, settings), desc="report", unit="step") as bar:
        steps = _Steps(run, bar)
        for condition in conditions.references(study):
            steps.diagnose(study, sample, condition, settings)
        steps.take("single layers of references", lambda: reference_fragility(study, sample, settings))
        for condition in conditions.unlearned(replace(study, split=sample.training), methods):
            steps.diagnose(study, sample, condition, settings)
            if condition.kind == "training":
                _layer_by_layer(study, sample, condition, settings, steps)
        doses = prepare_doses(study, sample, settings)
        for condition in activation_edits(study, doses, settings):
            steps.diagnose(study, sample, condition, settings)
        steps.take("doses", lambda: dose_rows(study, sample, doses, settings))
        steps.take("SAE features", lambda: suppression_rows(study, sample, settings))


def _layer_by_layer(study: Study, sample: Sample, condition: Condition, settings: Settings, steps: _Steps) -> None:
    """Single layers of an unlearned model in the original, and CRU where it takes layers from this one."""
    key = f"single layers of {condition.name}"
    score_L, changed = by_layer(steps.take(key, lambda: single_layer_rows(study, sample, condition, settings)))
    if condition.name in {*study.unlearned, *map(conditions.shown_name, settings.cru_from)}:
        for one in conditions.patched(study, condition, score_L, changed, settings.cru_layers):
            steps.diagnose(study, sample, one, settings)


def _needs(study: Study, methods: Methods) -> str:
    """How much memory; the bar tells the time as soon as there is something to go by."""
    others = (study.retrained is not None) + len(study.unlearned)
    if methods:
        # The model that is trained, and the copy that methods compare with.
        return training_memory(study.original, others=2 + others)
    size = weight_bytes(study.original)
    return f"memory: {shown_size((1 + others) * size)} for the weights of {1 + others} models; activations come on top"


def _count(study: Study, methods: Methods, settings: Settings) -> int:
    trained = [name for name in methods if method_named(name).makes == "model"]
    looked_into = len(study.unlearned) + len(trained)
    patched = len(study.unlearned) + len({*settings.cru_from} & {*trained})
    references, clamped = 1 + (study.retrained is not None), study.sae is not None and study.sae_site is not None
    edits = 2 + clamped + len(methods) - len(trained)
    return (references + looked_into + patched + edits) * len(DIAGNOSED) + looked_into + 3


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
    if left := our_hooks(study.original):
        raise RuntimeError(f"a hook was left behind at {', '.join(left)}; please report this as a defect")
