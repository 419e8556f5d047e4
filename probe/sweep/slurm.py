"""A sweep on a Slurm cluster: one array job, one shard an element."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probe.sweep.journal import replace, writable


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """What each element of the array is given.

    Args:
        shards: over how many elements the cells are spread.
        memory: of one, as sbatch's --mem takes it: "32G".
        time: of one, as --time takes it: "08:00:00". A cell must fit into it.
        cpus: cores of one.
        gpus: GPUs of one.
        partition, account: as the cluster asks for them.
        options: further options of sbatch, "--constraint=a100".
    """

    shards: int
    memory: str
    time: str
    cpus: int = 1
    gpus: int = 0
    partition: str | None = None
    account: str | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("shards", 1), ("cpus", 1), ("gpus", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for value in (self.memory, self.time, self.partition or "", self.account or "", *self.options):
            if not value.isprintable():
                raise ValueError(f"{value!r} is not one line")
        odd = [option for option in self.options if not option.startswith("-")]
        if odd:
            raise ValueError(f"options are sbatch's own, such as --constraint=a100; got {odd[0]!r}")


def script(asked: Slurm, file: Path, out: Path, elements: Sequence[int]) -> str:
    """The text of the sbatch script. A job that is preempted is queued again and goes on where it was.

    Args:
        asked: resources.
        file: of the sweep.
        out: folder of the sweep, which all nodes must see.
        elements: shards that have cells left, counted from 1.
    """
    logs = out.resolve() / "slurm"
    options = {
        "job-name": re.sub(r"[^\w.-]", "_", file.stem),
        "array": ",".join(map(str, elements)),
        "ntasks": "1",
        "mem": asked.memory,
        "time": asked.time,
        "cpus-per-task": str(asked.cpus),
        "gres": f"gpu:{asked.gpus}" if asked.gpus else None,
        "partition": asked.partition,
        "account": asked.account,
        "chdir": str(Path.cwd()),
        "output": str(logs / "%A_%a.log"),
        "open-mode": "append",
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{name}={shlex.quote(value)}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in asked.options), ""]
    command = [sys.executable, "-m", "probe", "sweep", str(file.resolve()), "--out", str(out.resolve()), "--shard"]
    lines += [
        'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
        # exec: signals that Slurm sends must reach Python, not a shell above it.
        f'exec {shlex.join(command)} "$SLURM_ARRAY_TASK_ID/{asked.shards}"',
    ]
    return "\n".join(lines) + "\n"


def submit(text: str, out: Path) -> str:
    """Write the script beside the results and hand it to sbatch.

    Args:
        text: of the script.
        out: folder of the sweep.

    Returns:
        the job's number.

    Raises:
        ValueError: no sbatch here, one that refuses, or a folder that cannot be written.
    """
    path = out / "slurm" / "sweep.sbatch"
    with writable(out):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, text)
    try:
        done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError(f"no sbatch here; submit {path} where Slurm is") from None
    if done.returncode:
        raise ValueError(f"sbatch refused {path}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]
