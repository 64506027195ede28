"""Of more than can be read, what is shown; and the sentence that says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pandas as pd

T = TypeVar("T")


def shortlist(
    found: Sequence[T], row: Callable[[T], pd.Series], most: int, what: str
) -> tuple[Sequence[T], str]:
    """At most `most` of `found`, in their order, and what is then to be said of `what` they are.

    Of the smallest batches and the fewest heads, and of these the longest lengths. `row`: a record
    of each.
    """
    if len(found) <= most:
        return found, ""

    def rank(place: int) -> tuple:
        one = row(found[place])
        return one["batch"], one["heads"], -one["seq_len"]

    kept = sorted(sorted(range(len(found)), key=rank)[:most])
    said = f" Of {len(found)} {what} the {most} of the smallest batches and fewest heads, and of "
    return [found[place] for place in kept], said + "these the longest lengths."
