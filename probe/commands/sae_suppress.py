"""`probe sae suppress`: features, numbers and strengths, judged on people they were not chosen by."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from probe.commands.command import Measurement, sae_notes, written_json
from probe.options import DictionaryOptions, Original, Retrained, RuleOptions, Seeded
from probe.ranges import Count, Weight


@dataclass(frozen=True, kw_only=True)
class SaeSuppress(Original, DictionaryOptions, Retrained, RuleOptions, Seeded, Measurement):
    """Suppress features at many strengths; choose on half of the entities, judge on the other, beside controls.

    Without --original, --sae, --forget and --retain the testbed's. Writes rows.jsonl, chosen.json, table.txt, figures
    and manifest.json.

    Example: probe sae suppress --counts 10 50 --scales 3 10 --pushes 0.1 1
    """

    counts: tuple[Count, ...] = (10, 50)
    """Numbers of features."""
    scales: tuple[Weight, ...] = (3.0, 10.0)
    """Multiples c: an active feature f becomes -c f."""
    pushes: tuple[Weight, ...] = (0.1, 0.3, 1.0)
    """An active feature is set to minus so many median residual norms."""
    gate: Literal["none", "dsg", "dsg-tokens", "rate"] = "none"
    """When features are edited: always; where their share of firing in the whole prompt is above the 95 % quantile of
    retain rows, over padded columns (dsg, as its code has it) or tokens that count; or by the running share."""
    budget: Weight = 0.1
    """Largest mean rise of the retain loss (nats a token) that a choice may cost where it is made."""
    most: Count = 150
    """Retain rows that are looked at, at most, taken in turn from every entity; every edit is run on all of them."""
    control_edits: bool = True
    """Also random features, a random dictionary, the neuron basis, the difference of means and LEACE."""

    def needed(self) -> dict[str, str | None]:
        """The model and its dictionary."""
        return {"--original": self.original, "--sae": self.sae}

    def check(self) -> None:
        """Refuse half a description."""
        super().check()
        self.check_dictionary()

    def run(self) -> str:
        """Sweep, choose on half of the entities, judge on the other."""
        from probe.sae.named import read_rules

        rules = read_rules(self.rules)
        with self.writing("sae-suppress") as (run, study):
            from probe.attacks.score import AnswerScorer
            from probe.interventions.gates import Gated
            from probe.sae.candidates import CONTROLS, Strength, candidates
            from probe.sae.dose_response import dose_response
            from probe.sae.gates import GATES
            from probe.sae.halves import halves, limited_rows

            split, size, special = study.split, self.rows_per_pass, study.special_ids
            parts = halves(
                study.tokenizer, split.forget_rows, limited_rows(split.retain_rows, self.most), seed=self.seed,
                template=split.template, max_length=split.max_length,
            )  # fmt: skip
            scales = [Strength("scale", c) for c in self.scales]
            strengths = (Strength("zero"), *scales, *(Strength("push", c) for c in self.pushes))
            tried = candidates(
                study.original, study.sae, study.dictionary_site, parts.select, rules=rules, counts=self.counts,
                strengths=strengths, controls=CONTROLS if self.control_edits else (), special_ids=special,
                seed=self.seed, batch_size=size, gate=GATES.get(self.gate),
            )  # fmt: skip
            score, quick = (
                AnswerScorer(study.tokenizer, size, split.max_length, choices=choices) for choices in (True, False)
            )
            found = dose_response(
                study.original, parts, tried, score=score, budget=self.budget, special_ids=special, controls=quick,
                retrained=study.retrained, progress=True,
            )  # fmt: skip
            best = found.chosen("SAE")
            if best is not None:
                one = best.response.candidate
                chosen: dict[str, Any] = {"site": str(one.site), "rule": one.rule, "strength": asdict(one.strength)}
                if isinstance(one.edit, Gated):
                    chosen["gate"] = {"name": self.gate, "threshold": one.edit.gate.threshold}
                written_json(run.folder / "chosen.json", {**chosen, "features": list(one.features)})
            run.manifest["warnings"] = list(found.warnings)
            table = self.write(run, sae_notes(study), found.rows(), str(found), ("sae_choices", "sae_responses"))
        return f"{table}\n{self.folder('sae-suppress')}"
