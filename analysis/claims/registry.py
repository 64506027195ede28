"""The predicate kinds by the name they have in the claims file."""

from __future__ import annotations

from collections.abc import Mapping

from analysis.claims.capacity import Fits, MemoryBytes
from analysis.claims.claim import Predicate
from analysis.claims.comparisons import Ordering, Speedup
from analysis.claims.construction import Locality, Sparsity
from analysis.claims.differences import Distinct, FastestVaries
from analysis.claims.growth import Crossover, Growth, RisingSpeedup, WorkGrowth
from analysis.claims.learning import Learns, LongerContext
from analysis.claims.rank_memory import RankMemory
from analysis.claims.speedup_range import SpeedupRange
from analysis.claims.stated_numbers import (
    AboutCode,
    AbsoluteTime,
    Arithmetic,
    Context,
    Restates,
    Support,
    Throughput,
)
from analysis.claims.unmeasured import Unmeasured

KINDS: Mapping[str, type[Predicate]] = {
    "speedup": Speedup,
    "speedup_range": SpeedupRange,
    "ordering": Ordering,
    "distinct": Distinct,
    "fastest_varies": FastestVaries,
    "growth": Growth,
    "work_growth": WorkGrowth,
    "crossover": Crossover,
    "rising_speedup": RisingSpeedup,
    "rank_memory": RankMemory,
    "absolute_time": AbsoluteTime,
    "throughput": Throughput,
    "memory_bytes": MemoryBytes,
    "fits": Fits,
    "sparsity": Sparsity,
    "locality": Locality,
    "learns": Learns,
    "longer_context": LongerContext,
    "arithmetic": Arithmetic,
    "support": Support,
    "restates": Restates,
    "about_code": AboutCode,
    "unmeasured": Unmeasured,
    "context": Context,
}
