"""Tables of several machines: the rows of the first, then what others have that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import pandas as pd

from analysis.records import frame as records
from analysis.rendering.table import Table
from analysis.rendering.text import DASH
from analysis.selection import views

Maker = Callable[[pd.DataFrame, str], Table]


@dataclass(frozen=True)
class ByMachine:
    """`make`, with a block for every machine that has something which those before it lack.

    labels: columns from the left that say what a row is of. fixed: columns that are not measured,
    besides those whose heading has "published". A further block has the rows that were measured
    there; its columns are those of the first, and its own after them. "auto" as the machine asks
    for blocks, an id for that machine alone.
    """

    make: Maker
    experiment: str
    labels: int = 1
    fixed: Collection[str] = ()

    def __call__(self, frame: pd.DataFrame, machine: str) -> Table:
        rows = records.of_experiment(frame, self.experiment)
        first = records.reporting_machine(rows, machine)
        table = self.make(frame, first)
        if machine != "auto":
            return table
        blocks = [(first, table)]
        known = set(self._measured(table))
        for other in records.machines(rows, first)[1:]:
            found = self.make(frame, other)
            own = self._measured(found)
            if own.keys() - known:
                known |= own.keys()
                places = sorted(set(own.values()))
                blocks.append((other, replace(found, rows=[found.rows[i] for i in places])))
        if len(blocks) == 1:
            return table
        # A first machine without anything would head its own dashes.
        return _joined(blocks if self._measured(table) else blocks[1:], rows)

    def _measured(self, table: Table) -> dict[tuple, int]:
        """What each measured cell is of -> the place of its row."""
        columns = [
            (place, name)
            for place, name in enumerate(table.columns)
            if place >= self.labels and "published" not in name.lower() and name not in self.fixed
        ]
        return {
            (*row[: self.labels], name): at
            for at, row in enumerate(table.rows)
            for place, name in columns
            if row[place] not in (None, DASH)
        }


def _joined(blocks: list[tuple[str, Table]], rows: pd.DataFrame) -> Table:
    columns = tuple(dict.fromkeys(name for _, table in blocks for name in table.columns))
    body, machines = [], []
    for machine, table in blocks:
        named = _named(rows, machine)
        for row in table.rows:
            cells = dict(zip(table.columns, row, strict=True))
            body.append(tuple(cells.get(name) for name in columns))
            machines.append(named)
    first = blocks[0][1]
    note = first.note
    if len(blocks) > 1:
        note = f"{note} Further blocks: other machines, where they measured more.".strip()
    return replace(first, columns=columns, rows=body, note=note, machines=tuple(machines))


def _named(rows: pd.DataFrame, machine: str) -> str:
    return views.device(rows[rows["machine"] == machine].iloc[0])
