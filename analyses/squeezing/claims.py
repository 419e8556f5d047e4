"""Claims on squeezing and spurious unlearning (Li et al., arXiv 2510.19422), judged by ``analyses.squeezing``.

Units are seeds; an effect counts where the 95 % t-interval of its mean over seeds leaves 0 (or the bar that is named)
out, and "cannot be told" is said where it does not.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from analyses.shared import (
    FAILS,
    HOLDS,
    SHARE,
    UNKNOWN,
    Record,
    methods_of,
    over_seeds,
    paired,
    range_row,
    runs_of,
    steps_of,
    verdict,
)
from analyses.squeezing.measures import GROUPS, METRICS
from probe.diagnostics.spurious_unlearning import KINDS
from probe.metrics.intervals import Interval
from probe.rows import Row

# What the claims are about, and what is claimed to be better.
USUAL, BOOTSTRAPPED = ("GA", "GradDiff", "NPO"), ("BS-T", "BS-S")
BANDS = ("target", "high", "mid", "low")
REWORDED, CONTROL = "reworded", "reworded, wrong"
RESPONSES = ("target", "high", REWORDED, CONTROL)
_WORDS = {1: "rises", -1: "falls", 0: UNKNOWN}
_VERDICTS = {1: HOLDS, -1: FAILS, 0: UNKNOWN}
# Looks that count as early: up to a fifth of the run.
EARLY = 2
# Fewer rows of a kind than this say nothing of a run.
FEWEST = 5
# Share of fluent answers that may be lost and naturalness still count as kept.
LOST = 0.05


def last(record: Record, key: str) -> float:
    """A quantity at the end of the run."""
    return float(record[f"{steps_of(record)[-1]}/{key}"])


def reference(records: Sequence[Record], name: str) -> Record:
    """The original or the retrained model."""
    return next(r for r in records if r["method"] == name)


def gains(records: Sequence[Record], run: Record, response: str) -> list[float]:
    """Change of log p of a response since before the run, at every step asked."""
    before = reference(records, "original")[f"squeezing/{response}"]
    return [run[f"{step}/squeezing/{response}"] - before for step in steps_of(run)]


def rows_of(records: Sequence[Record]) -> list[Row]:
    """Rows for the figures."""
    rows: list[Row] = []
    for method in methods_of(records):
        runs = runs_of(records, method)
        states = (
            {"equal": "answers", "raw": "answers"}
            if method in ("original", "retrained")
            else {"equal": "equal/answers"}
        )
        for state, place in states.items():
            rows += [range_row(method, "answers", kind, [r[f"{place}/{kind}"] for r in runs], state) for kind in KINDS]
        if method in ("original", "retrained"):
            continue
        ends = {kind: [last(r, f"answers/{kind}") for r in runs] for kind in KINDS}
        rows += [range_row(method, "answers", kind, values, "raw") for kind, values in ends.items()]
        start = reference(records, "original")
        for response in BANDS:
            rows.append(range_row(method, "squeezing", response, [start[f"squeezing/{response}"]], item=0))
            rows += [
                range_row(method, "squeezing", response, [r[f"{s}/squeezing/{response}"] for r in runs], item=s)
                for s in steps_of(runs[0])
            ]
        for response in ("target", REWORDED, CONTROL):
            changes = [gains(records, run, response) for run in runs]
            rows.append(range_row(method, "gain", response, [0.0], item=0))
            rows += [
                range_row(method, "gain", response, [change[k] for change in changes], item=s)
                for k, s in enumerate(steps_of(runs[0]))
            ]
    return rows


def judged(records: Sequence[Record]) -> list[str]:
    """What the numbers say of B1, B2 and B3."""
    present = {r["method"] for r in records}
    if not {"original", "retrained", *USUAL, *BOOTSTRAPPED} <= present:
        return [f"only {', '.join(sorted(present))} were run, so claims are not judged"]
    return [*_b1(records), *_b2(records), *_b3(records)]


def _b1(records: Sequence[Record]) -> list[str]:
    """Do both kinds occur, and does each metric take rows of either kind for forgotten?"""
    lines = ["**B1** (spurious unlearning has two kinds, syntactic collapse and rephrasing; metrics miss both)", ""]
    never = reference(records, "retrained")
    occurs = {}
    for group, kinds in (("rephrased", GROUPS["rephrased"]), ("collapsed", GROUPS["collapsed"])):
        known = sum(never[f"answers/{kind}"] for kind in kinds)
        shares = {
            method: over_seeds((_over_run(run, kinds) for run in runs), SHARE)
            for method in USUAL
            if (runs := runs_of(records, method))
        }
        beyond = [method for method, share in shares.items() if share.side(known) > 0]
        occurs[group] = bool(beyond)
        listed = "; ".join(f"{method} {share}" for method, share in shares.items())
        lines.append(
            f"- {group}: {'occurs under ' + ', '.join(beyond) if beyond else 'cannot be told to occur'}; share of "
            f"answers, mean over the run: {listed}; retrained {known:.2f}."
        )
    missed = []
    for group in GROUPS:
        for metric in METRICS:
            found = looks_forgotten(records, group, metric)
            if found is None:
                lines.append(f"- {metric} on {group} answers: too few of them.")
                continue
            side = found.side(0.5)
            verdict = {1: "takes them for forgotten", -1: "sees through them", 0: UNKNOWN}
            lines.append(
                f"- {metric} on {group} answers: {verdict[side]}; {found} of them look forgotten ({found.n} runs)."
            )
            if group != "wrong":
                missed.append(side)
    both = all(occurs.values())
    verdict = (
        HOLDS
        if both and set(missed) == {1} and len(missed) == 2 * len(METRICS)
        else "does not hold here for every kind and metric"
        if -1 in missed
        else UNKNOWN
    )
    return [*lines, f"- Both kinds, missed by all three metrics: {verdict}.", ""]


def _over_run(run: Record, kinds: Sequence[str]) -> float:
    """Share of answers of these kinds, mean over the looks at one run."""
    return fmean(sum(run[f"{step}/answers/{kind}"] for kind in kinds) for step in steps_of(run))


def looks_forgotten(records: Sequence[Record], group: str, metric: str) -> Interval | None:
    """Share of rows of one kind that keep to what 95 % of the retrained model's rows keep to; runs are the units."""
    shares = []
    for method in USUAL:
        for run in runs_of(records, method):
            n = sum(run[f"{s}/answers/rows/{group}"] for s in steps_of(run))
            if n >= FEWEST:
                shares.append(sum(run[f"{s}/answers/look forgotten/{group}/{metric}"] for s in steps_of(run)) / n)
    return over_seeds(shares, SHARE) if len(shares) > 1 else None


