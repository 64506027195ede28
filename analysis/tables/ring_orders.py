"""Tables of `ring` on orders of a 2-D grid, and of the cost model."""

from __future__ import annotations

import math
from functools import cache

import pandas as pd

from analysis import ring_model, ring_views, systems
from analysis.ring_views import GRID_ORDERS
from analysis.table import Cell, Table, ratio_cell, time_cell
from analysis.tables.beside import named
from analysis.tables.ring_scaling import case
from analysis.text import tokens
from models.patterns.locality import Locality, locality

KIB = 2**10
CURVES = dict(zip(("row-major", "snake", "morton", "hilbert"), GRID_ORDERS, strict=True))
# Neighbours within so many rows and columns of a grid of this side; blocks as measured.
SIDE, RADIUS, BLOCK, SHARDS = 64, 4, 64, 4
TEXT_RADIUS = 32
MODEL_RANKS = (8, 64, 512, 4096)
MODEL_TOKENS = 2**20


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
                        case(row),
                        tokens(row["seq_len"]),
                        ring_views.ranks_in_words(row),
                        time_cell(row),
                        None if variant == GRID_ORDERS[0] else ratio_cell(base, row),
                        _kib(row),
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
        "Attention is dense, so an order changes which tokens a rank holds and nothing of what it "
        "computes, unless it is causal: then the positions that a shard holds decide its work."
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
                    f"{100 * found.fill:.1f} %",
                    found.mean_step,
                    f"{100 * found.received:.1f} %",
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
    shape = ring_model.shape_on(ring_views.view(frame, machine).rows)
    body: list[tuple[Cell, ...]] = []
    for link in ring_model.LINKS:
        for system in ring_model.SYSTEMS:
            cells: list[Cell] = []
            for ranks in MODEL_RANKS:
                found = ring_model.cost(system.hops(MODEL_TOKENS, ranks), shape, link)
                cells += [1e3 * found.total, f"{100 * found.waiting:.0f} %"]
            body.append((link.name, system.name, *cells))
    columns = ["Link", "System"]
    for ranks in MODEL_RANKS:
        columns += [f"{ranks} ranks (ms)", f"{ranks} ranks waiting"]
    note = f"Modelled, not measured: {tokens(MODEL_TOKENS)} tokens, {assumptions(shape)}"
    return Table("Ring, modelled", tuple(columns), body, note)


def assumptions(shape: ring_model.Shape) -> str:
    """What goes into the model, as a sentence."""
    rate = f"{shape.rate / 1e12:.0f} TFLOP/s a device"
    rate = f"a nominal {rate}" if shape.nominal else f"{rate} as measured on one"
    links = "; ".join(
        f"{link.name} {link.bandwidth / 1e9:.0f} GB/s, {1e6 * link.latency:.0f} µs a message"
        for link in ring_model.LINKS
    )
    return (
        f"{shape.heads} heads of {shape.head_dim} in 16 bits, forward, not causal; {rate}; {links}."
    )


@cache
def counted(curve: str, width: int | None) -> Locality:
    """The locality of a curve over the grid (width) or a text (None) of this table."""
    radius = TEXT_RADIUS if width is None else RADIUS
    return locality(curve, SIDE**2, radius=radius, block_size=BLOCK, world_size=SHARDS, width=width)


def _curve(variant: str) -> str:
    return next(curve for curve, known in CURVES.items() if known == variant)


def _kib(row: pd.Series) -> Cell:
    return None if math.isnan(row["bytes_sent"]) else float(row["bytes_sent"]) / KIB
