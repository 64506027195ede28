"""Tables of `quality`: text by system, recall by task, choices, and what was learnt."""

from __future__ import annotations

import pandas as pd

from analysis.experiments.quality import cells, naming
from analysis.experiments.quality import views as quality_views
from analysis.experiments.quality.choices import IN_WORDS, MIXING, OFFSET, choices
from analysis.experiments.quality.views import EXPERIMENT, Learner, Lesson
from analysis.rendering.table import Cell, Table
from analysis.rendering.text import DASH, number, tokens
from analysis.selection import views
from analysis.standard import quantities
from analysis.standard.cells import cell, time_cell

OVER_SEEDS = (
    "Intervals: each 95 %, not corrected for their number, of a repetition with as many seeds as a "
    "round has; differences are of means over seeds."
)
AT_FLOPS = (
    "Equal FLOPs: after those that the cheaper of the two trainings took; the loss of the other "
    "is read between two evaluations, on the logarithm of steps. FLOPs count the pairs that are "
    "attended to, whatever computes them."
)
COSTS = ("Density", "GFLOPs a step")


def text(frame: pd.DataFrame, machine: str) -> Table:
    """Bits per byte of every system, and what it lacks of dense attention."""
    view = views.view(frame, EXPERIMENT, machine)
    body: list[tuple[Cell, ...]] = []
    for lesson in _lessons(view, text=True):
        for one in lesson.best_first():
            body.append(
                (
                    one.name,
                    tokens(lesson.seq_len),
                    *_costs(one),
                    *_learnt_cells(lesson, one),
                )
            )
    columns = (
        *("System", "Length", COSTS[0], "Step (ms)", COSTS[1], "Bits per byte"),
        *("More than dense", "More than dense, equal FLOPs"),
    )
    note = (
        f"Measured: {view.device}. Validation text, after equally many steps. {AT_FLOPS} Density: "
        f"pairs that are attended to, over those of dense attention. {OVER_SEEDS}{_how(view)}"
    )
    return Table("Quality, text", columns, body, note)


def recall(frame: pd.DataFrame, machine: str) -> Table:
    """Accuracy of every system on the tasks that ask for an answer, and from where on it fails."""
    view = views.view(frame, EXPERIMENT, machine)
    body: list[tuple[Cell, ...]] = []
    for lesson in _lessons(view, text=False):
        for one in lesson.best_first():
            body.append(
                (
                    lesson.task,
                    tokens(lesson.seq_len),
                    one.name,
                    *_costs(one),
                    *_learnt_cells(lesson, one),
                    _falls_off(lesson, one),
                )
            )
    columns = (
        *("Task", "Length", "System", COSTS[0], "Step (ms)", COSTS[1], "Accuracy (%)"),
        *("Less than dense", "Less than dense, equal FLOPs", "Half of dense from"),
    )
    note = (
        f"Measured: {view.device}. Per cent of the answers that are right, after equally many "
        f"steps; less than dense: in points. {AT_FLOPS} Half of dense from: the first range of "
        "distances, from a power of two to the next, in which fewer than half as many are right, "
        f"by the whole interval. {OVER_SEEDS}{_how(view)}"
    )
    return Table("Quality, recall", columns, body, note)


def choices_table(frame: pd.DataFrame, machine: str) -> Table:
    """Systems that differ in one choice: what it is worth, and what it costs."""
    view = views.view(frame, EXPERIMENT, machine)
    body: list[tuple[Cell, ...]] = []
    for lesson in quality_views.lessons(view):
        for one in choices(lesson):
            pair = one.first, one.second
            steps = lesson.edge(*pair)
            flops = lesson.edge(*pair, equal_flops=True)
            work = one.first.row["useful_flops"] / one.second.row["useful_flops"]
            time = quantities.speed_up(one.first.row, one.second.row)
            kept = f" ({naming.branches(one.first.row)})" if one.what in (MIXING, OFFSET) else ""
            body.append(
                (
                    IN_WORDS[one.what] + kept,
                    f"{lesson.task}, {tokens(lesson.seq_len)}",
                    one.first_is,
                    one.second_is,
                    cells.difference_cell(lesson, steps),
                    cells.verdict(steps),
                    cells.difference_cell(lesson, flops),
                    cells.verdict(flops),
                    float(work),
                    cell(time, "{:.2f}"),
                )
            )
    columns = (
        *("Choice", "Task", "First", "Second", "Gain of the first", "It is"),
        *("Gain, equal FLOPs", "It is, equal FLOPs", "FLOPs, over the second"),
        "Step time, over the second",
    )
    note = (
        f"Measured: {view.device}. Gain: bits per byte fewer on text, points of accuracy more on "
        f"the other tasks, after equally many steps. {AT_FLOPS} A verdict is by the interval; "
        f"cannot tell does not say that they are equal. {OVER_SEEDS}{_how(view)}"
    )
    return Table("Quality, choices within dilated attention", columns, body, note)


