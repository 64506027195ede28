"""Labels beside the points of a plot, where they cover neither points nor each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

# Where a label may stand: directions in degrees, first those off the bars of its own point, and
# points of distance.
_DIRECTIONS = (40, 320, 140, 220, 0, 180, 90, 270, 65, 295, 115, 245)
_DISTANCES = (2, 5, 8, 13, 19, 26, 34, 44, 56, 70)
# From here on a line leads from the label to its point.
_LED = 8
_OUTSIDE, _COVERED, _MARGIN = 50.0, 6.0, 1.0


@dataclass(frozen=True)
class Box:
    """A rectangle on the figure, in points."""

    left: float
    low: float
    right: float
    high: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        tall = min(self.high, other.high) - max(self.low, other.low)
        return max(wide, 0.0) * max(tall, 0.0)


@dataclass(frozen=True)
class Beside:
    """A label of the point (x, y) in data; text: no mathematics. taken: its marks, in data.

    taken: (left, low, right, high) of what else belongs to the point, as its error bars.
    """

    x: float
    y: float
    text: str
    color: object
    taken: Sequence[tuple[float, float, float, float]] = ()


def label_points(ax: Axes, labels: Sequence[Beside], size: float = 6, mark: float = 4) -> None:
    """Write every label near its point, the first ones nearest.

    size: of the font, mark: of the markers, in points. Call it when the limits of the axes are
    final. Where there is no free place a label covers what matters least.
    """
    ax.autoscale_view()
    to_points = 72 / ax.figure.dpi

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = ax.transData.transform((x, y))
        return across * to_points, up * to_points

    (left, low), (right, high) = (
        ax.transAxes.transform(end) * to_points for end in ((0, 0), (1, 1))
    )
    inside, half = Box(left, low, right, high), mark / 2
    covered: list[tuple[Box, float]] = []
    for one in labels:
        x, y = at(one.x, one.y)
        covered.append((Box(x - half, y - half, x + half, y + half), 2.0))
        for taken in one.taken:
            ends = *at(*taken[:2]), *at(*taken[2:])
            covered.append((Box(ends[0] - 0.4, ends[1] - 0.4, ends[2] + 0.4, ends[3] + 0.4), 1.0))
    for one in labels:
        point = at(one.x, one.y)
        width, height = _extent(one.text, size)
        places = [
            (_beside(point, degrees, half + distance, width, height), distance)
            for distance in _DISTANCES
            for degrees in _DIRECTIONS
        ]
        box, distance = min(places, key=lambda place: _cost(*place, inside, covered))
        covered.append((box, 3.0))
        _write(ax, one, box, point, distance, size)


def _write(
    ax: Axes, one: Beside, box: Box, point: tuple[float, float], distance: float, size: float
) -> None:
    middle = (box.left + box.right) / 2 - point[0], (box.low + box.high) / 2 - point[1]
    line = {"arrowstyle": "-", "color": one.color, "linewidth": 0.35, "shrinkA": 0, "shrinkB": 2}
    # The line ends at the side of the text that faces the point.
    facing = (0.5 - 0.5 * _sign(middle[0], box.right - box.left), 0.5 - 0.5 * _sign(middle[1], 6))
    ax.annotate(
        one.text,
        xy=(one.x, one.y),
        xytext=middle,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=size,
        color=one.color,
        zorder=7,
        arrowprops={**line, "relpos": facing} if distance >= _LED else None,
    )


def _sign(way: float, size: float) -> float:
    """-1 to 1: on which side a text of this size lies that is `way` off."""
    return max(-1.0, min(1.0, 2 * way / max(size, 1e-9)))


def _extent(text: str, size: float) -> tuple[float, float]:
    """Width and height of a text, in points, with what a coarse canvas adds to its letters."""
    outline = TextPath((0, 0), text, size, prop=FontProperties())
    return 1.06 * outline.get_extents().width, 1.2 * size


def _beside(
    point: tuple[float, float], degrees: float, distance: float, width: float, height: float
) -> Box:
    """The box of a text whose nearest edge is `distance` from the point in that direction."""
    across, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x = point[0] + across * distance + _sign(across, 0.5) * width / 2
    y = point[1] + up * distance + _sign(up, 0.5) * height / 2
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _cost(box: Box, distance: float, inside: Box, covered: Sequence[tuple[Box, float]]) -> float:
    """How bad a place is: far off, outside the axes, over marks and other labels."""
    own = (box.right - box.left) * (box.high - box.low)
    wide = Box(box.left - _MARGIN, box.low, box.right + _MARGIN, box.high)
    over = sum(weight * wide.overlap(other) for other, weight in covered)
    return distance + _OUTSIDE * (own - box.overlap(inside)) / own * 4 + _COVERED * over
