"""Tables of several machines: the rows of the first, then what others have that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import pandas as pd

from analysis import records, views
from analysis.table import Table
from analysis.text import DASH

Maker = Callable[[pd.DataFrame, str], Table]


def by_machine(make: Maker, experiment: str, labels: int = 1, fixed: Collection[str] = ()) -> Maker:
    """`make`, with a block for every machine that has something which those before it lack.

    labels: columns from the left that say what a row is of. fixed: columns that are not measured,
    besides those whose heading has "published". A further block has the rows that were measured
    there; its columns are those of the first, and its own after them. "auto" as the machine asks
    for blocks, an id for that machine alone.
    """

    def made(frame: pd.DataFrame, machine: str) -> Table:
        rows = records.of_experiment(frame, experiment)
        first = records.speaker(rows, machine)
        table = make(frame, first)
        if machine != "auto":
            return table
        blocks = [(first, table)]
        known = set(_measured(table, labels, fixed))
        for other in records.machines(rows, first)[1:]:
            found = make(frame, other)
            own = _measured(found, labels, fixed)
            if own.keys() - known:
                known |= own.keys()
                places = sorted(set(own.values()))
                blocks.append((other, replace(found, rows=[found.rows[i] for i in places])))
        if len(blocks) == 1:
            return table
        # A first machine without anything would head its own dashes.
        return _joined(blocks if _measured(table, labels, fixed) else blocks[1:], rows)

    return made


def _measured(table: Table, labels: int, fixed: Collection[str]) -> dict[tuple, int]:
    """What each measured cell is of -> the place of its row."""
    columns = [
        (place, name)
        for place, name in enumerate(table.columns)
        if place >= labels and "published" not in name.lower() and name not in fixed
    ]
    return {
        (*row[:labels], name): at
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
    row = rows[rows["machine"] == machine].iloc[0]
    return row["device"] if row["device_kind"] == "cuda" else f"{views.device(row)}, {row['cpu']}"
