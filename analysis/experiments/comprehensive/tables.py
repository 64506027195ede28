"""Tables of the write-up `comprehensive`: all times, and a summary of each length."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd

from analysis.rendering.table import Cell, Table
from analysis.selection import published, views
from analysis.standard.beside import measured_on, named, plus_minus, printed, published_on, rows_of
from analysis.standard.cells import memory_cell, rate_cell, ratio_cell, time_cell

BASE = published.speedup_base("comprehensive")


def times(frame: pd.DataFrame, machine: str) -> Table:
    """Times of every system at the nine published shapes, published over measured."""
    view = views.view(frame, "comprehensive", machine)
    shown = _systems(view)
    rows: list[tuple[Cell, ...]] = []
    for batch, n in published.shapes("comprehensive"):
        old = printed("comprehensive", batch, n)
        rows.append((str(batch), str(n), "published", *(old(s, "time") for s in shown)))
        cells = [time_cell(view.cell(s, batch, n)) for s in shown]
        if any(cell is not None for cell in cells):
            rows.append((str(batch), str(n), "measured", *cells))
    columns = ("Batch", "Length", "Time (ms)", *map(named, shown))
    note = f"{_measured(view)} A shape with one line was not measured."
    return Table("Comprehensive, times", columns, rows, note)


def summary(n: int) -> Callable[[pd.DataFrame, str], Table]:
    """The summary table of one length at batch 1, with speed-ups over DilatedAttention."""

    def make(frame: pd.DataFrame, machine: str) -> Table:
        view = views.view(frame, "comprehensive", machine)
        old = printed("comprehensive", 1, n)
        base, dense = (view.cell(v, 1, n) for v in (BASE, published.DENSE))

        def published_time(system: str) -> float:
            return published.value("comprehensive", system, 1, n, "time") or math.inf

        rows = []
        for system in sorted(_systems(view), key=published_time):
            row = view.cell(system, 1, n)
            rows.append(
                (
                    published.name(system),
                    plus_minus(old(system, "time"), old(system, "std")),
                    time_cell(row),
                    rate_cell(row, "sequences/s"),
                    memory_cell(row),
                    old(system, "speedup"),
                    None if system == BASE else ratio_cell(base, row),
                    None if system == published.DENSE else ratio_cell(dense, row),
                )
            )
        return Table(
            f"Comprehensive, {n} tokens, batch 1",
            (
                "Implementation",
                "Time published (ms)",
                "Time measured (ms)",
                "Sequences/s measured",
                "Memory measured (MiB)",
                "Speed-up published",
                "Speed-up measured",
                "Speed-up over dense",
            ),
            rows,
            f"{_measured(view)} Published memory is 0 in every row.",
        )

    return make


def _measured(view: views.View) -> str:
    return f"{published_on(view)} {measured_on(view)}"


def _systems(view: views.View) -> list[str]:
    """Those of the write-up, then what was measured beside them."""
    known = rows_of(view)
    return sorted(known, key=lambda s: not published.value(view.experiment, s, 1, 2048, "time"))
