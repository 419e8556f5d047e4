"""`probe g-effect`: what a gradient step on an objective does to the loss of forget and of retain rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.commands.command import Measurement
from probe.options import Original, Unlearned

if TYPE_CHECKING:
    from probe.diagnostics.g_effect import GEffect
    from probe.diagnostics.token_effects import TokenEffects
    from probe.objectives.named import Named
    from probe.study.study import Study

# Rows of the coloured page; tokens.jsonl holds all of them.
_PAGE_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class GEffects(Original, Unlearned, Measurement):
    """Measure what a gradient step on an objective does to the forget and the retain loss: by layer or by token.

    Gradients are taken at --unlearned where it is given, else at --original; without models and rows at the testbed's
    original. Writes rows.jsonl, table.txt, figures and manifest.json; with --tokens also tokens.jsonl and tokens.html.

    Example: probe g-effect --objective ga npo:beta=0.1 --retain-objective nll
    """

    objective: tuple[str, ...]
    """What a step would lower on forget rows, by name, settings after a colon: ga npo:beta=0.1 sat_imp:beta1=5,beta2=1
    """
    retain_objective: tuple[str, ...] = ()
    """The same on retain rows: nll, kl."""
    tokens: bool = False
    """Also the effect of every single forget token, as tokens.jsonl and coloured in tokens.html."""

    def check(self) -> None:
        """Refuse an unlearned model alone, no objective, or one twice."""
        super().check()
        for flag, names in (("--objective", self.objective), ("--retain-objective", self.retain_objective)):
            if len(set(names)) < len(names):
                raise ValueError(f"{flag} takes each objective once; got {' '.join(names)}")
        if not self.objective:
            raise ValueError("--objective needs at least one name, such as ga or npo:beta=0.1")
        if self.dtype == "float16":
            raise ValueError("gradients are taken in float32 or bfloat16; choose another --dtype")

    def run(self) -> str:
        """G-effects of named objectives on the loss of forget and of retain rows."""
        from probe.objectives.named import read_objective

        self.check()
        objectives = {
            "forget": [read_objective(text) for text in self.objective],
            "retain": [read_objective(text) for text in self.retain_objective],
        }
        every = [one for named in objectives.values() for one in named]
        own = [one.name for one in every if one.whole]
        if self.one_unlearned is None and own:
            raise ValueError(
                f"{own[0]} compares with the model before unlearning, and is zero at that model; give --unlearned"
            )
        with self.writing("g-effect") as (run, study):
            found = self._measured(study, objectives)
            rows = [row for name, effects in found.items() for on, e in effects.items() for row in e.rows(name, on)]
            table = self.write(run, study.notes, rows, _table(found), ("g_effect",))
            if self.tokens:
                run.manifest["kernels switched"] = self._tokens(study, run.folder)
        return f"{table}\n{self.folder('g-effect')}"

    def _measured(self, study: "Study", objectives: "Mapping[str, Sequence[Named]]") -> "dict[str, dict[str, GEffect]]":
        from probe.data import encode
        from probe.diagnostics.g_effect import g_effects
        from probe.objectives.named import reference_for
        from probe.objectives.token import nll

        split, model = study.split, next(iter(study.unlearned.values()), study.original)
        rows = (*split.forget_rows, *split.retain_rows) if objectives["retain"] else split.forget_rows
        known = encode(study.tokenizer, rows, template=split.template, max_length=split.max_length)
        every = [one for named in objectives.values() for one in named]
        reference = reference_for(every, study.original, known)
        sides = {"forget": split.forget, "retain": split.retain}
        risks = {on: (nll, batch) for on, batch in sides.items()}
        found: dict[str, dict[str, GEffect]] = {}
        for on, named in objectives.items():
            if named:
                losses = {_label(one, on): one.made(reference) for one in named}
                found |= g_effects(model, losses, sides[on], risks, batch_size=self.rows_per_pass)
        return found

    def _tokens(self, study: "Study", folder: Path) -> list[str]:
        """Write tokens.jsonl and tokens.html; what was switched while forward mode ran."""
        from probe.diagnostics.token_effects import token_effects
        from probe.figures.tokens import token_heat_map
        from probe.objectives.token import nll
        from probe.rows import append_lines

        model, forget = next(iter(study.unlearned.values()), study.original), study.split.forget
        risks = {"forget": (nll, forget), "retain": (nll, study.split.retain)}
        effects = token_effects(model, forget, risks, batch_size=self.rows_per_pass)
        lines = token_lines(study.tokenizer, effects)
        append_lines(folder / "tokens.jsonl", (json.dumps(line, ensure_ascii=False) for line in lines))
        texts: dict[int, list[dict[str, Any]]] = {}
        for line in lines:
            texts.setdefault(line["row"], []).append(line)
        shown = list(texts.values())[:_PAGE_ROWS]
        pages = [
            token_heat_map(
                [[line["token"] for line in text] for text in shown],
                [[-line[on] for line in text] for text in shown],
                label=f"rise of the {on} loss per step if the token is unlearned",
                names=[f"{text[0]['row']}:" for text in shown],
            ).html
            for on in risks
        ]
        head = '<!doctype html><meta charset="utf-8"><title>Point-wise G-effects</title>'
        (folder / "tokens.html").write_text(head + "<hr>".join(pages) + "\n", encoding="utf-8")
        return list(effects.kernels)


def token_lines(tokenizer: Any, effects: "TokenEffects") -> list[dict[str, Any]]:
    """One record a target token: row, position, text, log-probability, and the effect of raising it on each risk."""
    from probe.figures.tokens import token_texts

    batch = effects.batch
    lines = []
    for row, position in effects.targets_BT.nonzero().tolist():
        token = int(batch.tokens_BT[row, position])
        line: dict[str, Any] = {"row": row, "position": position, "token": token_texts(tokenizer, [token])[0]}
        line["logp"] = float(effects.logp_BT[row, position])
        lines.append(line | {on: float(pg_BT[row, position]) for on, pg_BT in effects.pg_BT.items()})
    return lines


def _label(one: "Named", on: str) -> str:
    return one.text if on == "forget" else f"{one.text} on retain rows"


def _table(found: "Mapping[str, Mapping[str, GEffect]]") -> str:
    width = max(map(len, found)) + 2
    lines = [f"{'':{width}}{'forget':>24}{'retain':>24}", f"{'':{width}}" + f"{'effect':>15}{'cosine':>9}" * 2]
    for name, effects in found.items():
        numbers = "".join(f"{effects[on].total:15.5g}{effects[on].cosine:9.3f}" for on in ("forget", "retain"))
        lines.append(f"{name:{width}}{numbers}")
    return "\n".join(
        [*lines, "", "A step on the objective raises the loss of those rows where the effect is negative."]
    )
