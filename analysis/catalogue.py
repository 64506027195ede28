"""What each experiment shows, found by its folder: `analysis/experiments/<name>/contents.py`.

That module has FIGURES and TABLES, by name, and NUMBERS: functions of the frame and the
`views.View` of a machine that return number entries by key, besides those that every experiment
has. `layout.yaml` beside it is read by `selection.published`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

import pandas as pd

from analysis.standard import numbers as standard


def figures(experiment: str) -> Mapping[str, Callable]:
    """Name -> function that draws the figure of a frame, the experiment and a machine."""
    return _contents(experiment).FIGURES


def tables(experiment: str) -> Mapping[str, Callable]:
    """Name -> function that makes the table of a frame and a machine."""
    return _contents(experiment).TABLES


def numbers(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> dict[str, dict]:
    """Key -> number entry of the experiment: see `analysis.standard.numbers.of_experiment`."""
    return standard.of_experiment(frame, experiment, machine, _contents(experiment).NUMBERS)


def _contents(experiment: str):
    return import_module(f"analysis.experiments.{experiment}.contents")
