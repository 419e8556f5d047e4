"""Every method unlearns, is mixed with the original to equal retention, measured and attacked."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from analyses.calibrated.claims import judged
from analyses.calibrated.measures import measuring
from analyses.calibrated.methods import settings, unlearned
from analyses.calibrated.pictures import draw
from analyses.shared import choice_of, conclude, finished
from analyses.subjects import Options, Subject, subject
from probe.data import encode
from probe.methods.uwc import mixed, uwc
from probe.modes import threads
from probe.sweep import load, sweep

REFERENCES = ("original", "retrained")
ALPHAS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """What is run."""

    share: float = 0.95
    """Share of the original's retain extraction strength that a calibrated model keeps."""
    methods: tuple[str, ...] = ()
    """Only these methods; all if empty."""


def study(arguments: Arguments, chosen: Subject) -> Any:
    """The function of one cell: unlearn, measure as it is and calibrated, attack both."""
    rows = measuring(chosen)
    forget = encode(chosen.tokenizer, rows.held, template=chosen.split.template, max_length=chosen.split.max_length)

    def state(name: str, model: nn.Module) -> dict[str, float]:
        found = {f"{name}/{side}/{k}": v for side in ("forget", "retain") for k, v in rows.side(model, side).items()}
        return found | {f"{name} + {k}": v for k, v in rows.attacked(model).items()}

    def run(method: str, seed: int, settings: Mapping[str, Any]) -> dict[str, float]:
        if method in REFERENCES:
            model = chosen.original if method == "original" else chosen.retrained
            model = copy.deepcopy(model)
            return state("raw", model)
        model = unlearned(chosen, method, seed, dict(settings))
        found = uwc(chosen.original, model, lambda m: rows.strength(m, rows.choosing), share=arguments.share)
        result = {"alpha": found.alpha, "retain score": found.score, "retain bar": found.bar}
        for alpha in ALPHAS:
            with mixed(chosen.original, model, alpha):
                for side, batch in (("forget", forget), ("retain", rows.choosing)):
                    result[f"path/{alpha}/{side}"] = rows.strength(chosen.original, batch)
        with mixed(chosen.original, model, found.alpha):
            calibrated = copy.deepcopy(chosen.original)
        return result | state("raw", model) | state("calibrated", calibrated)

    return run


def main(arguments: Arguments) -> None:
    """Run what is missing, then draw and judge."""
    out = arguments.folder("calibrated")
    known = settings(arguments.subject)
    choice_of(arguments.methods, known)
    with threads(1):
        chosen = subject(arguments.subject, arguments.where)
        references = REFERENCES if chosen.retrained is not None else REFERENCES[:1]
        cells: list[dict[str, Any]] = [{"method": name, "seed": 0, "settings": {}} for name in references]
        names = arguments.methods or tuple(known)
        cells += [{"method": n, "seed": k, "settings": known[n]} for k in range(arguments.seeds) for n in names]
        rows = measuring(chosen)
        asking = asdict(rows.asking)
        sweep(study(arguments, chosen), cells, out, identity=chosen.identity() | asking | {"share": arguments.share})
    records = load(out)
    runs = finished(records)
    draw(runs, out, arguments.subject)
    conclude(out, judged(runs, arguments.subject, share=arguments.share, note=rows.note), records)
