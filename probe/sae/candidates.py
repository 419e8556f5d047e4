"""What is tried: features of an SAE under several rules, and the controls that any claim has to beat."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from probe.axes import HiddenND
from probe.data import Split
from probe.dictionaries.adapters import dictionary
from probe.dictionaries.dictionary import Dictionary
from probe.dictionaries.fit import mean_active
from probe.dictionaries.made import neuron_dictionary, random_dictionary
from probe.features.activity import observe, pieces_of
from probe.features.attribution import ByEffect, attribute
from probe.features.ranking import FeatureTable, matched_features, rank
from probe.harvest import harvest
from probe.interventions.attaching import check_site
from probe.interventions.calibration import Calibratable
from probe.interventions.directions import leace
from probe.interventions.projection import Project
from probe.interventions.retained import retained_in
from probe.interventions.steering import difference_of_means
from probe.interventions.suppression import Suppress
from probe.interventions.targets import Mode, Multiply, Zero
from probe.objectives.token import nll
from probe.positions import Intervention, NotIds
from probe.sae.gates import gated
from probe.sites import Site

Source = Literal["SAE", "random features", "random dictionary", "neuron basis", "difference of means", "LEACE", "given"]
CONTROLS: tuple[Source, ...] = (
    "random features",
    "random dictionary",
    "neuron basis",
    "difference of means",
    "LEACE",
)

# Draws of random features, at least, over all rules.
_DRAWS = 3
# Rows on which an SAE is tried at its site.
_SITE_ROWS = 32


@dataclass(frozen=True)
class Strength:
    """How hard features are pushed.

    Args:
        kind: "zero", "scale" (f' = -amount f) or "push" (to -amount median residual norms, ``Retained.push``).
        amount: 0 for "zero".

    Raises:
        ValueError: an unknown kind, or an amount that is not positive where one is needed.
    """

    kind: Literal["zero", "scale", "push"]
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("zero", "scale", "push"):
            raise ValueError(f"a strength is zero, scale or push, got {self.kind!r}")
        if (self.amount > 0) == (self.kind == "zero"):
            raise ValueError(f"{self.kind} takes {'no' if self.kind == 'zero' else 'a positive'} amount")

    def __str__(self) -> str:
        return self.kind if self.kind == "zero" else f"{self.kind} {self.amount:g}"


STRENGTHS = (
    Strength("zero"),
    *(Strength("scale", c) for c in (1.0, 3.0, 10.0)),
    *(Strength("push", c) for c in (0.1, 0.3, 1.0, 3.0)),
)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One edit that may be chosen.

    Args:
        source: whose features, or which control.
        rule: what ranked them, or whose rates random features have; empty where nothing was ranked.
        asked, n: features asked for, and how many the rule admits of them.
        strength: how hard.
        site: where.
        edit: the edit itself.
        features: their ids; none for directions.
    """

    source: Source
    rule: str
    asked: int
    n: int
    strength: Strength
    site: Site
    edit: Intervention = field(repr=False)
    features: tuple[int, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """In words."""
        what = f"{self.n} features, " if self.n else ""
        return f"{self.source}{f' by {self.rule}' if self.rule else ''}: {what}{self.strength}"


def candidates(
    model: nn.Module,
    sae: Any,
    site: Site,
    select: Split,
    *,
    rules: Sequence[Any],
    counts: Sequence[int],
    strengths: Sequence[Strength] = STRENGTHS,
    controls: Sequence[Source] = CONTROLS,
    special_ids: Sequence[int],
    seed: int = 0,
    batch_size: int = 32,
    gate: Calibratable | None = None,
) -> list[Candidate]:
    """Every rule x number of features x strength, for the SAE and for the controls.

    Features are ranked, strengths are measured and directions are found on ``select`` alone. Random features fire about
    as often as the chosen ones and are none of them, drawn anew for every rule, three times at least. The random
    dictionary has the SAE's width and sparsity; it and the neuron basis are ranked by the same rules. Directions take
    the strengths as multiples of the component along them: "zero" removes it, "scale c" sets it to -c times itself,
    "push" has no meaning there.

    Args:
        model: the model that is edited.
        sae: the dictionary at ``site``.
        site: where edits act.
        select: rows to choose on.
        rules: of ``probe.features.rules`` or ``probe.features.attribution``.
        counts: numbers of features; a rule that admits fewer gives what it has, once.
        strengths: how hard.
        controls: which controls; none is allowed and warned about by those who report.
        special_ids: tokens that count nowhere.
        seed: of random features and dictionary.
        batch_size: rows per forward pass.
        gate: features are edited only where it is open (``sae.gates``); directions always.

    Raises:
        ValueError: no rule, count or strength, an unknown control, an SAE that does not fit the site, or a forget side
            on which no feature is on.

    >>> from probe.features import MeanDifference
    >>> both = probe.halves(s.tokenizer, s.split.forget_rows, s.split.retain_rows, seed=0)
    >>> found = probe.candidates(
    ...     s.original, s.sae, s.sae_site, both.select, rules=[MeanDifference()], counts=[4], controls=(),
    ...     special_ids=s.special_ids,
    ... )
    """
    if not rules or not counts or not strengths or min(counts) < 1:
        raise ValueError(
            f"give rules, counts above 0 and strengths; got {len(rules)}, {list(counts)}, {len(strengths)}"
        )
    unknown = set(controls) - set(CONTROLS)
    if unknown:
        raise ValueError(f"no control {sorted(unknown)[0]!r}; there are {', '.join(CONTROLS)}")
    found = dictionary(sae)
    check_site(model, found, site, select.retain.select(range(min(_SITE_ROWS, len(select.retain)))))
    given = _Given(model, site, select, tuple(special_ids), batch_size, gate)
    made: list[Candidate] = []
    tables = _ranked(given, found, rules)
    made += _of_features(given, found, "SAE", tables, counts, strengths)
    if "random features" in controls:
        made += _random(given, found, tables, counts, strengths, seed)
    mean_D = given.retain_ND.mean(0)
    active = max(1, round(mean_active(found, given.retain_ND)))
    others: dict[Source, Dictionary] = {
        "random dictionary": random_dictionary(
            found.width, found.n_features, active=active, seed=seed, mean_D=mean_D.to(found.directions_FD)
        ),
        "neuron basis": neuron_dictionary(found.width, mean_D=mean_D.to(found.directions_FD)),
    }
    for source, other in others.items():
        if source in controls:
            made += _of_features(given, other, source, _ranked(given, other, rules), counts, strengths)
    if "difference of means" in controls:
        direction_D = difference_of_means(given.forget_ND, given.retain_ND)
        for strength in strengths:
            if strength.kind != "push":
                edit = Project(direction_D, strength=1.0 + strength.amount)
                made.append(Candidate("difference of means", "", 0, 0, strength, site, edit))
    if "LEACE" in controls:
        hidden_ND = torch.cat([given.forget_ND, given.retain_ND])
        labels_N = torch.cat([torch.ones(len(given.forget_ND)), torch.zeros(len(given.retain_ND))]).long()
        made.append(Candidate("LEACE", "", 0, 0, Strength("zero"), site, leace(hidden_ND, labels_N)))
    return made


@dataclass(frozen=True, eq=False)
class _Given:
    model: nn.Module
    site: Site
    select: Split
    special_ids: tuple[int, ...]
    batch_size: int
    gate: Calibratable | None
    forget_ND: HiddenND = field(init=False)
    retain_ND: HiddenND = field(init=False)

    def __post_init__(self) -> None:
        kept = NotIds(self.special_ids)
        for side, batch in (("forget_ND", self.select.forget), ("retain_ND", self.select.retain)):
            states = harvest(self.model, batch.chunks(self.batch_size), [self.site], positions=kept)[self.site]
            object.__setattr__(self, side, states)


def _ranked(given: _Given, found: Dictionary, rules: Sequence[Any]) -> dict[str, FeatureTable]:
    """A table a rule; activity and attribution are measured once, and only where a rule asks."""
    sides = (given.select.forget, given.select.retain)
    evidence: dict[str, Any] = {}
    tables = {}
    for rule in rules:
        kind = "attribution" if isinstance(rule, ByEffect) else "activity"
        if kind not in evidence:
            evidence[kind] = (
                attribute(given.model, {given.site: found}, *sides, objective=nll, special_ids=given.special_ids)
                if kind == "attribution"
                else observe(
                    given.model,
                    {given.site: found},
                    *sides,
                    special_ids=given.special_ids,
                    values=any(getattr(r, "needs_values", False) for r in rules),
                    batch_size=given.batch_size,
                )
            )[given.site]
        table = rank(rule, evidence[kind], given.site)
        tables[table.rule] = table
    return tables


def _of_features(
    given: _Given,
    found: Dictionary,
    source: Source,
    tables: dict[str, FeatureTable],
    counts: Sequence[int],
    strengths: Sequence[Strength],
) -> Iterator[Candidate]:
    for rule, table in tables.items():
        seen = set()
        for asked in sorted(counts):
            n = min(asked, table.available)
            if n and n not in seen:
                seen.add(n)
                yield from _edits(given, found, source, rule, asked, table.top(n), strengths)


def _random(
    given: _Given,
    found: Dictionary,
    tables: dict[str, FeatureTable],
    counts: Sequence[int],
    strengths: Sequence[Strength],
    seed: int,
) -> Iterator[Candidate]:
    """Draws for each rule's own features, so that the control has at least as many tries as the rules."""
    on_F = torch.zeros(found.n_features, dtype=torch.float64)
    for piece in pieces_of(len(given.forget_ND), found.n_features):
        on_F += found.active(found.encode(given.forget_ND[piece])).double().sum(0).cpu()
    rate_F = on_F / len(given.forget_ND)
    draws = -(-_DRAWS // len(tables))
    for rule, table in tables.items():
        for n in sorted({min(asked, table.available) for asked in counts} - {0}):
            chosen = table.top(n)
            if set(rate_F.nonzero().flatten().tolist()) <= set(chosen):
                continue  # there are no others
            for draw in range(draws):
                features = matched_features(rate_F, chosen, seed=seed + draw)
                label = f"rates of {rule}, draw {draw + 1}"
                yield from _edits(given, found, "random features", label, n, features, strengths)


def _edits(
    given: _Given,
    found: Dictionary,
    source: Source,
    rule: str,
    asked: int,
    features: tuple[int, ...],
    strengths: Sequence[Strength],
) -> Iterator[Candidate]:
    like = retained_in(found, features, given.retain_ND)
    behind = gated(
        given.model, given.site, given.select, found, features, given.gate,
        positions=NotIds(given.special_ids), batch_size=given.batch_size,
    )  # fmt: skip
    if behind is None:
        return
    for strength in strengths:
        mode: Mode = Zero()
        if strength.kind == "scale":
            mode = Multiply(-strength.amount)
        elif strength.kind == "push":
            mode = like.push(strength.amount)
        edit = behind(Suppress(found, features, mode))
        yield Candidate(source, rule, asked, len(features), strength, given.site, edit, features)
