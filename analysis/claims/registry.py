"""The predicate kinds by the name they have in the claims file."""

from __future__ import annotations

from collections.abc import Mapping

from analysis.claims.capacity import Fits, MemoryBytes
from analysis.claims.claim import Predicate
from analysis.claims.comparisons import Distinct, FastestVaries, Ordering, Speedup
from analysis.claims.construction import LeftOut, Locality
from analysis.claims.growth import Crossover, Growth, Rising, WorkGrowth
from analysis.claims.rank_memory import RankMemory
from analysis.claims.speedup_range import Gains
from analysis.claims.stated_numbers import (
    AbsoluteTime,
    Arithmetic,
    NotMeasurable,
    Restates,
    Support,
    Throughput,
)

KINDS: Mapping[str, type[Predicate]] = {
    "speedup": Speedup,
    "gains": Gains,
    "ordering": Ordering,
    "distinct": Distinct,
    "fastest_varies": FastestVaries,
    "growth": Growth,
    "work_growth": WorkGrowth,
    "crossover": Crossover,
    "rising": Rising,
    "rank_memory": RankMemory,
    "absolute_time": AbsoluteTime,
    "throughput": Throughput,
    "memory_bytes": MemoryBytes,
    "fits": Fits,
    "left_out": LeftOut,
    "locality": Locality,
    "arithmetic": Arithmetic,
    "support": Support,
    "restates": Restates,
    "not_measurable": NotMeasurable,
}
