"""`probe sae audit`: what an edit of weights did to features that were to fall silent."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from probe.commands.command import Measurement, sae_notes, written_json
from probe.options import DictionaryOptions, Original, Retrained, Seeded, TrainingOptions, Unlearned
from probe.ranges import Place

if TYPE_CHECKING:
    from probe.data import QA
    from probe.study.study import Study

# CRISP's numbers (arXiv 2508.13650), with which the testbed's features are chosen.
_FEATURES, _RATIO = 30, 3.0


@dataclass(frozen=True, kw_only=True)
class SaeAudit(Original, Unlearned, Retrained, DictionaryOptions, TrainingOptions, Seeded, Measurement):
    """Say what an edit of weights did to features that were to fall silent: silent, rerouted, or only unseen.

    Without models and rows the testbed's weights are orthogonalised against 30 features and looked at. With --steps and
    --lr also what comes back by relearning on a fifth of the forget rows. Retain rows should be ones that the edit was
    not trained on. Writes rows.jsonl, table.txt, features.json and manifest.json.

    Example: probe sae audit --steps 20 --lr 5e-4
    """

    features: tuple[Place, ...] = ()
    """Ids of the features that were to fall silent."""

    def needed(self) -> dict[str, str | None]:
        """Both models and the dictionary."""
        return {"--original": self.original, "--sae": self.sae, "--unlearned": self.one_unlearned}

    def check(self) -> None:
        """Refuse no features for an own model, or steps without a learning rate."""
        super().check()
        self.check_dictionary()
        if (self.original is None) != (not self.features):
            raise ValueError(
                "--features names the features of --sae that --unlearned was to lose; give both, or neither"
            )
        if (self.steps is None) != (self.lr is None):
            raise ValueError(f"--steps and --lr belong together, got {self.steps} and {self.lr}")

    def run(self) -> str:
        """The audit; no hook is open while the edited model is asked."""
        with self.writing("sae-audit") as (run, loaded):
            from probe.attacks.curves import Training
            from probe.attacks.facts import divided
            from probe.sae.audit import audit

            study, features = (loaded, self.features) if self.original is not None else _orthogonalised(loaded)
            name, edited = next(iter(study.unlearned.items()))
            split, size = study.split, self.rows_per_pass
            facts = divided(
                study.tokenizer, split.forget_rows, share=0.2, by=_divided_by(split.forget_rows), seed=self.seed,
                template=split.template,
                batch_size=size, max_length=split.max_length,
            )  # fmt: skip
            training = None
            if self.steps is not None and self.lr is not None:
                training = Training(self.steps, self.lr, min(size, len(facts.shown)))
            found = audit(
                study.original, edited, study.sae, study.dictionary_site, features, facts, split.retain_rows, name=name,
                retrained=study.retrained, training=training, batch_size=size,
            )  # fmt: skip
            run.manifest.update(study.described())
            written_json(run.folder / "features.json", {name: list(features)})
            table = self.write(run, sae_notes(study), found.rows(), "\n".join(found.findings))
        return f"{table}\n{self.folder('sae-audit')}"


def _divided_by(rows: "Sequence[QA]") -> Literal["row", "group"]:
    """By groups where a fifth of each group's rows would be none."""
    return "row" if max(Counter(row.group for row in rows).values()) > 2 else "group"


def _orthogonalised(study: "Study") -> "tuple[Study, tuple[int, ...]]":
    from probe.methods.orthogonalised import orthogonalised

    edited = copy.deepcopy(study.original)
    found = orthogonalised(
        edited, study.split, sae=study.sae, site=study.dictionary_site, special_ids=study.special_ids,
        features=_FEATURES, ratio=_RATIO,
    )  # fmt: skip
    return replace(study, unlearned={"orthogonalised": edited}), found.features
