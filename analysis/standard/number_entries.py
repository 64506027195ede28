"""Entries of `analysis.numbers` that are made of records."""

from __future__ import annotations

import math

import pandas as pd

from analysis.records.units import MIB
from analysis.rendering.numbers import entry
from analysis.selection import views


def tokens(n: int | None, rows=()) -> dict:
    return entry(n, unit="tokens", text=None if n is None else f"{n:,}", rows=rows)


def time(row: pd.Series | None) -> dict:
    if row is None or row["status"] != "ok":
        return entry(None, unit="ms", rows=[row])
    return entry(row["median_ms"], row["low_ms"], row["high_ms"], "ms", rows=[row])


def memory(row: pd.Series | None) -> dict:
    if row is None or row["status"] != "ok" or math.isnan(row["peak_memory_bytes"]):
        return entry(None, unit="MiB", rows=[row])
    return entry(float(row["peak_memory_bytes"]) / MIB, unit="MiB", rows=[row])


def gain(key: str, base: pd.Series | None, own: pd.Series | None) -> dict[str, dict]:
    """How many times as fast as `base`, and the word for it."""
    itself = base is not None and own is not None and base["path"] == own["path"]
    found = None if itself else views.ratio(base, own)
    if found is None:
        return {key: entry(None), f"{key}.word": entry("not compared with")}
    if math.isnan(found.low):
        word = f"in one process {'faster' if found.value > 1 else 'slower'} than"
    elif found.low > 1:
        word = "faster than"
    elif found.high < 1:
        word = "slower than"
    else:
        word = "as fast as, within the interval,"
    return {
        key: entry(found.value, found.low, found.high, rows=[base, own]),
        f"{key}.word": entry(word, rows=[base, own]),
    }
