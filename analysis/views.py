"""Which records a table, figure or number is made of: the setting nearest to the published one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import published, records, scaling
from analysis.stats import Interval, speedup

CENSORED = ("oom", "timeout")
TWIN = ("machine", "dtype", "is_causal", "pass", "batch", "seq_len", "heads", "head_dim")
GROUP = ["dtype", "is_causal", "heads", "batch", "family"]


@dataclass(frozen=True)
class Series:
    """Forward records of several variants that differ in length alone, on one machine.

    `pattern` says in words what segments and rates they share. `rows` has one row a variant
    and length, ascending, with any status.
    """

    machine: str
    device: str
    dtype: str
    is_causal: bool
    heads: int
    batch: int
    pattern: str
    rows: pd.DataFrame

    @property
    def lengths(self) -> list[int]:
        """Lengths of the series, ascending."""
        return sorted(int(n) for n in set(self.rows["seq_len"]))

    @property
    def variants(self) -> list[str]:
        """Variants in registry order."""
        present = set(self.rows["variant"])
        return [name for name in published.VARIANTS if name in present]

    def row(self, variant: str, seq_len: int) -> pd.Series | None:
        """The record at one point, any status; None if there is none."""
        return _only(
            self.rows[(self.rows["variant"] == variant) & (self.rows["seq_len"] == seq_len)]
        )

    def growth(self, variant: str, quantity: str) -> scaling.ScalingFit | None:
        """The fit of "time" (ms) or "memory" (bytes) over length; None below three points."""
        rows = self.rows[self.rows["variant"] == variant]
        fine = rows[rows["status"] == "ok"]
        if quantity == "memory":
            fine = fine[fine["peak_memory_bytes"] > 0]
        if len(fine) < 3:
            return None
        lost = rows[rows["status"].isin(CENSORED)]
        column = "samples" if quantity == "time" else "peak_memory_bytes"
        return scaling.fit(
            list(fine["seq_len"]),
            list(fine[column]),
            censored=list(zip(lost["seq_len"], lost["status"], strict=True)),
        )


@dataclass(frozen=True)
class View:
    """One experiment on one machine; `rows` has every record of it there."""

    experiment: str
    machine: str
    rows: pd.DataFrame

    @property
    def device(self) -> str:
        """What the measured code ran on, as a person would call it."""
        return device(self.rows.iloc[0])

    @property
    def setting(self) -> published.Setting:
        """What the write-up held fixed."""
        return published.setting(self.experiment)

    def nearest(self) -> pd.DataFrame:
        """Forward rows at the published heads, causality and dtype.

        Where the machine did not measure the published dtype (float16 on a CPU), float32.
        """
        fixed = self.setting
        rows = self.rows[
            (self.rows["pass"] == "forward")
            & (self.rows["is_causal"] == fixed.is_causal)
            & (self.rows["heads"] == fixed.heads)
            & (self.rows["head_dim"] == fixed.head_dim)
        ]
        same = rows[rows["dtype"] == fixed.dtype]
        return rows[rows["dtype"] == "float32"] if same.empty else same

    def batch_for(self, batch: int, seq_len: int) -> int | None:
        """The batch measured nearest to the published one at `seq_len`; ties go to the smaller."""
        rows = self.nearest()
        rows = rows[(rows["seq_len"] == seq_len) & self._as_published(rows)]
        measured = sorted(set(rows["batch"]))
        return min(measured, key=lambda b: abs(b - batch)) if measured else None

    def cell(self, variant: str, batch: int | None, seq_len: int) -> pd.Series | None:
        """The record of a table's cell, at the published pattern, any status; or None."""
        rows = self.nearest()
        rows = rows[
            (rows["variant"] == variant) & (rows["batch"] == batch) & (rows["seq_len"] == seq_len)
        ]
        return _only(rows[self._as_published(rows, dense=True)])

    def series(self) -> list[Series]:
        """The length series nearest to the published setting, then a longer one if there is one.

        Nearest: causality, then dtype, then a pattern that stays (the published ones count as
        that) before equal rates alone, then most lengths, then the smallest batch.
        """
        rows = self.rows[self.rows["pass"] == "forward"]
        sparse = self._families(rows[rows["segment_lengths"].notna()])
        if sparse.empty:
            return []
        groups = sparse.groupby(GROUP, sort=True)["seq_len"].agg(count="nunique", longest="max")
        groups = groups.reset_index()
        fixed = self.setting
        groups["rank"] = [
            (
                g.is_causal != fixed.is_causal,
                g.dtype != fixed.dtype,
                g.family.startswith("rates"),
                -g.count,
                g.batch,
            )
            for g in groups.itertuples(name="Group")
        ]
        # A single length is no series while another group has several.
        if (groups["count"] > 1).any():
            groups = groups[groups["count"] > 1]
        groups = groups.sort_values("rank", kind="stable")
        first = groups.iloc[0]
        longer = groups[
            (groups["longest"] > first["longest"])
            & (groups["count"] > 2)
            & ~groups["family"].str.startswith("rates")
        ]
        longer = longer.sort_values("longest", kind="stable", ascending=False).head(1)
        chosen = [first, *(row for _, row in longer.iterrows())]
        return [self._series(rows, sparse, group) for group in chosen]

    def _series(self, rows: pd.DataFrame, sparse: pd.DataFrame, group: pd.Series) -> Series:
        own, dense = sparse, rows[rows["segment_lengths"].isna()]
        for column in GROUP[:-1]:
            own, dense = own[own[column] == group[column]], dense[dense[column] == group[column]]
        own = own[own["family"] == group["family"]]
        both = pd.concat([dense[dense["seq_len"].isin(own["seq_len"])], own])
        both = both.sort_values(["variant", "seq_len"], kind="stable")
        return Series(
            self.machine,
            self.device,
            group["dtype"],
            bool(group["is_causal"]),
            int(group["heads"]),
            int(group["batch"]),
            group["family"],
            both.drop_duplicates(["variant", "seq_len"]),
        )

    def _families(self, rows: pd.DataFrame) -> pd.DataFrame:
        """`rows`, each once for every family of patterns that it belongs to, in `family`."""

        def joined(column: str) -> list[str]:
            return ["/".join(map(str, values)) for values in rows[column]]

        rates = pd.Series(joined("dilation_rates"), rows.index, dtype=object)
        lengths = pd.Series(joined("segment_lengths"), rows.index, dtype=object)
        return pd.concat(
            [
                rows[self._as_published(rows)].assign(family="the published segments"),
                rows.assign(family="segments " + lengths + ", rates " + rates),
                rows.assign(family="rates " + rates),
            ]
        )

    def _as_published(self, rows: pd.DataFrame, dense: bool = False) -> np.ndarray:
        pattern = self.setting.pattern
        columns = (rows["seq_len"], rows["segment_lengths"], rows["dilation_rates"])
        same = [dense if not w else pattern(n) == (w, r) for n, w, r in zip(*columns, strict=True)]
        return np.array(same, dtype=bool)