def _learnt_cells(lesson: Lesson, one: Learner) -> tuple[Cell, Cell, Cell]:
    """What a system learnt, and how much less than dense: after as many steps, as many FLOPs."""
    return (
        cells.score_cell(lesson, lesson.score(one)),
        cells.difference_cell(lesson, lesson.shortfall(one)),
        cells.difference_cell(lesson, lesson.shortfall(one, equal_flops=True)),
    )


def data(frame: pd.DataFrame, machine: str) -> Table:
    """What was learnt: sources, sizes, licences, and what is got without attention."""
    view = views.view(frame, EXPERIMENT, machine)
    lengths: dict[tuple[str, ...], list[int]] = {}
    for lesson in quality_views.lessons(view):
        lengths.setdefault(_learnt(lesson), []).append(lesson.seq_len)
    body: list[tuple[Cell, ...]] = [
        (task, ", ".join(map(tokens, sorted(own))), *more) for (task, *more), own in lengths.items()
    ]
    columns = (
        *("Task", "Lengths", "Recipe", "SHA-256", "Sizes", "Parameters"),
        *("Packages and licences", "Chance (%)", "n-grams (bits per byte)"),
    )
    note = (
        "SHA-256: the first digits, of the corpus; tasks are drawn anew for each batch. Chance: "
        "the accuracy of a blind guess. n-grams: Kneser-Ney models of the training text, by order, "
        "on the bytes that the models are validated on."
    )
    return Table("Quality, what is learnt", columns, body, note)


def _learnt(lesson: Lesson) -> tuple[str, ...]:
    """What is said of a lesson: its task, and the columns after its length."""
    found, packages = lesson.first["learning"], lesson.first["learning"].packages or ()
    facts = {name.replace("_", " "): value for name, value in found.facts.items()}
    facts.pop("chance accuracy", None)
    n_grams = found.n_gram_losses or {}
    return (
        lesson.task,
        str(lesson.first["recipe"]),
        (found.sha256 or DASH)[:12],
        ", ".join(f"{name} {_fact(value)}" for name, value in facts.items()) or DASH,
        f"{found.parameters:,}",
        ", ".join(f"{p.name} {p.version} ({p.licence})" for p in packages) or DASH,
        DASH if lesson.chance is None else f"{lesson.chance:.2f}",
        ", ".join(f"{order}: {loss:.3f}" for order, loss in n_grams.items()) or DASH,
    )


def _lessons(view: views.View, text: bool) -> list[Lesson]:
    return [one for one in quality_views.lessons(view) if one.is_text == text]


def _how(view: views.View) -> str:
    return naming.how_computed(row for _, row in view.rows.iterrows())


def _costs(one: Learner) -> tuple[Cell, ...]:
    """Density, step time and GFLOPs of a step."""
    row = one.row
    return (float(row["realised_density"]), time_cell(row), float(row["useful_flops"]) / 1e9)


def _falls_off(lesson: Lesson, one: Learner) -> Cell:
    if lesson.dense is None or one is lesson.dense:
        return None
    first = quality_views.falls_off(one, lesson.dense)
    return "nowhere" if first is None else tokens(first)


def _fact(value: object) -> str:
    return value if isinstance(value, str) else number(value)
