"""Speed-ups by system and published shape: what was published beside what was measured."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.records import systems
from analysis.rendering.style import look
from analysis.rendering.text import tokens
from analysis.selection import published, reporting_machine, views
from analysis.standard.maps import Cell, Map, maps_of, one_round
from analysis.statistics.intervals import Interval


def grid(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Two maps beside each other, one row per system, one column per shape; over the base.

    Of several machines the one that measured most cells.
    """
    base, shapes = published.speedup_base(experiment), published.shapes(experiment)
    view, measured = reporting_machine.fullest(frame, experiment, machine, _measured)
    # Batch and length; the batch that was measured stands below where it is another one.
    columns = [f"{tokens(n)}\nb{batch}" for batch, n in shapes]
    theirs: dict[tuple[str, str], Cell] = {}
    ours: dict[tuple[str, str], Cell] = {}
    for system in _systems(experiment):
        name = look(system).label
        for column, shape in zip(columns, shapes, strict=True):
            old = published.value(experiment, system, *shape, "speedup")
            if old is not None:
                theirs[name, column] = Cell(old)
            if (system, shape) in measured:
                ours[name, column] = Cell.measured(measured[system, shape])
    rows = list(dict.fromkeys(name for name, _ in [*theirs, *ours]))
    batches = {(batch, n): view.batch_for(batch, n) for batch, n in shapes}
    others = [
        f"{tokens(n)}: {own}" for (batch, n), own in batches.items() if own not in (None, batch)
    ]
    note = (
        f"Times as fast as {published.name(base)}: blue faster, orange slower, grey where the 95 % "
        "interval holds 1, hatched without a figure. Columns: length (tokens), batch."
    )
    note += f" Measured at another batch: {', '.join(others)}." if others else ""
    maps = [
        Map(f"published, {published.CARD}", rows, columns, theirs),
        Map(f"measured, {view.device}", rows, columns, ours),
    ]
    return maps_of([maps] if rows else [], note + one_round(maps))


def _systems(experiment: str) -> list[str]:
    base = published.speedup_base(experiment)
    return [system for system in systems.of_experiment(experiment) if system != base]


def _measured(view: views.View) -> dict[tuple[str, tuple[int, int]], Interval]:
    """(system, published batch and length) -> the ratio measured there, or nearest to there."""
    base, found = published.speedup_base(view.experiment), {}
    for batch, n in published.shapes(view.experiment):
        own = view.batch_for(batch, n)
        below = view.cell(base, own, n)
        for system in _systems(view.experiment):
            gain = views.ratio(below, view.cell(system, own, n))
            if gain is not None:
                found[system, (batch, n)] = gain
    return found
