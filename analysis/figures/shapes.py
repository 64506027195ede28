"""Speed-ups by system and published shape: what was published beside what was measured."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import published, systems, views
from analysis.drawing import look
from analysis.figures.maps import Cell, Map, maps_of
from analysis.text import tokens


def grid(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Two maps beside each other: a row a system, a column a shape; over the write-up's base."""
    view, base = views.view(frame, experiment, machine), published.base(experiment)
    shapes = published.shapes(experiment)
    # Batch and length; the batch that was measured stands below where it is another one.
    columns = [f"{tokens(n)}\nb{batch}" for batch, n in shapes]
    theirs: dict[tuple[str, str], Cell] = {}
    ours: dict[tuple[str, str], Cell] = {}
    batches = {
        column: view.batch_for(*shape) for column, shape in zip(columns, shapes, strict=True)
    }
    for system in [*systems.of_experiment(experiment), *published.without_variant(experiment)]:
        if system == base:
            continue
        name = look(system).label
        for column, (batch, n) in zip(columns, shapes, strict=True):
            old = published.figure(experiment, system, batch, n, "speedup")
            if old is not None:
                theirs[name, column] = Cell(old)
            below, own = (view.cell(one, batches[column], n) for one in (base, system))
            gain = views.ratio(below, own)
            if gain is not None:
                ours[name, column] = Cell.measured(gain)
    rows = list(dict.fromkeys(name for name, _ in [*theirs, *ours]))
    others = [
        f"{tokens(n)}: {batches[column]}"
        for column, (batch, n) in zip(columns, shapes, strict=True)
        if batches[column] not in (None, batch)
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
    return maps_of([maps] if rows else [], note)
