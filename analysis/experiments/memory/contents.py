"""What the experiment `memory` shows, by name."""

from analysis.experiments.memory import figures, numbers, tables
from analysis.standard import error
from analysis.standard.by_machine import ByMachine
from analysis.standard.tables import censored, machines

EXPERIMENT = "memory"
FIGURES = {"scaling": figures.scaling, "error": error.error}
TABLES = {
    "peaks": ByMachine(tables.peaks, EXPERIMENT, 3),
    "per-token": ByMachine(tables.per_token, EXPERIMENT, 1, ("Batch", "Longest")),
    "vram": ByMachine(tables.vram, EXPERIMENT, 2),
    "growth": tables.growth,
    "censored": censored(EXPERIMENT),
    "machines": machines(EXPERIMENT),
}
NUMBERS = (numbers.of_peaks,)
