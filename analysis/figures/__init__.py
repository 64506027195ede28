"""The figures of each experiment by name.

Each function takes the frame of `records.load`, an experiment and a machine, and returns a
matplotlib figure, which `drawing.save` writes. No pyplot: nothing is left open, and no display is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from analysis.figures import (
    as_published,
    crossover,
    density,
    error,
    extreme,
    gain,
    growth,
    modelled,
    peaks,
    rate,
    ring_memory,
    ring_orders,
    ring_scaling,
    ring_traffic,
    roofline,
    shapes,
    speedup,
)

_COMMON = {"time": growth.time, "memory": growth.memory, "error": error.error}
FIGURES: Mapping[str, Mapping[str, Callable[..., Figure]]] = {
    "dilated": {
        **_COMMON,
        "rate": rate.rate,
        "speedup": speedup.speedup,
        "grid": shapes.grid,
        "crossover": crossover.crossover,
        "roofline": roofline.roofline,
    },
    "comprehensive": {**_COMMON, "speedup": speedup.speedup, "grid": shapes.grid},
    "block_sparse": {
        **_COMMON,
        "speedup": gain.gain,
        "rate": rate.rate,
        "density": density.density,
        "grid": shapes.grid,
        "crossover": crossover.crossover,
        "roofline": roofline.roofline,
    },
    "ring": {
        "time": growth.time,
        "error": error.error,
        "rate": rate.rate,
        "memory-ranks": ring_memory.memory_ranks,
        "strong": ring_scaling.strong,
        "overlap": ring_scaling.overlap,
        "traffic": ring_traffic.traffic,
        "orders": ring_orders.orders,
        "model": modelled.model,
    },
    "extreme": {"passes": extreme.passes, "error": error.error},
    "backends": {**_COMMON, "rate": rate.rate, "roofline": roofline.roofline},
    "memory": {"scaling": peaks.scaling, "error": error.error},
    "as_published": {"speedups": as_published.speedups, "plots": as_published.plots},
}
