"""Cells of tables that are made of records: times, memory, rates, ratios."""

from __future__ import annotations

import pandas as pd

from analysis.rendering import table
from analysis.rendering.table import Cell
from analysis.standard import quantities
from analysis.standard.in_words import outcome
from analysis.standard.quantities import Quantity
from analysis.statistics import scaling
from analysis.statistics.intervals import Interval


def cell(of: Quantity, form: str | None = None) -> Cell:
    """A quantity, its unit in the column's heading; `form` as in `text.interval`."""
    if isinstance(of.amount, Interval):
        return table.measured(of.amount.value, of.amount.low, of.amount.high, form)
    return of.amount


def time_cell(row: pd.Series | None, unit: str = "ms") -> Cell:
    """Median time with its interval, or the status of a case that was not timed."""
    if row is not None and row["status"] != "ok":
        return outcome(row)
    return cell(quantities.time(row, unit))


def memory_cell(row: pd.Series | None) -> Cell:
    """Peak memory beyond the inputs, MiB."""
    return cell(quantities.memory(row))


def rate_cell(row: pd.Series | None, unit: str = "tokens/s") -> Cell:
    """Tokens or sequences per second, with the interval of the time."""
    return cell(quantities.rate(row, unit))


def ratio_cell(base: pd.Series | None, other: pd.Series | None) -> Cell:
    """How many times as fast as `base` the record `other` is, with its interval."""
    return cell(quantities.speed_up(base, other), "{:.2f}")


def exponent_cell(fit: scaling.ScalingFit | None) -> Cell:
    """k of the power law of a fit."""
    return cell(quantities.exponent(fit), "{:.2f}")
