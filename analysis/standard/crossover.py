"""Who wins where: dense attention against each system, by length; forward and training."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.rendering.style import look
from analysis.rendering.text import tokens
from analysis.selection import published, views
from analysis.standard.in_words import SHORT
from analysis.standard.maps import Cell, Map, maps_of, one_round
from analysis.standard.panels import title_of

NOTE = (
    "Times as fast as dense attention. Blue: the system wins; orange: dense wins; grey: the 95 % "
    "interval holds 1. Hatched: not measured, or out of memory (oom) or time (late); of dense "
    "attention alone: no dense."
)


def crossover(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """One map per machine, series and pass; one row per system, one column per length."""
    bands = []
    for view in views.all_views(frame, experiment, machine):
        for pass_ in ("forward", "forward_backward"):
            for series in view.series(pass_):
                found = _map(series)
                if found is not None:
                    bands.append([found])
    return maps_of(bands, NOTE + one_round([one for band in bands for one in band]))


def _map(series: views.Series) -> Map | None:
    cells, rows = {}, []
    for system in series.systems:
        if system == published.DENSE:
            continue
        rows.append(look(system).label)
        for n in series.lengths:
            cell = _cell(series.row(published.DENSE, n), series.row(system, n))
            cells[rows[-1], tokens(n)] = cell
    if all(cell.verdict == "none" for cell in cells.values()):
        return None
    columns = [tokens(n) for n in series.lengths]
    return Map(title_of(series), rows, columns, cells, "sequence length (tokens)")


def _cell(dense: pd.Series | None, own: pd.Series | None) -> Cell:
    gain = views.ratio(dense, own)
    if gain is not None:
        return Cell.measured(gain)
    if own is None or own["status"] != "ok":
        return Cell(word="" if own is None else SHORT[own["status"]])
    return Cell(word="no dense")
