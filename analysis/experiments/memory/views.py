"""Rows of the experiment `memory` that belong together, and the tensors that a pass is given."""

from __future__ import annotations

import pandas as pd

from analysis.records import systems
from analysis.records.units import ITEM_BYTES
from analysis.selection import views
from analysis.standard import quantities
from models.registry import VARIANTS

EXPERIMENT = "memory"
# What all systems of one picture have in common.
SHARED = ["pass", "dtype", "is_causal", "heads", "head_dim", "batch"]
FEWEST = 3  # lengths that say something of growth
# Where the write-up `dilated` says what card a length needs: batch 4, 12 heads of 64, causal.
VRAM_BATCH, VRAM_HEADS, VRAM_LENGTHS = 4, 12, (2048, 4096, 8192, 16384, 32768)
# Where the write-up `ring` gives memory per token: it does not print the batch.
TOKEN_LENGTH, TOKEN_BATCH = 512, 2


def together(view: views.View) -> list[views.Series]:
    """Series of three lengths or more, of all systems at one shape; forward passes first.

    Of each pass the `views.MOST_SERIES` of most systems, of these the smallest shapes first.
    Unlike `View.series` each system has its own lengths here: those that it could be given.
    """
    found = []
    for key, rows in view.rows.groupby(SHARED, sort=True):
        if rows["seq_len"].nunique() < FEWEST:
            continue
        fixed = dict(zip(SHARED, key, strict=True))
        training = fixed.pop("pass") == "forward_backward"
        ordered = rows.sort_values(["system", "seq_len", "path"], kind="stable")
        found.append(
            views.Series(
                view.machine, view.device, pattern="", training=training, rows=ordered, **fixed
            )
        )
    found.sort(key=lambda one: -len(one.systems))
    passes = ([one for one in found if one.training == training] for training in (False, True))
    return [one for own in passes for one in own[: views.MOST_SERIES]]


def growth(view: views.View, pass_: str) -> views.Series | None:
    """The first of `together` of a pass; None without one."""
    training = pass_ == "forward_backward"
    return next((one for one in together(view) if one.training == training), None)


def at(
    view: views.View, system: str, seq_len: int, pass_: str = "forward", **fixed
) -> pd.Series | None:
    """The record of a system at a length with the given fields, any status; None without one.

    Several types: float16, as published, before others.
    """
    rows = view.rows[(view.rows["system"] == system) & (view.rows["seq_len"] == seq_len)]
    rows = rows[rows["pass"] == pass_]
    for column, value in fixed.items():
        rows = rows[rows[column] == value]
    if rows.empty:
        return None
    order = list(zip(rows["dtype"] != "float16", rows["path"], strict=True))
    return rows.iloc[order.index(min(order))]


def inputs_bytes(row: pd.Series) -> float:
    """q, k and v, or the one sequence that a module takes; with backward the output's gradient."""
    token = row["heads"] * row["head_dim"] * ITEM_BYTES[row["dtype"]]
    count = 1.0 if VARIANTS[row["variant"]].multihead else 1 + 2 * row["kv_heads"] / row["heads"]
    count += row["pass"] == "forward_backward"
    return count * token * row["batch"] * row["seq_len"]


def total_bytes(row: pd.Series | None) -> float | None:
    """The peak with the inputs; None where nothing was measured."""
    peak = quantities.bytes_of(row)
    return None if peak is None else peak + inputs_bytes(row)


def lost(series: views.Series, system: str) -> list[int]:
    """Lengths at which a system ran out of memory or time, ascending."""
    rows = series.rows[series.rows["system"] == system]
    return sorted(int(n) for n in rows[rows["status"].isin(views.CENSORED)]["seq_len"])


def vram_systems() -> list[str]:
    """The two systems with a published figure, then what else the grid has beside them."""
    published = ["dilated-gather", "multihead-dilated-gather"]
    beside = [s for s in systems.of_experiment(EXPERIMENT) if "dilated" in s or s == "dense"]
    return published + [system for system in beside if system not in published]


def vram_row(view: views.View, system: str, n: int, pass_: str) -> pd.Series | None:
    """The record at the shape of the published table of cards."""
    fixed = {"batch": VRAM_BATCH, "heads": VRAM_HEADS, "is_causal": True}
    return at(view, system, n, pass_, **fixed)


def at_token_length(view: views.View, system: str) -> pd.Series | None:
    """At the published length: batch 2, else batch 1; memory per token hardly depends on it."""
    for batch in (TOKEN_BATCH, 1):
        row = at(view, system, TOKEN_LENGTH, batch=batch, is_causal=False)
        if row is not None:
            return row
    return None
