"""What the experiment `extreme` shows, by name."""

from analysis.experiments.extreme import figures, numbers, tables
from analysis.standard import contents, error
from analysis.standard.by_machine import ByMachine

EXPERIMENT = "extreme"
FIGURES = {"passes": figures.passes, "error": error.error}
TABLES = contents.tables(EXPERIMENT) | {
    "lengths": ByMachine(tables.lengths, EXPERIMENT, 2),
    "dense": ByMachine(tables.dense, EXPERIMENT, 1, ("Dense is",)),
    "sources": ByMachine(tables.sources, EXPERIMENT, 2),
}
NUMBERS = (numbers.of_streams,)
