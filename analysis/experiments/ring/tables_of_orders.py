"""Tables of `ring` on orders of a 2-D grid, and of the cost model."""

from __future__ import annotations

import pandas as pd

from analysis.experiments.ring import cost_model
from analysis.experiments.ring import views as ring_views
from analysis.experiments.ring.cost_model import MODEL_TOKENS, assumptions
from analysis.experiments.ring.tables_over_ranks import CASE
from analysis.experiments.ring.views import (
    BLOCK,
    CURVES,
    GRID_ORDERS,
    RADIUS,
    SHARDS,
    SIDE,
    TEXT_RADIUS,
    counted,
)
from analysis.records import systems
from analysis.rendering.table import Cell, Table
from analysis.rendering.text import tokens
from analysis.standard import in_words, quantities
from analysis.standard.beside import named
from analysis.standard.cells import cell, ratio_cell, time_cell

MODEL_RANKS = (8, 64, 512, 4096)


def orders(frame: pd.DataFrame, machine: str) -> Table:
    """Dense ring attention of a 2-D grid in four token orders: time, and bytes sent."""
    view = ring_views.view(frame, machine)
    rows = view.rows[view.rows["variant"].isin(GRID_ORDERS) & (view.rows["world_size"] > 1)]
    rows = rows[rows["simulated"].eq(True)]
    body: list[tuple[Cell, ...]] = []
    keys = [rows[column].map(str) for column in (*ring_views.SHARED, "world_size", "seq_len")]
    for _, own in rows.groupby(keys, sort=True):
        plain = own[own["variant"] == GRID_ORDERS[0]]
        base = None if plain.empty else plain.iloc[0]
        if len(own) < 2:
            continue
        for variant in GRID_ORDERS:
            for _, row in own[own["variant"] == variant].iterrows():
                body.append(
                    (
                        named(systems.on_one_rank(row["system"])),
                        _curve(variant),
                        in_words.case(row, *CASE),
                        tokens(row["seq_len"]),
                        ring_views.ranks_in_words(row),
                        time_cell(row),
                        None if variant == GRID_ORDERS[0] else ratio_cell(base, row),
                        cell(quantities.size(quantities.bytes_of(row, "bytes_sent"), "KiB")),
                    )
                )
    columns = (
        "System",
        "Order",
        "Case",
        "Length",
        "Ranks",
        "Time (ms)",
        "Over row-major",
        "Sent (KiB)",
    )
    note = (
        f"Measured: {view.device}; one simulated rank, that with most work, with no network. "
        "Attention is dense, so an order changes which tokens each rank holds and nothing of what "
        "it computes, unless it is causal: then the positions that a shard holds decide its work."
    )
    return Table("Ring, orders of a 2-D grid", columns, body, note)


def local(frame: pd.DataFrame, machine: str) -> Table:
    """What an order is worth to attention among neighbours: counted, not measured."""
    body: list[tuple[Cell, ...]] = []
    for what, width in ((f"grid of {SIDE} × {SIDE}", SIDE), ("text, walked as such a grid", None)):
        for curve in CURVES:
            found = counted(curve, width)
            body.append(
                (
                    what,
                    curve,
                    found.distinct_blocks,
                    in_words.per_cent(found.fill),
                    found.mean_step,
                    in_words.per_cent(found.received),
                )
            )
    columns = ("Tokens", "Order", "Key blocks", "Filled", "Mean step", "Received")
    note = (
        f"Counted, not measured: {SIDE**2} tokens in blocks of {BLOCK}. A token of the grid "
        f"attends to those within {RADIUS} rows and columns, one of the text to those within "
        f"{TEXT_RADIUS} positions. Key blocks: that a query block needs; filled: share of their "
        "pairs that is attended to; mean step: positions between neighbours in the order; "
        f"received: keys of others that one of {SHARDS} shards needs, over its own number."
    )
    return Table("Ring, locality of token orders", columns, body, note)


def model(frame: pd.DataFrame, machine: str) -> Table:
    """The cost model at a million tokens: modelled, from constants with their sources."""
    shape = cost_model.shape_on(ring_views.view(frame, machine).rows)
    body: list[tuple[Cell, ...]] = []
    for link in cost_model.LINKS:
        for system in cost_model.SYSTEMS:
            cells: list[Cell] = []
            for ranks in MODEL_RANKS:
                found = cost_model.cost(system.hops(MODEL_TOKENS, ranks), shape, link)
                cells += [1e3 * found.total, f"{100 * found.waiting:.0f} %"]
            body.append((link.name, system.name, *cells))
    columns = ["Link", "System"]
    for ranks in MODEL_RANKS:
        columns += [f"{ranks} ranks (ms)", f"{ranks} ranks waiting"]
    note = f"Modelled, not measured: {tokens(MODEL_TOKENS)} tokens, {assumptions(shape)}"
    return Table("Ring, modelled", tuple(columns), body, note)


def _curve(variant: str) -> str:
    return next(curve for curve, known in CURVES.items() if known == variant)
