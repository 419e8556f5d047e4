"""Claims on squeezing and spurious unlearning (Li et al., arXiv 2510.19422), judged by ``analyses.squeezing``.

Units are seeds; an effect counts where the 95 % t-interval of its mean over seeds leaves 0 (or the bar that is named)
out, and "cannot be told" is said where it does not.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from analyses.squeezing.measures import GROUPS, METRICS
from probe.diagnostics.spurious_unlearning import KINDS
from probe.metrics.intervals import Interval, interval
from probe.rows import Row

Record = Mapping[str, Any]
# What the claims are about, and what is claimed to be better.
USUAL, BOOTSTRAPPED = ("GA", "GradDiff", "NPO"), ("BS-T", "BS-S")
BANDS = ("target", "high", "mid", "low")
REWORDED, CONTROL = "reworded", "reworded, wrong"
RESPONSES = ("target", "high", REWORDED, CONTROL)
_WORDS = {"above": "rises", "below": "falls", "neither": "cannot be told"}
# Looks that count as early: up to a fifth of the run.
EARLY = 2
# Fewer rows of a kind than this say nothing of a run.
FEWEST = 5
# Share of fluent answers that may be lost and naturalness still count as kept.
LOST = 0.05


def steps_of(record: Record) -> list[int]:
    """The steps at which a run was asked."""
    return sorted({int(key.split("/")[0]) for key in record if key.split("/")[0].isdigit()})


def last(record: Record, key: str) -> float:
    """A quantity at the end of the run."""
    return float(record[f"{steps_of(record)[-1]}/{key}"])


def runs_of(records: Sequence[Record], method: str) -> list[Record]:
    """The runs of one method, by seed."""
    return sorted((r for r in records if r["method"] == method), key=lambda r: r["seed"])


def reference(records: Sequence[Record], name: str) -> Record:
    """The original or the retrained model."""
    return next(r for r in records if r["method"] == name)


def gains(records: Sequence[Record], run: Record, response: str) -> list[float]:
    """Change of log p of a response since before the run, at every step asked."""
    before = reference(records, "original")[f"squeezing/{response}"]
    return [run[f"{step}/squeezing/{response}"] - before for step in steps_of(run)]


def told(found: Interval, bar: float = 0.0) -> str:
    """Above, below, or neither."""
    return "above" if found.low > bar else "below" if found.high < bar else "neither"


def spelt(found: Interval, digits: int = 2) -> str:
    """A mean with its interval."""
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def spelt_share(found: Interval) -> str:
    """The same of a share, cut at 0 and 1, which it cannot leave."""
    return spelt(Interval(found.mean, max(0.0, found.low), min(1.0, found.high), found.n))


def rows_of(records: Sequence[Record]) -> list[Row]:
    """Rows for the figures."""
    rows: list[Row] = []
    for method in dict.fromkeys(r["method"] for r in records):
        runs = runs_of(records, method)
        states = (
            {"equal": "answers", "raw": "answers"}
            if method in ("original", "retrained")
            else {"equal": "equal/answers"}
        )
        for state, place in states.items():
            rows += [_row(method, "answers", kind, [r[f"{place}/{kind}"] for r in runs], state) for kind in KINDS]
        if method in ("original", "retrained"):
            continue
        rows += [_row(method, "answers", kind, [last(r, f"answers/{kind}") for r in runs], "raw") for kind in KINDS]
        start = reference(records, "original")
        for response in BANDS:
            rows.append(_row(method, "squeezing", response, [start[f"squeezing/{response}"]], item=0))
            rows += [
                _row(method, "squeezing", response, [r[f"{s}/squeezing/{response}"] for r in runs], item=s)
                for s in steps_of(runs[0])
            ]
        for response in ("target", REWORDED, CONTROL):
            changes = [gains(records, run, response) for run in runs]
            rows.append(_row(method, "gain", response, [0.0], item=0))
            rows += [
                _row(method, "gain", response, [change[k] for change in changes], item=s)
                for k, s in enumerate(steps_of(runs[0]))
            ]
    return rows


def _row(method: str, diagnostic: str, quantity: str, values: Sequence[float], on: str = "", **where: Any) -> Row:
    """Mean over seeds; its ends are the lowest and the highest."""
    return Row(
        method, diagnostic, quantity, fmean(values), on, low=min(values), high=max(values), n=len(values), **where
    )


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
            method: interval([_over_run(run, kinds) for run in runs])
            for method in USUAL
            if (runs := runs_of(records, method))
        }
        beyond = [method for method, share in shares.items() if told(share, known) == "above"]
        occurs[group] = bool(beyond)
        listed = "; ".join(f"{method} {spelt_share(share)}" for method, share in shares.items())
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
            side = told(found, 0.5)
            verdict = {"above": "takes them for forgotten", "below": "sees through them", "neither": "cannot be told"}
            lines.append(
                f"- {metric} on {group} answers: {verdict[side]}; {spelt_share(found)} of them look forgotten "
                f"({found.n} runs)."
            )
            if group != "wrong":
                missed.append(side)
    both = all(occurs.values())
    verdict = (
        "holds here"
        if both and set(missed) == {"above"} and len(missed) == 2 * len(METRICS)
        else "does not hold here for every kind and metric"
        if "below" in missed
        else "cannot be told"
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
    return interval(shares) if len(shares) > 1 else None


def _b2(records: Sequence[Record]) -> list[str]:
    """Do likely responses of the target's meaning rise while it falls, early in the run and at its end?"""
    lines = ["**B2** (pushing the target down moves mass to likely responses of its meaning)", ""]
    early, late, mass = {}, {}, {}
    never = reference(records, "retrained")["answers/rephrased"]
    for method in USUAL:
        runs = runs_of(records, method)
        first = {name: interval([fmean(gains(records, r, name)[:EARLY]) for r in runs]) for name in RESPONSES}
        ends = {name: interval([gains(records, r, name)[-1] for r in runs]) for name in RESPONSES}
        shares = interval([_over_run(run, ("rephrased",)) for run in runs])
        early[method], late[method] = told(first[REWORDED]), told(ends[REWORDED])
        mass[method] = told(shares, never)
        lines.append(
            f"- {method}, first {EARLY} looks (mean): target {spelt(first['target'])} nats; the same fact in other "
            f"words {spelt(first[REWORDED])} ({_WORDS[early[method]]}), those words with a wrong value "
            f"{spelt(first[CONTROL])}; likely samples {spelt(first['high'])}. At the end: target "
            f"{spelt(ends['target'])}, other words {spelt(ends[REWORDED])} ({_WORDS[late[method]]}), with a wrong "
            f"value {spelt(ends[CONTROL])}. Greedy answers that say the fact in other words, mean over the run: "
            f"{spelt_share(shares)}; retrained {never:.2f}."
        )
    for when, outcome in (("early in the run log-probability rises", early), ("at the end it has risen", late)):
        lines.append(f"- The same fact in other words, {when}: {_overall(outcome)}.")
    lines.append(f"- Answers that say it in other words, more than a model that never knew: {_overall(mass)}.")
    return [*lines, ""]


