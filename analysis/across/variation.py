"""How much times differ from round to round, and how much less ratios within a round do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.records import frame as records
from analysis.rendering.style import GREY, PAGE, style
from analysis.rendering.text import number
from analysis.selection import published, views
from analysis.standard.cards_in_words import apart, short_name
from analysis.statistics.cards import Card
from analysis.statistics.rounds import LEVELS, At, Logs, log_medians, log_ratio, sum_of_squares

HIGH, HEAD, FOOT = 2.3, 0.22, 0.46  # inches: all but the legend, and what is beside the axes
COLUMNS = 3  # of the legend
BESIDE = 0.35  # width of the panel of cards over that of another
MARKS = "oDs^vP*"  # one per host


@dataclass(frozen=True)
class Deviations:
    """Of one case, by how much each round is off: logs less their mean over rounds.

    ratio: of its speed-up over dense attention of the same shape; empty where there is none.
    """

    time_ms: float
    time: dict[At, float]
    ratio: dict[At, float]


def deviations(frame: pd.DataFrame, machine: str) -> list[Deviations]:
    """Those of every case of a machine with two rounds or more, the shortest first."""
    rows = frame[(frame["machine"] == machine) & (frame["rounds"] > 1)]
    rows = rows.drop_duplicates("path").sort_values(["median_ms", "path"], kind="stable")
    found = []
    for _, row in rows.iterrows():
        dense = views.dense_counterpart(rows, row)
        logs, ratio = log_medians(row["samples"]), {}
        if row["system"] != published.DENSE and dense is not None:
            ratio = log_ratio(log_medians(dense["samples"]), logs)
        of_rounds = ({at.anywhere: x for at, x in one.items()} for one in (logs, ratio))
        found.append(Deviations(row["median_ms"], *map(_less_mean, of_rounds)))
    return found


def variation(frame: pd.DataFrame, machine: str = "auto") -> Figure:
    """Each case's time in each round over its mean, and the same of its ratio over dense.

    Of `machine`; "auto": the one with most cases in two rounds or more. Beside these, where it has
    several cards, by how much all cases take longer on each.
    """
    if machine == "auto":
        ids = records.machines(frame, records.reporting_machine(frame))
        several = frame[frame["rounds"] > 1].drop_duplicates("path")["machine"]
        machine = max(ids, key=lambda one: (several == one).sum())
    found = deviations(frame, machine)
    rounds = sorted({at for one in found for at in one.time}, key=lambda at: (at.round, at.host))
    of_machine = frame[frame["machine"] == machine]
    cards = of_machine["spread"].iloc[0].card_effects
    tall = HIGH + 0.14 * (math.ceil(len(rounds) / COLUMNS) + 1)
    with style():
        figure = Figure(figsize=(PAGE, tall))
        if cards:
            axes = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, BESIDE))
            axes[1].sharex(axes[0])
        else:
            axes = figure.subplots(1, 2, sharex=True, sharey=True)
        figure.subplots_adjust(
            0.075, 1 - (HIGH - 0.68) / tall - 0.22 / tall, 0.995, 1 - 0.22 / tall
        )
        device = views.device(of_machine.iloc[0])
        for ax, word in zip(axes, ("time", "ratio"), strict=False):
            _draw(ax, found, word, rounds)
        if cards:
            _draw_cards(axes[2], cards)
        axes[0].set_title(f"time, {device}", x=0)
        axes[1].set_title("speed-up over dense attention", x=0)
        _limits(axes[0], [x for one in found for x in one.time.values()])
        if rounds:
            figure.legend(
                *axes[0].get_legend_handles_labels(), loc="lower left", ncols=COLUMNS,
                bbox_to_anchor=(0.06, 0.0), fontsize=6.5, handletextpad=0.2,
            )  # fmt: skip
    return figure


def _draw(ax: Axes, found: Sequence[Deviations], word: str, rounds: Sequence[At]) -> None:
    ax.axhline(1, color="black", linewidth=0.7, zorder=1)
    hosts = list(dict.fromkeys(at.host for at in rounds))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, max(len(rounds), 1)))
    for at, shade in zip(rounds, shades, strict=False):
        points = [(one.time_ms, getattr(one, word)) for one in found]
        points = [(ms, math.exp(logs[at])) for ms, logs in points if at in logs]
        host = f", host {at.host}" if at.host and len(hosts) > 1 else ""
        ax.plot(
            *(np.array(points).reshape(-1, 2).T), linestyle="none", markersize=2.4, color=shade,
            marker=MARKS[hosts.index(at.host) % len(MARKS)], markeredgewidth=0,
            label=f"{at.round}{host}",
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("time of the case (ms)")
    ax.set_ylabel("in the round over mean")
    ax.text(
        0.99, 0.97, _in_words(found, word), transform=ax.transAxes, ha="right", va="top",
        fontsize=6.5, color=GREY,
    )  # fmt: skip


def _draw_cards(ax: Axes, cards: Sequence[tuple[Card, float]]) -> None:
    """By how much all cases take longer on each, under the end of its name."""
    values = [value for _, value in cards]
    ax.axhline(1, color="black", linewidth=0.7, zorder=1)
    ax.plot(range(len(cards)), np.exp(values), linestyle="none", marker="o", markersize=4)
    ax.set_xlim(-0.5, len(cards) - 0.5)
    names = [short_name(card.card) for card, _ in cards]
    ax.set_xticks(range(len(cards)), names, rotation=90 if len(cards) > 2 else 0)
    ax.set_xlabel("card")
    ax.set_ylabel("on the card over mean")
    ax.set_title("cards", x=0)
    ax.text(
        0.99, 0.97, apart(cards), transform=ax.transAxes, ha="right", va="top", fontsize=6.5,
        color=GREY,
    )  # fmt: skip


def _in_words(found: Sequence[Deviations], word: str) -> str:
    """The standard deviation at each level, pooled over cases, in per cent."""
    logs = [getattr(one, word) for one in found if len(getattr(one, word)) > 1]
    if not logs:
        return "one round"
    parts = []
    for level in reversed(LEVELS):
        squares, freedom = map(sum, zip(*(sum_of_squares(one, level) for one in logs), strict=True))
        if freedom:
            parts.append(f"{number(100 * math.sqrt(squares / freedom))} % between {level}s")
    return "standard deviation: " + ", ".join(parts)


def _limits(ax: Axes, logs: Sequence[float]) -> None:
    """The same both ways of 1, with room for the words above."""
    most = 1.15 * max([math.log(1.02), *map(abs, logs)])
    ax.set_ylim(math.exp(-most), math.exp(1.2 * most))
    steps = [1 + sign * part for part in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) for sign in (1, -1)]
    fit = [step for step in steps if most / 8 < abs(math.log(step)) < most]
    ax.yaxis.set_major_locator(FixedLocator(sorted([1.0, *fit])))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _less_mean(logs: Logs) -> dict[At, float]:
    if len(logs) < 2:
        return {}
    mean = sum(logs.values()) / len(logs)
    return {at: value - mean for at, value in logs.items()}
