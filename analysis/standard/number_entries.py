"""Entries of `analysis.rendering.numbers` that are made of records."""

from __future__ import annotations

import math

import pandas as pd

from analysis.rendering.numbers import entry
from analysis.rendering.text import interval
from analysis.selection import views
from analysis.standard import in_words, quantities
from analysis.standard.quantities import Quantity
from analysis.statistics import scaling
from analysis.statistics.intervals import Interval


def of(quantity: Quantity, rows=(), form: str | None = None) -> dict:
    """A quantity of `rows`; `form` as in `text.interval`."""
    found = quantity.amount
    if found is None:
        return entry(None, unit=quantity.unit, rows=rows)
    one = found if isinstance(found, Interval) else Interval.without_spread(found)
    bounds = (one.value, one.low, one.high)
    text = None if form is None else interval(*bounds, form)
    return entry(*bounds, unit=quantity.unit, text=text, rows=rows)


def tokens(n: int | None, rows=()) -> dict:
    return entry(n, unit="tokens", text=None if n is None else f"{n:,}", rows=rows)


def time(row: pd.Series | None) -> dict:
    return of(quantities.time(row), [row])


def memory(row: pd.Series | None) -> dict:
    return of(quantities.memory(row), [row])


def exponent(fit: scaling.ScalingFit | None, rows=()) -> dict:
    return of(quantities.exponent(fit), rows if fit else (), "{:.2f}")


def per_cent(share: float | None, rows=()) -> dict:
    """A share; NaN: not measured."""
    known = share is not None and math.isfinite(share)
    return entry(float(share) if known else None, text=in_words.per_cent(share), rows=rows)


def gain(key: str, base: pd.Series | None, own: pd.Series | None) -> dict[str, dict]:
    """How many times as fast as `base`, and the word for it."""
    itself = base is not None and own is not None and base["path"] == own["path"]
    found = None if itself else views.ratio(base, own)
    if found is None:
        return {key: entry(None), f"{key}.word": entry("not compared with")}
    if math.isnan(found.low):
        word = f"in one round {'faster' if found.value > 1 else 'slower'} than"
    elif found.low > 1:
        word = "faster than"
    elif found.high < 1:
        word = "slower than"
    else:
        word = "as fast as, within the interval,"
    rows = [base, own]
    return {key: of(Quantity(found), rows), f"{key}.word": entry(word, rows=rows)}
