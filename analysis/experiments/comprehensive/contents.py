"""What the experiment `comprehensive` shows, by name."""

from analysis.experiments.comprehensive import tables
from analysis.standard import contents, shapes, speedup
from analysis.standard.by_machine import ByMachine

EXPERIMENT = "comprehensive"
FIGURES = contents.FIGURES | {"speedup": speedup.speedup, "grid": shapes.grid}
TABLES = (
    {"times": ByMachine(tables.times, EXPERIMENT, 3)}
    | {f"summary-{n}": ByMachine(tables.summary(n), EXPERIMENT) for n in (2048, 4096, 8192)}
    | contents.tables(EXPERIMENT)
)
NUMBERS = ()
