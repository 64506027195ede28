"""Which records a table, figure or number is made of: the setting nearest to the published one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pandas as pd

from analysis.records import frame as records
from analysis.records import systems
from analysis.records.of_frame import of_frame
from analysis.selection import published
from analysis.selection.row_index import RowIndex
from analysis.statistics import scaling
from analysis.statistics.intervals import Interval, speedup

# Of one experiment on one machine, that anybody reads.
MOST_SERIES = 12
# Peaks over length this close to each other do not grow.
STEADY = 1.05
CENSORED = ("oom", "timeout")
_ALIKE = ("machine", "dtype", "is_causal", "pass", "batch", "seq_len", "heads", "head_dim")
GROUP = ["dtype", "is_causal", "heads", "head_dim", "batch", "family"]


@dataclass(frozen=True)
class Series:
    """Records of one pass of several systems that differ in length alone, on one machine.

    `pattern` says in words what segments and rates, or what blocks, they share; "" where all is
    dense. `rows` has one row per system and length, ascending, with any status.
    """

    machine: str
    device: str
    dtype: str
    is_causal: bool
    heads: int
    head_dim: int
    batch: int
    pattern: str
    training: bool
    rows: pd.DataFrame

    @property
    def lengths(self) -> list[int]:
        """Lengths of the series, ascending."""
        return sorted(int(n) for n in set(self.rows["seq_len"]))

    @property
    def systems(self) -> list[str]:
        """Systems in registry order."""
        return systems.ordered(self.rows["system"])

    def row(self, system: str, seq_len: int) -> pd.Series | None:
        """The record at one point, any status; None if there is none."""
        return self._index.first(system, seq_len)

    @cached_property
    def _index(self) -> RowIndex:
        return RowIndex(self.rows, ("system", "seq_len"))

    def timed(self, system: str) -> pd.DataFrame:
        """The rows of a system that have a time, by length."""
        return self.rows[(self.rows["system"] == system) & (self.rows["status"] == "ok")]

    def growth(self, system: str, quantity: str) -> scaling.ScalingFit | None:
        """The fit of "time" (ms) or "memory" (bytes) over length; None below three points.

        Memory that is the same at all lengths, within STEADY, has no exponent, and no fit either.
        """
        fine = self.timed(system)
        if quantity == "memory":
            fine = fine[fine["peak_memory_bytes"] > 0]
            if fine["peak_memory_bytes"].max() < STEADY * fine["peak_memory_bytes"].min():
                return None
        if len(fine) < 3:
            return None
        lost = self.rows[(self.rows["system"] == system) & self.rows["status"].isin(CENSORED)]
        values = fine["samples" if quantity == "time" else "peak_memory_bytes"]
        censored = zip(lost["seq_len"], lost["status"], strict=True)
        return scaling.fit(fine["seq_len"], values, fine["spread"].iloc[0], censored=censored)


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
    def is_cpu(self) -> bool:
        """Whether the measured code ran on a CPU: notes then have a sentence about it."""
        return self.rows["device_kind"].iloc[0] == "cpu"

    @property
    def setting(self) -> published.Setting:
        """What the write-up held fixed."""
        return published.setting(self.experiment)

    @cached_property
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
        """The batch measured nearest to the published one at `seq_len`; ties go to the smaller.

        Where the write-up has several batches at that length, `batch` itself and no other.
        """
        if sum(n == seq_len for _, n in published.shapes(self.experiment)) > 1:
            return batch
        rows = self.nearest
        rows = rows[(rows["seq_len"] == seq_len) & self.as_published(rows)]
        measured = sorted(set(rows["batch"]))
        return min(measured, key=lambda b: abs(b - batch)) if measured else None

    def cell(self, system: str, batch: int | None, seq_len: int) -> pd.Series | None:
        """The record of a table's cell, at the published pattern, any status; or None."""
        return self._cells.first(system, batch, seq_len)

    @cached_property
    def _cells(self) -> RowIndex:
        rows = self.nearest
        published_pattern = self.as_published(rows, dense=True)
        return RowIndex(rows[published_pattern], ("system", "batch", "seq_len"))

    def series(self, pass_: str = "forward") -> Sequence[Series]:
        """The length series nearest to the published setting, then a longer one if there is one.

        Nearest: causality, then dtype, then a head size, then a pattern that stays (the published
        ones count as that) before equal rates alone or other blocks, then most lengths, then the
        smallest batch. Where nothing but dense attention was measured: in that order the first
        MOST_SERIES of several lengths.
        """
        return self._series_of(pass_)

    @cached_property
    def _series_of(self) -> Callable[[str], Sequence[Series]]:
        # Figures, tables and numbers ask for the same.
        return cache(self._nearest_series)

    def _nearest_series(self, pass_: str) -> Sequence[Series]:
        # A step of a training is no pass of an attention.
        rows = self.rows[(self.rows["pass"] == pass_) & self.rows["recipe"].isna()]
        patterned = rows[_patterned(rows)]
        families = self._families(patterned)
        if patterned.empty:
            families = rows.assign(family="", off_pattern=False)
        groups = families.groupby(GROUP, sort=True)
        groups = groups.agg(
            count=("seq_len", "nunique"),
            longest=("seq_len", "max"),
            off_pattern=("off_pattern", "first"),
        ).reset_index()
        if groups.empty:
            return ()
        fixed = self.setting
        groups["rank"] = [
            (
                g.is_causal != fixed.is_causal,
                g.dtype != fixed.dtype,
                g.head_dim != fixed.head_dim,
                g.off_pattern,
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
            (groups["longest"] > first["longest"]) & (groups["count"] > 2) & ~groups["off_pattern"]
        ]
        longer = longer.sort_values("longest", kind="stable", ascending=False).head(1)
        if patterned.empty:
            longer = groups.iloc[1:MOST_SERIES]
        chosen = [first, *(row for _, row in longer.iterrows())]
        return tuple(self._series(rows, families, group) for group in chosen)

    def _series(self, rows: pd.DataFrame, families: pd.DataFrame, group: pd.Series) -> Series:
        own, dense = families, rows[~_patterned(rows)]
        for column in GROUP[:-1]:
            own, dense = own[own[column] == group[column]], dense[dense[column] == group[column]]
        own = own[own["family"] == group["family"]]
        both = pd.concat([dense[dense["seq_len"].isin(own["seq_len"])], own])
        both = both.sort_values(["variant", "sparsity", "seq_len"], kind="stable")
        return Series(
            self.machine,
            self.device,
            group["dtype"],
            bool(group["is_causal"]),
            int(group["heads"]),
            int(group["head_dim"]),
            int(group["batch"]),
            group["family"],
            rows.iloc[0]["pass"] == "forward_backward",
            both.drop_duplicates(["system", "seq_len"]),
        )

    def _families(self, rows: pd.DataFrame) -> pd.DataFrame:
        """`rows`, each once for every family of patterns that it belongs to, in `family`.

        `off_pattern`: that family is not one that the write-up keeps over its lengths.
        """

        def joined(rows: pd.DataFrame, column: str) -> pd.Series:
            values = ["/".join(map(str, values)) for values in rows[column]]
            return pd.Series(values, rows.index, dtype=object)

        blocks = rows[rows["sparsity"].notna()]
        rows = rows[rows["sparsity"].isna()]
        rates, lengths = joined(rows, "dilation_rates"), joined(rows, "segment_lengths")
        named = [blocks_in_words(row) for _, row in blocks.iterrows()]
        return pd.concat(
            [
                rows[self.as_published(rows)].assign(
                    family="the published segments", off_pattern=False
                ),
                rows.assign(family="segments " + lengths + ", rates " + rates, off_pattern=False),
                rows.assign(family="rates " + rates, off_pattern=True),
                blocks.assign(
                    family=pd.Series(named, blocks.index, dtype=object),
                    off_pattern=self.off_pattern_blocks(blocks),
                ),
            ]
        )

    def off_pattern_blocks(self, rows: pd.DataFrame) -> pd.Series:
        """Whether a row's block mask is of another builder or block size than the write-up's."""
        pattern, block_size = self.setting.blocks or (None, None)
        same = (rows["pattern"] == pattern) & (rows["block_size"] == block_size)
        return rows["sparsity"].notna() & ~same

    def as_published(self, rows: pd.DataFrame, dense: bool = False) -> np.ndarray:
        """Whether each row has the write-up's branches or blocks; `dense`: where it has none."""
        fixed = self.setting
        same = []
        names = (
            "seq_len",
            "segment_lengths",
            "dilation_rates",
            "sparsity",
            "pattern",
            "block_size",
        )
        for n, lengths, rates, sparsity, pattern, size in zip(*map(rows.get, names), strict=True):
            if lengths:
                same.append(fixed.pattern(n) == (lengths, rates))
            elif not math.isnan(sparsity):
                same.append(fixed.blocks == (pattern, size))
            else:
                same.append(dense)
        return np.array(same, dtype=bool)


def _patterned(rows: pd.DataFrame) -> pd.Series:
    return rows["segment_lengths"].notna() | rows["sparsity"].notna()


def blocks_in_words(row: Mapping) -> str:
    """The blocks of a record's mask, as words."""
    return f"{row['pattern'].replace('_', ' ')} blocks of {row['block_size']:.0f}"


@of_frame
def view(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> View:
    """The view of `experiment` on `machine` ("auto": see `records.reporting_machine`).

    Smoke records are used only where a machine has no others. Raises RecordsError if the
    experiment or the machine has no record.
    """
    rows = records.of_experiment(frame, experiment)
    machine = records.reporting_machine(rows, machine)
    rows = rows[rows["machine"] == machine]
    real = rows[rows["tier"] != "smoke"]
    return View(experiment, machine, rows if real.empty else real)


def all_views(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> list[View]:
    """The views of every machine, the reporting one first."""
    rows = records.of_experiment(frame, experiment)
    first = records.reporting_machine(rows, machine)
    return [view(frame, experiment, name) for name in records.machines(rows, first)]


def ratio(base: pd.Series | None, other: pd.Series | None, quantity: str = "time"):
    """`base` over `other`: how many times faster, or smaller in memory, `other` is.

    An `Interval` over the rounds that both have, or None unless both rows are there and ok. Its
    bounds are NaN for memory, and where that is one round: what differs between rounds is not known
    then.
    """
    if any(row is None or row["status"] != "ok" for row in (base, other)):
        return None
    if quantity == "time":
        return speedup(base["samples"], other["samples"], base["spread"])
    value = base["peak_memory_bytes"] / other["peak_memory_bytes"]
    return Interval.without_spread(value) if value > 0 else None


def dense_counterpart(
    rows: pd.DataFrame, row: pd.Series, system: str = published.DENSE
) -> pd.Series | None:
    """The record of a dense `system` among `rows` with the shape, type and pass of `row`."""
    # Asked for every row of many tables: a frame per column would be a third of their time.
    same = rows["system"].to_numpy() == system
    for column in _ALIKE:
        same &= rows[column].to_numpy() == row[column]
    found = np.flatnonzero(same)
    return rows.iloc[found[0]] if found.size else None


def device(row: pd.Series) -> str:
    """The device of a record as a person would call it."""
    return row["machine_name"]
