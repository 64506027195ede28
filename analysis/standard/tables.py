"""Tables that every experiment has: growth, training, cases without a time, machines."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from analysis.records import frame as records
from analysis.records import systems
from analysis.rendering.table import Cell, Table
from analysis.rendering.text import DASH, span, title
from analysis.selection import published, views
from analysis.standard import in_words
from analysis.standard.cells import exponent_cell, memory_cell, ratio_cell, time_cell


def scaling(experiment: str) -> Callable[[pd.DataFrame, str], Table]:
    """Fitted growth of time and memory over the length series of every machine."""

    def make(frame: pd.DataFrame, machine: str) -> Table:
        rows: list[tuple[Cell, ...]] = []
        is_cut = False
        for view in views.all_views(frame, experiment, machine):
            found = view.series()
            is_cut = is_cut or len(found) >= views.MOST_SERIES
            for series in found:
                for system in series.systems:
                    time, memory = (series.growth(system, q) for q in ("time", "memory"))
                    if time is None and memory is None:
                        continue
                    rows.append(
                        (
                            view.device,
                            in_words.case(vars(series)),
                            f"{series.lengths[0]}–{series.lengths[-1]}",
                            published.name(system),
                            *map(exponent_cell, (time, memory)),
                            time.model if time else DASH,
                        )
                    )
        columns = ("Machine", "Case", "Lengths", "System", "Time: k", "Memory: k", "Time: model")
        note = (
            "k of a power of the length, with a constant beside it where at least four "
            "lengths allow one; 95 % interval. Points out of memory or time are left out."
        )
        if is_cut:
            note += f" Of each machine at most {views.MOST_SERIES} series, nearest to published."
        return Table(f"{title(experiment)}, growth with length", columns, rows, note)

    return make


def training(experiment: str) -> Callable[[pd.DataFrame, str], Table]:
    """Forward and backward passes together, against dense attention where it was measured."""

    def make(frame: pd.DataFrame, machine: str) -> Table:
        view = views.view(frame, experiment, machine)
        rows = view.rows[view.rows["pass"] == "forward_backward"]
        rows = rows.sort_values(["dtype", "is_causal", "seq_len", "batch", "path"], kind="stable")
        body: list[tuple[Cell, ...]] = []
        for _, row in rows.iterrows():
            dense = views.dense_counterpart(rows, row)
            body.append(
                (
                    published.name(row["system"]),
                    str(row["seq_len"]),
                    str(row["batch"]),
                    in_words.case(row, "type", "causal"),
                    time_cell(row),
                    memory_cell(row),
                    None if row["system"] == published.DENSE else ratio_cell(dense, row),
                )
            )
        columns = ("System", "Length", "Batch", "Case", "Time (ms)", "Memory (MiB)", "Over dense")
        note = f"Measured: {view.device}. Nothing was published."
        return Table(f"{title(experiment)}, forward and backward", columns, body, note)

    return make


def censored(experiment: str) -> Callable[[pd.DataFrame, str], Table]:
    """Every case of every machine that has no time, those of one reason together."""

    def make(frame: pd.DataFrame, machine: str) -> Table:
        rows = records.of_experiment(frame, experiment)
        lost = rows[rows["status"] != "ok"]
        places = {system: place for place, system in enumerate(systems.ordered(lost["system"]))}
        lost = lost.assign(place=lost["system"].map(places))
        body: list[tuple[Cell, ...]] = []
        for (where, _, status, reason), own in lost.groupby(
            ["machine", "place", "status", "reason"]
        ):
            body.append(
                (
                    where,
                    published.name(own.iloc[0]["system"]),
                    span(own["seq_len"]),
                    ", ".join(sorted(set(own["dtype"]))),
                    str(len(own)),
                    status,
                    reason,
                )
            )
        columns = ("Machine", "System", "Lengths", "Types", "Cases", "Status", "Reason")
        note = "" if body else "Every case was timed."
        return Table(f"{title(experiment)}, cases without a time", columns, body, note)

    return make


def machines(experiment: str) -> Callable[[pd.DataFrame, str], Table]:
    """The machines whose records are shown."""

    def make(frame: pd.DataFrame, machine: str) -> Table:
        rows = records.of_experiment(frame, experiment)
        first = records.reporting_machine(rows, machine)
        body: list[tuple[Cell, ...]] = []
        for name in records.machines(rows, first):
            own = rows[rows["machine"] == name]
            row = own.iloc[0]
            commits = sorted({str(c)[:10] for c in own["git_commit"] if isinstance(c, str)})
            body.append(
                (name, row["device"], row["cpu"], str(row["cores"]), str(row["torch"]),
                 ", ".join(sorted(set(own["tier"]))), f"{sum(own['status'] == 'ok')}/{len(own)}",
                 ", ".join(commits) or DASH)
            )  # fmt: skip
        columns = ("Machine", "Device", "CPU", "Cores", "torch", "Tier", "Timed", "Commit")
        note = "Timed: cases with a time, of all. The text reports the first machine."
        return Table(f"{title(experiment)}, machines", columns, body, note)

    return make
