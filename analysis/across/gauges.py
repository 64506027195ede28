"""The drift gauge through each round of a machine: what else it did while cases were measured."""

from __future__ import annotations

from datetime import datetime

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.records import frame as records
from analysis.rendering.style import GREY, PAGE, style
from analysis.selection import views

# As `experiments.gauge.BOUND` has it: a case beside a gauge further off is measured again, if it is
# no training.
BOUND = 1.25
JUDGED = {"dense_ms": "dense attention", "matmul_ms": "matrix product"}
# Drawn as far as the judged ones leave room.
PARTS = {"copy_ms": "copy", **JUDGED}
HIGH, GAP = 0.7, 0.46  # inches per round
MOST = 8  # rounds that are drawn, the newest


def gauges_of(frame: pd.DataFrame, machine: str) -> dict[str, pd.DataFrame]:
    """By round, minutes since its first case and the gauge's three times (ms) after each case."""
    rows = frame[frame["machine"] == machine].drop_duplicates("path")
    found: dict[str, list[tuple[datetime, dict]]] = {}
    for of_case in rows["gauges"]:
        for round_, started_at, gauges in of_case:
            found.setdefault(round_, []).append((started_at, gauges["after"]))
    made = {}
    for round_, taken in sorted(found.items()):
        taken = sorted(taken, key=lambda one: one[0])
        minutes = [(when - taken[0][0]).total_seconds() / 60 for when, _ in taken]
        made[round_] = pd.DataFrame([one for _, one in taken]).assign(minutes=minutes)
    return made


def gauges(frame: pd.DataFrame, machine: str = "auto") -> Figure:
    """Each time over its median in the round, and the bound; one panel per round."""
    machine = records.reporting_machine(frame, machine)
    found = dict([*gauges_of(frame, machine).items()][-MOST:])
    device = views.device(frame[frame["machine"] == machine].iloc[0])
    tall = 0.42 + (HIGH + GAP) * max(len(found), 1)
    shades = [GREY, *matplotlib.colormaps["viridis"](np.linspace(0.1, 0.6, len(JUDGED)))]
    with style():
        figure = Figure(figsize=(PAGE, tall))
        if not found:
            figure.text(0.5, 0.5, "no gauge was read here", ha="center", color=GREY)
            return figure
        axes = figure.subplots(len(found), 1, squeeze=False)[:, 0]
        figure.subplots_adjust(0.075, 0.4 / tall, 0.995, 1 - 0.2 / tall, hspace=GAP / HIGH)
        for ax, (round_, taken) in zip(axes, found.items(), strict=True):
            for bound in (BOUND, 1 / BOUND):
                ax.axhline(bound, color="black", linewidth=0.5, linestyle=":", zorder=1)
            for (part, label), shade in zip(PARTS.items(), shades, strict=True):
                over = taken[part] / taken[part].median()
                wide = 0.9 if part in JUDGED else 0.3
                ax.plot(taken["minutes"], over, "-", linewidth=wide, color=shade, label=label)
            ax.set_yscale("log")
            low = min(0.72, *(taken[part].min() / taken[part].median() for part in JUDGED))
            high = max(1.4, *(taken[part].max() / taken[part].median() for part in JUDGED))
            ax.set_ylim(0.97 * low, 1.03 * high)
            ax.set_yticks([0.8, 1, 1.25], ["0.8", "1", "1.25"])
            ax.minorticks_off()
            ax.set_title(f"{round_}, {device}", x=0)
            ax.set_ylabel("over median")
        axes[0].legend(loc="upper right", ncols=len(PARTS), fontsize=6.5)
        axes[-1].set_xlabel("minutes since the round began")
    return figure
