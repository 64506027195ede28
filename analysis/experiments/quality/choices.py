"""Pairs of systems of a lesson that differ in one choice, and which side is better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from analysis.experiments.quality import naming
from analysis.experiments.quality.views import Learner, Lesson

MIXING, OFFSET, SCHEDULE = "mixing", "offset", "schedule"
# What is chosen, in words.
IN_WORDS = {
    MIXING: "gradients through the mixing weights",
    OFFSET: "offsets of the heads",
    SCHEDULE: "branches",
}
# Schedules of a lesson that are set against each other, pair by pair; of more, each against the
# first.
_ALL_PAIRS = 5


@dataclass(frozen=True, eq=False)
class Choice:
    """Two systems that differ in `what` alone; `first_is`, `second_is`: what each has, in words."""

    what: str
    lesson: Lesson
    first: Learner
    second: Learner
    first_is: str
    second_is: str

    @property
    def key(self) -> str:
        """In keys of numbers."""
        return f"{self.what}.{self.first.slug}.{self.second.slug}"


def choices(lesson: Lesson) -> Iterator[Choice]:
    """Every pair of systems with branches that differ in one thing: mixing, offsets, schedules."""
    own = [one for one in lesson.learners if naming.takes(one.row) == "branches"]
    yield from _pairs(lesson, own, MIXING)
    yield from _pairs(lesson, own, OFFSET)
    schedules: dict[tuple, list[Learner]] = {}
    for one in own:
        schedules.setdefault((one.row["variant"], one.row["head_offset"]), []).append(one)
    for group in schedules.values():
        pairs = list(combinations(group, 2))
        if len(group) > _ALL_PAIRS:
            pairs = [(group[0], one) for one in group[1:]]
        for first, second in pairs:
            said = (naming.branches(side.row) for side in (first, second))
            yield Choice(SCHEDULE, lesson, first, second, *said)


def differing(first: Mapping, second: Mapping) -> str | None:
    """MIXING or OFFSET where that is all that two systems with branches differ in; else None.

    The first is then that of exact gradients, or of the paper's rule of offsets.
    """
    names = ("segment_lengths", "dilation_rates")
    if any(first[name] != second[name] for name in names):
        return None
    same_variant = first["variant"] == second["variant"]
    offsets = first["head_offset"], second["head_offset"]
    if same_variant and offsets == ("modulo", "block"):
        return OFFSET
    kinds = [naming.kind(of) for of in (first, second)]
    if offsets[0] == offsets[1] and kinds == [naming.BRANCHES, naming.DETACHED]:
        return MIXING
    return None


_SIDES = {MIXING: ("exact", "detached"), OFFSET: ("modulo", "block")}


def _pairs(lesson: Lesson, own: list[Learner], what: str) -> Iterator[Choice]:
    """Each second side against one first: of several variants that compute it, one in order."""
    for second in own:
        first = next((one for one in own if differing(one.row, second.row) == what), None)
        if first is not None:
            yield Choice(what, lesson, first, second, *_SIDES[what])
