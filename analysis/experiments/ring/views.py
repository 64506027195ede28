"""Rows of the experiment `ring` that belong together, and the formulas they are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import pandas as pd

from analysis.records.of_frame import of_frame
from analysis.records.units import ITEM_BYTES
from analysis.selection import published, views
from analysis.selection.row_index import RowIndex
from analysis.standard import quantities
from analysis.standard.quantities import Quantity
from analysis.statistics import scaling
from models.patterns.locality import Locality, locality
from models.registry import VARIANTS

EXPERIMENT = "ring"
# On one device, as published.
SINGLE = ("dense", "ring-standard", "ring-distributed", "ring-hilbert", "ring-block-sparse@90")
OURS = "ring-distributed"
GRID_ORDERS = ("ring-standard", "ring-snake", "ring-morton", "ring-hilbert")
CURVES = dict(zip(("row-major", "snake", "morton", "hilbert"), GRID_ORDERS, strict=True))
# Neighbours within so many rows and columns of a grid of this side; blocks as measured.
SIDE, RADIUS, BLOCK, SHARDS = 64, 4, 64, 4
TEXT_RADIUS = 32
# What one set of runs has in common beside its system, its length and its ranks.
CASE = ["pass", "dtype", "is_causal", "batch", "heads", "kv_heads", "head_dim"]
SHARED = [*CASE, "segment_lengths", "dilation_rates", "pattern", "sparsity", "block_size"]
_MODULE = {name: variant.module for name, variant in VARIANTS.items()}


@dataclass(frozen=True)
class Family:
    """Records of one variant that differ in length and ranks alone; real or simulated ranks."""

    variant: str
    simulated: bool
    rows: pd.DataFrame

    @property
    def first(self) -> pd.Series:
        """A row of it, for what they have in common."""
        return self.rows.iloc[0]

    @property
    def world_sizes(self) -> list[int]:
        """Numbers of ranks, ascending."""
        return sorted({int(p) for p in self.rows["world_size"]})

    @property
    def lengths(self) -> list[int]:
        """Lengths, ascending."""
        return sorted({int(n) for n in self.rows["seq_len"]})

    def row(self, seq_len: int, world_size: int) -> pd.Series | None:
        """The record at a point, any status; None without one."""
        return self._index.first(seq_len, world_size)

    @cached_property
    def _index(self) -> RowIndex:
        return RowIndex(self.rows, ("seq_len", "world_size"))

    def memory_over_lengths(self, world_size: int) -> scaling.ScalingFit | None:
        """Growth of a rank's memory with the length; None below three points."""
        rows = _with_peak(self.rows[self.rows["world_size"] == world_size])
        return fit(rows["seq_len"], rows["peak_memory_bytes"])

    def memory_over_ranks(self, seq_len: int) -> scaling.ScalingFit | None:
        """Growth of a rank's memory with 1 / ranks at one length: k = 1 is O(n / p).

        The lengths of the fit are most ranks over ranks, so that the exponent is positive.
        """
        rows = _with_peak(self.rows[self.rows["seq_len"] == seq_len])
        return fit(rows["world_size"].max() / rows["world_size"], rows["peak_memory_bytes"])


def families(rows: pd.DataFrame) -> list[Family]:
    """The families among `rows`, in the order of the registry; those without ranks are left out."""
    rows = rows[rows["world_size"].notna()]
    places = {variant: place for place, variant in enumerate(VARIANTS)}
    # Lists and what a case has not are no keys to group by.
    keys = [rows[column].map(str) for column in ("simulated", "variant", *SHARED)]
    found = [
        Family(own.iloc[0]["variant"], bool(own.iloc[0]["simulated"]), own)
        for _, own in rows.groupby(keys, sort=True)
    ]
    return sorted(
        found,
        key=lambda f: (f.simulated, f.first["pass"], f.first["dtype"], places[f.variant]),
    )


def view(frame: pd.DataFrame, machine: str = "auto") -> views.View:
    """The records of one machine."""
    return views.view(frame, EXPERIMENT, machine)


def strong(rows: pd.DataFrame) -> list[tuple[pd.Series, pd.Series | None]]:
    """(record over several real ranks, the same over one) for every one of our own systems."""
    found = []
    for family in families(rows[rows["simulated"].eq(False)]):
        if is_peer(family.variant):
            continue
        for seq_len in family.lengths:
            for world_size in family.world_sizes:
                row = family.row(seq_len, world_size)
                if row is not None and world_size > 1:
                    found.append((row, family.row(seq_len, 1)))
    return found


def on_the_whole_device(rows: pd.DataFrame, row: pd.Series) -> pd.Series | None:
    """Dense attention on all the cores that the ranks of `row` share, of the same case; or None.

    Ranks on a GPU have one each: there it is one of as many devices, and nothing to compare with.
    """
    return views.dense_counterpart(rows, row) if row["device_kind"] == "cpu" else None


