"""What published and measured columns side by side have in common."""

from __future__ import annotations

from analysis.records import systems
from analysis.rendering.text import DASH
from analysis.selection import published, views


def measured_on(view: views.View) -> str:
    """A sentence for table notes: where, and at which dtype."""
    rows = view.nearest
    dtype = f", {rows.iloc[0]['dtype']}" if len(rows) else ""
    return f"Measured: {view.device}{dtype}, time with its 95 % interval."


def published_on(view: views.View, what: str = "mean and standard deviation") -> str:
    """A sentence for table notes: the card and type of the published figures."""
    return f"Published: {published.CARD}, {view.setting.dtype}, {what}."


def printed(experiment: str, batch: int, seq_len: int):
    """(system, quantity) -> what the write-up prints at a shape, an en dash for nothing."""
    return lambda system, quantity: (
        published.text(experiment, system, batch, seq_len, quantity) or DASH
    )


def plus_minus(mean: str, std: str) -> str:
    """A published mean with its spread, where one was printed."""
    return mean if std == DASH else f"{mean} ± {std}"


def rows_of(view: views.View) -> list[str]:
    """Systems of the write-up first, then what was measured beside them."""
    known = systems.ordered(view.nearest["system"])
    own = [
        system
        for system in systems.of_experiment(view.experiment)
        if any(
            published.value(view.experiment, system, *shape, "time") is not None
            for shape in published.shapes(view.experiment)
        )
    ]
    return own + [system for system in known if system not in own]


def named(system: str) -> str:
    """The published name of a system, short enough for a table."""
    return published.name(system).replace("DilatedAttention (head-partitioned)", "Head-partitioned")