def _overall(outcome: Mapping[str, str]) -> str:
    """One verdict where the methods agree, else by method."""
    words = {"above": "holds here", "below": "does not hold here", "neither": "cannot be told"}
    if len(set(outcome.values())) == 1:
        return words[next(iter(outcome.values()))]
    return "; ".join(f"{method}: {words[side]}" for method, side in outcome.items())


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
                    pairs = zip(runs, theirs, strict=True)
                    apart = interval([share(a, GROUPS[group]) - share(b, GROUPS[group]) for a, b in pairs])
                    word = {"above": "more than", "below": "less than", "neither": "cannot be told apart from"}
                    parts.append(f"{word[told(apart)]} {other} ({spelt(apart)})")
                own = fmean(share(r, GROUPS[group]) for r in runs)
                lines.append(f"- {method}, {group} answers {state}: {own:.2f}; {', '.join(parts)}.")
        falls = {name: _falls(records, runs, name) for name in ("target", "high", REWORDED)}
        theirs_too = [(name, *_falls(records, rivals["NPO"], name)) for name in falls]
        lines.append(
            f"- {method}, monotone: {_overall({method: 'above' if _whole(falls) else 'below'})}; "
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
    kept = interval(values)
    word = {"above": "holds here", "below": "does not hold here", "neither": "cannot be told"}
    return (
        f"- {method}, naturalness {state}: {word[told(kept, 1 - LOST)]} (fluent {spelt_share(kept)}; kept means above "
        f"{1 - LOST:g})."
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
        for method in dict.fromkeys(r["method"] for r in records):
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
