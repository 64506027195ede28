"""What the experiment `block_sparse` shows, by name."""

from analysis.experiments.block_sparse import density, gain, tables
from analysis.standard import contents, rate, roofline, shapes
from analysis.standard.by_machine import ByMachine

EXPERIMENT = "block_sparse"
FIGURES = contents.FIGURES | {
    "speedup": gain.gain,
    "rate": rate.rate,
    "density": density.density,
    "grid": shapes.grid,
    "roofline": roofline.roofline,
}
_CHOSEN = ("Batch", "Density asked", "Density realised")
TABLES = contents.tables(EXPERIMENT) | {
    "comparison": ByMachine(tables.comparison, EXPERIMENT, 3, _CHOSEN),
    "lengths": ByMachine(tables.by_length("forward"), EXPERIMENT, 4),
    "training": ByMachine(tables.by_length("forward_backward"), EXPERIMENT, 4),
    "patterns": ByMachine(tables.patterns, EXPERIMENT, 5, ("Density realised",)),
    "crossover": tables.crossover,
}
NUMBERS = ()
