"""Tables of `extreme`: streamed passes by length, dense attention beside them, ways to read."""

from __future__ import annotations

import pandas as pd

from analysis.experiments.extreme import views as extreme_views
from analysis.experiments.extreme.views import GLOBAL, SAME_SCHEDULE, STREAMED, WHOLE
from analysis.rendering.table import Cell, Table
from analysis.rendering.text import tokens
from analysis.standard import in_words, quantities
from analysis.standard.beside import named
from analysis.standard.cells import cell, memory_cell, rate_cell, time_cell
from analysis.standard.quantities import Quantity

FINE = "{:.3f}"  # of ratios near 1
SOURCES = (STREAMED, "dilated-streamed-mapped", "dilated-streamed-host", WHOLE)


def lengths(frame: pd.DataFrame, machine: str) -> Table:
    """Streamed passes by length: time, tokens per second, memory, and what stays the same."""
    one = extreme_views.extreme(frame, machine)
    body: list[tuple[Cell, ...]] = []
    for schedule in (SAME_SCHEDULE, GLOBAL):
        rows = one.streamed(schedule)
        for _, row in rows.iterrows():
            shortest = rows.iloc[0]
            is_first = row["path"] == shortest["path"]
            memory = extreme_views.memory_ratio(row, shortest)
            body.append(
                (
                    schedule,
                    tokens(row["seq_len"]),
                    time_cell(row, "s"),
                    rate_cell(row),
                    None if is_first else cell(extreme_views.time_per_token(row, shortest), FINE),
                    row["source_ms"] / 1000,
                    memory_cell(row),
                    None if is_first else FINE.format(memory.value),
                    extreme_views.error(row),
                    f"{row['rows_checked']:.0f}",
                )
            )
    columns = (
        "Schedule",
        "Tokens",
        "Time (s)",
        "Tokens/s",
        "Time per token, over the shortest",
        "Source (s)",
        "Memory (MiB)",
        "Memory, over the shortest",
        "Error, over plain",
        "Rows checked",
    )
    note = (
        f"Measured: {one.view.device}{_case(one)}; every segment of every length was computed. "
        "Time: without the source, whose time stands apart. Memory: the peak with the chunk's own "
        "q, k and v, as no input is held. Error: of sampled rows against float64, over that of "
        "plain attention in the same type to the same keys."
    )
    return Table("Extreme, streamed passes by length", columns, body, note)


def dense(frame: pd.DataFrame, machine: str) -> Table:
    """Dense attention, measured as far as it goes and extrapolated past that, beside streaming."""
    one = extreme_views.extreme(frame, machine)
    streamed = one.streamed()
    body: list[tuple[Cell, ...]] = []
    for n in sorted({*one.of("dense")["seq_len"], *streamed["seq_len"]}):
        found = one.dense_at(n)
        row = next((r for _, r in streamed[streamed["seq_len"] == n].iterrows()), None)
        time, extrapolated = found if found else (None, None)
        over = None
        if row is not None and time:
            over = cell(Quantity(time.over(row["median_ms"])))
        body.append(
            (
                tokens(n),
                cell(quantities.duration(time, "s")),
                None if found is None else ("extrapolated" if extrapolated else "measured"),
                None if row is None else row["median_ms"] / 1000,
                over,
            )
        )
    columns = ("Tokens", "Dense (s)", "Dense is", "Streamed (s)", "Dense over streamed")
    note = (
        f"Measured: {one.view.device}{_case(one)}. Extrapolated: {extreme_views.DENSE_MODEL} "
        "fitted to the lengths that were measured, with the interval of the fit alone: no machine "
        "did this work."
    )
    return Table("Extreme, dense attention beside streaming", columns, body, note)


def sources(frame: pd.DataFrame, machine: str) -> Table:
    """The same tokens from a generator, from files, from host memory, and all at once."""
    one = extreme_views.extreme(frame, machine)
    body: list[tuple[Cell, ...]] = []
    kinds = {system: one.of(system) for system in SOURCES[1:]}
    kinds = {STREAMED: one.streamed()} | kinds
    read = pd.concat([kinds[system] for system in SOURCES[1:3]])["seq_len"]
    for n in sorted(set(read)):
        at = {s: rows[rows["seq_len"] == n] for s, rows in kinds.items()}
        whole = None if at[WHOLE].empty else at[WHOLE].iloc[0]
        for system, rows in at.items():
            if rows.empty:
                continue
            row = rows.iloc[0]
            body.append(
                (
                    named(system),
                    tokens(n),
                    time_cell(row),
                    None if system == WHOLE else cell(quantities.speed_up(row, whole), FINE),
                    None if system == WHOLE else row["source_ms"],
                    memory_cell(row),
                )
            )
    columns = (
        "System",
        "Tokens",
        "Time (ms)",
        "Over one piece",
        "Source (ms)",
        "Memory (MiB)",
    )
    note = (
        f"Measured: {one.view.device}{_case(one)}. In one piece, q, k and v lie in memory before, "
        "and only what is needed beyond them is measured; a mapped file or a generator has no such "
        "input."
    )
    return Table("Extreme, ways to read the tokens", columns, body, note)


def _case(one: extreme_views.Extreme) -> str:
    return f", {in_words.case(one.rows.iloc[0])}" if len(one.rows) else ""
