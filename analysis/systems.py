"""Systems: what is drawn as one line, a variant at one sparsity where it has one.

A system's key is its variant, `dense`, or variant and sparsity in per cent, `block-sparse@90`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

from experiments import grid
from models.registry import VARIANTS


def key(variant: str, sparsity: float | None) -> str:
    """The key of a variant at a sparsity (None or NaN: it has none)."""
    if sparsity is None or math.isnan(sparsity):
        return variant
    return f"{variant}@{100 * sparsity:.6g}"


def parts(system: str) -> tuple[str, float | None]:
    """(variant, sparsity or None) of a key."""
    variant, _, percent = system.partition("@")
    return variant, float(percent) / 100 if percent else None


def ordered(systems: Iterable[str]) -> list[str]:
    """Distinct keys in the order of the registry, then by sparsity; strangers last."""
    places = {variant: place for place, variant in enumerate(VARIANTS)}

    def place(system: str):
        variant, sparsity = parts(system)
        return places.get(variant, len(places)), sparsity or 0.0, system

    return sorted(set(systems), key=place)


@cache
def of_experiment(experiment: str) -> tuple[str, ...]:
    """Every system that the experiment's grid measures, in order; what only smoke has is left out.

    Numbers are named after these, so that their keys do not depend on what was measured.
    """
    tiers = [tier for name, tier in grid.load(experiment).tiers.items() if name != "smoke"]
    return tuple(ordered(key(c.variant, c.sparsity) for tier in tiers for c in tier.cases))
