"""``python -m analyses.tofu_stories``."""

from functools import partial
from pathlib import Path

import tyro

from analyses.shared import command
from analyses.stories import Finetuning, Unlearning, study
from analyses.subjects import Where
from probe.report.run import run_report
from probe.report.settings import Settings

# What the report measures here: five layers, answers of up to 190 tokens.
SETTINGS = Settings(sample=80, generated=20, max_new_tokens=190, batch_size=16, steer_layer=2)


def main(
    *,
    out: Path = Path("results/tofu_stories"),
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),
    finetuning: Finetuning = Finetuning(),
    unlearning: Unlearning = Unlearning(),
) -> None:
    """Run all of it.

    Args:
        out: folder of the run.
        where: the pretrained model, its data, and what was trained on them.
        finetuning: how models learn TOFU.
        unlearning: how RMU and NPO unlearn.
    """
    if not (where.shared / "models" / "stories260K").is_dir():
        raise SystemExit(f"no models/stories260K in {where.shared}; pass --shared DIR")
    print(run_report(partial(study, where.shared, where.cache, finetuning, unlearning), SETTINGS, out))


if __name__ == "__main__":
    command(__package__, main, prefixes=True)
