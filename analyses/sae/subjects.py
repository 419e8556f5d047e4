"""What the SAE studies work on: a subject, an SAE of it, and rows of many entities."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from analyses.sae.claims import BUDGET
from analyses.subjects import Subject, Where, subject
from probe.attacks.score import AnswerScorer
from probe.checkpoints import weights_hash
from probe.data import QA, encode
from probe.dictionaries.dictionary import Dictionary
from probe.dictionaries.folders import load_dictionary
from probe.features.architectures import TopK
from probe.features.training import train_dictionary
from probe.harvest import harvest
from probe.positions import not_first
from probe.sae.candidates import Strength, candidates
from probe.sae.dose_response import dose_response
from probe.sae.halves import Halves, halves
from probe.sae.tables import DoseResponse
from probe.sites import Site
from probe.testbed import load as load_testbed

Name = Literal["testbed", "stories"]
# Numbers of features that are edited together.
COUNTS = (10, 50)
# Rows of each retain entity, and how many entities: intervals count entities.
RETAIN = {"testbed": (3, 40), "stories": (6, 8)}


@dataclass(frozen=True, eq=False)
class Given:
    """A subject with an SAE.

    Args:
        subject: models, tokenizer and rows.
        sae, site: the SAE and where it belongs.
        forget, retain: the rows of the study.
    """

    subject: Subject = field(repr=False)
    sae: Dictionary = field(repr=False)
    site: Site
    forget: tuple[QA, ...] = field(repr=False)
    retain: tuple[QA, ...] = field(repr=False)

    @property
    def special_ids(self) -> list[int]:
        """Tokens that are not edited."""
        return list(self.subject.tokenizer.all_special_ids)

    def halves(self, seed: int) -> Halves:
        """Both halves of the entities."""
        return halves(self.subject.tokenizer, self.forget, self.retain, seed=seed, max_length=self.max_length)

    @property
    def max_length(self) -> int:
        """Longest text in tokens."""
        return self.subject.split.max_length

    def responses(
        self,
        parts: Halves,
        *,
        rules: Sequence[Any],
        strengths: Sequence[Strength],
        seed: int,
        controls: Sequence[Any] = (),
        **how: Any,
    ) -> DoseResponse:
        """Every edit of rules, counts and strengths, chosen on one half and reported on the other."""
        model, ids = self.subject.original, self.special_ids
        tried = candidates(
            model, self.sae, self.site, parts.select, rules=rules, counts=COUNTS, strengths=strengths,
            controls=controls, special_ids=ids, seed=seed,
        )  # fmt: skip
        return dose_response(model, parts, tried, budget=BUDGET, special_ids=ids, **how)

    def scorer(self, *, choices: bool) -> AnswerScorer:
        """Scores answers, with choices among wrong ones or without."""
        return AnswerScorer(self.subject.tokenizer, max_length=self.max_length, choices=choices)

    def identity(self, rules: Sequence[Any], strengths: Sequence[Strength]) -> dict[str, Any]:
        """What decides the results besides a cell."""
        own = {"sae": str(dict(self.sae.metadata)), "rows": len(self.retain)}
        settings = {"rules": list(map(repr, rules)), "counts": COUNTS, "budget": BUDGET}
        return self.subject.identity() | own | settings | {"strengths": list(map(str, strengths))}


def given(name: Name, where: Where) -> Given:
    """The subject by its name; the SAE of "stories" is trained once and cached."""
    chosen = subject(name, where)
    each, entities = RETAIN[name]
    forget = chosen.split.forget_rows
    retain = few_of_each(chosen.split.retain_rows, each, entities)
    if name == "testbed":
        bed = load_testbed()
        return Given(chosen, bed.sae, bed.sae_site, forget, retain)
    site = Site(chosen.layer)
    return Given(chosen, trained(chosen, site, where, n_features=512, active=8), site, forget, retain)


def trained(chosen: Subject, site: Site, where: Where, *, n_features: int, active: int, steps: int = 300) -> Dictionary:
    """A TopK SAE of the subject's original at ``site``, trained on all its rows but every tenth, judged on those."""
    key = f"sae_{weights_hash(chosen.original)[:12]}_{site.layer}_{n_features}_{active}_{steps}"
    folder = where.cache / key
    if folder.is_dir():
        return load_dictionary(folder)
    rows = [*chosen.split.forget_rows, *chosen.split.retain_rows]
    length = chosen.split.max_length

    def coded(few: Sequence[QA]) -> Any:
        return encode(chosen.tokenizer, few, template=chosen.split.template, max_length=length)

    batches = coded([row for i, row in enumerate(rows) if i % 10]).chunks(32)
    hidden_ND = harvest(chosen.original, batches, [site], positions=not_first)[site]
    where.cache.mkdir(parents=True, exist_ok=True)
    return train_dictionary(
        chosen.original,
        site,
        hidden_ND,
        coded(rows[::10]),
        folder,
        architecture=TopK(active),
        n_features=n_features,
        steps=steps,
        batch_size=min(1024, len(hidden_ND)),
        lr=1e-3,
        seed=0,
        least_variance=0.5,
        model_name=f"{chosen.name} original, torch {torch.__version__}",
    ).dictionary


def few_of_each(rows: Sequence[QA], each: int, entities: int) -> tuple[QA, ...]:
    """The first ``each`` rows of each of the first ``entities`` entities."""
    kept: dict[str, list[QA]] = {}
    for row in rows:
        own = kept.setdefault(row.group, [])
        if len(own) < each:
            own.append(row)
    return tuple(row for own in list(kept.values())[:entities] for row in own)
