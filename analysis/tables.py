"""Tables in the published layout, the published figure beside the measured one.

`TABLES[experiment]` maps a table's name to the function that makes it of a frame and a machine;
`table.save` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pandas as pd

from analysis import common_tables, published, views
from analysis.table import Cell, Table, memory_cell, rate_cell, ratio_cell, time_cell
from analysis.text import DASH


def measured_on(view: views.View) -> str:
    """A sentence for table notes: where, and at which dtype."""
    rows = view.nearest()
    dtype = f", {rows.iloc[0]['dtype']}" if len(rows) else ""
    return (
        f"Published: {published.CARD}, {view.setting.dtype}, mean and standard deviation. "
        f"Measured: {view.device}{dtype}, median and 95 % interval."
    )


def dilated_shape(index: int) -> Callable[[pd.DataFrame, str], Table]:
    """One of the three result tables of `dilated`: small, medium, large."""

    def make(frame: pd.DataFrame, machine: str) -> Table:
        view = views.view(frame, "dilated", machine)
        wanted, n = published.SHAPES["dilated"][index]
        batch = view.batch_for(wanted, n)
        old = _published_cells("dilated", wanted, n)
        rows = []
        for variant in _rows_of(view, "dilated"):
            row = view.cell(variant, batch, n)
            rows.append(
                (
                    published.name(variant),
                    _plus_minus(old(variant, "time"), old(variant, "std")),
                    time_cell(row),
                    _fixed(old(variant, "memory"), 1),
                    memory_cell(row),
                    _whole(old(variant, "throughput")),
                    rate_cell(row, (batch or 0) * n),
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
            measured_on(view),
        )

    return make


def dilated_cpu(frame: pd.DataFrame, machine: str) -> Table:
    """The GPU against CPU comparison, at the largest batch that both kinds of machine measured."""
    found = {}
    for view in views.all_views(frame, "dilated", machine):
        rows = view.rows
        rows = rows[
            (rows["variant"] == published.BASE)
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
    gpu, cpu = (found.get(both, {}).get(kind) for kind in ("cuda", "cpu"))
    old = _published_cells("dilated", 4, 2048)
    name = published.BASE
    rows = [
        (
            "published, batch 4",
            _fixed(old(name, "gpu_time")),
            _fixed(old(name, "cpu_time")),
            _fixed(old(name, "gpu_over_cpu"), 1),
            _whole(old(name, "gpu_throughput")),
            _whole(old(name, "cpu_throughput")),
        ),
        (
            f"measured, batch {both[0]}" if both else "measured",
            time_cell(gpu),
            time_cell(cpu),
            ratio_cell(cpu, gpu),
            rate_cell(gpu, 2048 * (both[0] if both else 0)),
            rate_cell(cpu, 2048 * (both[0] if both else 0)),
        ),
    ]
    parts = [
        f"{kind}: {views.device(row)}, {row['dtype']}" if row is not None else f"{kind}: no record"
        for kind, row in (("GPU", gpu), ("CPU", cpu))
    ]
    return Table(
        "Dilated, GPU against CPU: DilatedAttention, 2048 tokens, 12 heads",
        ("", "GPU (ms)", "CPU (ms)", "CPU / GPU", "GPU tokens/s", "CPU tokens/s"),
        rows,
        f"Measured on {'; '.join(parts)}.",
    )


def dilated_vram(frame: pd.DataFrame, machine: str) -> Table:
    """Least memory of a card by length, against the measured peak with the inputs added."""
    view = views.view(frame, "dilated", machine)
    pair = (published.BASE, "multihead-dilated-gather")
    rows, fixed = [], view.nearest()
    for n in (2048, 4096, 8192, 16384, 32768):
        cells: list[Cell] = [str(n)]
        for variant in pair:
            old = published.figure("dilated", variant, 4, n, "vram")
            same = fixed[(fixed["variant"] == variant) & (fixed["seq_len"] == n)]
            same = same[same["status"] == "ok"].sort_values(["batch", "path"], ascending=False)
            row = None if same.empty else same.iloc[0]
            batch = None if row is None else str(row["batch"])
            cells += [_whole(old), batch or DASH, memory_cell(row)]
        rows.append(tuple(cells))
    columns = ["Length"]
    for variant in pair:
        name = {published.BASE: "Dilated"}.get(variant, "Multihead")
        columns += [f"{name} published, batch 4 (MiB)", f"{name} batch", f"{name} peak (MiB)"]
    note = f"Published: least memory of a card. Measured: peak beyond the inputs, {view.device}."
    return Table("Dilated, memory by length", tuple(columns), rows, note)


def comprehensive_times(frame: pd.DataFrame, machine: str) -> Table:
    """Times of every system at the nine published shapes, published over measured."""
    view = views.view(frame, "comprehensive", machine)
    systems = _systems_of(view)
    rows: list[tuple[Cell, ...]] = []
    for batch, n in published.SHAPES["comprehensive"]:
        old = _published_cells("comprehensive", batch, n)
        rows.append((str(batch), str(n), "published", *(_fixed(old(s, "time")) for s in systems)))
        cells = [time_cell(view.cell(s, batch, n)) for s in systems]
        if any(cell is not None for cell in cells):
            rows.append((str(batch), str(n), "measured", *cells))
    columns = ("Batch", "Length", "Time (ms)", *map(_short, systems))
    note = measured_on(view) + " A shape with one line was not measured."
    return Table("Comprehensive, times", columns, rows, note)


def comprehensive_summary(n: int) -> Callable[[pd.DataFrame, str], Table]:
    """The summary table of one length at batch 1, with speed-ups over DilatedAttention."""

    def make(frame: pd.DataFrame, machine: str) -> Table:
        view = views.view(frame, "comprehensive", machine)
        old = _published_cells("comprehensive", 1, n)
        base, dense = (view.cell(v, 1, n) for v in (published.BASE, published.DENSE))
        systems = sorted(_systems_of(view), key=lambda s: old(s, "time") or math.inf)
        rows = []
        for system in systems:
            row = view.cell(system, 1, n)
            rows.append(
                (
                    published.name(system),
                    _plus_minus(old(system, "time"), old(system, "std")),
                    time_cell(row),
                    rate_cell(row, 1),
                    memory_cell(row),
                    _fixed(old(system, "speedup")),
                    None if system == published.BASE else ratio_cell(base, row),
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
            measured_on(view) + " Published memory is 0 in every row.",
        )

    return make


_COMMON: Mapping[str, Callable] = {
    "scaling": common_tables.scaling,
    "training": common_tables.training,
    "censored": common_tables.censored,
    "machines": common_tables.machines,
}
TABLES: Mapping[str, Mapping[str, Callable[[pd.DataFrame, str], Table]]] = {
    "dilated": {
        **{name: dilated_shape(i) for i, name in enumerate(("small", "medium", "large"))},
        "cpu": dilated_cpu,
        "vram": dilated_vram,
        **{name: make("dilated") for name, make in _COMMON.items()},
    },
    "comprehensive": {
        "times": comprehensive_times,
        **{f"summary-{n}": comprehensive_summary(n) for n in (2048, 4096, 8192)},
        **{name: make("comprehensive") for name, make in _COMMON.items()},
    },
}


def _published_cells(experiment: str, batch: int, n: int):
    return lambda system, quantity: published.figure(experiment, system, batch, n, quantity)


def _rows_of(view: views.View, experiment: str) -> list[str]:
    """Systems of the write-up first, then what was measured beside them."""
    present = set(view.nearest()["variant"])
    shown_first = [
        v
        for v in published.VARIANTS
        if published.figure(experiment, v, *published.SHAPES[experiment][0], "time")
    ]
    return shown_first + [v for v in published.VARIANTS if v in present and v not in shown_first]


def _systems_of(view: views.View) -> list[str]:
    systems = _rows_of(view, view.experiment)
    count = len([s for s in systems if published.figure(view.experiment, s, 1, 2048, "time")])
    return systems[:count] + published.without_variant(view.experiment) + systems[count:]


def _short(system: str) -> str:
    return published.name(system).replace("DilatedAttention (head-partitioned)", "Head-partitioned")


def _plus_minus(mean: float | None, std: float | None) -> str:
    return _fixed(mean) if std is None else f"{_fixed(mean)} ± {_fixed(std)}"


def _fixed(value: float | None, decimals: int = 2) -> str:
    """A published figure with the decimals it was printed with."""
    return DASH if value is None else f"{value:.{decimals}f}"


def _whole(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"
