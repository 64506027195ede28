"""The figure of `tests.pipeline.scale`: seconds and memory over cases, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.rendering import style

# What may be taken on two cores: seconds, bytes.
MOST_S, MOST_BYTES = 60.0, 4 * 2**30
# Of the analysis, whose commands are many: their sum, and these.
_SLOWEST = 5
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")


def drawn(found: Sequence) -> Figure:
    """Three panels of seconds, by stage, and one of the largest memory of each stage."""
    with style.style():
        figure = Figure(figsize=(style.PAGE, 4.6))
        axes = figure.subplots(2, 2)
        figure.subplots_adjust(0.07, 0.115, 0.84, 0.95, wspace=0.75, hspace=0.42)
        lines = _lines(found)
        planned = {name: line for name, line in lines.items() if name[0] == "plan"}
        resumed = {name: line for name, line in lines.items() if name[0] == "resume"}
        analysed = {name: line for name, line in lines.items() if name[0] in ("analysis", "build")}
        for ax, title, own in (
            (axes[0, 0], "Planning all of them", planned),
            (axes[0, 1], "Planning the 1 % that is left", resumed),
            (axes[1, 0], "Analysing their records", _summed(analysed)),
        ):
            _panel(ax, title, {name[1]: line for name, line in own.items()}, "s", MOST_S)
        _panel(axes[1, 1], "Memory, at most", _memory(found), "GiB", MOST_BYTES / 2**30)
        told = "Dashed: what may be taken. Dotted: in proportion to the cases."
        figure.text(0.07, 0.005, told, fontsize=6.5, color=style.GREY)
    return figure


def _lines(found: Sequence) -> dict[tuple[str, str], dict[int, float]]:
    lines: dict[tuple[str, str], dict[int, float]] = {}
    for one in found:
        if one.status == 0:
            lines.setdefault((one.stage, one.name), {})[one.cases] = one.wall_s
    return lines


def _summed(lines: dict) -> dict:
    """The slowest commands, and the sum of all of them."""
    single = {name: line for name, line in lines.items() if name[0] == "analysis"}
    total: dict[int, float] = {}
    for line in single.values():
        for count, seconds in line.items():
            total[count] = total.get(count, 0.0) + seconds
    slowest = sorted(single, key=lambda name: -max(single[name].values()))[:_SLOWEST]
    whole = {name: line for name, line in lines.items() if name[0] == "build"}
    summed = {("analysis", "all, each for itself"): total} if total else {}
    return {**whole, **summed, **{name: single[name] for name in slowest}}


def _memory(found: Sequence) -> dict[str, dict[int, float]]:
    lines: dict[str, dict[int, float]] = {}
    for one in found:
        line = lines.setdefault(one.stage, {})
        line[one.cases] = max(line.get(one.cases, 0.0), one.peak_bytes / 2**30)
    return lines


def _panel(ax, title: str, lines: dict[str, dict[int, float]], unit: str, most: float) -> None:
    ax.set_title(title)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ends = []
    for color, (name, line) in zip(_COLORS, lines.items(), strict=False):
        counts = sorted(line)
        ax.plot(counts, [line[count] for count in counts], "o-", color=color)
        ends.append((counts[-1], line[counts[-1]], name, color))
    ax.axhline(most, color=style.GREY, linestyle="--", linewidth=0.7)
    if lines:
        _proportional(ax, lines)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("cases")
    ax.set_ylabel(unit)
    style.label_lines(ax, ends, size=6)


def _proportional(ax, lines: dict[str, dict[int, float]]) -> None:
    """A line of slope 1 through the largest value, to compare with."""
    top = max((line[max(line)], max(line)) for line in lines.values())
    counts = sorted({count for line in lines.values() for count in line})
    low, high = min(top[0] * min(counts) / top[1], top[0]), top[0]
    ax.plot([top[1] * low / high, top[1]], [low, high], ":", color=style.GREY, linewidth=0.7)
