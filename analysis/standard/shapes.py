"""Speed-ups by system and published shape: what was published beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from analysis.records import systems
from analysis.rendering.style import look
from analysis.rendering.text import tokens
from analysis.selection import published, reporting_machine, views
from analysis.standard import in_words
from analysis.standard.maps import Cell, Map, maps_of, one_round
from analysis.statistics.intervals import Interval


def grid(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Two maps beside each other, over the base: what was published, and the same measured.

    One row per system and one column per shape with a published ratio. Of several machines the one
    that measured most cells.
    """
    base = published.speedup_base(experiment)
    view, measured = reporting_machine.fullest(frame, experiment, machine, _measured)
    theirs = {
        (system, shape): old
        for system in _systems(experiment)
        for shape in published.shapes(experiment)
        if (old := published.value(experiment, system, *shape, "speedup")) is not None
    }
    shapes = [s for s in published.shapes(experiment) if any(s == at for _, at in theirs)]
    columns = {(batch, n): f"{tokens(n)}\nb{batch}" for batch, n in shapes}
    names = {system: look(system).label for system, _ in theirs}

    def cells(found: Mapping, made: Callable) -> dict[tuple[str, str], Cell]:
        return {
            (names[system], columns[shape]): made(found[system, shape])
            for system, shape in theirs
            if (system, shape) in found
        }

    batches = {(batch, n): view.batch_for(batch, n) for batch, n in shapes}
    others = [
        f"{tokens(n)}: {own}" for (batch, n), own in batches.items() if own not in (None, batch)
    ]
    note = (
        f"Times as fast as {in_words.base(base)}: blue faster, orange slower, grey where the "
        "95 % interval holds 1, hatched without a figure. Columns: length (tokens), batch."
    )
    note += f" Measured at another batch: {', '.join(others)}." if others else ""
    rows, across = [*names.values()], [*columns.values()]
    maps = [
        Map(f"published, {published.CARD}", rows, across, cells(theirs, Cell)),
        Map(f"measured, {view.device}", rows, across, cells(measured, Cell.measured)),
    ]
    return maps_of(maps if names else [], note + one_round(maps))


def _systems(experiment: str) -> list[str]:
    base = published.speedup_base(experiment)
    return [system for system in systems.of_experiment(experiment) if system != base]


def _measured(view: views.View) -> dict[tuple[str, tuple[int, int]], Interval]:
    """(system, published batch and length) -> the ratio measured there, or nearest to there.

    Only where a ratio was published.
    """
    base, found = published.speedup_base(view.experiment), {}
    for batch, n in published.shapes(view.experiment):
        own = view.batch_for(batch, n)
        below = view.cell(base, own, n)
        for system in _systems(view.experiment):
            old = published.value(view.experiment, system, batch, n, "speedup")
            gain = views.ratio(below, view.cell(system, own, n)) if old is not None else None
            if gain is not None:
                found[system, (batch, n)] = gain
    return found
