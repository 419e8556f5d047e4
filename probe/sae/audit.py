"""What baking a suppression into weights did, hooks off: to the features, to the dictionary's fit, to the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from probe.attacks.curves import Curves, SeedScores, Training
from probe.attacks.facts import Facts
from probe.attacks.recovery import NOTHING
from probe.attacks.relearning import relearn
from probe.attacks.score import Score
from probe.checkpoints import check_different
from probe.data import QA, encode
from probe.dictionaries.adapters import check_features, dictionary
from probe.display import Result, ResultTable
from probe.hooks import open_edits
from probe.interventions.attaching import check_site
from probe.metrics.intervals import Interval, grouped, grouped_share
from probe.questions import groups_of
from probe.rows import Row
from probe.sae.changes import Change, changed
from probe.sites import Site

SILENT = 0.1
"""Features are called silent once what they write has shrunk to this share."""
REROUTED = 0.5
"""Features are called rerouted once this share of what they wrote is written by other features, or outside all."""
DRIFTED = 2.0
"""The dictionary is called off the edited model once it leaves this many times as much unexplained as before."""
_SITE_ROWS = 32


@dataclass(frozen=True, eq=False)
class Audit(Result):
    """What ``audit`` found.

    Args:
        name: what was done to the model.
        site, features: what was meant to be silenced.
        forget, retain: the features and the dictionary on both corpora.
        scores: answers of "original", the edited model under ``name`` and, where given, "retrained"; each by "forget"
            and "retain".
        groups: the group of each row, by "forget" and "retain".
        relearning: held-out answers while the shown ones are trained on; None if not asked for.
    """

    name: str
    site: Site
    features: tuple[int, ...]
    forget: Change = field(repr=False)
    retain: Change = field(repr=False)
    scores: Mapping[str, Mapping[str, Score]] = field(repr=False)
    groups: Mapping[str, tuple[str, ...]] = field(repr=False)
    relearning: Curves | None = field(repr=False)

    @property
    def silenced(self) -> bool:
        """Whether the selected features write at most a tenth of what they wrote on forget rows."""
        return self.forget.left(self.features) <= SILENT

    @property
    def rerouted(self) -> bool:
        """Whether the features are silent and half of what they wrote is written all the same."""
        return self.silenced and self.forget.by_others + self.forget.by_error >= REROUTED

    @property
    def drifted(self) -> bool:
        """Whether the dictionary leaves twice as much unexplained: its word on the edited model is doubtful."""
        return max(side.fvu_after / side.fvu_before for side in (self.forget, self.retain)) >= DRIFTED

    @property
    def known(self) -> Interval:
        """How much more often the right forget answer is chosen than by the retrained model, or without it by chance.

        Raises:
            ValueError: rows without wrong answers.
        """
        ours, theirs = self.scores[self.name]["forget"], self.scores.get("retrained")
        if theirs is not None:
            more_N = ours.of("choice") - theirs["forget"].of("choice")
            return grouped(more_N, self.groups["forget"], within=(-1.0, 1.0))
        choice_N = ours.of("choice")
        assert ours.n_choices is not None
        found, chance = grouped_share(choice_N, self.groups["forget"]), 1 / ours.n_choices
        return Interval(found.mean - chance, found.low - chance, found.high - chance, found.n)

    @property
    def flagged(self) -> bool:
        """Whether silent features hide knowledge: they are silent, and right answers are still chosen or come back."""
        chosen = self.scores[self.name]["forget"].choice_N is not None and self.known.above_zero
        return self.silenced and (chosen or self._returned)

    @property
    def undecided(self) -> bool:
        """Whether the features are silent and these rows can neither find knowledge nor exclude it (``NOTHING``)."""
        unclear = self.scores[self.name]["forget"].choice_N is not None and self.known.high >= NOTHING
        if self.relearning is not None:
            unclear = unclear or self.relearning.recovery.recovered() is None
        return self.silenced and not self.flagged and unclear

    @property
    def findings(self) -> tuple[str, ...]:
        """What was found, one sentence each."""
        left, forget = self.forget.left(self.features), self.forget
        said = [f"the {len(self.features)} features write {left:.3g} of what they wrote on forget rows"]
        said.append(
            f"of what they no longer write, other features write {forget.by_others:.2f} and what lies outside the "
            f"dictionary {forget.by_error:.2f}" + (": rerouted" if self.rerouted else "")
        )
        listed = f"{forget.fvu_before:.3g} -> {forget.fvu_after:.3g}, {self.retain.fvu_before:.3g} -> "
        said.append(
            f"variance unexplained {listed}{self.retain.fvu_after:.3g} (forget, retain)"
            + (": the dictionary does not fit the edited model, so silence may be blindness" if self.drifted else "")
        )
        score = self.scores[self.name]["forget"]
        if score.choice_N is not None:
            beyond = "a model that never knew" if "retrained" in self.scores else "chance"
            found = self.known
            said.append(
                f"the right forget answer is chosen in {score.choice_N.mean():.2f} of rows, {found.mean:+.2f} "
                f"[{found.low:+.2f}, {found.high:+.2f}] against {beyond}"
            )
        if self.relearning is not None:
            said.append(f"relearning: {self.relearning.recovery.finding()}")
        if self.flagged:
            said.append("silent is not forgotten: the features are quiet, the answers are there")
        if self.undecided:
            n = len(set(self.groups["forget"]))
            said.append(f"silent, and {n} groups of forget rows cannot tell whether the answers are gone")
        return tuple(said)

    def rows(self, name: str | None = None, *, grown: int = 10) -> list[Row]:
        """The numbers of both models; ``grown`` other features that grew most come with their share.

        Args:
            name: what rows call the edited model; its name in the audit unless given.
            grown: how many features.
        """
        if name is not None:
            return [
                replace(row, intervention=name) if row.intervention == self.name else row
                for row in self.rows(grown=grown)
            ]
        found: list[Row] = []

        def add(who: str, quantity: str, value: Any, **more: Any) -> None:
            found.append(Row(who, "sae_audit", quantity, float(value), layer=self.site.layer, **more))

        index = list(self.features)
        for on, side in (("forget", self.forget), ("retain", self.retain)):
            pairs = (
                ("selected_written", side.before_F[index].sum(), side.after_F[index].sum()),
                ("selected_rate", side.rate_before_F[index].mean(), side.rate_after_F[index].mean()),
                ("fvu", side.fvu_before, side.fvu_after),
            )
            for quantity, before, after in pairs:
                add("original", quantity, before, on=on, n=side.tokens)
                add(self.name, quantity, after, on=on, n=side.tokens)
            growth_F = side.growth_F(self.features)
            add(self.name, "by_others", side.by_others, on=on, n=side.tokens)
            add(self.name, "by_error", side.by_error, on=on, n=side.tokens)
            add(self.name, "growth", growth_F.sum(), on=on, n=side.tokens)
            for j in growth_F.argsort(descending=True)[:grown].tolist():
                add(self.name, "growth_of_feature", growth_F[j], on=on, item=j, n=side.tokens)
        for who, sides in self.scores.items():
            for on, score in sides.items():
                columns = [("loss", -np.log(score.probability_N)), *((m, score.of(m)) for m in score.measures)]
                for quantity, values_N in columns:
                    at = (grouped if quantity == "loss" else grouped_share)(values_N, self.groups[on])
                    add(who, quantity, at.mean, on=on, low=at.low, high=at.high, n=len(values_N))
        return found + self._relearned()

    def _relearned(self) -> list[Row]:
        if self.relearning is None:
            return []
        curves = {self.name: "model"} | ({"retrained": "retrained"} if self.relearning.retrained is not None else {})
        return [
            Row(who, "sae_audit", f"relearned_{measure}", float(value), "held", self.site.layer, dose=float(step))
            for who, of in curves.items()
            for measure in self.relearning.model.held[0][0].measures
            for step, value in zip(
                self.relearning.steps,
                self.relearning.curve(measure, of=of).mean(0),  # type: ignore[arg-type]
                strict=True,
            )
        ]

    @property
    def _returned(self) -> bool:
        return self.relearning is not None and self.relearning.recovery.recovered() is True

    def table(self) -> ResultTable:
        return ResultTable({"finding": self.findings}, note=f"{self.name}, audited at {self.site} with hooks off")


def audit(
    original: nn.Module,
    edited: nn.Module,
    sae: Any,
    site: Site,
    features: Sequence[int],
    facts: Facts,
    retain: Sequence[QA],
    *,
    name: str = "edited",
    retrained: nn.Module | None = None,
    training: Training | None = None,
    retrained_run: SeedScores | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Audit:
    """Compare a model whose weights were edited with the one before, without any hook.

    Args:
        original: the model that the dictionary was trained on.
        edited: the model after baking.
        sae, site: the dictionary and where it belongs, which is measured on the original.
        features: those meant to be silenced.
        facts: forget rows; features and scores are taken on both parts, relearning is judged on the held-out part.
        retain: rows that were not trained on: on those that were, an edited model always looks well.
        name: what was done.
        retrained: a model that never knew the facts.
        training: relearn so on the shown rows (``probe.attacks.relearning``); None leaves that out.
        retrained_run: the retrained model's relearning curves, where they are known from an earlier audit.
        batch_size: rows per forward pass.
        progress: show bars.

    Raises:
        ValueError: an edit is in force, equal models, no or unknown features, a dictionary at the wrong site, or
            selected features that write nothing in the original.

    >>> facts = probe.divided(s.tokenizer, s.split.forget_rows)
    >>> found = probe.audit(s.original, s.retrained, s.sae, s.sae_site, (3, 5), facts, s.split.retain_rows)
    """
    for who, model in (("original", original), ("edited", edited)):
        if open_edits(model):
            raise ValueError(
                f"an edit is in force at {open_edits(model)[0]} in the {who} model; an audit has hooks off"
            )
    check_different(original, edited, ("original", "edited"))
    if name in ("original", "retrained"):
        raise ValueError(f"the edited model cannot be called {name!r}, the name of another one here; say what was done")
    found, chosen = dictionary(sae), check_features(sae, features)
    if not chosen:
        raise ValueError("no features are given; name those that were meant to be silenced")
    rows = {"forget": (*facts.shown, *facts.held), "retain": tuple(retain)}
    batches = {
        on: encode(facts.tokenizer, few, template=facts.template, max_length=facts.max_length)
        for on, few in rows.items()
    }
    check_site(original, found, site, batches["retain"].select(range(min(_SITE_ROWS, len(retain)))))
    changes = {
        on: changed(original, edited, found, site, chosen, batch, batch_size=batch_size)
        for on, batch in batches.items()
    }
    if not float(changes["forget"].before_F[list(chosen)].sum()) > 0:
        raise ValueError(
            f"features {list(chosen)[:5]} are never on at {site} on forget rows, so they cannot fall silent"
        )
    models = {"original": original, name: edited} | ({} if retrained is None else {"retrained": retrained})
    return Audit(
        name,
        site,
        chosen,
        changes["forget"],
        changes["retain"],
        {who: {on: facts.score(m, few, facts.template) for on, few in rows.items()} for who, m in models.items()},
        {on: groups_of(few) for on, few in rows.items()},
        None
        if training is None
        else relearn(edited, facts, retrained=retrained_run or retrained, progress=progress, **vars(training)),
    )