def _b2(records: Sequence[Record]) -> list[str]:
    """Do likely responses of the target's meaning rise while it falls, early in the run and at its end?"""
    lines = ["**B2** (pushing the target down moves mass to likely responses of its meaning)", ""]
    early, late, mass = {}, {}, {}
    never = reference(records, "retrained")["answers/rephrased"]
    for method in USUAL:
        runs = runs_of(records, method)
        first = {name: over_seeds(fmean(gains(records, r, name)[:EARLY]) for r in runs) for name in RESPONSES}
        ends = {name: over_seeds(gains(records, r, name)[-1] for r in runs) for name in RESPONSES}
        shares = over_seeds((_over_run(run, ("rephrased",)) for run in runs), SHARE)
        early[method], late[method] = first[REWORDED].side(), ends[REWORDED].side()
        mass[method] = shares.side(never)
        lines.append(
            f"- {method}, first {EARLY} looks (mean): target {first['target']} nats; the same fact in other "
            f"words {first[REWORDED]} ({_WORDS[early[method]]}), those words with a wrong value "
            f"{first[CONTROL]}; likely samples {first['high']}. At the end: target "
            f"{ends['target']}, other words {ends[REWORDED]} ({_WORDS[late[method]]}), with a wrong "
            f"value {ends[CONTROL]}. Greedy answers that say the fact in other words, mean over the run: "
            f"{shares}; retrained {never:.2f}."
        )
    for when, outcome in (("early in the run log-probability rises", early), ("at the end it has risen", late)):
        lines.append(f"- The same fact in other words, {when}: {_overall(outcome)}.")
    lines.append(f"- Answers that say it in other words, more than a model that never knew: {_overall(mass)}.")
    return [*lines, ""]


def _overall(outcome: Mapping[str, int]) -> str:
    """One verdict where the methods agree, else by method."""
    if len(set(outcome.values())) == 1:
        return _VERDICTS[next(iter(outcome.values()))]
    return "; ".join(f"{method}: {_VERDICTS[side]}" for method, side in outcome.items())