def view(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> View:
    """The view of `experiment` on `machine` ("auto": see `records.speaker`).

    Smoke records speak only where a machine has no others. Raises RecordsError if the
    experiment or the machine has no record.
    """
    rows = records.of_experiment(frame, experiment)
    machine = records.speaker(rows, machine)
    rows = rows[rows["machine"] == machine]
    real = rows[rows["tier"] != "smoke"]
    return View(experiment, machine, rows if real.empty else real)


def all_views(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> list[View]:
    """The views of every machine, the speaking one first."""
    rows = records.of_experiment(frame, experiment)
    first = records.speaker(rows, machine)
    return [view(frame, experiment, name) for name in records.machines(rows, first)]


def ratio(base: pd.Series | None, other: pd.Series | None, quantity: str = "time"):
    """`base` over `other`: how many times faster, or smaller in memory, `other` is.

    An `Interval` (NaN bounds for memory), or None unless both rows are there and ok.
    """
    if any(row is None or row["status"] != "ok" for row in (base, other)):
        return None
    if quantity == "time":
        return speedup(base["samples"], other["samples"])
    value = base["peak_memory_bytes"] / other["peak_memory_bytes"]
    return Interval(value, float("nan"), float("nan"), 0.0) if value > 0 else None


def dense_twin(rows: pd.DataFrame, row: pd.Series) -> pd.Series | None:
    """The dense record among `rows` with the shape, type and pass of `row`; None without one."""
    same = rows[rows["variant"] == published.DENSE]
    for column in TWIN:
        same = same[same[column] == row[column]]
    return _only(same)


def device(row: pd.Series) -> str:
    """The device of a record as a person would call it."""
    return row["device"] if row["device_kind"] == "cuda" else f"{row['cores']}-core CPU"


def _only(rows: pd.DataFrame) -> pd.Series | None:
    return None if rows.empty else rows.iloc[0]
