"""Tables of the write-up `dilated`: three shapes, a CPU beside the GPU, memory by length."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from analysis.rendering.table import Cell, Table
from analysis.rendering.text import DASH
from analysis.selection import published, views
from analysis.standard.beside import measured_on, plus_minus, printed, published_on, rows_of
from analysis.standard.cells import memory_cell, rate_cell, ratio_cell, time_cell

BASE = published.speedup_base("dilated")


def shape(index: int) -> Callable[[pd.DataFrame, str], Table]:
    """One of the three result tables: small, medium, large."""

    def make(frame: pd.DataFrame, machine: str) -> Table:
        view = views.view(frame, "dilated", machine)
        wanted, n = published.shapes("dilated")[index]
        batch = view.batch_for(wanted, n)
        old = printed("dilated", wanted, n)
        rows = []
        for system in rows_of(view):
            row = view.cell(system, batch, n)
            rows.append(
                (
                    published.name(system),
                    plus_minus(old(system, "time"), old(system, "std")),
                    time_cell(row),
                    old(system, "memory"),
                    memory_cell(row),
                    old(system, "throughput"),
                    rate_cell(row),
                )
            )
        return Table(
            f"Dilated, {n} tokens: published at batch {wanted}, "
            + (f"measured at batch {batch}" if batch else "not measured"),
            (
                "Implementation",
                "Time published (ms)",
                "Time measured (ms)",
                "Memory published (MiB)",
                "Memory measured (MiB)",
                "Tokens/s published",
                "Tokens/s measured",
            ),
            rows,
            f"{published_on(view)} {measured_on(view)}",
        )

    return make


def cpu(frame: pd.DataFrame, machine: str) -> Table:
    """The GPU against CPU comparison, at the largest batch that both kinds of machine measured."""
    found = {}
    for view in views.all_views(frame, "dilated", machine):
        rows = view.rows
        rows = rows[
            (rows["system"] == BASE)
            & (rows["pass"] == "forward")
            & (rows["seq_len"] == 2048)
            & (rows["heads"] == view.setting.heads)
        ]
        for _, row in rows.iterrows():
            key = (row["batch"], row["segment_lengths"], row["dilation_rates"], row["is_causal"])
            # The preferred machine and dtype of each kind come first.
            found.setdefault(key, {}).setdefault(row["device_kind"], row)
    both = [key for key, kinds in found.items() if {"cpu", "cuda"} <= set(kinds)]
    both = max(both or found, key=lambda key: key[0], default=None)
    gpu, host = (found.get(both, {}).get(kind) for kind in ("cuda", "cpu"))
    old = printed("dilated", 4, 2048)
    quantities = ("gpu_time", "cpu_time", "gpu_over_cpu", "gpu_throughput", "cpu_throughput")
    rows = [
        ("published, batch 4", *(old(BASE, quantity) for quantity in quantities)),
        (
            f"measured, batch {both[0]}" if both else "measured",
            time_cell(gpu),
            time_cell(host),
            ratio_cell(host, gpu),
            rate_cell(gpu),
            rate_cell(host),
        ),
    ]
    parts = [
        f"{kind}: {views.device(row)}, {row['dtype']}" if row is not None else f"{kind}: no record"
        for kind, row in (("GPU", gpu), ("CPU", host))
    ]
    return Table(
        "Dilated, GPU against CPU: DilatedAttention, 2048 tokens, 12 heads",
        ("", "GPU (ms)", "CPU (ms)", "CPU / GPU", "GPU tokens/s", "CPU tokens/s"),
        rows,
        f"Measured on {'; '.join(parts)}.",
    )


def vram(frame: pd.DataFrame, machine: str) -> Table:
    """Least memory of a card by length, against the measured peak with the inputs added."""
    view = views.view(frame, "dilated", machine)
    pair = {BASE: "Dilated", "multihead-dilated-gather": "Multihead"}
    rows, fixed = [], view.nearest
    for n in (2048, 4096, 8192, 16384, 32768):
        cells: list[Cell] = [str(n)]
        for system in pair:
            same = fixed[(fixed["system"] == system) & (fixed["seq_len"] == n)]
            same = same[same["status"] == "ok"].sort_values(["batch", "path"], ascending=False)
            row = None if same.empty else same.iloc[0]
            batch = None if row is None else str(row["batch"])
            cells += [printed("dilated", 4, n)(system, "vram"), batch or DASH, memory_cell(row)]
        rows.append(tuple(cells))
    columns = ["Length"]
    for name in pair.values():
        columns += [f"{name} published, batch 4 (MiB)", f"{name} batch", f"{name} peak (MiB)"]
    note = f"Published: least memory of a card. Measured: peak beyond the inputs, {view.device}."
    return Table("Dilated, memory by length", tuple(columns), rows, note)
