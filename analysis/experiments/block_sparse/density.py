"""Realised density of block masks against length, beside what was asked and what was published."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.records import systems
from analysis.rendering.style import GREY, label_lines, length_axis, look
from analysis.selection import published, views
from analysis.standard.panels import log_height, over_length

# The published code's pattern, whatever sparsity was asked for: the diagonal and the blocks at
# these distances, both ways (its public history).
DISTANCES = (1, 2, 4)
BLOCK = 64


def density(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Kept pairs over dense pairs; dashed: as asked; grey: the published code's one pattern.

    The band is one block per row more or less than asked, and at least one block per row.
    """
    panels = [s for v in views.all_views(frame, experiment, machine) for s in v.series()]

    def draw(ax: Axes, series: views.Series) -> None:
        _draw(ax, series, experiment)

    return over_length(panels, draw, "Dashed: asked. Band: one block per row more or less.")


def published_density(n: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """Kept blocks of the published code's pattern over all, at lengths `n` of whole blocks."""
    blocks = n / block
    kept = blocks + sum(2 * np.maximum(blocks - distance, 0) for distance in DISTANCES)
    return kept / blocks**2


def _draw(ax: Axes, series: views.Series, experiment: str) -> None:
    length_axis(ax, series.lengths)
    ax.set_yscale("log")
    n = np.geomspace(series.lengths[0], series.lengths[-1], 60)
    ends, drawn = [], set()
    for system in series.systems:
        sparsity = systems.parts(system)[1]
        rows = series.timed(system)
        if sparsity is None or sparsity in drawn or rows.empty:
            continue  # the mask is the same for every backend
        drawn.add(sparsity)
        one, asked = look(system), 1 - sparsity
        block = rows["block_size"].iloc[0]
        low = np.maximum(asked - block / n, block / n)
        high = np.maximum(asked, low) + block / n
        text = f"{100 * sparsity:.4g} % sparse"
        ax.fill_between(
            n,
            low,
            high,
            color=one.color,
            alpha=0.12,
            linewidth=0,
            label=f"{text}, asked",
        )
        ax.axhline(asked, color=one.color, linestyle=(0, (4, 2)), linewidth=0.6, zorder=2)
        marks = {
            "color": one.color,
            "marker": one.marker,
            "markerfacecolor": one.color,
            "label": text,
        }
        ax.plot(rows["seq_len"], rows["realised_density"], linestyle="none", zorder=4, **marks)
        last = rows.iloc[-1]
        ends.append((last["seq_len"], last["realised_density"], text, one.ink))
    measured = [length for _, length in published.shapes(experiment)]
    theirs = np.array([length for length in measured if n[0] <= length <= n[-1]])
    if len(theirs) > 1:
        text = "published code"
        grey = {"color": GREY, "linewidth": 1.2, "alpha": 0.7, "zorder": 1, "label": text}
        ax.plot(theirs, published_density(theirs), **grey)
        ends.append((theirs[-1], published_density(theirs)[-1], text, GREY))
    ax.set_ylabel("density (kept / all pairs)")
    log_height(ax)
    label_lines(ax, ends)
