"""What every experiment with a series over length shows, by name.

A figure is drawn by a function of the frame of `records.load`, an experiment and a machine, which
returns a matplotlib figure that `style.save` writes. No pyplot: nothing is left open, and no
display is needed. A table is made by a function of the frame and a machine.
"""

from __future__ import annotations

from collections.abc import Callable

from analysis.standard import error, growth
from analysis.standard.by_machine import ByMachine
from analysis.standard.tables import censored, machines, scaling, training

FIGURES = {"time": growth.time, "memory": growth.memory, "error": error.error}


def tables(experiment: str) -> dict[str, Callable]:
    """The tables of growth, training, cases without a time, and machines."""
    return {
        "scaling": scaling(experiment),
        "training": ByMachine(training(experiment), experiment, 4),
        "censored": censored(experiment),
        "machines": machines(experiment),
    }
