"""How often an answer is found, by how far back it stands: a map of systems and distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.experiments.quality import views as quality_views
from analysis.experiments.quality.views import DENSE, Learner, Lesson
from analysis.records import learnt
from analysis.rendering.figure_csv import note as noted
from analysis.rendering.style import GREY, PAGE, style
from analysis.rendering.text import tokens
from analysis.standard.panels import finish, foot_of
from analysis.statistics.intervals import Interval

# Systems that a map has at most, and maps: more cannot be read.
MOST_ROWS, MOST_MAPS = 32, 3
LABELS, GAP, HEIGHT, WIDEST = 1.72, 0.16, 0.155, 0.34  # inches
HEAD, TAIL, BAR = 0.4, 0.38, 0.36
# From white, which is no accuracy, to dark blue: even steps in lightness.
_SHADES = LinearSegmentedColormap.from_list(
    "accuracy", ["#FFFFFF", "#9CC6E6", "#2F78B7", "#0B2F66"]
)
_DARK = 0.52  # text is white from here on


@dataclass(frozen=True)
class _Map:
    """Lessons of one machine beside each other: `rows` are names, best first."""

    lessons: Sequence[Lesson]
    rows: Sequence[str]
    left_out: int


def recall(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Accuracy (%) by system and distance, a map a task, all tasks of a machine beside each other.

    Dense attention first, then by the accuracy in the first task that a system was trained on.
    """
    found = [
        made
        for view in quality_views.all_machines(frame, machine)
        if (made := _map(quality_views.main_lessons(view))) is not None
    ]
    maps = found[:MOST_MAPS]
    note = (
        "Per cent of the answers that are right, means over seeds, by the tokens back to where "
        "the answer stands: from each number to the next. Systems by their accuracy in the "
        "first task that has them. Hatched: not above the best guess marked on the scale, by "
        "the interval over seeds of each cell, however many there are. Of recall that guess is "
        "the commonest value of a row's pairs; of induction, where tokens frequent in a row are "
        "better guesses than chance, a little more need not be induction. Empty: no question at "
        "that distance, or no such training."
    )
    left_out = max((one.left_out for one in maps), default=0)
    if left_out:
        note += f" Left out: the last {left_out} systems."
    if len(found) > len(maps):
        note += f" Of {len(found)} machines the first {len(maps)}."
    return _figure(maps, note)


def _map(lessons: Sequence[Lesson]) -> _Map | None:
    """Of the lessons that ask for an answer at a distance; None without one."""
    own = [one for one in lessons if any(t.by_distance for t in one.first["trainings"])]
    if not own:
        return None
    places: dict[str, tuple] = {}
    for place, lesson in enumerate(own):
        for one in lesson.learners:
            found = (one.kind != DENSE, place, -lesson.score(one).value)
            places.setdefault(one.name, found)
    ranked = sorted(places, key=places.get)
    return _Map(own, ranked[:MOST_ROWS], max(0, len(ranked) - MOST_ROWS))


def _figure(maps: Sequence[_Map], note: str) -> Figure:
    with style():
        lines, foot = foot_of(note, PAGE)
        tall = [HEAD + HEIGHT * len(one.rows) + TAIL for one in maps] or [1.0]
        height = sum(tall) + foot + BAR * bool(maps)
        figure = Figure(figsize=(PAGE, height))
        top = height
        for one, high in zip(maps, tall, strict=False):
            columns = [_distances(lesson) for lesson in one.lessons]
            count = sum(len(own) + 1 for own in columns)
            room = PAGE - LABELS - GAP * len(columns) - 0.06
            cell = min(WIDEST, room / max(count, 1))
            left = LABELS
            for place, (lesson, own) in enumerate(zip(one.lessons, columns, strict=True)):
                wide = cell * (len(own) + 1)
                down = HEIGHT * len(one.rows)
                box = (left / PAGE, (top - HEAD - down) / height, wide / PAGE, down / height)
                ax = figure.add_axes(box)
                _draw(ax, lesson, own, one.rows, named=place == 0, cell=cell)
                left += wide + GAP
            top -= high
        if maps:
            _scale(figure, maps, foot, height)
        finish(figure, lines, empty=not maps)
    return figure


def _distances(lesson: Lesson) -> list[int]:
    """The first of each range that any system was asked at."""
    return sorted({
        part.first
        for one in lesson.learners
        for own in one.row["trainings"]
        for part in own.by_distance
    })  # fmt: skip


