from probe.sweep.cell import grid as grid
from probe.sweep.command import run_file as run_file
from probe.sweep.journal import load as load
from probe.sweep.lock import is_held as is_held
from probe.sweep.running import sweep as sweep
from probe.sweep.slurm import Slurm as Slurm
from probe.sweep.slurm import script as script
