"""The predicate kinds by the name they have in the claims file."""

from __future__ import annotations

from collections.abc import Mapping

from analysis.claims.comparisons import Growth, Ordering, Speedup
from analysis.claims.figures import (
    AbsoluteTime,
    Arithmetic,
    MemoryBytes,
    NotMeasurable,
    Restates,
    Support,
)
from analysis.claims.predicate import Predicate

KINDS: Mapping[str, type[Predicate]] = {
    "speedup": Speedup,
    "ordering": Ordering,
    "growth": Growth,
    "absolute_time": AbsoluteTime,
    "memory_bytes": MemoryBytes,
    "arithmetic": Arithmetic,
    "support": Support,
    "restates": Restates,
    "not_measurable": NotMeasurable,
}
