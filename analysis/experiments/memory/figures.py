"""Peak memory against length, all systems at one shape, with fits and what ran out."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.experiments.memory import views as memory_views
from analysis.selection import views
from analysis.standard.growth import draw_series
from analysis.standard.panels import UNFITTED, over_length


def scaling(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> Figure:
    """Peak beyond the inputs (MiB) against length; one panel per machine, shape and pass."""
    panels = [
        series
        for view in views.all_views(frame, experiment, machine)
        for series in memory_views.together(view)
    ]

    def draw(ax: Axes, series: views.Series) -> None:
        draw_series(ax, series, "memory")
        ax.set_ylabel("peak beyond the inputs (MiB)")

    return over_length(panels, draw, f"Bands: 95 %. {UNFITTED}")
