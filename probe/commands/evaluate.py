"""`probe evaluate`: a model's numbers on TOFU or on rows of your own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probe.commands.command import Measurement, OneModel, testbed_hash
from probe.options import Generated, Retrained, Tokenizer
from probe.ranges import check_ranges

if TYPE_CHECKING:
    from probe.evaluation.ask import Evaluation
    from probe.evaluation.data import RowSets
    from probe.open_unlearning.log import EvaluationLog
    from probe.runs.folder import Run
    from probe.study.templates import Chosen


@dataclass(frozen=True, kw_only=True)
class Evaluate(OneModel, Retrained, Tokenizer, Generated, Measurement):
    """Measure a model on TOFU or on rows of your own; print the table and save it with every sample.

    Writes rows.jsonl, evaluation.json (OpenUnlearning's log format), table.txt, table.tex and manifest.json. Forget
    quality and privleak need --retrained, the model that never saw the forget rows, or its log. An evaluation that was
    stopped goes on when the same command is given again.

    Without data MODEL is an unlearned testbed: its rows are asked, its retrained model is compared with.

    Example: probe evaluate by-npo --tofu locuslab/TOFU --split forget10 --retrained retain90
    """

    tofu: str | None = None
    """Folder with TOFU's files, or owner/name on the hub (locuslab/TOFU)."""
    split: str = "forget10"
    """Which of TOFU's splits was to be forgotten: forget01, forget05 or forget10."""
    holdout: Path | None = None
    """Rows that no model was trained on, for membership attacks; TOFU's holdout01/05/10 is used where it is there."""
    gradnorm: bool = False
    """Whether the GradNorm attack is run on rows held out, too: a backward pass a row."""
    mcq: Path | None = None
    """Multiple-choice questions in the layout of WMDP and MMLU (question, choices, answer)."""
    mcq_form: Literal["letter", "text-sum", "text-mean"] = "letter"
    """What is compared: the letters A, B, ... behind the listed choices, as lm-evaluation-harness does, or the choices'
    own texts, summed or per token."""
    generate: bool = True
    """Whether ROUGE is measured; most of the time goes to it, and there is no model utility without it."""

    def check(self) -> None:
        """Refuse half a description before anything is loaded.

        Raises:
            ValueError: no data or data of two kinds, half of a pair, or numbers outside of their range.
        """
        if self.tofu is not None and (self.forget is not None or self.retain is not None):
            raise ValueError("--tofu and --forget/--retain are given; choose one: TOFU has its own retain rows")
        if self.tofu is None and (self.forget is None) != (self.retain is None):
            absent = "retain" if self.retain is None else "forget"
            raise ValueError(f"--{absent} missing: rows of your own need --forget and --retain")
        if (self.retrained or self.holdout) and self.tofu is None and self.forget is None and self.mcq is not None:
            raise ValueError("--retrained and --holdout compare forget rows; pass --tofu, or --forget and --retain")
        if self.gradnorm and self.holdout is None and self.tofu is None:
            raise ValueError("--gradnorm compares forget rows with rows held out; pass --holdout")
        if self.tofu is None and self.split != Evaluate.split:
            raise ValueError("--split is one of TOFU's; pass --tofu, or leave it out")
        if self.mcq is None and self.mcq_form != Evaluate.mcq_form:
            raise ValueError("--mcq-form says how the questions of --mcq are asked; pass --mcq, or leave it out")
        check_ranges(self)

    @property
    def on_testbed(self) -> bool:
        """Whether no data is named, so that the testbed's rows are asked and its retrained model compared with."""
        return self.tofu is None and self.forget is None and self.mcq is None

    def folder(self, name: str = "") -> Path:
        """Where results go."""
        data = "choices" if self.mcq is not None else "testbed"
        data = self.split if self.tofu is not None else "rows" if self.forget is not None else data
        return super().folder(f"evaluation/{self.model.rstrip('/').split('/')[-1]}-{data}")

    def determines(self) -> Mapping[str, Any]:
        """The rows' hashes: TOFU's folder holds more files than are asked about, and may be one of the hub's."""
        self.check()
        if self.on_testbed:
            return testbed_hash()
        described = {} if self.tofu is None else self._rows().described()
        return {f"{name} rows": one["sha256"] for name, one in described.items() if "sha256" in one}

    def run(self) -> str:
        """Evaluate; an evaluation that was stopped is continued by the same call, which gives the same numbers."""
        from probe.runs.folder import free
        from probe.testbed.bed import WEIGHTS

        self.check()
        free(self.folder())
        if self.on_testbed:
            self.check_no_template()
            retrained = self.retrained or str(WEIGHTS / "retrained")
            tokenizer = self.tokenizer or str(WEIGHTS / "tokenizer")
            try:
                return replace(self, retrained=retrained, tokenizer=tokenizer)._evaluate()
            except ValueError as error:
                error.add_note("without --tofu, --forget and --retain, or --mcq, MODEL is an unlearned testbed")
                raise
        return self._evaluate()

    def _evaluate(self) -> str:
        from probe.checkpoints import check_tokenizer, load_tokenizer
        from probe.runs.folder import content_of, results
        from probe.study.loading import has_tokenizer
        from probe.study.templates import check_log, chosen

        # A mistake in a file should not cost the loading of a model.
        rows = self._rows()
        theirs = self._retrained_log(rows)
        tokenizer = load_tokenizer(self.tokenizer or self.model)
        if self.tokenizer is not None and has_tokenizer(self.model):
            check_tokenizer(tokenizer, load_tokenizer(self.model))
        template = chosen(self, tokenizer, [self.model, self.retrained])
        if theirs is not None:
            check_log(Path(str(self.retrained)), template, tokenizer)
        with results(self.folder(), self, resumes=True) as run:
            from probe.evaluation.table import latex_table
            from probe.open_unlearning.log import write_log

            models = {"model": self.model, **({"retrained": self.retrained} if self.retrained else {})}
            run.about(
                model=self.model,
                template=template.described(),
                data={"name": rows.name, **rows.described()},
                files=self._files(),
                contents={name: content_of(one) for name, one in models.items() if not one.endswith(".json")},
            )
            result = self._evaluated(rows, theirs, run, tokenizer, template)
            run.manifest.update(notes=result.notes)
            write_log(run.folder / "evaluation.json", result.log)
            table = self.write(run, (), result.rows, result.table)
            (run.folder / "table.tex").write_text(latex_table(result.rows), encoding="utf-8")
        return f"{table}\n{self.folder()}"

    def _rows(self) -> "RowSets":
        from probe.evaluation.data import read_sets

        return read_sets(
            tofu=self.tofu, split=self.split, forget=self.forget, retain=self.retain, holdout=self.holdout,
            mcq=self.mcq, limit=self.limit,
        )  # fmt: skip

    def _evaluated(
        self, rows: "RowSets", theirs: "EvaluationLog | None", run: "Run", tokenizer: Any, template: "Chosen"
    ) -> "Evaluation":
        import torch

        from probe.checkpoints import (
            check_device,
            check_tokenizer,
            check_usable,
            load_model,
            load_tokenizer,
            weights_hash,
        )
        from probe.evaluation.ask import EvaluationSettings, evaluate, reference_log
        from probe.metrics.generation import penalties
        from probe.modes import threads
        from probe.runs.folder import within
        from probe.study.loading import has_tokenizer

        check_device(self.device)
        how: dict[str, Any] = {"dtype": getattr(torch, self.dtype), "device": self.device}
        weights = run.manifest.setdefault("weights", {})
        form: Any = self.mcq_form.replace("-", " ")
        asking = EvaluationSettings(
            template.template, self.rows_per_pass, self.max_length, self.longest_generation, self.generate,
            choices=form, gradnorm=self.gradnorm,
        )  # fmt: skip
        with threads(self.threads or torch.get_num_threads()):
            if self.retrained is not None and theirs is None:
                other = load_model(self.retrained, **how)
                if has_tokenizer(self.retrained):
                    check_tokenizer(tokenizer, load_tokenizer(self.retrained))
                check_usable(other, tokenizer)
                weights["retrained"] = weights_hash(other)
                keep = within(run.kept, "retrained")
                theirs = reference_log(other, tokenizer, rows, asking, progress=True, keep=keep)
                # Two models at once may not fit.
                del other
            ours = load_model(self.model, **how)
            check_usable(ours, tokenizer)
            weights["model"] = weights_hash(ours)
            if weights.get("retrained") == weights["model"]:
                raise ValueError(self._same_model())
            name, keep = self.model.rstrip("/").split("/")[-1], within(run.kept, "model")
            found = evaluate(ours, tokenizer, rows, asking, name=name, retrained=theirs, progress=True, keep=keep)
        return replace(found, notes=tuple(self._notes(found, penalties(ours), template)))

    def _retrained_log(self, rows: "RowSets") -> "EvaluationLog | None":
        """The retrained model's log where a log was named, cut to the rows that are asked about."""
        from probe.open_unlearning.log import read_log
        from probe.open_unlearning.recomputed import truth_ratios

        if self.retrained is None:
            return None
        path, ours = Path(self.retrained), Path(self.model)
        if path.exists() and (path.resolve() == ours.resolve() or _weights_of(path) == _weights_of(ours)):
            raise ValueError(self._same_model())
        if path.suffix != ".json":
            return None
        log = read_log(path)
        n, whole = len(truth_ratios(log)), rows.whole["forget"]
        if n != whole:
            raise ValueError(
                f"{path} holds {n} truth ratios and {rows.name} has {whole} forget rows; they belong to different "
                "splits, and forget quality compares equal sizes only: take the log of the same split"
            )
        return log if self.limit is None else _cut(log, len(rows.sets["forget"]))

    def _notes(self, result: "Evaluation", unapplied: Mapping[str, Any], template: "Chosen") -> list[str]:
        from probe.metrics.generation import greedy_note

        notes = []
        if self.limit is not None:
            notes.append(f"a trial run: only the first {self.limit} rows of each set (--limit); no result to report")
        notes.append(template.note)
        exact = result.log.results.get("exact_memorization", {}).get("value_by_index", {})
        short = sum(sample["score"] is None for sample in exact.values())
        if short:
            notes.append(f"{short} forget answers have no token besides eos; exact memorisation is over the others")
        notes.append("probabilities and truth ratios as OpenUnlearning computes them, with 1e-10 in denominators")
        if not self.generate:
            return [*notes, "nothing was generated (--no-generate), so there is no ROUGE and no model utility"]
        if unapplied:
            settings = ", ".join(f"{name}={value}"[:60] for name, value in unapplied.items())
            notes.append(
                f"texts are greedy; the model's generation_config asks for {settings}, which is not applied here"
            )
        return [*notes, *greedy_note(self.dtype)]

    def _files(self) -> dict[str, str]:
        from probe.checkpoints import file_hash

        named = {name: getattr(self, name) for name in ("forget", "retain", "holdout", "mcq", "retrained")}
        return {name: file_hash(path) for name, path in named.items() if path is not None and Path(path).is_file()}

    def _same_model(self) -> str:
        return (
            f"the model {self.model} and the retrained model {self.retrained} are identical; forget quality would be "
            "perfect by itself. Check that the paths differ and that the model was saved after unlearning"
        )


def _weights_of(folder: Path) -> str:
    """The hash of the files of weights; the path where there are none."""
    from probe.sweep.inputs import content_hash

    files = ("*.safetensors",)
    return content_hash(folder.resolve(), files) if folder.is_dir() and any(folder.glob(files[0])) else str(folder)


def _cut(log: "EvaluationLog", n: int) -> "EvaluationLog":
    """The log's first samples of the forget set; attacks are left out, for they compare sets of rows."""
    results = {
        name: {**result, "value_by_index": {k: v for k, v in result["value_by_index"].items() if int(float(k)) < n}}
        for name, result in log.results.items()
        if name.startswith("forget") and result.get("value_by_index")
    }
    return replace(log, results=results)
