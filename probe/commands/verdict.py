"""`probe verdict`: removed, hidden, broken or untouched."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probe.commands.command import Measurement, OneModel
from probe.options import Original, Retrained, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Verdict(OneModel, Original, Retrained, Tokenizer, Measurement):
    """Say whether a model forgot, hides the facts, is broken, or was left alone; and how often that is wrong.

    Prints the verdict with calibrated probabilities, its error rate on kinds of models that were left out when it was
    fitted, the evidence by diagnostic and layer, and what lies outside of that experience. Forget rows need
    perturbed_answer, a list of wrong answers. Without --retain a broken model is harder to tell from one that forgot.
    Without --original and rows MODEL is an unlearned testbed. Writes verdict.json, table.txt, rows.jsonl and
    manifest.json; a verdict that was stopped goes on when the same command is given again.

    Example: probe verdict by-npo --original my-model --forget forget.jsonl --retain retain.jsonl
    """

    fitted: Path | None = None
    """Another fit than the one that ships with the package (fitted.json of a zoo)."""

    def check(self) -> None:
        """Refuse a model without its original, or an original without forget rows."""
        if self.retain is not None or self.forget is None:
            super().check()
        elif self.original is None:
            raise ValueError("--original missing: a verdict compares with the model before unlearning")

    def folder(self, name: str = "") -> Path:
        """Where results go."""
        return super().folder(f"verdict/{self.model.rstrip('/').split('/')[-1]}")

    def run(self) -> str:
        """Examine original, model and retrained model alike."""
        import torch

        from probe.checkpoints import check_device
        from probe.datasets import read_rows
        from probe.modes import threads
        from probe.runs.folder import content_of, free, results
        from probe.verdict.judge import FITTED, load_judge
        from probe.verdict.rows import check_verdict_rows
        from probe.verdict.verdict import verdict

        self.check()
        free(self.folder())
        check_device(self.device)
        judge = load_judge(self.fitted or FITTED)
        if self.forget is not None:
            # Before any model: what no verdict can be made of should not cost the loading of three.
            check_verdict_rows(read_rows(self.forget), read_rows(self.retain) if self.retain else [])
        with results(self.folder(), self, resumes=True) as run, threads(self.threads or torch.get_num_threads()):
            names = {"model": self.model, "original": self.original, "retrained": self.retrained}
            study = self.study(distinct=False, model=self.model)
            run.about(
                contents={role: content_of(name) for role, name in names.items() if name is not None},
                **study.described(),
            )
            found = verdict(study.unlearned["model"], study, judge=judge, keep=run.kept, progress=True)
            content = json.dumps(asdict(found), indent=1, default=dict) + "\n"
            (run.folder / "verdict.json").write_text(content, encoding="utf-8")
            name = self.model.rstrip("/").split("/")[-1]
            notes = [f"note: {note}" for note in study.notes]
            weights = run.manifest["weights"]
            if weights["model"] == weights["original"]:
                notes.insert(0, "note: the model has the very weights of the original; nothing was unlearned")
            text = self.write(run, (), found.rows(name), "\n".join([*notes, found.text()]))
        return f"{text}\n{self.folder()}"

    def numbers(self) -> dict[str, Any]:
        """The verdict, each probability, its error rate, and every diagnostic's value."""
        self.run()
        return read_numbers(self.folder())

    @classmethod
    def small(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As it is: a verdict needs its rows."""
        return {}


def read_numbers(folder: Path) -> dict[str, Any]:
    """The numbers of a verdict's folder by flat names."""
    found = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    numbers = {"verdict": found["verdict"], "error_rate": found["error"]}
    numbers |= {f"p_{name.replace(' ', '_')}": p for name, p in found["probabilities"].items()}
    return numbers | {one["name"].replace(" ", "_"): one["value"] for one in found["evidence"]}
