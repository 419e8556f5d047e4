"""`probe layers`: what each layer of an unlearned model brings about in the original, or the other way round."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from probe.commands.command import Measurement
from probe.options import Original, Unlearned

if TYPE_CHECKING:
    from probe.diagnostics.layer_maps import ReplacementMap
    from probe.diagnostics.screening import Screening
    from probe.study.study import Study

# The method study's first guess for the testbed, two thirds of its steps.
_FEW: dict[str, Any] = {"steps": 40, "lr": 3e-4, "retain_weight": 3.0, "batch_size": 16, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class Layers(Original, Unlearned, Measurement):
    """Put layers of an unlearned model into the original, or the other way round; say what each brings about.

    Without models and rows the testbed is unlearned by a few steps of GradDiff and looked at, or --unlearned, made of
    it. Writes rows.jsonl, table.txt, figures and manifest.json.

    Example: probe layers --original my-model --unlearned by-npo --forget forget.jsonl --retain retain.jsonl
    """

    spans: Literal["single", "all", "cumulative"] = "single"
    """Every block alone, every span of neighbouring blocks, or spans that grow from either end."""
    parts: tuple[Literal["block", "attention", "mlp"], ...] = ("block",)
    """What is replaced: whole blocks, or their attention or mlp alone."""
    into: tuple[Literal["original", "unlearned"], ...] = ("original",)
    """Which model the other's layers are put into."""
    screening: bool = False
    """Also guess each layer's effect from one gradient, with the rank correlation of guess and truth."""

    def check(self) -> None:
        """Refuse an empty choice, and weights in which layers are not measured."""
        super().check()
        if self.one_unlearned is None and self.original is not None:
            raise ValueError("--unlearned missing: name the model whose layers are compared with the original's")
        for name in ("parts", "into"):
            if not getattr(self, name):
                raise ValueError(f"--{name} needs at least one value")
        if self.dtype == "float16":
            raise ValueError("layers are measured in float32 or bfloat16; choose another --dtype")

    def run(self) -> str:
        """Every teacher-forced metric for every variant."""
        with self.writing("layers") as (run, loaded):
            from probe.diagnostics.layer_maps import replacement_map
            from probe.metrics.teacher_forced import TeacherForced
            from probe.sites import n_layers

            study = loaded if loaded.unlearned else _unlearned_here(loaded)
            name, unlearned = next(iter(study.unlearned.items()))
            found = replacement_map(
                study.original,
                unlearned,
                {"forget": study.split.forget, "retain": study.split.retain},
                # As published: UWC's floor of extraction strength, and Min-K% at 20 %.
                TeacherForced(floor="0", k=0.2),
                spans=self._spans(n_layers(study.original)),
                parts=self.parts,
                into=self.into,
                moments=True,
                batch_size=self.rows_per_pass,
                progress=True,
            )
            guesses = self._guesses(study, unlearned) if self.screening else {}
            rows = found.rows(name)
            rows += [row for on, guess in guesses.items() for row in guess.rows(name, on)]
            run.manifest.update(study.described())
            run.manifest["block_calls"] = {"run": found.block_calls, "whole forwards would take": found.whole_calls}
            table = self.write(run, study.notes, rows, _table(found, guesses), self._figures())
        return f"{table}\n{self.folder('layers')}"

    def _figures(self) -> list[str]:
        """What the variants allow: a figure of parts or of single blocks needs every block alone."""
        block, original = "block" in self.parts, "original" in self.into
        found = ["spans"] if self.spans == "all" and block else []
        found += ["growing"] if self.spans != "single" and block and original else []
        found += ["parts"] if self.spans != "cumulative" and original else []
        return found + (["u_shape"] if self.spans != "cumulative" and original and block else [])

    def _spans(self, depth: int) -> Sequence[tuple[int, int]] | None:
        from probe.diagnostics.layer_maps import every_span, from_embeddings, from_head

        if self.spans == "all":
            return every_span(depth)
        return (*from_embeddings(depth), *from_head(depth)) if self.spans == "cumulative" else None

    def _guesses(self, study: "Study", unlearned: Any) -> "dict[str, Screening]":
        from probe.diagnostics.screening import screened

        sides = {"forget": study.split.forget, "retain": study.split.retain}
        size = self.rows_per_pass
        return {on: screened(study.original, unlearned, batch, batch_size=size) for on, batch in sides.items()}


def _unlearned_here(study: "Study") -> "Study":
    from probe.methods.baselines import grad_diff

    model = copy.deepcopy(study.original)
    grad_diff(model, study.split, **_FEW)
    written = ", ".join(f"{key} {value:g}" for key, value in _FEW.items())
    note = f"unlearned here by a few steps of GradDiff ({written}); an example, not a tuned method"
    return replace(study, unlearned={"GradDiff": model}, notes=(*study.notes, note))


def _table(found: "ReplacementMap", guesses: "dict[str, Screening]") -> str:
    metrics = {"probability": "p", "extraction_strength": "ES"}
    heads = [f"{on} {short}" for on in found.values for short in metrics.values()]
    width = max(map(len, heads)) + 2
    lines = [f"{'':32}" + "".join(f"{head:>{width}}" for head in heads)]

    def line(name: str, numbers: Sequence[float]) -> str:
        return f"{name:32}" + "".join(f"{number:{width}.4f}" for number in numbers)

    for name, ends in (("original", found.original), ("unlearned", found.unlearned)):
        lines.append(line(name, [ends[on][metric] for on in found.values for metric in metrics]))
    for x, one in enumerate(found.variants):
        span = f"{one.first}" if one.first == one.last else f"{one.first}..{one.last}"
        numbers = [float(found.values[on][metric][x]) for on in found.values for metric in metrics]
        lines.append(line(f"{one.part} {span} into {one.into}", numbers))
    lines += [f"\n{on} rows, from one gradient: {guess}" for on, guess in guesses.items()]
    lines += ["", "p: probability of a token; ES: extraction strength; all metrics are in rows.jsonl."]
    return "\n".join(
        [*lines, f"{found.block_calls} block runs; a forward for each variant would take {found.whole_calls}"]
    )
