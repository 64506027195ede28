"""Ratios, margins and the words that all kinds of predicate use."""

from __future__ import annotations

import math
from collections.abc import Mapping

from analysis.claims.schema import DIRECTION, FACTOR
from analysis.statistics import intervals


def ratio_of(base: Mapping, other: Mapping) -> intervals.Interval:
    return of_one_process(intervals.speedup(base["samples"], other["samples"]), base, other)


def of_one_process(gain: intervals.Interval, *rows: Mapping) -> intervals.Interval:
    """`gain` as it is if every row has several processes; else its margin."""
    return gain if all(len(row["samples"]) > 1 for row in rows) else margin(gain)


def margin(value: intervals.Interval) -> intervals.Interval:
    """What is of one process, with at least DIRECTION either way.

    One process says nothing of others: its interval is a margin to judge by, of confidence 0,
    and is not printed.
    """
    bounds = (value.value / DIRECTION, value.value * DIRECTION, value.low, value.high)
    known = [bound for bound in bounds if not math.isnan(bound)]
    return intervals.Interval(value.value, min(known), max(known), 0.0)


def is_close(figure: float, value: intervals.Interval) -> bool:
    return figure in value or 1 / FACTOR <= value.value / figure <= FACTOR if figure else False


def measured_as(value: intervals.Interval, unit: str) -> dict:
    numbers = dict(zip(("value", "low", "high"), (value.value, *value.shown), strict=True))
    return {k: None if math.isnan(v) else float(v) for k, v in numbers.items()} | {"unit": unit}


def in_text(value: intervals.Interval) -> str:
    if math.isnan(value.low):
        return f"{value.value:.4g}"
    return f"{value:.4g}" if value.confidence else f"{value.value:.4g} (one process)"


def starred(pattern: str | None, fillings) -> dict:
    return {f: pattern.replace("*", str(f)) for f in fillings} if pattern else {}


def joined(values) -> str:
    return ", ".join(map(str, values))


def shape_words(shape: Mapping) -> str:
    units = {"batch": "batch {}", "seq_len": "{} tokens", "min_seq_len": "{} tokens or more"}
    units |= {"heads": "{} heads", "dtype": "{}", "pass": "{} pass", "dilation_rates": "rates {}"}
    units |= {"sparsity": "{:.4g} sparse", "pattern": "{} blocks"}
    one = shape.get("world_size") == 1
    units |= {"world_size": "{} rank" if one else "{} ranks", "min_world_size": "{} ranks or more"}
    flags = {
        "is_causal": {True: "causal", False: "not causal"},
        "simulated": {True: "virtual ranks", False: "real ranks"},
    }
    words = [
        flags[k][v] if k in flags else units[k].format(v)
        for k, v in shape.items()
        if v is not None and (k in units or k in flags)
    ]
    return ", ".join(words)
