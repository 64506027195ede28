"""Whether what a record says of trainings can be: a part of `experiments.plausible`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from experiments.schema import Record, Training
from experiments.training.config import TrainingConfig
from experiments.training.recipes import RECIPES

# Of a cross-entropy in float32 over many tokens, relative.
_ROUNDING = 1e-3


def evaluated_after(training: TrainingConfig) -> list[int]:
    """The steps that an evaluation follows, ascending; the last one of the training is one."""
    every, last = training.evaluate_every, training.steps
    return sorted({*range(every, last + 1, every), last})


def faults(found: Record, trainings: Sequence[Training]) -> Iterator[str]:
    """What cannot be in the trainings of a replicate: "field: reason"."""
    recipe = RECIPES[found.to_case().recipe]
    if len(trainings) != recipe.seeds:
        yield f"trainings: are {len(trainings)}, and {recipe.name} asks for {recipe.seeds}"
    if len({one.seed for one in trainings}) < len(trainings):
        yield "trainings: two are of one seed"
    steps = evaluated_after(recipe.training)
    last = steps[-1]
    for place, one in enumerate(trainings):
        at = f"trainings.{place}"
        if one.steps != last:
            yield f"{at}.steps: is {one.steps}, and {recipe.name} has {last}"
        if [evaluated.step for evaluated in one.evaluations] != steps:
            yield f"{at}.evaluations: expected those after the steps {steps}"
        if one.steps_s > 1.02 * found.wall_s + 0.05:
            yield f"{at}.steps_s: is {one.steps_s:g}, and wall_s {found.wall_s:g}"
        for fault in _ranges(one, found.case.seq_len):
            yield f"{at}.{fault}"


def _ranges(one: Training, seq_len: int) -> Iterator[str]:
    """Of the ranges of positions and distances of one training."""
    for name, ranges in (("by_position", one.by_position), ("by_distance", one.by_distance)):
        if [part.first for part in ranges] != sorted({part.first for part in ranges}):
            yield f"{name}: expected rising ranges"
        if any(part.first & (part.first - 1) or not part.first for part in ranges):
            yield f"{name}: expected ranges that begin at powers of 2"
        if any(part.first > seq_len for part in ranges):
            yield f"{name}: has a range beyond seq_len={seq_len}"
        if sum(part.tokens for part in ranges) > one.tokens:
            yield f"{name}: has more tokens than were asked, {one.tokens}"
    # Every token has a position; where its answer stands is not known of all.
    if sum(part.tokens for part in one.by_position) < one.tokens:
        yield f"by_position: has less tokens than were asked, {one.tokens}"
    for name in ("loss", "accuracy"):
        told = sum(part.tokens * getattr(part, name) for part in one.by_position) / one.tokens
        stated = getattr(one.evaluations[-1], name)
        if not math.isclose(told, stated, rel_tol=_ROUNDING, abs_tol=1e-6):
            yield f"by_position: its mean {name} is {told:g}, of the last evaluation {stated:g}"
