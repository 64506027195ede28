"""The ratios of a comparison in one figure: a strip of cases for each system, and its mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from analysis.comparison.pairs import HEADINGS, OTHER, Comparison, Mean, Pair
from analysis.records import systems
from analysis.rendering.style import PAGE, look, ratio_axis, style
from analysis.rendering.text import interval
from analysis.statistics.intervals import Interval

# Inches: the least and the largest height of a system, and what each of its cases would like; then
# what is left of panels, right of them, above and below each, and below all.
_ROW, _MOST, _CASE = 0.17, 0.55, 0.045
_LEFT, _RIGHT, _ABOVE, _BELOW, _FOOT = 1.75, 1.1, 0.5, 0.42, 0.2
_BOLD = 1.5  # points, the line of a mean's interval
# Ticks where ratios are this close together, in place of 1, 2 and 5 of each decade.
_NEAR, _TICKS = 4, (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2)


@dataclass(frozen=True)
class _Strip:
    """A system's cases from top to bottom, and their mean; None where they have none in common."""

    system: str
    pairs: Sequence[Pair]
    mean: Interval | None

    @property
    def height(self) -> float:
        """Inches."""
        return min(max(_ROW, _CASE * (len(self.pairs) + 1)), _MOST)


def forest(found: Comparison) -> Figure:
    """Ratios with intervals on a logarithmic axis, the largest mean on top.

    A panel for the cases of each kind of code, whose marks are hollow where the code differs; the
    last is of cases in which another backend ran, drawn as crosses and in no mean. Without ratios a
    figure without panels.
    """
    panels = [*_panels(found)]
    heights = [sum(strip.height for strip in strips) for _, strips in panels]
    tall = sum(heights) + len(panels) * (_ABOVE + _BELOW) + _FOOT
    wide = PAGE - _LEFT - _RIGHT
    bounds = [x for one in found.timed for x in _ends(one.ratio)]
    with style():
        figure = Figure(figsize=(PAGE, tall))
        top = tall
        for (title, strips), height in zip(panels, heights, strict=True):
            top -= _ABOVE + height
            ax = figure.add_axes((_LEFT / PAGE, top / tall, wide / PAGE, height / tall))
            _draw(ax, strips, height, wide)
            ax.set_title(title, x=-(_LEFT - 0.1) / wide, fontweight="bold", pad=14)
            ratio_axis(ax, bounds)
            low, high = ax.get_xlim()
            if high / low < _NEAR:
                ax.xaxis.set_major_locator(FixedLocator([x for x in _TICKS if low <= x <= high]))
            ax.tick_params(axis="x", top=True, labeltop=True)
            top -= _BELOW
        if panels:
            ax.set_xlabel("time in A / time in B; right of 1, B is faster")
            _legend(figure, found, tall)
    return figure


def _panels(found: Comparison) -> Iterator[tuple[str, list[_Strip]]]:
    """What each is of, and its strips, the largest ratio on top."""
    of_code: dict[str, list[Mean]] = {}
    for mean in found.means:
        if mean.system:
            of_code.setdefault(mean.code, []).append(mean)
    for code, means in of_code.items():
        means = sorted(means, key=lambda one: -one.ratio.value)
        yield HEADINGS[code], [_Strip(one.system, one.pairs, one.ratio) for one in means]
    apart = found.of_other_backends
    if apart:
        names = systems.ordered(one.system for one in apart)
        strips = [_Strip(name, [p for p in apart if p.system == name], None) for name in names]
        yield "Another backend, in no mean", strips


def _draw(ax: Axes, strips: Sequence[_Strip], height: float, wide: float) -> None:
    """The strips below each other, in inches from the top."""
    top = 0.0
    for strip in strips:
        one = look(strip.system)
        middle = top + strip.height / 2
        gap = strip.height / (len(strip.pairs) + 1)
        for place, pair in enumerate(strip.pairs, start=1):
            _mark(ax, pair, top + place * gap, one.color)
        if strip.mean is not None:
            low, high = strip.mean.low, strip.mean.high
            ax.plot([low, high], [middle] * 2, color="black", linewidth=_BOLD, zorder=4)
            ax.plot([strip.mean.value], [middle], "D", color="black", markersize=3.4, zorder=5)
            told = interval(strip.mean.value, low, high)
            ax.text(
                1.02, middle, told, transform=ax.get_yaxis_transform(), va="center", fontsize=6.5
            )
        name = f"{one.label} ({len(strip.pairs)})"
        left = -(_LEFT - 0.1) / wide
        ax.text(left, middle, name, transform=ax.get_yaxis_transform(), va="center", color=one.ink)
        top += strip.height
        ax.axhline(top, color="#eeeeee", linewidth=0.4, zorder=0)
    ax.set_ylim(height, 0)
    ax.set_yticks([])


def _tell(ax: Axes, x: float, y: float, words: str, color: object) -> None:
    """Words beside a strip; x is a share of the panel's width."""
    ax.text(x, y, words, transform=ax.get_yaxis_transform(), va="center", color=color)


def _mark(ax: Axes, pair: Pair, y: float, color: str) -> None:
    """A case: its interval, and a mark that is hollow where the code differs."""
    ax.plot(
        [pair.ratio.low, pair.ratio.high], [y, y], color=color, linewidth=0.6, alpha=0.6, zorder=1
    )
    marker = "x" if pair.backends else "o"
    face = "white" if pair.code == OTHER else color
    ax.plot(
        [pair.ratio.value], [y], marker, color=color, markerfacecolor=face, markersize=2.6, zorder=2
    )


def _legend(figure: Figure, found: Comparison, tall: float) -> None:
    """What the marks are that there are."""
    others = found.of_other_backends
    compared = [one for one in found.timed if not one.backends]
    hollow = {"marker": "o", "markerfacecolor": "white"}
    marks = (
        ("a case", any(one.code != OTHER for one in compared), {"marker": "o"}),
        ("a case by code that differs", any(one.code == OTHER for one in compared), hollow),
        ("a case by another backend", others, {"marker": "x"}),
        ("geometric mean", compared, {"marker": "D", "linewidth": _BOLD}),
    )
    handles = [
        Line2D([], [], label=name, color="black", **{"markersize": 3, "linewidth": 0.6, **mark})
        for name, is_there, mark in marks
        if is_there
    ]
    place = {"loc": "lower left", "bbox_to_anchor": (0.1 / PAGE, 0.04 / tall), "borderaxespad": 0}
    figure.legend(handles=handles, ncols=len(handles), **place)


def _ends(ratio: Interval) -> list[float]:
    """The value, and the bounds that there are."""
    return [x for x in (ratio.value, ratio.low, ratio.high) if not math.isnan(x)]
