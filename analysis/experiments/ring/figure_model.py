"""The cost model of `ring.cost_model`, in a figure of its own: nothing in it is measured."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.experiments.ring import cost_model
from analysis.experiments.ring import views as ring_views
from analysis.experiments.ring.cost_model import MODEL_TOKENS, assumptions
from analysis.rendering.style import GREY, label_lines, look
from analysis.rendering.text import tokens
from analysis.standard.panels import grid_of, log_height

RANKS = tuple(2**power for power in range(cost_model.MAX_RANKS.bit_length()))
SHARD = 2**15  # tokens per rank where the sequence grows with the ranks
DASHES = {"all": (0, (1.2, 1.2)), "": (0, (5, 2))}


def model(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Modelled speed-up at one length, and share of waiting at one shard, by link; all dashed."""
    shape = cost_model.shape_on(ring_views.view(frame, machine).rows)
    panels = [
        (
            f"modelled, {link.name}\n{tokens(MODEL_TOKENS)} tokens over p ranks",
            lambda ax, link=link: _draw_speedup(ax, shape, link),
        )
        for link in cost_model.LINKS
    ]
    panels += [
        (
            f"modelled, {link.name}\n{tokens(SHARD)} tokens per rank",
            lambda ax, link=link: _draw_waiting(ax, shape, link),
        )
        for link in cost_model.LINKS
    ]
    note = f"Modelled, not measured: {assumptions(shape)} Fine dots: all keys go around."
    return grid_of(panels, note)


def _draw_speedup(ax: Axes, shape: cost_model.Shape, link: cost_model.Link) -> None:
    ax.set_yscale("log")
    ax.plot(RANKS, RANKS, color=GREY, linewidth=0.6, linestyle=":", zorder=1, label="ideal")
    ends = [(RANKS[-1], RANKS[-1], "ideal", GREY)]
    for system in cost_model.SYSTEMS:
        costs = [cost_model.cost(system.hops(MODEL_TOKENS, p), shape, link).total for p in RANKS]
        y = [costs[0] / cost for cost in costs]
        ends.append(_dashed(ax, system, y))
    ax.set_ylim(0.4, RANKS[-1] * 1.3)
    ax.set_ylabel("speed-up over one device")
    _ranks_axis(ax)
    log_height(ax)
    label_lines(ax, ends)


def _draw_waiting(ax: Axes, shape: cost_model.Shape, link: cost_model.Link) -> None:
    ends = []
    for system in cost_model.SYSTEMS:
        y = [100 * cost_model.cost(system.hops(SHARD * p, p), shape, link).waiting for p in RANKS]
        ends.append(_dashed(ax, system, y))
    ax.set_ylim(-3, 103)
    ax.set_ylabel("waiting, % of the pass")
    _ranks_axis(ax)
    label_lines(ax, ends)


def _dashed(ax: Axes, system: cost_model.System, y: list[float]):
    one = look(system.key)
    dashes = DASHES["all" if "all keys" in system.name else ""]
    ax.plot(RANKS, y, color=one.color, linestyle=dashes, zorder=3, label=system.name)
    return RANKS[-1], y[-1], system.name, one.ink


def _ranks_axis(ax: Axes) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xlim(0.8, RANKS[-1] * 1.25)
    ax.xaxis.set_major_locator(FixedLocator([p for p in RANKS if p.bit_length() % 3 == 1]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda p, _: f"{p:g}"))
    ax.set_xlabel("ranks p (modelled)")
