"""What all kinds of predicate share, and the words they use."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from analysis import stats
from analysis.claims.vocabulary import DIRECTION, FACTOR, Judgement, Number, Strict

if TYPE_CHECKING:
    from analysis.claims.ledger import Book, Claim, Ledger


class Predicate(Strict):
    """Base of all kinds. `resolution`: one unit of the last printed digit of the figure."""

    needs_figure: ClassVar[bool] = False
    resolution: Number = 0

    def references(self) -> dict[str, str]:
        """Field -> id of each claim whose published number this predicate uses."""
        return {}

    def named_systems(self) -> list[str]:
        """Names of the systems that it speaks of."""
        one = [getattr(self, field, None) for field in ("system", "against")]
        several = [getattr(self, field, []) for field in ("systems", "order", "among")]
        return list(dict.fromkeys([*filter(None, one), *itertools.chain(*several)]))

    def derived(self, book: Book) -> object:
        """The published statement, where it is not a figure of its own."""
        return None

    def words(self, claim: Claim) -> str:
        raise NotImplementedError

    def judge(self, claim: Claim, ledger: Ledger) -> Judgement:
        raise NotImplementedError


def ratio_of(base: Mapping, other: Mapping) -> stats.Interval:
    return of_one_process(stats.speedup(base["samples"], other["samples"]), base, other)


def of_one_process(gain: stats.Interval, *rows: Mapping) -> stats.Interval:
    """`gain` as it is if every row has several processes; else its margin."""
    return gain if all(len(row["samples"]) > 1 for row in rows) else margin(gain)


def margin(value: stats.Interval) -> stats.Interval:
    """What is of one process, with at least DIRECTION either way.

    One process says nothing of others: its interval is a margin to judge by, of confidence 0,
    and is not printed.
    """
    bounds = (value.value / DIRECTION, value.value * DIRECTION, value.low, value.high)
    known = [bound for bound in bounds if not math.isnan(bound)]
    return stats.Interval(value.value, min(known), max(known), 0.0)


def is_close(figure: float, value: stats.Interval) -> bool:
    return figure in value or 1 / FACTOR <= value.value / figure <= FACTOR if figure else False


def measured_as(value: stats.Interval, unit: str) -> dict:
    numbers = dict(zip(("value", "low", "high"), (value.value, *value.shown), strict=True))
    return {k: None if math.isnan(v) else float(v) for k, v in numbers.items()} | {"unit": unit}


def in_text(value: stats.Interval) -> str:
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
