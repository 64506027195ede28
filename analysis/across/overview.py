"""The finding in one figure: published speed-ups beside measured ones, every write-up.

    python -m analysis.across.overview --out build/figures/overview.svg [--machine ID] [ROOT ...]

also draws what else is of all experiments together: `--figure scaling` and others, several of them
beside each other from one reading of the records.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.across import exponents, gauges, retest, variation
from analysis.command import command, parser
from analysis.records import frame as records
from analysis.rendering.style import GREY, PAGE, look, ratio_axis, save, style
from analysis.rendering.text import tokens
from analysis.selection import published, reporting_machine, views
from analysis.standard import in_words
from analysis.statistics.intervals import Interval

LINE = 0.118  # inches, of one comparison
GAP = 0.66  # inches, between panels below each other
PANELS = ("comprehensive", "dilated", "block_sparse")
ORDER = (
    *("dilated-sdpa", "dilated-triton", "ring-dilated", "multihead-dilated-gather"),
    *("multihead-dilated-sdpa", "multihead-ring-dilated", "head-partitioned", "dense"),
    *("block-sparse@90", "block-sparse@95", "block-sparse@98"),
)


@dataclass(frozen=True)
class Line:
    """One comparison: a system at one shape, published and measured over DilatedAttention."""

    system: str
    seq_len: int
    batch: int
    published: float | None
    measured: Interval | None


def lines(view: views.View) -> list[Line]:
    """All comparisons of a write-up, system by system; those with neither side are left out.

    Of a length that was published at several batches, the first: the one its summary prints.
    """
    base, found = published.speedup_base(view.experiment), []
    for system in ORDER:
        for wanted, n in published.one_shape_per_length(view.experiment):
            batch = view.batch_for(wanted, n)
            old = published.value(view.experiment, system, wanted, n, "speedup")
            gain = views.ratio(view.cell(base, batch, n), view.cell(system, batch, n))
            if system != base and (old or gain):
                found.append(Line(system, n, batch or wanted, old, gain))
    return found


def _measured(found: list[Line]) -> int:
    return sum(line.measured is not None for line in found)


def overview(frame: pd.DataFrame, machine: str = "auto") -> Figure:
    """Published and measured speed-ups, one panel per write-up: the longest on the left.

    Without records of any write-up a figure without panels.
    """
    present = set(frame["experiment"])
    chosen = [
        reporting_machine.fullest(frame, e, machine, lines, _measured)
        for e in PANELS
        if e in present
    ]
    if not chosen:
        return Figure(figsize=(PAGE, LINE))
    panels, rows = ([pair[side] for pair in chosen] for side in (0, 1))
    heights = [LINE * _units(found) for found in rows]
    # Of several devices each panel names its own, in a line more.
    names_devices = len({view.device for view in panels}) > 1
    gap = GAP + 0.13 * names_devices
    # The legend stands below the left panel.
    tall = max(heights[0] + 0.76 + gap, sum(heights[1:]) + gap * len(heights[1:]))
    with style():
        figure = Figure(figsize=(PAGE, tall))
        top = tall - 0.28
        for index, (view, found, height) in enumerate(zip(panels, rows, heights, strict=True)):
            left, width = (1.3, 2.45) if index == 0 else (5.1, 1.8)
            if index > 1:
                top -= heights[index - 1] + gap
            box = (left / PAGE, (top - height) / tall, width / PAGE, height / tall)
            ax = figure.add_axes(box)
            _draw(ax, found, -1.22 / width)
            title = f"write-up “{view.experiment}”"
            ax.set_title(title, x=-1.22 / width, fontweight="bold", pad=4)
            over = f"speed-up over {in_words.base(published.speedup_base(view.experiment))}"
            ax.set_xlabel(f"{over}\n{view.device}" if names_devices else over)
        _legend(figure, panels, tall)
    return figure


def _draw(ax: Axes, found: list[Line], margin: float) -> None:
    y, previous = 0.0, None
    labels = []
    for line in found:
        one = look(line.system)
        if line.system != previous:
            y += 0.5 if previous else 0.0
            ax.text(
                margin, y, one.label, transform=ax.get_yaxis_transform(), va="center",
                color=one.ink,
            )  # fmt: skip
            previous = line.system
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
    one = look(line.system)
    label = f"{one.label}, {line.seq_len} tokens, batch {line.batch}"
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
            interval = {"label": f"{label}: interval"}
            ax.plot([gain.low, gain.high], [y, y], color=one.color, linewidth=0.8, **interval)
        mark = {"marker": one.marker, "color": one.color, "markersize": 4, "label": label}
        ax.plot(gain.value, y, zorder=6, **mark)
    if line.published:
        ax.plot(
            line.published,
            y,
            marker="D",
            color="black",
            markerfacecolor="white",
            markersize=3.2,
            zorder=5,
            label=f"{label}: published",
        )


def _legend(figure: Figure, panels: list[views.View], tall: float) -> None:
    marks = [
        Line2D([], [], marker="D", linestyle="none", color="black", markerfacecolor="white"),
        Line2D([], [], marker="o", linestyle="none", color=GREY),
    ]
    devices = " and ".join(dict.fromkeys(view.device for view in panels))
    names = [f"published, {published.CARD}", f"measured, {devices}: checked against the oracle"]
    figure.legend(
        marks,
        names,
        loc="lower left",
        bbox_to_anchor=(0.08 / PAGE, 0.06 / tall),
        handletextpad=0.4,
        borderaxespad=0,
        title="each line: a system at n tokens, batch b;\na lone marker: the other has no figure",
        title_fontsize=7,
        alignment="left",
    )


def _units(found: list[Line]) -> float:
    """Height in lines: half a line between systems."""
    return max(len(found) + 0.5 * (len({line.system for line in found}) - 1), 3)


FIGURES = {
    "overview": overview,
    "scaling": exponents.scaling,
    "variation": variation.variation,
    "retest": retest.retest,
    "gauges": gauges.gauges,
}


@command("overview", records.RecordsError)
def main(arguments: list[str] | None = None) -> None:
    """Draw figures of all experiments: one to `--out`, several beside it by their names."""
    options = parser(main.__doc__, out="build/figures/overview.svg", records=True)
    options.add_argument("--figure", choices=FIGURES, nargs="+", default=["overview"])
    options.add_argument("--machine", default="auto")
    given = options.parse_args(arguments)
    frame = records.vouched(records.load(*given.roots))
    for name in given.figure:
        path = given.out if len(given.figure) == 1 else given.out.with_name(f"{name}.svg")
        save(FIGURES[name](frame, given.machine), path)


if __name__ == "__main__":
    sys.exit(main())
