"""What studies share: their commands, models that are made once, numbers over seeds, and what a study leaves behind."""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro
from torch import nn

from probe.checkpoints import load_model, save_model
from probe.data import Batch
from probe.metrics.intervals import Interval, interval
from probe.metrics.memorisation import answer_stats
from probe.rows import Row

Record = Mapping[str, Any]
HOLDS, FAILS, UNKNOWN = "holds here", "does not hold here", "cannot be told"
# What a mean can be: of shares, probabilities and AUROCs; of their differences, and of correlations; of percents.
SHARE, DIFFERENCE, PERCENT, ANY = (0.0, 1.0), (-1.0, 1.0), (0.0, 100.0), (-math.inf, math.inf)


def command(package: str | None, *mains: Callable[..., Any], prefixes: bool = False) -> None:
    """Run what ``python -m PACKAGE`` names: its one function, or one of several by its module's name.

    Args:
        package: of the study; its docstring is the help.
        mains: functions whose annotations declare the options.
        prefixes: whether options inside others keep the outer one's name, as where two have the same.
    """
    prog, about = f"python -m {package}", sys.modules[str(package)].__doc__
    config = [] if prefixes else [tyro.conf.OmitArgPrefixes]
    if len(mains) == 1:
        tyro.cli(mains[0], prog=prog, description=about, config=config)
    else:
        parts = {main.__module__.rpartition(".")[2].replace("_", "-"): main for main in mains}
        tyro.extras.subcommand_cli_from_dict(parts, prog=prog, description=about, config=config)


def choice_of(chosen: Iterable[str], known: Iterable[str]) -> None:
    """Stop where a method was asked for that the study does not have."""
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise SystemExit(f"unknown methods: {', '.join(unknown)}; choose among {', '.join(known)}")


def cached(cache: Path, recipe: dict[str, Any], make: Callable[[], nn.Module], tokenizer: Any) -> Any:
    """The model that ``recipe`` describes, made only if no folder of that hash exists."""
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / key
    if not (folder / "recipe.json").is_file():
        # Written last: a folder without it was left by a kill and is made again.
        save_model(make(), folder, tokenizer=tokenizer)
        (folder / "recipe.json").write_text(json.dumps(recipe, indent=1))
    return load_model(folder)


def probability(model: nn.Module, batch: Batch) -> float:
    """Mean answer probability per token."""
    return float(answer_stats(model, batch).probability_N.mean())


def over_seeds(values: Iterable[float | None], within: tuple[float, float] = ANY) -> Interval:
    """Mean over seeds with its 95 % t-interval, cut where the mean cannot be; of no seeds at all, nobody knows."""
    known = [math.nan if value is None else float(value) for value in values]
    return interval(known, within=within) if known else Interval(math.nan, *within, 0)


def paired(first: Iterable[float], second: Iterable[float], within: tuple[float, float] = DIFFERENCE) -> Interval:
    """Mean of first - second, seed by seed, with its interval.

    Raises:
        ValueError: other numbers of seeds on the two sides.
    """
    return over_seeds((a - b for a, b in zip(first, second, strict=True)), within)


def verdict(found: Interval, claimed: int = 1, limit: float = 0.0) -> str:
    """Whether the whole interval lies on the claimed side of the limit."""
    side = found.side(limit)
    return UNKNOWN if side == 0 else HOLDS if side == claimed else FAILS


def methods_of(records: Sequence[Record]) -> list[str]:
    """Methods in the order in which they were run."""
    return list(dict.fromkeys(r["method"] for r in records))


def runs_of(records: Sequence[Record], method: str) -> list[Record]:
    """The runs of one method, by seed."""
    return sorted((r for r in records if r["method"] == method), key=lambda r: r["seed"])


def by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs of each method, in the order in which methods were run."""
    return {method: runs_of(records, method) for method in methods_of(records)}


def steps_of(record: Record) -> list[int]:
    """The steps at which a run was measured, of keys ``step/...``."""
    return sorted({int(key.split("/")[0]) for key in record if key.split("/")[0].isdigit()})


def seed_row(
    name: str,
    diagnostic: str,
    quantity: str,
    values: Iterable[float | None],
    on: str = "",
    *,
    within: tuple[float, float] = SHARE,
    **where: Any,
) -> Row:
    """Mean over seeds with its t-interval; one seed has no interval, and no seed no number."""
    found = over_seeds(values, within)
    low, high = (found.low, found.high) if found.n > 1 else (None, None)
    mean = found.mean if found.n else None
    return Row(name, diagnostic, quantity, mean, on, low=low, high=high, n=found.n, **where)


def range_row(name: str, diagnostic: str, quantity: str, values: Sequence[float], on: str = "", **where: Any) -> Row:
    """Mean over seeds; its ends are the lowest and the highest."""
    return Row(name, diagnostic, quantity, fmean(values), on, low=min(values), high=max(values), n=len(values), **where)


def finished(records: Iterable[Record]) -> list[Record]:
    """Records without those of runs that failed."""
    return [r for r in records if r["status"] != "failed"]


def conclude(out: Path, lines: Sequence[str], records: Iterable[Record], name: str = "claims.txt") -> None:
    """Write and print what a study found, and which of its runs failed."""
    failed = [r for r in records if r["status"] == "failed"]
    named = [f"failed: {r.get('method', r.get('part', 'run'))}, seed {r['seed']}: {r['error']}" for r in failed]
    text = "\n".join([*lines, *named]) + "\n"
    (out / name).write_text(text, encoding="utf-8")
    print(text, end="")
