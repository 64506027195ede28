"""Tables of `backends`: every dense backend by length, head size and type."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from analysis.records import systems
from analysis.rendering.table import Cell, Table, brief
from analysis.rendering.text import number, tokens
from analysis.selection import published, rates, views
from analysis.selection.row_index import RowIndex
from analysis.standard import cells, in_words
from analysis.standard.beside import named
from analysis.standard.cells import time_cell
from analysis.standard.quantities import Quantity

SHAPE = ["dtype", "is_causal", "heads", "head_dim", "batch", "seq_len"]
BASE = published.speedup_base("backends")


def times(frame: pd.DataFrame, machine: str) -> Table:
    """Forward times, one column per backend."""
    note = "Median time (ms); its interval is in the CSV."
    return _matrix(frame, machine, "forward", "forward times", _time, note)


def training(frame: pd.DataFrame, machine: str) -> Table:
    """Forward and backward times, one column per backend."""
    note = "Median time (ms); its interval is in the CSV."
    return _matrix(frame, machine, "forward_backward", "forward and backward times", _time, note)


def useful(frame: pd.DataFrame, machine: str) -> Table:
    """Useful FLOP/s of the forward pass, one column per backend, beside the matmul ceiling."""
    view = views.view(frame, "backends", machine)
    size, name = rates.unit(view.rows["matmul_flops_per_s"].max())

    def cell(row: pd.Series, rows: pd.DataFrame) -> Cell:
        return brief(cells.cell(Quantity(rates.useful(row).over(size))))

    def ceiling(own: pd.DataFrame) -> Cell:
        found = own["matmul_flops_per_s"].median() / size
        return None if pd.isna(found) else f"{number(found)} {name}"

    note = (
        "Useful FLOP/s in the unit of the ceiling; the interval is in the CSV. Ceiling: a square "
        "matrix product in the same type, measured beside each case (median)."
    )
    return _matrix(frame, machine, "forward", "forward rates", cell, note, ("Ceiling", ceiling))


def worth(frame: pd.DataFrame, machine: str) -> Table:
    """How many times as fast as attention that writes its scores down, one column per backend."""

    def cell(row: pd.Series, rows: pd.DataFrame) -> Cell:
        return cells.ratio_cell(views.dense_counterpart(rows, row, BASE), row)

    def base(own: pd.DataFrame) -> Cell:
        same = own[own["system"] == BASE]
        return None if same.empty else brief(time_cell(same.iloc[0]))

    name = published.name(BASE)
    return _matrix(
        frame,
        machine,
        "forward",
        "what fused attention is worth",
        cell,
        f"Speed over {name.lower()}, which writes its scores down; forward, 95 % intervals.",
        (f"{name} (ms)", base),
        without=BASE,
    )


def _matrix(
    frame: pd.DataFrame,
    machine: str,
    pass_: str,
    title: str,
    cell: Callable[[pd.Series, pd.DataFrame], Cell],
    note: str,
    last: tuple[str, Callable[[pd.DataFrame], Cell]] | None = None,
    without: str | None = None,
) -> Table:
    """One row per shape, one column per backend; `cell` gets a timed record and all of its pass.

    What has no time says why in words; a backend that was timed nowhere has no column, nor has
    `without`. `last`: one more column, made of all records of the row. The prose's
    type comes first.
    """
    view = views.view(frame, "backends", machine)
    rows = view.rows[view.rows["pass"] == pass_]
    timed = rows[(rows["status"] == "ok") & (rows["system"] != without)]
    shown = systems.ordered(timed["system"])
    body: list[tuple[Cell, ...]] = []
    main = view.setting.dtype
    groups = sorted(rows.groupby(SHAPE), key=lambda group: (group[0][0] != main, group[0]))
    index = RowIndex(rows, (*SHAPE, "system"))
    for shape, own in groups:
        _, _, heads, head_dim, batch, n = shape
        line: list[Cell] = [
            in_words.case(own.iloc[0], "type", "causal"),
            f"{batch} × {heads} × {head_dim}",
            tokens(n),
        ]
        for system in shown:
            row = index.first(*shape, system)
            if row is None:
                line.append(None)
            elif row["status"] != "ok":
                line.append(in_words.outcome(row))
            else:
                line.append(cell(row, rows))
        line += [last[1](own)] if last else []
        if any(cell is not None for cell in line[3:]):
            body.append(tuple(line))
    columns = ("Case", "Shape", "Length", *map(named, shown))
    columns += (last[0],) if last else ()
    recorded = systems.ordered(rows["system"])
    absent = [published.name(s) for s in recorded if s not in (*shown, without)]
    where = f"{note} Shape: batch × heads × head size. Measured: {view.device}."
    if absent:
        where += f" Timed nowhere here: {', '.join(absent)}."
    return Table(f"Backends, {title}", columns, body, where)


def _time(row: pd.Series, rows: pd.DataFrame) -> Cell:
    return brief(time_cell(row))
