"""The finding in one figure: published speed-ups beside measured ones, both write-ups.

python -m analysis.overview --out build/figures/overview.svg [--machine ID] [ROOT ...]
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import published, records, views
from analysis.drawing import GREY, PAGE, look, ratio_axis, save, style, tokens
from analysis.stats import Interval

LINE = 0.118  # inches, of one comparison
ORDER = (
    *("dilated-sdpa", "ring", "multihead-dilated-gather", "multihead-dilated-sdpa"),
    *("ring-multihead", "head-partitioned", "dense"),
)


@dataclass(frozen=True)
class Line:
    """One comparison: a system at one shape, published and measured over DilatedAttention."""

    variant: str
    seq_len: int
    batch: int
    published: float | None
    measured: Interval | None


def lines(view: views.View) -> list[Line]:
    """All comparisons of a write-up, system by system; those with neither side are left out.

    Of `comprehensive`, the shapes of batch 1: those that its summary prints.
    """
    shapes = published.SHAPES[view.experiment]
    if view.experiment == "comprehensive":
        shapes = [shape for shape in shapes if shape[0] == 1]
    found = []
    for variant in ORDER:
        for wanted, n in shapes:
            batch = view.batch_for(wanted, n)
            old = published.figure(view.experiment, variant, wanted, n, "speedup")
            gain = views.ratio(view.cell(published.BASE, batch, n), view.cell(variant, batch, n))
            if old or gain:
                found.append(Line(variant, n, batch or wanted, old, gain))
    return found


def overview(frame: pd.DataFrame, machine: str = "auto") -> Figure:
    """Published and measured speed-ups over DilatedAttention, a panel a write-up."""
    present = set(frame["experiment"])
    panels = [views.view(frame, e, machine) for e in ("comprehensive", "dilated") if e in present]
    rows = [lines(view) for view in panels]
    with style():
        tall = LINE * max(*map(_units, rows), 18) + 0.66
        figure = Figure(figsize=(PAGE, tall))
        for index, (view, found) in enumerate(zip(panels, rows, strict=True)):
            left, width = ((1.3, 2.45), (5.1, 1.8))[index]
            height = LINE * _units(found)
            box = (left / PAGE, (tall - 0.28 - height) / tall, width / PAGE, height / tall)
            ax = figure.add_axes(box)
            _draw(ax, found, -1.22 / width)
            ax.set_title(f"write-up “{view.experiment}”", x=-1.22 / width, fontweight="bold", pad=4)
            ax.set_xlabel("speed-up over DilatedAttention")
        _legend(figure, panels[0], tall)
    return figure


def _draw(ax: Axes, found: list[Line], margin: float) -> None:
    y, previous = 0.0, None
    labels = []
    for line in found:
        one = look(line.variant)
        if line.variant != previous:
            y += 0.5 if previous else 0.0
            ax.text(
                margin, y, one.label, transform=ax.get_yaxis_transform(), va="center",
                color=one.ink,
            )  # fmt: skip
            previous = line.variant
        labels.append((y, f"{tokens(line.seq_len)}, b{line.batch}"))
        _draw_line(ax, y, line)
        y += 1
    ratio_axis(
        ax, [v for f in found for v in (f.published, f.measured.value if f.measured else None)]
    )
    ax.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize=6, color=GREY)
    ax.set_ylim(y - 0.4, -0.6)
    side = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points", "va": "bottom"}
    for text, shift, ha in (("← slower", -4, "right"), ("faster →", 4, "left")):
        ax.annotate(text, (1, 1), xytext=(shift, 2), ha=ha, fontsize=6, color=GREY, **side)


def _draw_line(ax: Axes, y: float, line: Line) -> None:
    one = look(line.variant)
    if line.published and line.measured:
        ax.annotate(
            "",
            xy=(line.measured.value, y),
            xytext=(line.published, y),
            arrowprops={
                "arrowstyle": "-",
                "color": one.color,
                "linewidth": 1.6,
                "alpha": 0.3,
                "shrinkA": 2,
                "shrinkB": 2,
            },
        )
    if line.measured:
        gain = line.measured
        if math.isfinite(gain.low):
            ax.plot([gain.low, gain.high], [y, y], color=one.color, linewidth=0.8)
        ax.plot(gain.value, y, marker=one.marker, color=one.color, markersize=4, zorder=6)
    if line.published:
        ax.plot(
            line.published,
            y,
            marker="D",
            color="black",
            markerfacecolor="white",
            markersize=3.2,
            zorder=5,
        )


def _legend(figure: Figure, view: views.View, tall: float) -> None:
    marks = [
        Line2D([], [], marker="D", linestyle="none", color="black", markerfacecolor="white"),
        Line2D([], [], marker="o", linestyle="none", color=GREY),
    ]
    names = [f"published, {published.CARD}", f"measured, {view.device}: checked against the oracle"]
    figure.legend(
        marks,
        names,
        loc="lower left",
        bbox_to_anchor=(3.9 / PAGE, 0.3 / tall),
        handletextpad=0.4,
        borderaxespad=0,
        title="each line: a system at n tokens, batch b;\na lone marker: the other has no figure",
        title_fontsize=7,
        alignment="left",
    )


def _units(found: list[Line]) -> float:
    """Height in lines: half a line between systems."""
    return max(len(found) + 0.5 * (len({line.variant for line in found}) - 1), 3)


def main(arguments: list[str] | None = None) -> int:
    """Write the figure; returns the exit status, 1 with one line on stderr for unusable input."""
    parser = argparse.ArgumentParser(description=overview.__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/figures/overview.svg"))
    parser.add_argument("--machine", default="auto")
    parser.add_argument("roots", nargs="*", type=Path, metavar="ROOT", help="records")
    options = parser.parse_args(arguments)
    try:
        frame = records.load(*options.roots)
        save(overview(frame, options.machine), options.out)
    except (records.RecordsError, OSError) as error:
        print(f"overview: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
