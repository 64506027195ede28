"""What a figure shows, as rows for a CSV: read back from its axes, so that the two cannot differ.

What has a label is data: lines, points with their error bars, bands, bars. What has none, a frame
or a line at 1, is not. Where a drawn shape does not hold its number, as the colour of a cell does
not, `note` puts it down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from analysis.rendering.escaping import csv_text

HEAD = ("panel", "series", "shape")
# Where a bar starts; the interval of a point, or the edges of a band.
TAIL = ("start", "low", "high")


def note(ax: Axes, series: str, shape: str, **values) -> None:
    """A row that no drawn shape holds: its columns are named as `values` are."""
    ax.noted = [*getattr(ax, "noted", ()), {"series": series, "shape": shape, **values}]


def to_csv(figure: Figure) -> str:
    """One row per drawn point: panel, series, shape, a column per axis label, start, low, high.

    Numbers are those that were handed to the axes, in full; on a y axis without a label, which
    has names in place of numbers, the name.
    """
    rows = [
        {"panel": _words(ax.get_title(loc="left") or ax.get_title()), **row}
        for ax in figure.axes
        for row in _rows(ax)
    ]
    middle = dict.fromkeys(key for row in rows for key in row if key not in HEAD + TAIL)
    columns = [*HEAD, *middle, *TAIL]
    return csv_text([columns, *([_plain(row.get(column)) for column in columns] for row in rows)])


def _rows(ax: Axes) -> Iterator[dict]:
    x_name, y_name = _said(ax.xaxis.label) or "value", _said(ax.yaxis.label) or "name"
    ticks = [] if ax.get_ylabel() else ax.get_yticks()
    places = list(zip(ticks, ax.yaxis.get_major_formatter().format_ticks(ticks), strict=True))
    inside = {id(child) for container in ax.containers for child in container.get_children()}
    for artist in (*ax.containers, *ax.lines, *ax.collections):
        if id(artist) not in inside and _is_named(artist):
            series = _words(artist.get_label())
            for shape, x, y, more in _read(artist):
                if places and y is not None:
                    tick = min(places, key=lambda place, y=y: abs(place[0] - y))
                    y = _words(tick[1])
                yield {"series": series, "shape": shape, x_name: x, y_name: y, **more}
    yield from getattr(ax, "noted", ())


def _line(line: Line2D) -> Iterator[tuple]:
    x, y = (np.asarray(values, float) for values in line.get_data(orig=True))
    # Set by the height of the axes: what it stands for has no value there.
    no_height = not line.get_transform().contains_branch_seperately(line.axes.transData)[1]
    shape = "line" if line.get_linestyle() != "None" and x.size > 1 else "point"
    for one, other in zip(x, y, strict=True):
        yield shape, one, None if no_height else other, {}


def _error_bars(container: ErrorbarContainer) -> Iterator[tuple]:
    line, _, bars = container.lines
    points = list(_line(line))
    if not bars:
        yield from points
        return
    axis = 1 if container.has_yerr else 0
    for (*point, _), segment in zip(points, bars[0].get_segments(), strict=True):
        ends = np.asarray(segment)[:, axis] if len(segment) else ()
        yield *point, dict(zip(("low", "high"), ends, strict=False))


def _bars(container: BarContainer) -> Iterator[tuple]:
    for bar in container.patches:
        x, y, width, height = bar.get_x(), bar.get_y(), bar.get_width(), bar.get_height()
        if container.orientation == "horizontal":
            yield "bar", x + width, y + height / 2, {"start": x}
        else:
            yield "bar", x + width / 2, y + height, {"start": y}


def _band(band: PolyCollection) -> Iterator[tuple]:
    for path in band.get_paths():
        # There along one edge and back along the other, first and last points twice.
        points = path.vertices[:-1]
        for x in dict.fromkeys(points[:, 0]):
            heights = points[points[:, 0] == x, 1]
            yield "band", x, None, {"low": heights.min(), "high": heights.max()}


_READERS = {
    Line2D: _line,
    PolyCollection: _band,
    ErrorbarContainer: _error_bars,
    BarContainer: _bars,
}


def _read(artist) -> Iterator[tuple]:
    """(shape, x, y, columns of TAIL) of every point of an artist."""
    for kind, read in _READERS.items():
        if isinstance(artist, kind):
            return read(artist)
    raise TypeError(f"{type(artist).__name__} {artist.get_label()!r}: no rows for such a shape")


def _is_named(artist) -> bool:
    return bool(artist.get_label()) and not artist.get_label().startswith("_")


def _said(text: Text) -> str:
    """A text as one line, without the marks of mathematics where it has some."""
    words = _words(text.get_text())
    if not text.get_parse_math():
        return words
    return re.sub(r"\$([^$]*)\$", lambda math: re.sub(r"[{}]", "", math[1]), words)


def _words(text: str) -> str:
    """A label as one line."""
    return re.sub(r"\s*\n\s*", "; ", text.strip())


def _plain(value) -> str | float:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return float(value) if isinstance(value, np.floating) else value
