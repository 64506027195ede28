"""The predicate kinds by the name they have in the claims file."""

from __future__ import annotations

from collections.abc import Mapping

from analysis.claims.capacity import Fits, MemoryBytes
from analysis.claims.comparisons import FastestVaries, Ordering, Speedup
from analysis.claims.figures import (
    AbsoluteTime,
    Arithmetic,
    NotMeasurable,
    Restates,
    Support,
)
from analysis.claims.over_length import Crossover, Growth, Rising, WorkGrowth
from analysis.claims.predicate import Predicate

KINDS: Mapping[str, type[Predicate]] = {
    "speedup": Speedup,
    "ordering": Ordering,
    "fastest_varies": FastestVaries,
    "growth": Growth,
    "work_growth": WorkGrowth,
    "crossover": Crossover,
    "rising": Rising,
    "absolute_time": AbsoluteTime,
    "memory_bytes": MemoryBytes,
    "fits": Fits,
    "arithmetic": Arithmetic,
    "support": Support,
    "restates": Restates,
    "not_measurable": NotMeasurable,
}
