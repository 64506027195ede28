"""Tables of the write-up `block_sparse`, and by length, by pattern, and of crossovers."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from analysis.records import systems
from analysis.rendering.table import Cell, Table, brief
from analysis.rendering.text import DASH, span
from analysis.selection import published, views
from analysis.standard import in_words, quantities
from analysis.standard.beside import measured_on, named, printed, published_on, rows_of
from analysis.standard.cells import cell, memory_cell, ratio_cell, time_cell
from analysis.standard.quantities import Quantity
from analysis.statistics import scaling

DENSE = published.DENSE
CASE = ("type", "causal", "heads", "training")


def comparison(frame: pd.DataFrame, machine: str) -> Table:
    """The performance comparison of the write-up: time, memory and speed-up at four lengths."""
    view = views.view(frame, "block_sparse", machine)
    rows: list[tuple[Cell, ...]] = []
    for wanted, n in published.shapes("block_sparse"):
        batch = view.batch_for(wanted, n)
        old = printed("block_sparse", wanted, n)
        dense = view.cell(DENSE, batch, n)
        for system in rows_of(view):
            row = view.cell(system, batch, n)
            if row is None and old(system, "time") == DASH and old(system, "runs") == DASH:
                continue
            sparsity = systems.parts(system)[1]
            out = old(system, "runs")
            rows.append(
                (
                    str(n),
                    f"{wanted} / {batch or DASH}",
                    named(system),
                    old(system, "time") if old(system, "time") != DASH else out,
                    time_cell(row),
                    old(system, "memory"),
                    memory_cell(row),
                    old(system, "speedup"),
                    None if system == DENSE else ratio_cell(dense, row),
                    None if sparsity is None else f"{1 - sparsity:.3g}",
                    None if sparsity is None else _density(row),
                )
            )
    columns = (
        "Length",
        "Batch",
        "Implementation",
        "Time published (ms)",
        "Time measured (ms)",
        "Memory published (MiB)",
        "Memory measured (MiB)",
        "Speed-up published",
        "Speed-up measured",
        "Density asked",
        "Density realised",
    )
    note = (
        f"{published_on(view, 'means')} {measured_on(view)} Batch: published / measured. "
        "Density: kept query-key pairs of all that dense attention has."
    )
    return Table("Block-sparse, published beside measured", columns, rows, note)


def by_length(pass_: str) -> Callable[[pd.DataFrame, str], Table]:
    """Time and speed-up over dense attention at every length, one column per sparsity."""

    def make(frame: pd.DataFrame, machine: str) -> Table:
        view = views.view(frame, "block_sparse", machine)
        rows = view.rows[view.rows["pass"] == pass_]
        sparse = rows[rows["sparsity"].notna() & ~view.off_pattern_blocks(rows)]
        sparsities = sorted(set(sparse["sparsity"]))
        order = ["variant", "dtype", "is_causal", "heads", "head_dim", "batch", "seq_len"]
        body: list[tuple[Cell, ...]] = []
        for keys, own in sparse.groupby(order, sort=True):
            first = own.iloc[0]
            dense = views.dense_counterpart(rows, first)
            cells: list[Cell] = [
                named(keys[0]),
                in_words.case(first),
                str(first["batch"]),
                str(first["seq_len"]),
                brief(time_cell(dense)),
            ]
            for sparsity in sparsities:
                same = own[own["sparsity"] == sparsity]
                row = None if same.empty else same.iloc[0]
                cells += [brief(time_cell(row)), ratio_cell(dense, row)]
            body.append(tuple(cells))
        columns = ["System", "Case", "Batch", "Length", "Dense (ms)"]
        for sparsity in sparsities:
            columns += [f"{100 * sparsity:.4g} % (ms)", f"{100 * sparsity:.4g} % over dense"]
        words = {"forward": "forward", "forward_backward": "forward and backward"}[pass_]
        note = (
            f"Measured: {view.device}. Per cent: the sparsity asked, of dilated blocks of 64. "
            "Times, speed-ups with 95 % intervals; those of times are in the CSV."
        )
        return Table(f"Block-sparse by length, {words}", tuple(columns), body, note)

    return make


def patterns(frame: pd.DataFrame, machine: str) -> Table:
    """Does it matter which blocks are kept? Every pattern where several were measured."""
    view = views.view(frame, "block_sparse", machine)
    rows = view.rows[view.rows["sparsity"].notna()]
    shape = ["pass", "dtype", "is_causal", "batch", "seq_len", "heads", "head_dim", "system"]
    body: list[tuple[Cell, ...]] = []
    for _, own in rows.groupby(shape, sort=True):
        if len(own) < 2:
            continue
        for _, row in own.sort_values(["pattern", "block_size"]).iterrows():
            dense = views.dense_counterpart(view.rows, row)
            body.append(
                (
                    named(row["system"]),
                    row["pattern"].replace("_", " "),
                    f"{row['block_size']:.0f}",
                    in_words.case(row, *CASE),
                    str(row["seq_len"]),
                    time_cell(row),
                    memory_cell(row),
                    ratio_cell(dense, row),
                    _density(row),
                )
            )
    columns = (
        "System",
        "Pattern",
        "Block",
        "Case",
        "Length",
        "Time (ms)",
        "Memory (MiB)",
        "Over dense",
        "Density realised",
    )
    note = f"Measured: {view.device}, time with its 95 % interval. "
    note += "Training: forward and backward."
    return Table("Block-sparse, which blocks are kept", columns, body, note)


def crossover(frame: pd.DataFrame, machine: str) -> Table:
    """The length from which block-sparse attention is faster than dense, by sparsity."""
    body: list[tuple[Cell, ...]] = []
    for view in views.all_views(frame, "block_sparse", machine):
        for series in [*view.series(), *view.series("forward_backward")]:
            dense = series.growth(DENSE, "time")
            for system in series.systems:
                if systems.parts(system)[1] is None:
                    continue
                own = series.growth(system, "time")
                body.append(
                    (
                        view.device,
                        in_words.case(vars(series), *CASE),
                        named(system),
                        published.text("block_sparse", system, 1, None, "crossover") or DASH,
                        *crossing(dense, own),
                    )
                )
    columns = ("Machine", "Case", "System", "Published", "Measured (tokens)", "Over lengths")
    note = (
        "Where the fitted times of block-sparse and dense attention meet, with its 95 % interval, "
        "inside the lengths that both were timed at and never beyond. Published: on that card, "
        "of no sparsity in particular."
    )
    return Table("Block-sparse, as fast as dense attention from", columns, body, note)


def crossing(dense: scaling.ScalingFit | None, own: scaling.ScalingFit | None) -> tuple[Cell, Cell]:
    """The crossover as a cell, or in words where there is none; and the lengths it is from."""
    if dense is None or own is None:
        return "too few lengths", DASH
    cross = quantities.crossover(dense, own)
    if cross is None:
        return "no lengths in common", DASH
    if cross.n is None:
        sides = {"a": "slower", "b": "faster", "neither": "as fast"}
        return f"not in range: {sides[cross.smaller_at_end]} throughout", span(cross.n_range)
    return cell(Quantity(cross.n, "tokens"), "{:,.0f}"), span(cross.n_range)


def _density(row: pd.Series | None) -> Cell:
    return None if row is None or row["status"] != "ok" else float(row["realised_density"])
