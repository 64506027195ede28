"""What `quality` compares: the systems that were taught one task at one shape.

A lesson is a task, its recipe and a shape. The systems of a lesson differ in their attention alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from analysis.experiments.quality import naming
from analysis.records import learnt
from analysis.rendering.style import Look
from analysis.selection import views
from analysis.standard import in_words
from analysis.statistics.intervals import Interval
from experiments.training.recipes import RECIPES, TEXT

EXPERIMENT = "quality"
DENSE = "dense"
# Sources by the names that they have here, in the order in which they are shown.
_TASKS = {TEXT: "text", "associative_recall": "recall", "induction": "induction"}
# What the systems of a lesson share, the text by its hash.
_SHAPE = ["recipe", "text", "seq_len", "batch", "heads", "kv_heads", "head_dim", "dtype"]


@dataclass(frozen=True, eq=False)
class Learner:
    """A system that was taught: its `row` of the frame, its `name` in the lesson, and its look.

    slug, kind: see `naming`.
    """

    row: pd.Series
    name: str
    look: Look

    @property
    def slug(self) -> str:
        """In keys of numbers."""
        return naming.slug(self.row)

    @property
    def kind(self) -> str:
        """See `naming.kind`."""
        return naming.kind(self.row)


@dataclass(frozen=True, eq=False)
class Lesson:
    """A task at one shape on one machine; `learners` in the order of `naming`."""

    view: views.View
    task: str
    learners: tuple[Learner, ...]

    @property
    def is_text(self) -> bool:
        """Whether text is learnt, where the loss counts; of the others, the accuracy."""
        return self.task == _TASKS[TEXT]

    @property
    def first(self) -> pd.Series:
        """A row, for what all of them share."""
        return self.learners[0].row

    @property
    def seq_len(self) -> int:
        """Tokens of each row of a batch."""
        return int(self.first["seq_len"])

    @property
    def seeds(self) -> tuple[int, int]:
        """The fewest and the most of a system: not every round may have every case."""
        counts = [len(one.row["trainings"]) for one in self.learners]
        return min(counts), max(counts)

    @property
    def measure(self) -> str:
        """The measure that systems are compared by, of `learnt.MEASURES`."""
        return learnt.LOSS if self.is_text else learnt.ACCURACY

    @property
    def unit(self) -> str:
        """What `score` is in."""
        return "bits per byte" if self.is_text else "accuracy (%)"

    @property
    def dense(self) -> Learner | None:
        """The system that others are set against."""
        return next((one for one in self.learners if one.kind == DENSE), None)

    @property
    def chance(self) -> float | None:
        """The accuracy of a blind guess, %; None of text."""
        share = self.first["learning"].facts.get("chance_accuracy")
        return None if share is None else 100 * share

    @property
    def guesses(self) -> dict[str, float]:
        """What is got without telling one key from another, %: by name, of a task; none of text."""
        facts = self.first["learning"].facts
        named = {
            "chance_accuracy": "chance",
            "commonest_value_accuracy": "a row's commonest value",
        }
        return {name: 100 * facts[key] for key, name in named.items() if facts.get(key)}

    @property
    def title(self) -> str:
        """The task and the length."""
        return f"{self.task}, {self.seq_len} tokens"

    @property
    def heading(self) -> str:
        """Machine and task, then the shape: two lines above a panel."""
        shape = in_words.case(self.first, "type", "heads of", "batch")
        return f"{self.view.device}, {self.title}\n{shape}"

    def score(self, of: Learner) -> Interval:
        """The mean over seeds, in `unit`."""
        return self._scaled(learnt.interval(of.row, self.measure))

    def scores(self, of: Learner) -> list[float]:
        """The value of each seed, in `unit`."""
        return [self._factor * value for value in learnt.values(of.row, self.measure)]

    def edge(self, of: Learner, base: Learner, equal_flops: bool = False) -> Interval | None:
        """By how much `of` is better than `base`, in `unit`: at equal steps or at equal FLOPs.

        None where the FLOPs lie before the first evaluation.
        """
        pair = (base.row, of.row) if self.is_text else (of.row, base.row)
        at = learnt.equal_flops(*pair) if equal_flops else None
        found = learnt.difference(*pair, self.measure, at)
        return None if found is None else self._scaled(found)

    def shortfall(self, of: Learner, equal_flops: bool = False) -> Interval | None:
        """By how much dense attention is better; None without it, and of itself."""
        if self.dense is None or of is self.dense:
            return None
        return self.edge(self.dense, of, equal_flops)

    def best_first(self) -> list[Learner]:
        """Dense attention, then the others by their score."""
        sign = 1 if self.is_text else -1
        return sorted(
            self.learners, key=lambda one: (one.kind != DENSE, sign * self.score(one).value)
        )

    def of_each_kind(self) -> list[Learner]:
        """Of each kind the one that stands for it (`naming.first_of_kind`), in order.

        Whichever scored best on these seeds would on others score less, by what luck it had.
        """
        found: dict[str, Learner] = {}
        for one in sorted(self.learners, key=lambda one: naming.first_of_kind(one.row)):
            found.setdefault(one.kind, one)
        return sorted(found.values(), key=lambda one: naming.order(one.row))

    @property
    def _factor(self) -> float:
        return 1.0 if self.is_text else 100.0

    def _scaled(self, found: Interval) -> Interval:
        return found.times(self._factor)


def task_of(recipe: str) -> str:
    """The task that a recipe teaches, by its name here."""
    source = RECIPES[recipe].source
    return _TASKS.get(source, source)


def lessons(view: views.View) -> list[Lesson]:
    """Every lesson of a machine: by task, of each that of most systems first, then the longest."""
    rows = view.rows[(view.rows["status"] == "ok") & view.rows["trainings"].map(bool)]
    rows = rows.assign(text=[one.sha256 or "" for one in rows["learning"]])
    drawn = naming.looks(row for _, row in rows.iterrows())
    found = []
    for _, own in rows.groupby(_SHAPE, sort=True):
        ordered = sorted((row for _, row in own.iterrows()), key=naming.order)
        learners = (
            Learner(row, name, drawn[naming.slug(row)])
            for row, name in zip(ordered, naming.names(ordered), strict=True)
        )
        found.append(Lesson(view, task_of(own.iloc[0]["recipe"]), tuple(learners)))
    places = {task: place for place, task in enumerate(_TASKS.values())}
    return sorted(
        found,
        key=lambda one: (
            places.get(one.task, len(places)), one.task, -len(one.learners), -one.seq_len,
        ),
    )  # fmt: skip


def main_lessons(view: views.View) -> list[Lesson]:
    """Of each task the first of `lessons`."""
    found: dict[str, Lesson] = {}
    for one in lessons(view):
        found.setdefault(one.task, one)
    return list(found.values())


def count(found: Iterable[Lesson]) -> int:
    """The systems of some lessons, each as often as it was taught."""
    return sum(len(one.learners) for one in found)


def all_machines(frame: pd.DataFrame, machine: str = "auto") -> list[views.View]:
    """The views of every machine that trained anything, the reporting one first."""
    found = views.all_views(frame, EXPERIMENT, machine)
    return [view for view in found if lessons(view)]


def over_length(view: views.View, task: str) -> dict[str, list[tuple[int, Lesson, Learner]]]:
    """Slug -> (length, lesson, system) at each length, of systems that have several.

    Of several shapes of a length, that of most systems.
    """
    found: dict[str, dict[int, tuple[int, Lesson, Learner]]] = {}
    for lesson in lessons(view):
        if lesson.task == task:
            for one in lesson.learners:
                at = found.setdefault(one.slug, {})
                at.setdefault(lesson.seq_len, (lesson.seq_len, lesson, one))
    return {slug: [at[n] for n in sorted(at)] for slug, at in found.items() if len(at) > 1}


def falls_off(of: Learner, dense: Learner | None) -> int | None:
    """The first of a range of distances with less than half of dense attention's accuracy.

    By the whole interval of what is lacking. None where there is no such range, and without dense
    attention.
    """
    if dense is None:
        return None
    base, own = (learnt.by_range(one.row, "by_distance", learnt.ACCURACY) for one in (dense, of))
    halves = {first: [value / 2 for value in values] for first, values in base.items()}
    found = {
        first: learnt.difference_of_seeds(of.row, own[first], half, learnt.ACCURACY)
        for first, half in halves.items()
        if first in own
    }
    return next((first for first, less in found.items() if less.high < 0), None)
