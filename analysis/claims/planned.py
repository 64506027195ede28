"""The cases that the grids have, as rows that a claim can be matched with."""

from __future__ import annotations

from functools import cache

from experiments import grid


@cache
def planned(tier: str) -> tuple[dict, ...]:
    """One row per case of a tier and experiment that it is of: both, and the case's fields."""
    return tuple(
        {"experiment": experiment, "path": task.name} | task.case.cells()
        for task in grid.tasks(tier)
        for experiment in task.experiments
    )
