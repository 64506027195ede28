"""What the experiment `quality` shows, by name."""

from analysis.experiments.quality import (
    figure_curves,
    figure_frontier,
    figure_length,
    figure_recall,
    numbers,
    tables,
)
from analysis.standard.by_machine import ByMachine
from analysis.standard.tables import censored, machines

EXPERIMENT = "quality"
FIGURES = {
    "length": figure_length.length,
    "recall": figure_recall.recall,
    "frontier": figure_frontier.frontier,
    "curves": figure_curves.curves,
}
TABLES = {
    "text": ByMachine(tables.text, EXPERIMENT, 2, tables.COSTS),
    "recall": ByMachine(tables.recall, EXPERIMENT, 3, tables.COSTS),
    "choices": ByMachine(tables.choices_table, EXPERIMENT, 4, ("FLOPs, over the second",)),
    "data": ByMachine(tables.data, EXPERIMENT, 3),
    "censored": censored(EXPERIMENT),
    "machines": machines(EXPERIMENT),
}
NUMBERS = (numbers.of_lessons,)
