"""The words that all kinds of predicate use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from analysis.statistics.intervals import Interval

UNCERTAIN = ", too uncertain to judge by"


def measured_as(value: Interval, unit: str) -> dict:
    """`Judgement.measured`: {value, low, high, unit}, None for bounds that are not known."""
    numbers = dict(zip(("value", "low", "high"), (value.value, *value.shown), strict=True))
    return {k: None if math.isnan(v) else float(v) for k, v in numbers.items()} | {"unit": unit}


def interval_text(value: Interval) -> str:
    if math.isnan(value.low):
        return f"{value.value:.4g}"
    return f"{value:.4g}" if value.confidence else f"{value.value:.4g} (one round)"


def ids_from_pattern(pattern: str | None, fillings: Iterable) -> dict:
    """Filling -> the claim's id that it makes of `pattern`, in place of *; empty without one."""
    return {f: pattern.replace("*", str(f)) for f in fillings} if pattern else {}


def comma_separated(values: Iterable) -> str:
    return ", ".join(map(str, values))


def shape_words(shape: Mapping) -> str:
    """batch 1, 2048 tokens, causal: what a shape fixes, in words."""
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
