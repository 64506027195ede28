"""Maps: one cell per system and shape, coloured by which side of 1 its ratio lies on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.rendering.figure_csv import note as noted
from analysis.rendering.style import COLUMN, PAGE, style
from analysis.standard.panels import finish, foot_of
from analysis.statistics.intervals import Interval

# Told apart by all common kinds of colour vision, and in grey by the printed ratio.
ABOVE, BELOW, UNDECIDED = "#0072B2", "#E69F00", "#E3E3E3"
LABELS, CELL, HEIGHT, GAP = 1.12, 0.42, 0.17, 0.14  # inches
HEAD, TAIL = 0.3, 0.42  # inches, above and below the cells of a map
FULL = 4  # halvings or doublings at which a colour is strongest


@dataclass(frozen=True)
class Cell:
    """A ratio with its interval (NaN: published ones have none); NaN where there is none."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def measured(cls, gain: Interval) -> Cell:
        """A measured ratio: without an interval, of one round, it decides nothing."""
        if math.isnan(gain.low) or math.isnan(gain.high):
            return cls(gain.value, 0.0, math.inf)
        return cls(gain.value, gain.low, gain.high)

    @property
    def verdict(self) -> str:
        """ "above" or "below" 1, "undecided" where the interval holds 1, or "none"."""
        if math.isnan(self.value):
            return "none"
        if self.low <= 1 <= self.high or self.value == 1:
            return "undecided"
        return "above" if self.value > 1 else "below"


@dataclass(frozen=True)
class Map:
    """`cells` by (row, column) of the named `rows` and `columns`; others are empty."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], Cell]


def one_round(maps: Sequence[Map]) -> str:
    """What a note says where a ratio has no interval, though it is drawn as undecided."""
    alone = any(cell.high == math.inf for one in maps for cell in one.cells.values())
    return " Grey too: of one round, whose ratio has no interval." if alone else ""


def maps_of(maps: Sequence[Map], note: str) -> Figure:
    """A figure of maps beside each other, of the same rows, named on the left; `note` below."""
    most = sum(len(one.columns) for one in maps)
    gaps = GAP * max(len(maps) - 1, 0)
    width = COLUMN if LABELS + most * CELL + gaps + 0.1 <= COLUMN else PAGE
    cell = min(CELL, (width - LABELS - gaps - 0.1) / max(most, 1))
    with style():
        lines, below = foot_of(note, width)
        down = HEIGHT * len(maps[0].rows) if maps else 1.0
        height = HEAD + down + TAIL + below
        figure = Figure(figsize=(width, height))
        left = LABELS
        for index, one in enumerate(maps):
            across = cell * len(one.columns)
            box = (left / width, (below + TAIL) / height, across / width, down / height)
            ax = figure.add_axes(box)
            _draw(ax, one, cell, named=index == 0)
            ax.set_title(one.title, fontsize=7, linespacing=1.15)
            left += across + GAP
        finish(figure, lines, empty=not maps)
    return figure


def _draw(ax: Axes, one: Map, width: float, named: bool) -> None:
    size = 6.5 if width > 0.3 else 5.6
    for y, row in enumerate(one.rows):
        for x, column in enumerate(one.columns):
            cell = one.cells.get((row, column), Cell())
            _draw_cell(ax, x, y, cell, size)
            ratio = None if cell.verdict == "none" else cell.value
            values = {"ratio": ratio, "verdict": cell.verdict}
            noted(
                ax,
                row,
                "cell",
                column=column.replace("\n", ", "),
                **values,
                low=cell.low,
                high=cell.high,
            )
    ax.set_xlim(0, len(one.columns))
    ax.set_ylim(len(one.rows), 0)
    ax.set_xticks([x + 0.5 for x in range(len(one.columns))], one.columns, fontsize=size)
    ax.set_yticks([y + 0.5 for y in range(len(one.rows))], one.rows if named else [])
    ax.tick_params(length=0)
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)


def _draw_cell(ax: Axes, x: int, y: int, cell: Cell, size: float) -> None:
    verdict = cell.verdict
    face = {"undecided": UNDECIDED, "none": "white"}.get(verdict) or _tint(cell.value)
    hatch = "//////" if verdict == "none" else None
    edge = "#BBBBBB" if verdict == "none" else "white"
    ax.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor=edge, hatch=hatch, linewidth=0))
    ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="white", linewidth=0.8))
    text = "" if verdict == "none" else _short(cell.value)
    ax.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=size)


def _tint(value: float) -> tuple[float, float, float]:
    """The colour of the side, stronger further from 1, pale enough for black text."""
    strength = 0.28 + 0.4 * min(abs(math.log2(value)) / FULL, 1)
    return tuple(1 - strength * (1 - part) for part in to_rgb(ABOVE if value > 1 else BELOW))


def _short(value: float) -> str:
    """Three digits at most: the cell is small."""
    return f"{value:.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"
