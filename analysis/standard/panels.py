"""Panels over length, two beside each other: where they stand, and what all of them show."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.rendering.style import COLUMN, GREY, PAGE, Look, look, style
from analysis.rendering.text import tokens
from analysis.selection import views
from analysis.standard import in_words
from analysis.standard.in_words import WORDS
from analysis.statistics.intervals import Interval
from analysis.statistics.scaling import ScalingFit

MAX_PANELS, MOST_BARS = 6, 40
UNFITTED = "Dotted: no exponent, or one without an interval of at most 1."
PANEL = 2.42  # inches, of a panel over length with its title and axis
SIDE = 1.68  # inches, of its axes; labels of lines stand right of them
BAR_LABELS, BAR_SIDE = 1.5, 1.82  # inches, left of the axes of a panel of bars, and of these


def over_length(
    panels: Sequence[views.Series], draw: Callable[[Axes, views.Series], None], note: str = ""
) -> Figure:
    """A figure with one panel per series, drawn by `draw`; a column wide where there is one.

    Series of one system are left out where others compare several. `note`: said below all panels.
    """
    panels = comparing(panels)
    return grid_of([(title_of(s), lambda ax, s=s: draw(ax, s)) for s in panels], note)


def comparing(found: Sequence[views.Series]) -> Sequence[views.Series]:
    """The series of several systems; all of them where each is of one."""
    return [series for series in found if len(series.systems) > 1] or found


def grid_of(panels: Sequence[tuple[str, Callable[[Axes], None]]], note: str = "") -> Figure:
    """A figure of (title, drawn by) panels of one size, two beside each other; `note` below all."""
    panels = panels[:MAX_PANELS]
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / 2)
    with style():
        width = PAGE if columns == 2 else COLUMN
        lines, foot = foot_of(note, width)
        height = PANEL * max(rows, 1) + foot
        figure = Figure(figsize=(width, height))
        for index, (title, draw) in enumerate(panels):
            row, column = divmod(index, 2)
            left = column * PAGE / 2 + 0.52
            bottom = (rows - 1 - row) * PANEL + 0.4 + foot
            ax = figure.add_axes((left / width, bottom / height, SIDE / width, SIDE / height))
            draw(ax)
            # A y of its own: matplotlib need not look for what the title would touch.
            ax.set_title(title, y=1.0, fontsize=7, linespacing=1.15)
        finish(figure, lines, empty=not panels)
    return figure


def bars_of(
    panels: Sequence[tuple[str, Sequence[str], Callable[[Axes], None]]], note: str = ""
) -> Figure:
    """A figure of (title, labels of bars, drawn by) panels, two beside each other, as high as need.

    Bars lie at y = 0, 1, ..., the first on top; `note` below all.
    """
    panels = panels[:MAX_PANELS]
    columns = min(len(panels), 2)
    heights = [0.72 + 0.17 * max(len(labels), 3) for _, labels, _ in panels] or [PANEL]
    tall = [max(heights[i : i + 2]) for i in range(0, len(heights), 2)]
    with style():
        width = PAGE if columns == 2 else COLUMN
        lines, foot = foot_of(note, width)
        height = sum(tall) + foot
        figure = Figure(figsize=(width, height))
        for index, (title, labels, draw) in enumerate(panels):
            row, column = divmod(index, 2)
            upper = height - sum(tall[:row]) - 0.24
            high = heights[index] - 0.62
            box = (column * PAGE / 2 + BAR_LABELS, upper - high, BAR_SIDE, high)
            sides = (width, height, width, height)
            ax = figure.add_axes(tuple(x / of for x, of in zip(box, sides, strict=True)))
            draw(ax)
            ax.set_yticks(range(len(labels)), labels)
            ax.set_ylim(max(len(labels), 3) - 0.4, -0.6)
            ax.grid(False, axis="y")
            ax.tick_params(axis="y", length=0)
            ax.set_title(title, y=1.0, fontsize=7, x=-BAR_LABELS / BAR_SIDE + 0.04)
        finish(figure, lines, empty=not panels)
    return figure


def foot_of(note: str, width: float) -> tuple[list[str], float]:
    """The lines of a note, and how high they stand, in inches."""
    lines = textwrap.wrap(note, round(20 * width))
    return lines, 0.05 + 0.115 * len(lines) if lines else 0.0


def finish(figure: Figure, lines: Sequence[str], empty: bool) -> None:
    """The lines of `foot_of` below all, and words in place of panels where there are none."""
    if empty:
        figure.text(0.5, 0.5, "nothing measured here", ha="center", color=GREY)
    width, height = figure.get_figwidth(), figure.get_figheight()
    below = {"fontsize": 6.5, "color": GREY, "linespacing": 1.2}
    figure.text(0.08 / width, 0.04 / height, "\n".join(lines), va="bottom", **below)


def log_height(ax: Axes) -> None:
    """Ticks of a logarithmic y axis as plain numbers, also over less than a decade or two."""
    low, high = ax.get_ylim()
    if high / low < 1000:  # hardly a power of ten in there to label
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(_plain))
    ax.yaxis.set_minor_formatter(NullFormatter())


def log_width(ax: Axes) -> None:
    """Ticks of a logarithmic x axis; over less than a decade or two as plain numbers."""
    low, high = ax.get_xlim()
    if high / low < 4:
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        ax.xaxis.set_major_formatter(FuncFormatter(_plain))
    elif high / low < 100:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(_plain))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _plain(y: float, _) -> str:
    """A number as it is, from ten thousand on as a power of ten."""
    return f"{y:g}" if y < 1e4 else f"$10^{{{math.log10(y):.3g}}}$"


def arms(found: Iterable[Interval]) -> np.ndarray:
    """Lengths (2, n) of error bars below and above; NaN where nothing is known of the spread."""
    return np.array([(one.value - one.low, one.high - one.value) for one in found], float).T


def draw_points(
    ax: Axes,
    points: Sequence[tuple[float, Interval | float]],
    one: Look,
    scale: float = 1,
    line: str = "-",
    is_open: bool = False,
) -> tuple[list[float], list[float]]:
    """A system's (x, amount) over `scale`, with error bars where amounts are intervals.

    Returns x and the values as drawn. line: the style that joins them. is_open: white markers.
    """
    x, found = zip(*points, strict=True)
    has_bars = isinstance(found[0], Interval)
    y = [(amount.value if has_bars else amount) / scale for amount in found]
    drawn = {"color": one.color, "marker": one.marker, "label": one.label, "linestyle": line}
    drawn |= {"markerfacecolor": "white" if is_open else one.color}
    bars = arms(found) / scale if has_bars else None
    ax.errorbar(x, y, yerr=bars, elinewidth=0.7, capsize=1.5, zorder=4, **drawn)
    return list(x), y


def worth_drawing(fit: ScalingFit | None) -> ScalingFit | None:
    """The fit where its exponent is known well enough, else None: points are joined then."""
    return fit if fit and fit.is_narrow else None


def draw_bar(
    ax: Axes, y: float, width: float, one: Look, label: str, left: float = 0, height: float = 0.62
) -> None:
    """A bar of a system from `left` on, hatched where its look is."""
    face = "white" if one.hatch else one.color
    drawn = {"facecolor": face, "edgecolor": one.color, "hatch": one.hatch, "label": label}
    ax.barh(y, width, left=left, height=height, **drawn)


def draw_bar_interval(ax: Axes, y: float, low: float, high: float, label: str) -> None:
    """An interval over a bar, seen on any colour."""
    ax.plot([low, high], [y, y], color="white", linewidth=1.8, zorder=4)
    ax.plot([low, high], [y, y], color="black", linewidth=0.8, zorder=5, label=label)


def draw_bar_text(ax: Axes, x: float, y: float, text: str) -> None:
    """A text right of a bar that ends at `x`, readable over lines."""
    ax.annotate(
        text, (x, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}, zorder=6,
    )  # fmt: skip


def draw_fit(ax: Axes, fit: ScalingFit, one: Look, unit: Callable[[np.ndarray], object]) -> str:
    """A fit over its lengths and its 95 % band, over `unit` of the length; returns its growth."""
    n = np.geomspace(*fit.n_range, 60)
    low, high = fit.band(n)
    fitted = {"color": one.color, "label": f"{one.label}: fit"}
    ax.fill_between(n, low / unit(n), high / unit(n), alpha=0.15, linewidth=0, **fitted)
    ax.plot(n, fit.predict(n) / unit(n), zorder=3, **fitted)
    return f"$n^{{{fit.exponent.value:.2f}}}$"


def draw_censored(ax: Axes, series: views.Series) -> None:
    """Points that could not be measured: open markers at the top edge, one line per system.

    The reason stands once a line, on the side where there is room.
    """
    lost = series.rows[series.rows["status"].isin(WORDS)]
    if lost.empty:
        return
    low, high = ax.get_ylim()
    lines = list(lost.groupby(["system", "status"], sort=False))
    ax.set_ylim(low, high * (high / low) ** (0.1 * (1 + len(lines))))
    across = ax.get_xaxis_transform()
    middle = np.sqrt(series.lengths[0] * series.lengths[-1])
    for depth, ((system, status), rows) in enumerate(lines):
        one, words, at = look(system), WORDS[status], 0.97 - 0.085 * depth
        lengths = sorted(int(n) for n in rows["seq_len"])
        ax.plot(
            lengths, [at] * len(lengths), transform=across, linestyle="none",
            marker=one.marker, color=one.color, markerfacecolor="white",
            label=f"{one.label}: {words}",
        )  # fmt: skip
        right = lengths[0] > middle
        ax.annotate(
            words,
            xy=(lengths[0] if right else lengths[-1], at),
            xycoords=across,
            xytext=(-4 if right else 4, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            fontsize=6,
            color=one.ink,
        )


def title_of(series: views.Series) -> str:
    """Two lines that say what a series has in common."""
    case = in_words.case(vars(series), "type", "masking", "training pass")
    shape = in_words.case(vars(series), "batch", "heads of")
    return f"{series.device}, {case}\n" + f"{shape}, {short_pattern(series.pattern)}".removesuffix(
        ", "
    )


def short_pattern(pattern: str) -> str:
    """Segments for a panel's title: the rates and long lists are in the caption's table."""
    segments = pattern.partition(",")[0]
    parts = segments.removeprefix("segments ").split("/")
    if not segments.startswith("segments ") or len(parts) == 1:
        return segments
    return f"segments {tokens(int(parts[0]))} to {tokens(int(parts[-1]))}"
