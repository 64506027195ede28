"""What an order of tokens is worth to attention among neighbours. Counted, not measured."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.experiments.ring.views import (
    BLOCK,
    CURVES,
    RADIUS,
    SHARDS,
    SIDE,
    TEXT_RADIUS,
    counted,
)
from analysis.rendering.style import look
from analysis.standard.panels import bars_of, draw_bar

COUNTS = (  # title, axis, value, unit
    (
        f"what a block of {BLOCK} queries needs", "key blocks",
        lambda found: found.distinct_blocks, "",
    ),
    (
        f"what one of {SHARDS} shards receives", "keys received (% of its own)",
        lambda found: 100 * found.received, " %",
    ),
)  # fmt: skip


def orders(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Blocks needed and keys received by order, for a 2-D grid and for a text walked as one."""
    labels = [f"{what}, {curve}" for what in ("grid", "text") for curve in CURVES]
    panels = [
        (title, labels, lambda ax, parts=parts: _draw(ax, *parts)) for title, *parts in COUNTS
    ]
    note = (
        f"{SIDE**2} tokens. Grid: {SIDE} × {SIDE}, attention within {RADIUS} rows and columns. "
        f"Text: within {TEXT_RADIUS} positions, walked as if it were that grid. Counted, not "
        "measured."
    )
    return bars_of(panels, note)


def _draw(ax: Axes, axis: str, value, unit: str) -> None:
    y = 0
    for width in (SIDE, None):
        for curve, system in CURVES.items():
            one, found = look(system), value(counted(curve, width))
            draw_bar(ax, y, found, one, one.label)
            ax.annotate(
                f"{found:.3g}{unit}", (found, y), xytext=(3, 0), textcoords="offset points",
                va="center", fontsize=6.5,
            )  # fmt: skip
            y += 1
    ax.set_xlim(0, ax.get_xlim()[1] * 1.15)
    ax.set_xlabel(axis)