def _draw(
    ax: Axes,
    lesson: Lesson,
    distances: Sequence[int],
    rows: Sequence[str],
    named: bool,
    cell: float,
) -> None:
    learners = {one.name: one for one in lesson.learners}
    size = 6.2 if cell > 0.26 else 5.4
    guess = max(lesson.guesses.values(), default=None)
    for y, name in enumerate(rows):
        one = learners.get(name)
        found = {} if one is None else _accuracies(lesson, one)
        for x, column in enumerate(["all", *distances]):
            of_cell = found.get(column)
            _draw_cell(ax, x + 0.12 * (x > 0), y, of_cell, guess, size)
            known = Interval.without_spread(math.nan) if of_cell is None else of_cell
            values = {"accuracy": known.value, "low": known.low, "high": known.high}
            noted(ax, name, "cell", distance=column, **values)
    ax.set_xlim(0, len(distances) + 1.12)
    ax.set_ylim(len(rows), 0)
    at = [0.5, *(x + 1.62 for x in range(len(distances)))]
    ax.set_xticks(at, ["all", *map(tokens, distances)], fontsize=size)
    ax.set_yticks([y + 0.5 for y in range(len(rows))], rows if named else [], fontsize=6.5)
    ax.tick_params(length=0, pad=2)
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_xlabel("tokens back to the answer", fontsize=6.5, labelpad=2)
    words = f"{lesson.view.device}\n{lesson.title}" if named else f"\n{lesson.title}"
    ax.set_title(words, fontsize=7, linespacing=1.15)


def _accuracies(lesson: Lesson, of: Learner) -> dict[int | str, Interval]:
    """Accuracy (%) in all, and by the first distance of each range."""
    found = learnt.by_range(of.row, "by_distance", learnt.ACCURACY)
    own = {
        first: learnt.of_seeds(of.row, values, learnt.ACCURACY).times(100)
        for first, values in found.items()
    }
    return {"all": lesson.score(of), **own}


def _draw_cell(
    ax: Axes, x: float, y: int, of: Interval | None, guess: float | None, size: float
) -> None:
    share = None if of is None else of.value / 100
    is_known = share is not None
    face = _SHADES(share) if is_known else "white"
    hatch = "/////" if is_known and guess is not None and _is_guessed(of, guess) else None
    ax.add_patch(
        Rectangle((x, y), 1, 1, facecolor=face, edgecolor="#BBBBBB", hatch=hatch, linewidth=0)
    )
    ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="white", linewidth=0.7))
    if is_known:
        color = "white" if share > _DARK else "black"
        shown = {"ha": "center", "va": "center", "fontsize": size, "color": color}
        ax.text(x + 0.5, y + 0.53, f"{100 * share:.0f}", **shown)


def _is_guessed(of: Interval, guess: float) -> bool:
    """Whether a guess may be as good: of a single seed nobody can tell."""
    return not of.low > guess


def _scale(figure: Figure, maps: Sequence[_Map], foot: float, height: float) -> None:
    """The scale of colours, with the guesses of each task."""
    ax = figure.add_axes((LABELS / PAGE, (foot + 0.2) / height, 2.4 / PAGE, 0.09 / height))
    ax.imshow([[x / 255 for x in range(256)]], cmap=_SHADES, aspect="auto", extent=(0, 100, 0, 1))
    ax.set_yticks([])
    ax.set_xticks([0, 25, 50, 75, 100])
    ax.tick_params(length=1.5, labelsize=6, pad=1.5)
    ax.grid(False)
    ax.set_ylabel("accuracy (%)", rotation=0, ha="right", va="center", fontsize=6.5)
    lessons = {one.task: one for made in maps for one in made.lessons}
    said = []
    for task, one in lessons.items():
        named = [f"{name} {guess:.3g} %" for name, guess in one.guesses.items()]
        said.append(f"{task}: {', '.join(named)}")
        for name, guess in one.guesses.items():
            ax.plot([guess, guess], [0, 1.6], color=GREY, linewidth=0.8, clip_on=False)
            noted(ax, f"{task}: {name}", "mark", accuracy=guess)
    words = {"va": "center", "fontsize": 6, "color": GREY, "linespacing": 1.15}
    ax.text(105, 0.5, "\n".join(["By a guess", *said]), **words)
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 1)
