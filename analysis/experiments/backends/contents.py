"""What the experiment `backends` shows, by name."""

from functools import partial

from analysis.experiments.backends import tables
from analysis.standard import contents, rate, roofline
from analysis.standard.by_machine import ByMachine

EXPERIMENT = "backends"
FIGURES = contents.FIGURES | {"rate": rate.rate, "roofline": roofline.roofline}
_blocks = partial(ByMachine, experiment=EXPERIMENT, labels=3, fixed=("Ceiling",))
TABLES = contents.tables(EXPERIMENT) | {
    "times": _blocks(tables.times),
    "rates": _blocks(tables.useful),
    "worth": _blocks(tables.worth),
    "training": _blocks(tables.training),
}
NUMBERS = ()
