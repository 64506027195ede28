"""Exponents of growth with length, of every system, experiment and machine, in one figure."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.experiments.memory import views as memory_views
from analysis.records import frame as records
from analysis.rendering.style import GREY, PAGE, look, style
from analysis.rendering.text import span, title
from analysis.selection import published, views
from analysis.statistics.scaling import ScalingFit

LINE = 0.125  # inches, of one system
MARKS = "oDs^vP*"  # one per machine
LEFT, WIDE, SAID = 1.5, 1.75, 0.86  # inches: names, axes, published words
QUANTITIES = ("time", "memory")
LIMITS = (-0.08, 2.6)  # a longer interval runs off the axis rather than ruling it


@dataclass(frozen=True)
class Row:
    """A system of an experiment: its fits by (machine, quantity)."""

    experiment: str
    system: str
    fits: dict[tuple[str, str], ScalingFit]


def rows_of(frame: pd.DataFrame, machine: str = "auto") -> list[Row]:
    """Every system with an exponent worth drawing, experiment by experiment.

    Of the first forward series of each machine.
    """
    found: dict[tuple[str, str], dict] = {}
    present = set(frame["experiment"])
    for experiment in (name for name in published.EXPERIMENTS if name in present):
        own = records.of_experiment(frame, experiment)
        first = machine if machine in set(own["machine"]) else "auto"
        for view in views.all_views(frame, experiment, first):
            if experiment == memory_views.EXPERIMENT:
                series = memory_views.growth(view, "forward")
            else:
                series = next(iter(view.series()), None)
            for system in series.systems if series else ():
                for quantity in QUANTITIES:
                    fit = series.growth(system, quantity)
                    if fit and fit.is_narrow and not _is_beside(experiment, quantity):
                        key = view.machine, quantity
                        found.setdefault((experiment, system), {})[key] = fit
    return [Row(*key, fits) for key, fits in found.items()]


def scaling(frame: pd.DataFrame, machine: str = "auto") -> Figure:
    """Exponents of time and of memory with 95 % intervals, the published words beside them."""
    rows = rows_of(frame, machine)
    experiments = list(dict.fromkeys(row.experiment for row in rows))
    ids = list(dict.fromkeys(machine for row in rows for machine, _ in row.fits))
    marks = {one: MARKS[place % len(MARKS)] for place, one in enumerate(sorted(ids))}
    # A heading of an experiment is a line and a half.
    units = len(rows) + 1.5 * len(experiments)
    foot = 0.44 + 0.13 * (len(marks) + 1)
    tall = LINE * units + 0.3 + foot
    with style():
        figure = Figure(figsize=(PAGE, tall))
        for index, quantity in enumerate(QUANTITIES):
            left = LEFT + index * (WIDE + SAID)
            high = tall - 0.3 - foot
            ax = figure.add_axes((left / PAGE, foot / tall, WIDE / PAGE, high / tall))
            _draw(ax, rows, quantity, marks, units, named=index == 0)
        _legend(figure, frame, marks, tall)
    return figure


def _draw(ax: Axes, rows: list[Row], quantity: str, marks: dict, units: float, named: bool) -> None:
    across, ticks, y, last = ax.get_yaxis_transform(), [], -0.5, None
    for power in (1, 2):
        ax.axvline(power, color=GREY, linewidth=0.6, linestyle=(0, (4, 2)), zorder=1)
    for row in rows:
        if row.experiment != last:
            y, last = y + 1.5, row.experiment
            if named:
                heading = {"transform": across, "va": "center", "fontweight": "bold"}
                ax.text(-LEFT / WIDE + 0.04, y - 0.9, title(row.experiment), **heading)
        one = look(row.system)
        ticks.append((y, one.label))
        own = [(m, row.fits[m, quantity]) for m in marks if (m, quantity) in row.fits]
        for place, (machine, fit) in enumerate(own):
            k, at = fit.exponent, y + 0.5 * ((place + 0.5) / len(own) - 0.5)
            ax.errorbar(
                k.value, at, xerr=[[k.value - k.low], [k.high - k.value]], linestyle="none",
                marker=marks[machine], markersize=2.8, color=one.color, elinewidth=0.7,
                label=f"{row.experiment}, {machine}, {span(fit.n_range)}", zorder=4,
            )  # fmt: skip
        said = published.growth(row.experiment, row.system, quantity) or ""
        said = re.sub(r"\bn(?:\^([\d.]+))?", lambda power: _power(power[1]), said)
        ax.text(
            1.04, y, said, transform=across, va="center", fontsize=6, color=GREY, parse_math=True,
        )  # fmt: skip
        y += 1
    ax.set_xlim(*LIMITS)
    ax.set_ylim(units - 0.4, -1)
    ax.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    ax.tick_params(axis="y", length=0, labelleft=named)
    ax.grid(False, axis="y")
    ax.set_xlabel(f"exponent k of {quantity} over length")
    heading = {"transform": ax.transAxes, "va": "bottom", "fontsize": 6.5, "color": GREY}
    ax.text(1.04, 1.002, "published", **heading)
    ax.set_title(quantity, x=0)


def _legend(figure: Figure, frame: pd.DataFrame, marks: dict, tall: float) -> None:
    handles = [Line2D([], [], marker=m, linestyle="none", color=GREY) for m in marks.values()]
    of_machines = frame.drop_duplicates("machine", keep="last")
    device = {row["machine"]: views.device(row) for _, row in of_machines.iterrows()}
    names = [device[machine] for machine in marks]
    figure.legend(
        handles, names, loc="lower left", bbox_to_anchor=(0.08 / PAGE, 0.04 / tall),
        handletextpad=0.4, borderaxespad=0, alignment="left", title_fontsize=6.5, fontsize=6.5,
        title="Forward pass, k of a n^k beside a constant; only those with a 95 % interval of at "
        "most 1. Dashed: 1 and 2.",
    )  # fmt: skip


def _power(exponent: str | None) -> str:
    return "$n$" if exponent is None else f"$n^{{{exponent}}}$"


def _is_beside(experiment: str, quantity: str) -> bool:
    """Of `memory` a pass is timed once: its times have no growth to fit."""
    return experiment == memory_views.EXPERIMENT and quantity == "time"
