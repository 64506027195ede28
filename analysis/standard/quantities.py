"""What is measured of a record or fitted to several, with unit and interval; computed here alone.

`standard.cells` shows a quantity in a table, `standard.number_entries` in prose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from analysis.records.frame import time_interval
from analysis.records.units import KIB, MIB
from analysis.selection import views
from analysis.statistics import crossovers, scaling
from analysis.statistics.intervals import Interval

_MS = {"ms": 1, "s": 1e3, "h": 3.6e6}
_BYTES = {"KiB": KIB, "MiB": MIB}


@dataclass(frozen=True)
class Quantity:
    """An amount in a unit: with an interval, without one (a peak, a share), or not measured."""

    amount: Interval | float | None
    unit: str = ""

    @property
    def value(self) -> float | None:
        """The number alone."""
        return self.amount.value if isinstance(self.amount, Interval) else self.amount


def is_timed(row: pd.Series | None) -> bool:
    """Whether there is a record, with a time."""
    return row is not None and row["status"] == "ok"


def duration(ms: Interval | float | None, unit: str) -> Quantity:
    """`ms` milliseconds."""
    if isinstance(ms, Interval):
        return Quantity(ms.over(_MS[unit]), unit)
    return Quantity(None if ms is None else ms / _MS[unit], unit)


def time(row: pd.Series | None, unit: str = "ms", multiplier: float = 1) -> Quantity:
    """Median time, `multiplier` times, with its interval."""
    if not is_timed(row):
        return Quantity(None, unit)
    return duration(time_interval(row).times(multiplier), unit)


def rate(row: pd.Series | None, unit: str = "tokens/s") -> Quantity:
    """Tokens or, as "sequences/s", sequences of the batch per second at the median time."""
    if not is_timed(row):
        return Quantity(None, unit)
    items = row["batch"] * (row["seq_len"] if unit == "tokens/s" else 1)
    return Quantity(time(row).amount.inverted(1000 * items), unit)


def bytes_of(row: pd.Series | None, column: str = "peak_memory_bytes") -> float | None:
    """Bytes that a timed record has in a column, by default the peak beyond its inputs."""
    return float(row[column]) if is_timed(row) and math.isfinite(row[column]) else None


def size(amount: float | None, unit: str = "MiB") -> Quantity:
    """`amount` bytes."""
    return Quantity(None if amount is None else amount / _BYTES[unit], unit)


def memory(row: pd.Series | None) -> Quantity:
    """Peak memory beyond the inputs, MiB."""
    return size(bytes_of(row))


def per_token(row: pd.Series | None, amount: float | None, unit: str = "KiB") -> Quantity:
    """`amount` bytes of a record per token of its whole batch, in KiB; unit: its name."""
    each = None if amount is None else amount / KIB / (row["batch"] * row["seq_len"])
    return Quantity(each, unit)


def speed_up(base: pd.Series | None, other: pd.Series | None) -> Quantity:
    """How many times as fast as `base` the record `other` is."""
    return Quantity(views.ratio(base, other))


def strong_efficiency(alone: pd.Series | None, row: pd.Series | None) -> Quantity:
    """Speed-up of `row` over one rank, over its number of ranks."""
    gain = views.ratio(alone, row)
    return Quantity(None if gain is None else gain.over(row["world_size"]))


def work_per_rank(alone: pd.Series, row: pd.Series) -> float:
    """Useful FLOPs of a rank of `row`, over those of one rank alone."""
    return row["useful_flops"] / row["world_size"] / alone["useful_flops"]


def weak_efficiency(alone: pd.Series | None, row: pd.Series | None) -> Quantity:
    """`work_per_rank` over the time of `row`, over that of one rank with as many tokens."""
    slower = views.ratio(row, alone)
    return Quantity(None if slower is None else slower.inverted(work_per_rank(alone, row)))


def crossover(
    base: scaling.ScalingFit | None, own: scaling.ScalingFit | None
) -> crossovers.Crossover | None:
    """Where two fitted times meet; None without both fits or a stretch of lengths in common."""
    if base is None or own is None:
        return None
    shared = max(base.n_range[0], own.n_range[0]) < min(base.n_range[1], own.n_range[1])
    return crossovers.crossover(base, own) if shared else None


def exponent(fit: scaling.ScalingFit | None) -> Quantity:
    """k of the power law of a fit."""
    return Quantity(None if fit is None else fit.exponent)