def weak(rows: pd.DataFrame) -> list[tuple[pd.Series, pd.Series]]:
    """(record over p real ranks, that over one rank with as many tokens per rank)."""
    found = []
    for family in families(rows[rows["simulated"].eq(False)]):
        for _, row in family.rows[family.rows["world_size"] > 1].iterrows():
            alone = family.row(int(row["seq_len"] // row["world_size"]), 1)
            if alone is not None and not is_peer(family.variant):
                found.append((row, alone))
    return found


def peers(rows: pd.DataFrame) -> list[tuple[pd.Series, pd.Series | None]]:
    """(record of another's ring over real ranks, ours of the same case)."""
    found = []
    ours = rows[(rows["variant"] == OURS) & rows["simulated"].eq(False)]
    # Of no rows at all the mask has no type, and would choose columns.
    theirs = rows[rows["variant"].map(is_peer).astype(bool)]
    theirs = theirs.sort_values([*CASE, "seq_len", "world_size"], kind="stable")
    keys = (*CASE, "seq_len", "world_size")
    of_ours = RowIndex(ours, keys)
    for _, row in theirs.iterrows():
        found.append((row, of_ours.first(*row[[*keys]])))
    return found


def is_peer(variant: str) -> bool:
    """Whether it is another's ring attention."""
    return _MODULE.get(variant) == "models.ring.peers"


def single(frame: pd.DataFrame, machine: str, system: str, n: int) -> pd.Series | None:
    """The record on one device as published, not causal, any status; or None.

    At the published batch and heads; where the machine has not the published dtype, float32.
    """
    return _as_published(frame, machine).first(system, n)


@of_frame
def _as_published(frame: pd.DataFrame, machine: str) -> RowIndex:
    """The records on one device as published, not causal, by system and length."""
    rows = view(frame, machine).rows
    fixed = published.setting(EXPERIMENT)
    batch = published.shapes(EXPERIMENT)[0][0]
    rows = rows[
        (rows["pass"] == "forward") & ~rows["is_causal"].astype(bool) & (rows["batch"] == batch)
        & (rows["heads"] == fixed.heads) & (rows["head_dim"] == fixed.head_dim)
    ]  # fmt: skip
    same = rows[rows["dtype"] == fixed.dtype]
    rows = rows[rows["dtype"] == "float32"] if same.empty else same
    return RowIndex(rows, ("system", "seq_len"))


def per_token(row: pd.Series | None) -> Quantity:
    """Peak memory of a rank beyond its inputs, per token of the whole batch."""
    return quantities.per_token(row, quantities.bytes_of(row))


def dense_bytes(row: pd.Series) -> float:
    """Bytes that a rank of a dense ring, not causal, sends: what `sent_share` is a share of.

    (p - 1) hops of the shard's keys and values, (p - 1) n/p B Hkv D 2 itemsize; the backward pass
    sends them once more, and home the gradients of both, in float32 at least.
    """
    item = ITEM_BYTES[row["dtype"]]
    if row["pass"] == "forward_backward":
        item = 2 * item + max(item, 4)
    shard = row["batch"] * row["seq_len"] / row["world_size"] * row["kv_heads"] * row["head_dim"]
    return float((row["world_size"] - 1) * 2 * shard * item)


def sent_share(row: pd.Series) -> float | None:
    """Bytes that the busiest rank sent over `dense_bytes`; None where nothing was counted."""
    if math.isnan(row["bytes_sent"]) or not row["world_size"] > 1:
        return None
    return float(row["bytes_sent"] / dense_bytes(row))


def ranks_in_words(row: pd.Series) -> str:
    """The ranks of a record for a table: "2", "4, simulated", or "16, on 2 nodes"."""
    if math.isnan(row["world_size"]):
        return "1"
    words = [f"{row['world_size']:.0f}", *(["simulated"] if row["simulated"] else [])]
    return ", ".join(words + ([f"on {row['nodes']} nodes"] if row["nodes"] > 1 else []))


def order(variant: str) -> str:
    """The token order of a variant over ranks, in a word."""
    return VARIANTS[variant].shard_order or "whole"


def _with_peak(rows: pd.DataFrame) -> pd.DataFrame:
    # A peak that is not seen to grow, as of a process with room to spare, is no number to fit.
    return rows[(rows["status"] == "ok") & (rows["peak_memory_bytes"] > 0)]


def fit(lengths: pd.Series, values: pd.Series) -> scaling.ScalingFit | None:
    """The growth of positive values; None below three points."""
    if len(values) < 3 or lengths.duplicated().any():
        return None
    return scaling.fit(tuple(lengths), tuple(values))


@cache
def counted(curve: str, width: int | None) -> Locality:
    """The locality of a curve over the grid (width) or a text (None) of the tables of orders."""
    radius = TEXT_RADIUS if width is None else RADIUS
    return locality(curve, SIDE**2, radius=radius, block_size=BLOCK, world_size=SHARDS, width=width)
