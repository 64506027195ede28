"""What `extreme` compares: a schedule over lengths, the ways to read it, dense attention."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.selection import views
from analysis.selection.published import DENSE
from analysis.standard import quantities
from analysis.standard.quantities import Quantity
from analysis.statistics import scaling
from analysis.statistics.intervals import Interval

EXPERIMENT = "extreme"
STREAMED = "dilated-streamed"
WHOLE = "dilated-sdpa"
# The work of dense attention is known: a cost per call, per token and per pair.
DENSE_MODEL = "c + b n + d n^2"
SAME_SCHEDULE, GLOBAL = "same segments", "longest segment = n"


@dataclass(frozen=True)
class Extreme:
    """`extreme` on one machine: timed forward rows of one type, masking and head shape."""

    view: views.View
    rows: pd.DataFrame

    def streamed(self, schedule: str = SAME_SCHEDULE) -> pd.DataFrame:
        """Generated tokens, by length: of a schedule that stays, or whose last segment is n."""
        rows = self.of(STREAMED)
        reach = [max(w) >= n for w, n in zip(rows["segment_lengths"], rows["seq_len"], strict=True)]
        return rows[pd.Series(reach, rows.index, dtype=bool) == (schedule == GLOBAL)]

    def of(self, system: str) -> pd.DataFrame:
        """The timed rows of a system, by length."""
        rows = self.rows[self.rows["system"] == system]
        return rows.sort_values("seq_len", kind="stable")

    def dense_fit(self) -> scaling.ScalingFit | None:
        """Time of dense attention over length by DENSE_MODEL; None below four lengths."""
        dense = self.of(DENSE)
        if len(dense) < 4:
            return None
        lengths, spread = list(dense["seq_len"]), dense["spread"].iloc[0]
        return scaling.fit(lengths, dense["samples"], spread, models=(DENSE_MODEL,))

    def dense_at(self, seq_len: int) -> tuple[Interval, bool] | None:
        """Dense attention's time (ms) at a length, and whether it is extrapolated, or None."""
        dense = self.of(DENSE)
        measured = dense[dense["seq_len"] == seq_len]
        if len(measured):
            return quantities.time(measured.iloc[0]).amount, False
        fit = self.dense_fit()
        if fit is None or seq_len < fit.n_range[0]:
            return None
        time = Interval.of_draws(float(fit.predict(seq_len)), fit.sample_curves(seq_len), 0.95)
        return time, seq_len > fit.n_range[1]


def extreme(frame: pd.DataFrame, machine: str = "auto") -> Extreme:
    """The experiment on `machine`, in the setting of its longest streamed case."""
    view = views.view(frame, EXPERIMENT, machine)
    rows = view.rows[(view.rows["pass"] == "forward") & (view.rows["status"] == "ok")]
    streamed = rows[rows["system"] == STREAMED].sort_values(["seq_len", "path"], kind="stable")
    if len(streamed):
        longest = streamed.iloc[-1]
        for column in ("dtype", "is_causal", "batch", "heads", "kv_heads", "head_dim"):
            rows = rows[rows[column] == longest[column]]
    return Extreme(view, rows)


def all_machines(frame: pd.DataFrame, machine: str) -> list[Extreme]:
    """The experiment on every machine, the reporting one first."""
    found = views.all_views(frame, EXPERIMENT, machine)
    return [extreme(frame, view.machine) for view in found]


def time_per_token(row: pd.Series, shortest: pd.Series) -> Quantity:
    """The time per token of `row` over that of `shortest`."""
    slower = quantities.speed_up(row, shortest).amount
    share = shortest["seq_len"] * shortest["batch"] / (row["seq_len"] * row["batch"])
    return Quantity(slower.times(share))


def error(row: pd.Series) -> float:
    """Relative rms error over that of plain attention in the same type."""
    return row["relative_rms"] / row["baseline_relative_rms"]


def memory_ratio(row: pd.Series, shortest: pd.Series) -> Quantity:
    """The peak of `row` over that of `shortest`."""
    return Quantity(float(row["peak_memory_bytes"] / shortest["peak_memory_bytes"]))
