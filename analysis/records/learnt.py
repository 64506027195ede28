"""What models learnt, by row of the frame: a value per seed, at equal steps or at equal FLOPs.

Rows are those of an experiment that trains (`analysis.records.training_columns`). The learning rate
of its recipes stays as it is after the warm-up, so that each evaluation on the way is what a
training of so many steps gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from analysis.statistics import seeds
from analysis.statistics.intervals import Interval
from experiments.training.recipes import RECIPES

LOSS, ACCURACY = "loss", "accuracy"
# The least and the most that each can be: bits, and a share. Intervals over seeds end there.
_RANGES = {LOSS: (0.0, math.inf), ACCURACY: (0.0, 1.0)}
MEASURES = tuple(_RANGES)


def values(row: Mapping, measure: str = LOSS) -> list[float]:
    """The last evaluation of each seed: bits per asked token, or the share that is right."""
    return [getattr(one.evaluations[-1], measure) for one in row["trainings"]]


def values_at(row: Mapping, flops: float, measure: str = LOSS) -> list[float] | None:
    """The same after so many FLOPs, read between evaluations over the logarithm of steps.

    None before the first evaluation and after the last.
    """
    step = flops / row["useful_flops"]
    steps = [one.step for one in row["trainings"][0].evaluations] if row["trainings"] else []
    # FLOPs are integers that were divided by a float.
    if not steps or not steps[0] * (1 - 1e-9) <= step <= steps[-1] * (1 + 1e-9):
        return None
    return [
        float(
            np.interp(np.log(step), np.log(steps), [getattr(e, measure) for e in one.evaluations])
        )
        for one in row["trainings"]
    ]


def flops(row: Mapping) -> float:
    """Of a whole training: those of a step, times steps."""
    return row["useful_flops"] * RECIPES[row["recipe"]].training.steps


def by_range(row: Mapping, name: str, measure: str) -> dict[int, list[float]]:
    """First position or distance of each range -> the value of each seed.

    name: "by_position" or "by_distance". A range ends before the double of its first.
    """
    found: dict[int, list[float]] = {}
    for one in row["trainings"]:
        for part in getattr(one, name):
            found.setdefault(part.first, []).append(getattr(part, measure))
    return dict(sorted(found.items()))


def interval(row: Mapping, measure: str = LOSS, at_flops: float | None = None) -> Interval | None:
    """The mean over seeds with its interval; None where nothing was trained so far."""
    found = values(row, measure) if at_flops is None else values_at(row, at_flops, measure)
    return of_seeds(row, found, measure) if found else None


def of_seeds(row: Mapping, found: Sequence[float], measure: str) -> Interval:
    """The mean of a value of each seed of the row, with its interval within the measure's range.

    ValueError of none.
    """
    return seeds.mean(found, _again(row)).within(*_RANGES[measure])


def difference(
    row: Mapping, base: Mapping, measure: str = LOSS, at_flops: float | None = None
) -> Interval | None:
    """Of two systems, the first less the second; None where one was not trained so far.

    In the unit of the measure; of accuracies from -1 to 1.
    """
    sides = [
        values(one, measure) if at_flops is None else values_at(one, at_flops, measure)
        for one in (row, base)
    ]
    return difference_of_seeds(row, *sides, measure) if all(sides) else None


def difference_of_seeds(
    row: Mapping, found: Sequence[float], base: Sequence[float], measure: str
) -> Interval:
    """Of a value of each seed of the row, less those of other seeds, within the measure's range."""
    least, most = _RANGES[measure]
    return seeds.difference(found, base, _again(row)).within(least - most, most - least)


def equal_flops(*rows: Mapping) -> float:
    """The FLOPs up to which all of them were trained: those of the cheapest training."""
    return min(map(flops, rows))


def _again(row: Mapping) -> int:
    """Seeds of a round."""
    return RECIPES[row["recipe"]].seeds
