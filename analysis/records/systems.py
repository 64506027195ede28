"""Systems: what is drawn as one line, a variant at one sparsity and over some number of ranks.

A system's key is its variant, `dense`; with a sparsity in per cent, `block-sparse@90`; over several
ranks with their number, `ring-standard/p2`, which are virtual ones in `ring-standard/p4-simulated`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

from experiments import grid
from models.registry import VARIANTS

SIMULATED = "-simulated"


def key(
    variant: str,
    sparsity: float | None,
    world_size: float | None = None,
    simulated: bool | None = None,
) -> str:
    """The key of a variant at a sparsity over ranks (None or NaN: it has none).

    One rank is no ring: it is the variant itself.
    """
    if sparsity is not None and not math.isnan(sparsity):
        variant = f"{variant}@{100 * sparsity:.6g}"
    if world_size is None or math.isnan(world_size) or world_size == 1:
        return variant
    return f"{variant}/p{world_size:.0f}{SIMULATED if simulated else ''}"


def parts(system: str) -> tuple[str, float | None]:
    """(variant, sparsity or None) of a key."""
    variant, _, percent = on_one_rank(system).partition("@")
    return variant, float(percent) / 100 if percent else None


def on_one_rank(system: str) -> str:
    """The key of the same variant and sparsity without its ranks."""
    return system.partition("/p")[0]


def ranks(system: str) -> tuple[int, bool]:
    """(how many ranks, whether they are simulated) of a key; (1, False) without any."""
    count = system.partition("/p")[2]
    if not count:
        return 1, False
    return int(count.removesuffix(SIMULATED)), count.endswith(SIMULATED)


def ordered(systems: Iterable[str]) -> list[str]:
    """Distinct keys in the order of the registry, then by sparsity and ranks; strangers last."""
    places = {variant: place for place, variant in enumerate(VARIANTS)}

    def place(system: str):
        variant, sparsity = parts(system)
        return places.get(variant, len(places)), sparsity or 0.0, *ranks(system), system

    return sorted(set(systems), key=place)


@cache
def of_experiment(experiment: str) -> tuple[str, ...]:
    """Every system that the experiment's grid measures, in order; what only smoke has is left out.

    Numbers are named after these, so that their keys do not depend on what was measured.
    """
    tiers = [tier for name, tier in grid.load(experiment).tiers.items() if name != "smoke"]
    cases = (case for tier in tiers for case in tier.cases)
    return tuple(ordered(key(c.variant, c.sparsity, c.world_size, c.simulated) for c in cases))
