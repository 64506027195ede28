"""Useful FLOP/s of a record, and what bounds it: the measured matmul and copy rates.

Useful FLOPs count the pairs that the pattern needs, so a kernel that computes more than it has
to is not the faster for it.
"""

from __future__ import annotations

import math

import pandas as pd

from analysis.records.frame import time_interval
from analysis.records.units import ITEM_BYTES
from analysis.statistics.intervals import Interval

# (B, N, H, D) tensors that a pass reads or writes at least once, at the query heads and at the
# key heads: q, out and k, v; on the backward pass also q, out, dout, dq and k, v, dk, dv.
_TENSORS = {"forward": (2, 2), "forward_backward": (6, 6)}


def useful(row: pd.Series | None) -> Interval | None:
    """FLOP/s at the median time with the interval of the time; None without a time."""
    if row is None or row["status"] != "ok" or math.isnan(row["useful_flops"]):
        return None
    return time_interval(row).inverted(1000 * row["useful_flops"])


def intensity(row: pd.Series) -> float:
    """Useful FLOPs per byte, with each input read and each output written once."""
    at_queries, at_keys = _TENSORS[row["pass"]]
    heads = at_queries * row["heads"] + at_keys * row["kv_heads"]
    moved = heads * row["batch"] * row["seq_len"] * row["head_dim"] * ITEM_BYTES[row["dtype"]]
    return row["useful_flops"] / moved


def copy_bound(row: pd.Series) -> float:
    """FLOP/s if each input were read and each output written once at the copy rate; or NaN."""
    return intensity(row) * row["copy_bytes_per_s"]


def bound(row: pd.Series) -> float:
    """The lower of the two ceilings of a record, FLOP/s; NaN where none was measured."""
    return min(row["matmul_flops_per_s"], copy_bound(row))


def unit(largest: float) -> tuple[float, str]:
    """The unit that `largest` FLOP/s reads well in, and its name."""
    return (1e12, "TFLOP/s") if largest >= 1e12 else (1e9, "GFLOP/s")