def _b3(records: Sequence[Record]) -> list[str]:
    """Less of both kinds at equal retention and at equal forgetting, without rebounds, and in natural language?"""
    lines = ["**B3** (BS-T and BS-S lower both kinds and both probabilities, monotonically, and keep naturalness)", ""]
    rivals = {other: runs_of(records, other) for other in ("NPO", "GradDiff")}
    level = max(last(r, "squeezing/target") for name in (*BOOTSTRAPPED, *rivals) for r in runs_of(records, name))
    for method in BOOTSTRAPPED:
        runs = runs_of(records, method)
        for group in ("rephrased", "collapsed"):
            for state, share in (
                ("at equal retention", lambda r, kinds: sum(r[f"equal/answers/{kind}"] for kind in kinds)),
                (f"where the answer's log p is {level:.1f}", lambda r, kinds: share_at(r, kinds, level)),
            ):
                parts = []
                for other, theirs in rivals.items():
                    ours, others = ([share(r, GROUPS[group]) for r in own] for own in (runs, theirs))
                    apart = paired(ours, others)
                    word = {1: "more than", -1: "less than", 0: "cannot be told apart from"}
                    parts.append(f"{word[apart.side()]} {other} ({apart})")
                own = fmean(share(r, GROUPS[group]) for r in runs)
                lines.append(f"- {method}, {group} answers {state}: {own:.2f}; {', '.join(parts)}.")
        falls = {name: _falls(records, runs, name) for name in ("target", "high", REWORDED)}
        theirs_too = [(name, *_falls(records, rivals["NPO"], name)) for name in falls]
        lines.append(
            f"- {method}, monotone: {_overall({method: 1 if _whole(falls) else -1})}; "
            + ", ".join(f"{name} falls in {a} of {b} stretches" for name, (a, b) in falls.items())
            + f"; NPO: {', '.join(f'{name} {a} of {b}' for name, a, b in theirs_too)}."
        )
        lines += [_natural(method, state, values) for state, values in _fluent(runs).items()]
    return lines


def _whole(falls: Mapping[str, tuple[int, int]]) -> bool:
    return all(down == of for down, of in falls.values())


def share_at(run: Record, kinds: Sequence[str], level: float) -> float:
    """Share of answers of some kinds where the target's log-probability passes ``level``, between looks linearly."""
    points = [(0.0, 0.0)]
    points += [(run[f"{s}/squeezing/target"], sum(run[f"{s}/answers/{k}"] for k in kinds)) for s in steps_of(run)]
    for (before, share), (after, then) in pairwise(points):
        if after <= level <= before:
            return share + (then - share) * (before - level) / max(before - after, 1e-12)
    return points[-1][1]


def _fluent(runs: Sequence[Record]) -> dict[str, list[float]]:
    return {
        "as trained": [last(r, "answers/fluent") for r in runs],
        "at equal retention": [r["equal/answers/fluent"] for r in runs],
    }


def _natural(method: str, state: str, values: list[float]) -> str:
    kept = over_seeds(values, SHARE)
    return (
        f"- {method}, naturalness {state}: {verdict(kept, 1, 1 - LOST)} (fluent {kept}; kept means above {1 - LOST:g})."
    )


def _falls(records: Sequence[Record], runs: Sequence[Record], response: str) -> tuple[int, int]:
    """In how many stretches between looks the log-probability falls, of how many."""
    pairs = [pair for run in runs for pair in pairwise([0.0, *gains(records, run, response)])]
    return sum(after < before for before, after in pairs), len(pairs)


def table(records: Sequence[Record]) -> str:
    """Two Markdown tables: every model at the end of its run, and at equal retention."""
    lines = []
    for title, state in (("At the end of the run", "raw"), ("At equal retention", "equal")):
        lines += [f"{title}:", "", "| method | retain | probability | ROUGE-L | truth ratio | right | rephrased | "]
        lines[-1] += "wrong | gibberish or empty | naturalness (nats a token) | relearned |"
        lines.append("|" + "---|" * 11)
        for method in methods_of(records):
            runs = runs_of(records, method)
            lines.append(f"| {method} | " + " | ".join(_cells(method, runs, state)) + " |")
        lines.append("")
    return "\n".join(lines)


def _cells(method: str, runs: Sequence[Record], state: str) -> list[str]:
    fixed = method in ("original", "retrained")

    def at(run: Record, key: str) -> float:
        return run[key] if fixed else last(run, key) if state == "raw" else run[f"equal/{key}"]

    keys = ["retain/probability", *(f"answers/{key}" for key in ("probability", "rouge", "truth ratio, published"))]
    numbers = [fmean(at(r, key) for r in runs) for key in keys]
    numbers += [fmean(at(r, f"answers/{kind}") for r in runs) for kind in ("right", "rephrased", "wrong")]
    numbers.append(fmean(at(r, "answers/gibberish") + at(r, "answers/empty") for r in runs))
    numbers.append(fmean(at(r, "answers/naturalness") for r in runs))
    cells = [f"{number:.2f}" for number in numbers]
    asked = fixed or state == "raw"
    return [*cells, f"{fmean(at(r, 'relearning/after') for r in runs):.2f}" if asked else "–"]
