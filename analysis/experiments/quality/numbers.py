"""Numbers of `quality` for the prose, by task and system; keys follow from the grid alone.

`<task>.<what>.<system>` is of the main lesson of a task, with `naming.slug` as the system;
`<task>.kind.<kind>` is the system that stands for a kind (`branches`, `strided`, ...) by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from analysis.experiments.quality import cells, choices, naming
from analysis.experiments.quality import views as quality_views
from analysis.experiments.quality.choices import MIXING, OFFSET, SCHEDULE
from analysis.experiments.quality.views import EXPERIMENT, Learner, Lesson
from analysis.records import learnt
from analysis.rendering.numbers import entry
from analysis.selection import views
from analysis.standard import number_entries
from analysis.statistics.intervals import Interval
from experiments import grid
from experiments.case import Case
from experiments.training.recipes import ORDERS

_WORDS = {cells.BETTER: "better than", cells.WORSE: "worse than", cells.OPEN: "not told apart from"}
_NOT_COMPARED = "not compared with"


def of_lessons(frame: pd.DataFrame, view: views.View) -> dict[str, dict]:
    """Key -> entry; keys do not depend on what was measured, as in `standard.numbers`."""
    lessons = {one.task: one for one in quality_views.main_lessons(view)}
    found: dict[str, dict] = {}
    for task, cases in _tasks().items():
        lesson = lessons.get(task)
        own = {one.slug: one for one in lesson.learners} if lesson else {}
        of_task = _lesson(lesson)
        for slug in dict.fromkeys(map(naming.slug, cases)):
            of_task |= _system(lesson, own.get(slug), slug)
        for kind in dict.fromkeys(map(naming.kind, cases)):
            of_task |= _of_kind(lesson, kind)
        of_task |= _choices(lesson)
        found |= {f"{task}.{key}": one for key, one in of_task.items()}
    return found


def _tasks() -> dict[str, list[dict]]:
    """Task -> the cells of its cases, of every tier but smoke, in order."""
    found: dict[str, list[dict]] = {}
    for case in _cases():
        found.setdefault(quality_views.task_of(case.recipe), []).append(case.cells())
    return {task: sorted(of, key=naming.order) for task, of in sorted(found.items())}


def _cases() -> Iterator[Case]:
    for name, tier in grid.load(EXPERIMENT).tiers.items():
        if name != "smoke":
            yield from tier.cases


def _lesson(lesson: Lesson | None) -> dict[str, dict]:
    """What is learnt, by how many, and what is got without attention."""
    first = None if lesson is None else lesson.first
    rows = [] if first is None else [first]
    facts = {} if first is None else first["learning"].facts
    n_grams = (None if first is None else first["learning"].n_gram_losses) or {}
    chance = None if lesson is None else lesson.chance
    commonest = facts.get("commonest_value_accuracy")
    tokens = None if lesson is None else lesson.seq_len
    return {
        "tokens": number_entries.tokens(tokens, rows),
        "batch": entry(None if first is None else int(first["batch"]), rows=rows),
        "systems": entry(len(lesson.learners) if lesson else None, rows=rows),
        "seeds": _seeds(lesson),
        "steps": entry(first["trainings"][0].steps if lesson else None, rows=rows),
        "parameters": entry(first["learning"].parameters if lesson else None, rows=rows),
        "chance": number_entries.per_cent(None if chance is None else chance / 100, rows),
        "chance.commonest_value": number_entries.per_cent(commonest, rows),
        **{
            f"n_gram.{order}": _number(n_grams.get(str(order)), "{:.3f}", "bits per byte", rows)
            for order in ORDERS
        },
    }


def _seeds(lesson: Lesson | None) -> dict:
    """Of each system: `4`, or `4 to 8` where some were trained in more rounds than others."""
    if lesson is None:
        return entry(None)
    text = " to ".join(map(str, dict.fromkeys(lesson.seeds)))
    fewest, most = lesson.seeds
    return entry(fewest, fewest, most, text=text, rows=[one.row for one in lesson.learners])


def _system(lesson: Lesson | None, of: Learner | None, slug: str) -> dict[str, dict]:
    """`<what>.<slug>`: what was learnt, what that lacks of dense attention, and its cost."""
    row = None if of is None else of.row
    rows, pair = [row], [row]
    dense = None if lesson is None else lesson.dense
    if of is not None and dense is not None:
        pair = [dense.row, row]
    of_seeds = {
        name: None if row is None else learnt.interval(row, name) for name in learnt.MEASURES
    }
    less, less_flops = (
        None if of is None else lesson.shortfall(of, equal_flops) for equal_flops in (False, True)
    )
    falls = None if of is None or of is dense else quality_views.falls_off(of, dense)
    seeds = None if row is None else len(row["trainings"])
    density = None if row is None else float(row["realised_density"])
    flops = None if row is None else float(row["useful_flops"]) / 1e9
    base = None if dense is None else dense.row
    return {
        f"name.{slug}": entry(None if of is None else of.name, rows=rows),
        f"loss.{slug}": _interval(of_seeds[learnt.LOSS], ".3f", rows, unit="bits"),
        f"accuracy.{slug}": _interval(of_seeds[learnt.ACCURACY], ".1f", rows, 100, "%"),
        **_difference(f"shortfall.{slug}", lesson, less, pair),
        **_difference(f"shortfall_flops.{slug}", lesson, less_flops, pair),
        f"half_from.{slug}": number_entries.tokens(falls, pair),
        f"seeds.{slug}": entry(seeds, rows=rows),
        f"density.{slug}": entry(density, rows=rows),
        f"gflops.{slug}": entry(flops, unit="GFLOPs", rows=rows),
        f"step.{slug}": number_entries.time(row),
        **number_entries.gain(f"step_over_dense.{slug}", base, row),
    }


def _of_kind(lesson: Lesson | None, kind: str) -> dict[str, dict]:
    """`kind.<kind>`: the system that stands for a kind by name, its score and shortfall."""
    own = lesson.of_each_kind() if lesson else []
    one = next((one for one in own if one.kind == kind), None)
    rows = [one.row] if one else []
    form = f".{cells.decimals(lesson)}f" if lesson else ""
    score = lesson.score(one) if one else None
    less = lesson.shortfall(one) if one else None
    return {
        f"kind.{kind}": entry(one.name if one else None, rows=rows),
        f"kind.{kind}.score": _interval(score, form, rows, unit=lesson.unit if lesson else ""),
        **_difference(f"kind.{kind}.shortfall", lesson, less, rows),
    }


def _choices(lesson: Lesson | None) -> dict[str, dict]:
    """`choice.<what>`: gain of the first side in the first pair that differs in nothing else.

    Of schedules: how many pairs there are, and how many can be told apart.
    """
    found: dict[str, dict] = {}
    every = list(choices.choices(lesson)) if lesson else []
    for what in (MIXING, OFFSET):
        one = next((one for one in every if one.what == what), None)
        pair = [one.first.row, one.second.row] if one else []
        for key, equal_flops in ((what, False), (f"{what}_flops", True)):
            gain = lesson.edge(one.first, one.second, equal_flops) if one else None
            found |= _difference(f"choice.{key}", lesson, gain, pair, _WORDS)
    own = [one for one in every if one.what == SCHEDULE]
    told = [
        one
        for one in own
        if cells.verdict(lesson.edge(one.first, one.second)) in (cells.BETTER, cells.WORSE)
    ]
    rows = [row for one in own for row in (one.first.row, one.second.row)]
    found["choice.schedule.pairs"] = entry(len(own) if own else None, rows=rows)
    found["choice.schedule.told"] = entry(len(told) if own else None, rows=rows)
    return found


def _difference(
    key: str,
    lesson: Lesson | None,
    found: Interval | None,
    rows: Sequence[pd.Series | None],
    words: dict[str, str] | None = None,
) -> dict[str, dict]:
    """A difference, and whether the system is worse: a shortfall says how much dense is better."""
    if found is None:
        return {key: entry(None), f"{key}.word": entry(_NOT_COMPARED)}
    text = cells.difference_text(lesson, found)
    said = cells.verdict(found)
    if words is None:
        words = _WORDS
        said = {cells.BETTER: cells.WORSE, cells.WORSE: cells.BETTER}.get(said, said)
    unit = "bits" if lesson.is_text else "points"
    return {
        key: entry(found.value, found.low, found.high, unit, text, rows),
        f"{key}.word": entry(words[said], rows=rows),
    }


def _interval(
    found: Interval | None, spec: str, rows: Sequence, factor: float = 1.0, unit: str = ""
) -> dict:
    if found is None:
        return entry(None, unit=unit, rows=rows)
    one = found.times(factor)
    return entry(one.value, one.low, one.high, unit, f"{one:{spec}}", rows)


def _number(value: float | None, form: str, unit: str, rows: Sequence) -> dict:
    known = value is not None and math.isfinite(value)
    return entry(
        value if known else None, unit=unit, text=form.format(value) if known else None, rows=rows
    )
