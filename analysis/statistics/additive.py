"""The additive fit of cases and what they were measured in: a case need not have been in all."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def additive_effects(cases: Sequence[Mapping[Key, float]]) -> Mapping[Key, float]:
    """By how much each key lies above the others, over all the cases that it has, by turns."""
    effects = {at: 0.0 for own in cases for at in own}
    for _ in range(1000):
        found: dict[Key, list[float]] = {at: [] for at in effects}
        for own in cases:
            level = fmean(value - effects[at] for at, value in own.items())
            for at, value in own.items():
                found[at].append(value - level)
        middle = fmean(fmean(values) for values in found.values())
        after = {at: fmean(values) - middle for at, values in found.items()}
        moved = max(abs(after[at] - effects[at]) for at in effects)
        effects = after
        if moved < 1e-9:
            break
    return effects
