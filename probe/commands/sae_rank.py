"""`probe sae rank`: features in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe.commands.command import Measurement, sae_notes, written_json
from probe.options import DictionaryOptions, Original, RuleOptions, Seeded
from probe.ranges import Count, CountOrNone

if TYPE_CHECKING:
    from probe.features.activity import Activity
    from probe.features.ranking import FeatureTable
    from probe.rows import Row
    from probe.study.study import Study


@dataclass(frozen=True, kw_only=True)
class SaeRank(Original, DictionaryOptions, RuleOptions, Seeded, Measurement):
    """Put features in order by published rules, with the stability of the order; show what the first ones are.

    Without --original, --sae, --forget and --retain the testbed's. Writes rows.jsonl, features.json, features.html,
    table.txt, figures and manifest.json.

    Example: probe sae rank --rules frequency:0.01 mean-square-ratio:95 attribution-ratio --top 20
    """

    top: Count = 20
    """How many features of each rule are listed, and compared under resampling."""
    view: CountOrNone = 8
    """How many features of the first rule are shown in features.html."""

    def needed(self) -> dict[str, str | None]:
        """The model and its dictionary."""
        return {"--original": self.original, "--sae": self.sae}

    def check(self) -> None:
        """Refuse half a description."""
        super().check()
        self.check_dictionary()

    def run(self) -> str:
        """Every rule's order, with the stability of the first features under resampling."""
        from probe.sae.named import read_rules

        rules = dict(zip(self.rules, read_rules(self.rules), strict=True))
        with self.writing("sae-rank") as (run, study):
            from probe.sae.view import feature_views

            tables, activity = _ranked(study, rules, self)
            first = next(iter(tables.values()))
            rows = [row for name, table in tables.items() for row in _rank_rows(name, table, self.top)]
            rows += _activity_rows(activity, first.top(min(self.top, first.available)))
            listed = {name: list(table.top(min(self.top, table.available))) for name, table in tables.items()}
            written_json(run.folder / "features.json", listed)
            views = feature_views(
                study.original, study.sae, study.dictionary_site, study.tokenizer, study.split.forget,
                study.split.retain,
                first.top(min(self.view, first.available)), special_ids=study.special_ids,
                batch_size=self.rows_per_pass,
            )  # fmt: skip
            views.write(run.folder / "features.html")
            table = self.write(run, sae_notes(study), rows, _rank_table(tables, self.top, study), ("sae_features",))
        return f"{table}\n{self.folder('sae-rank')}"


def _ranked(study: "Study", rules: dict[str, Any], job: "SaeRank") -> "tuple[dict[str, FeatureTable], Activity]":
    from probe.features.activity import observe
    from probe.features.attribution import ByEffect, attribute
    from probe.features.ranking import rank
    from probe.objectives.token import nll

    site = study.dictionary_site
    sides = (study.split.forget, study.split.retain)
    values = any(getattr(rule, "needs_values", False) for rule in rules.values())
    given: dict[str, Any] = {"special_ids": study.special_ids, "batch_size": job.rows_per_pass}
    activity = observe(study.original, {site: study.sae}, *sides, values=values, **given)[site]
    effects = None
    if any(isinstance(rule, ByEffect) for rule in rules.values()):
        effects = attribute(study.original, {site: study.sae}, *sides, objective=nll, **given)[site]
    tables: dict[str, Any] = {}
    for name, rule in rules.items():
        evidence: Any = effects if isinstance(rule, ByEffect) else activity
        # A side of a single group cannot be resampled.
        stable_at = (job.top,) if min(evidence.blocks) > 1 else ()
        tables[name] = rank(rule, evidence, site, stable_at=stable_at, seed=job.seed)
    return tables, activity


def _rank_rows(name: str, table: "FeatureTable", top: int) -> "list[Row]":
    from probe.rows import Row

    listed = table.top(min(top, table.available))
    rows = [
        Row(name, "sae_rank", "score", float(table.score_F[j]), layer=table.site.layer, item=j, dose=float(place))
        for place, j in enumerate(listed, 1)
    ]
    rows.append(Row(name, "sae_rank", "admitted", float(table.available), layer=table.site.layer))
    return rows + [
        Row(
            name, "sae_rank", "overlap", s.overlap, layer=table.site.layer, item=s.n, low=s.low, high=s.high,
            n=min(s.blocks),
        )
        for s in table.stability
    ]  # fmt: skip


def _activity_rows(activity: "Activity", selected: Sequence[int]) -> "list[Row]":
    from probe.rows import Row

    rows = [
        Row("original", "sae_activity", "mean_activation", float(value), on, item=j)
        for on, side in (("forget", activity.forget), ("retain", activity.retain))
        for j, value in enumerate(side.mean_F.tolist())
    ]
    return rows + [Row("original", "sae_activity", "selected", 1.0, item=j) for j in selected]


def _rank_table(tables: "dict[str, FeatureTable]", top: int, study: "Study") -> str:
    lines = []
    for name, table in tables.items():
        listed = ", ".join(map(str, table.top(min(top, table.available)))) or "none"
        lines.append(f"{name} ({table.role}): admits {table.available} of {study.sae.n_features}; {listed}")
        lines += [
            f"  of the first {s.n}, {s.overlap:.2f} [{s.low:.2f}, {s.high:.2f}] stay when groups of rows are drawn anew"
            for s in table.stability
        ]
    sets = {name: set(table.top(min(top, table.available))) for name, table in tables.items()}
    names = list(sets)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            lines.append(f"{a} and {b} share {len(sets[a] & sets[b])} of their first {top}")
    lines.append("")
    lines.append('"detect" finds texts, "edit" changes answers; features that do one seldom do the other.')
    return "\n".join(lines)
