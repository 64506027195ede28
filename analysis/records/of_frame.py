"""What is made of a frame, made once: figures, tables and numbers ask for the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import pandas as pd

Made = TypeVar("Made")


def of_frame(make: Callable[..., Made]) -> Callable[..., Made]:
    """Decorates `make(frame, ...)`, whose results are kept for as long as that frame is there.

    By the frame itself, which nothing may change any more, and by the other arguments.
    """
    kept: dict[int, dict[tuple, Made]] = {}

    @wraps(make)
    def remembered(frame: pd.DataFrame, *given, **named) -> Made:
        if id(frame) not in kept:
            weakref.finalize(frame, kept.pop, id(frame), None)
        of_this = kept.setdefault(id(frame), {})
        key = (given, tuple(sorted(named.items())))
        if key not in of_this:
            of_this[key] = make(frame, *given, **named)
        return of_this[key]

    return remembered
