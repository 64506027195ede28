"""Cells of tables that are made of records: times, memory, rates, ratios."""

from __future__ import annotations

import math

import pandas as pd

from analysis.records.units import MIB
from analysis.rendering.table import Cell, quantity
from analysis.selection import views

WORDS = {"oom": "out of memory", "timeout": "out of time"}


def time_cell(row: pd.Series | None) -> Cell:
    """Median time with its interval (ms), or the status of a case that was not timed."""
    if row is None:
        return None
    if row["status"] != "ok":
        return WORDS.get(row["status"], row["status"])
    return quantity(row["median_ms"], row["low_ms"], row["high_ms"])


def memory_cell(row: pd.Series | None) -> Cell:
    """Peak memory beyond the inputs, MiB."""
    if row is None or row["status"] != "ok" or math.isnan(row["peak_memory_bytes"]):
        return None
    return float(row["peak_memory_bytes"]) / MIB


def rate_cell(row: pd.Series | None, items: int) -> Cell:
    """`items` a second at the median time, with the interval of the time."""
    if row is None or row["status"] != "ok":
        return None
    return quantity(*(1000 * items / row[c] for c in ("median_ms", "high_ms", "low_ms")))


def ratio_cell(base: pd.Series | None, other: pd.Series | None) -> Cell:
    """How many times faster `other` is than `base`, with its interval."""
    gain = views.ratio(base, other)
    return None if gain is None else quantity(gain.value, gain.low, gain.high, "{:.2f}")
