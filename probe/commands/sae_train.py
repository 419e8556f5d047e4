"""`probe sae train`: a dictionary with its card."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probe.commands.command import Measurement
from probe.options import Original, Seeded, TrainingOptions
from probe.ranges import Count, Place, Share, check_ranges

if TYPE_CHECKING:
    from probe.features.quality import Quality
    from probe.rows import Row

# Small, so that a trial takes seconds; the testbed's own dictionary is wider and was trained for longer.
_TESTBED: dict[str, Any] = {
    "layer": 4, "active": 16, "n_features": 256, "steps": 150, "lr": 3e-3, "least_variance": 0.7,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SaeTrain(Original, TrainingOptions, Seeded, Measurement):
    """Train a sparse dictionary on a block's output, offline; save it only if it is what was asked for.

    Without --original, --forget and --retain a small one of the testbed. Writes sae/ (as sae-lens does, with
    card.json), rows.jsonl, table.txt and manifest.json. Its numbers have no default, for they depend on the model.
    A learning rate of 1e-3 worked at widths of 64 and 128; for n features 2e-4 / sqrt(n / 16384) is usual (it follows
    figure 3 of arXiv 2406.04093).

    Example: probe sae train --original my-model --text corpus.txt --layer 12 --active 32 --n-features 16384
    --steps 20000 --lr 2e-4 --least-variance 0.7
    """

    text: Path | None = None
    """Corpus to train on, instead of --forget and --retain: a text file of pieces parted by blank lines, or JSON lines
    (texts, or objects with text). Every tenth piece is left out, to judge by. Take millions of tokens: published
    dictionaries saw 100 million and more; question rows are few."""
    layer: Place | None = None
    """Block whose output is read."""
    architecture: Literal["topk", "batchtopk", "jumprelu"] = "topk"
    """TopK; BatchTopK, which is saved as a JumpReLU; or a JumpReLU (see ``probe.features.architectures``)."""
    active: Count | None = None
    """Features that are on at a token; a JumpReLU's target. Published ones have 20 to 150, often 32 to 64."""
    n_features: Count | None = None
    """Features of the dictionary; published ones have 8 to 32 times the model's width."""
    tokens_per_step: Count = 1024
    """Activations a step, drawn by chance."""
    least_variance: Share | None = None
    """Share of variance to be explained on every tenth row, which is left out; below it nothing is saved; 0 saves
    whatever comes out. 0.7 to 0.9 are usual."""

    def check(self) -> None:
        """Refuse an own model without the numbers of its dictionary, and a corpus without a model or beside rows."""
        check_ranges(self)
        if self.text is not None and (self.forget is not None or self.retain is not None):
            raise ValueError("--text and --forget or --retain are given; choose one: a corpus, or question rows")
        if self.text is None:
            self.check_rows(self.needed())
        missing = [f"--{name.replace('_', '-')}" for name in _TESTBED if getattr(self, name) is None]
        if self.original is not None and missing:
            raise ValueError(f"{', '.join(missing)} missing: they have no default that fits every model")
        if self.text is not None and self.original is None:
            raise ValueError("--text needs --original: the testbed's dictionary is trained on the testbed's own rows")

    def run(self) -> str:
        """Train on what a model makes of both sides' rows or of a corpus; save it if it is what was asked for."""
        self.check()
        job = self
        if self.original is None:
            job = replace(self, **{key: value for key, value in _TESTBED.items() if getattr(self, key) is None})
        return job._trained()

    def _trained(self) -> str:
        import torch

        from probe.features.training import train_dictionary
        from probe.harvest import harvest
        from probe.modes import threads
        from probe.positions import not_first
        from probe.runs.folder import results
        from probe.sae.corpus import of_rows, of_texts
        from probe.sites import Site, n_layers

        assert self.layer is not None
        assert self.steps is not None
        with results(self.folder("sae-train"), self) as run, threads(self.threads or torch.get_num_threads()):
            text = self.text
            corpus = of_rows(self.study()) if text is None else of_texts(str(self.original), text, self, self)
            if not 0 <= self.layer < n_layers(corpus.model):
                raise ValueError(f"--layer {self.layer}: the model has blocks 0 to {n_layers(corpus.model) - 1}")
            site = Site(self.layer)
            shown = corpus.shown.chunks(self.rows_per_pass)
            hidden_ND = harvest(corpus.model, shown, [site], positions=not_first)[site]
            name = self.original or "testbed"
            made = train_dictionary(
                corpus.model, site, hidden_ND, corpus.judged, run.folder / "sae", **_numbers(self), model_name=name,
                progress=True,
            )  # fmt: skip
            times = self.steps * self.tokens_per_step / len(hidden_ND)
            drawn = f"trained on {len(hidden_ND)} activations, each drawn about {times:.2g} times"
            run.manifest.update(corpus.described)
            lines = f"{_card(made.quality)}\n{drawn}"
            table = self.write(run, corpus.notes, _quality_rows(made.quality, self.layer), lines)
        return f"{table}\n{self.folder('sae-train')}"

    @classmethod
    def small(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Two steps, saved whatever comes out."""
        return {"limit": 20, "steps": 2, "least_variance": 0.0, "tokens_per_step": 64}


def _numbers(job: "SaeTrain") -> dict[str, Any]:
    from probe.features.architectures import BatchTopK, JumpReLU, TopK

    assert job.active is not None
    made: dict[str, Any] = {"topk": TopK, "batchtopk": BatchTopK, "jumprelu": JumpReLU}
    return {
        "architecture": made[job.architecture](job.active),
        "n_features": job.n_features,
        "steps": job.steps,
        "batch_size": job.tokens_per_step,
        "lr": job.lr,
        "seed": job.seed,
        "least_variance": job.least_variance,
    }


def _card(found: "Quality") -> str:
    by_layer = ", ".join(f"{value:.3g} at layer {layer}" for layer, value in found.fvu_by_layer.items())
    return (
        f"variance explained {found.explained_variance:.3f}; features on at a token {found.l0:.1f}; dead {found.dead} "
        f"of {found.n_features}\nloss {found.loss:.4f}, with the reconstruction {found.loss_spliced:.4f}, with the "
        f"mean {found.loss_mean:.4f}\nvariance unexplained: {by_layer} ({found.tokens} tokens that were not trained on)"
    )


def _quality_rows(found: "Quality", layer: int) -> "list[Row]":
    from probe.rows import Row

    numbers = {
        "explained_variance": found.explained_variance,
        "l0": found.l0,
        "dead": float(found.dead),
        "loss": found.loss,
        "loss_spliced": found.loss_spliced,
        "loss_mean": found.loss_mean,
        "recovered": found.recovered,
    }
    rows = [Row("original", "sae_quality", name, value, layer=layer, n=found.tokens) for name, value in numbers.items()]
    fits = found.fvu_by_layer.items()
    return rows + [
        Row("original", "sae_quality", "fvu", value, layer=int(layer), n=found.tokens) for layer, value in fits
    ]
