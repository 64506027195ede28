"""Published, replica, exact: which records of `as_published` stand beside which published figure.

A published figure is given again where the replica's is like it; what it would have been, had the
system been what it was called, is the exact one's. All three are ratios, shares or bytes, since no
absolute time carries over from one machine to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pandas as pd
import yaml

from analysis.experiments.extreme import views as extreme_views
from analysis.records import systems
from analysis.records.units import KIB
from analysis.selection import published, views
from analysis.standard import quantities
from analysis.standard.quantities import Quantity
from models.registry import VARIANTS

EXPERIMENT = "as_published"
READINGS = published.CLAIMS.with_name("readings.yaml")
REPLICAS = tuple(name for name, variant in VARIANTS.items() if variant.replica_of)
LOOP, HEADS, SUMS, BLOCKS, RING = (
    f"published-{name}"
    for name in ("head-partition", "over-heads", "signed-sum", "block-sums", "dense-ring")
)
GATHERED = "block-sparse-sdpa"
CHUNK = (4096, (512, 1024, 2048))  # tokens and segments of the chunk that was multiplied
FIRST_AT = 512  # the length of the published figures of memory per token
SHARES = ("64m", "128m", "256m")  # plots whose share of time was read off
# Lengths of the table that ends at a billion tokens.
BILLION = tuple(2**power for power in (17, 18, 20, 22, 24, 26, 28, 30))


@dataclass(frozen=True)
class Three:
    """One figure in three columns: as published, of the replica, and of the exact system.

    `over_dense`: the exact system over PyTorch's attention. Each ratio has its two records.
    """

    writeup: str
    system: str
    seq_len: int
    published: float | None
    replica: tuple[pd.Series | None, pd.Series | None]
    exact: tuple[pd.Series | None, pd.Series | None]
    over_dense: tuple[pd.Series | None, pd.Series | None]


def view(frame: pd.DataFrame, machine: str = "auto") -> views.View:
    """The experiment's view."""
    return views.view(frame, EXPERIMENT, machine)


def find(
    of: views.View,
    variant: str,
    batch: int,
    seq_len: int,
    *,
    heads: tuple[int, int] = (8, 64),
    is_causal: bool = False,
    sparsity: float | None = None,
    segments: tuple[int, ...] | None = None,
) -> pd.Series | None:
    """The record of a variant at a shape, any status, of the batch nearest to `batch`; or None.

    heads: number and size. Of several types the first by name.
    """
    rows = of.rows[
        (of.rows["system"] == systems.key(variant, sparsity))
        & (of.rows["seq_len"] == seq_len)
        & (of.rows["heads"] == heads[0])
        & (of.rows["head_dim"] == heads[1])
        & (of.rows["is_causal"] == is_causal)
    ]
    if segments is not None and VARIANTS[variant].takes == "branches":
        rows = rows[rows["segment_lengths"] == segments]
    if rows.empty:
        return None
    order = rows.assign(far=(rows["batch"] - batch).abs())
    return rows.loc[order.sort_values(["far", "dtype", "path"], kind="stable").index[0]]


def speedups(of: views.View) -> list[Three]:
    """Every published speed-up that a replica was made for."""
    return [*_over_heads(of), *_block_sums(of)]


def _over_heads(of: views.View) -> list[Three]:
    found = []
    for n, (lengths, _) in published.setting("comprehensive").patterns.items():
        rows = {
            variant: find(of, variant, 1, n, segments=lengths)
            for variant in (published.DENSE, "dilated-gather", "dilated-sdpa", LOOP, HEADS)
        }
        for system in ("dilated-sdpa", "ring-dilated"):
            old = published.value("comprehensive", system, 1, n, "speedup")
            pairs = ((LOOP, HEADS), ("dilated-gather", "dilated-sdpa"))
            pairs = (*pairs, (published.DENSE, "dilated-sdpa"))
            three = [(rows[base], rows[own]) for base, own in pairs]
            found.append(Three("comprehensive", system, n, old, *three))
    return found


def _block_sums(of: views.View) -> list[Three]:
    found = []
    for batch, n in published.shapes("block_sparse"):
        eager, dense = (find(of, one, batch, n) for one in ("dense-eager", published.DENSE))
        for sparsity in (0.9, 0.95, 0.98):
            system = systems.key("block-sparse", sparsity)
            old = published.value("block_sparse", system, batch, n, "speedup")
            sums, own = (find(of, one, batch, n, sparsity=sparsity) for one in (BLOCKS, GATHERED))
            if old is not None or sums is not None:
                pairs = (eager, sums), (eager, own), (dense, own)
                found.append(Three("block_sparse", system, n, old, *pairs))
    return found


@dataclass(frozen=True)
class Curve:
    """Times at a constant number of tokens, in ever fewer and longer sequences; by length."""

    rates: str
    variant: str
    rows: list[pd.Series]

    def share(self, row: pd.Series) -> Quantity:
        """The time of a record over that of the first."""
        return quantities.speed_up(row, self.rows[0])

    def model(self, row: pd.Series) -> float:
        """The same by counted pairs: sum w / r^2 over branches of equal heads."""
        return row["useful_flops"] / self.rows[0]["useful_flops"]


def curves(of: views.View) -> list[Curve]:
    """The plots: rates as the script made them, as they were meant, and exact attention."""
    rows = of.rows[(of.rows["head_dim"] == 8) & (of.rows["status"] == "ok")]
    rows = rows.sort_values(["seq_len", "path"], kind="stable")
    found = []
    for rates, made, variant in (
        ("as made", True, SUMS),
        ("as meant", False, SUMS),
        ("as meant", False, "dilated-sdpa"),
    ):
        own = [row for _, row in rows[rows["variant"] == variant].iterrows() if _has(row, made)]
        # Without the shortest length, one segment in all branches, there is no share to take.
        if own and set(own[0]["segment_lengths"]) == {own[0]["seq_len"]}:
            found.append(Curve(rates, variant, own))
    return found


def _has(row: pd.Series, made: bool) -> bool:
    """Whether the rates are those of the script, 2^(w / w0 - 1), or those meant, w / w0."""
    steps = [w // row["segment_lengths"][0] for w in row["segment_lengths"]]
    wanted = tuple(2 ** (step - 1) if made else step for step in steps)
    return row["dilation_rates"] == wanted


def plot_share(plot: str) -> float:
    """Time from 65,536 tokens on over that at 8192, read off a published plot."""
    return published.plot_value("overview", plot, "time_share")


@cache
def readings() -> dict:
    """`paper/readings.yaml`."""
    return yaml.safe_load(READINGS.read_text(encoding="utf-8"))


def chunk(of: views.View, variant: str = HEADS) -> pd.Series | None:
    """The record of the chunk behind the table of a billion tokens."""
    return find(of, variant, 1, CHUNK[0], segments=CHUNK[1])


def first_call(row: pd.Series | None, unit: str = "ms", multiplier: float = 1) -> Quantity:
    """Time of the first call of a process, `multiplier` times."""
    known = quantities.is_timed(row)
    ms = float(row["calls_first_ms"]) * multiplier if known else None
    return quantities.duration(ms, unit)


def published_first() -> tuple[float, float, float]:
    """Published of the ring that ran first and of a later one, at FIRST_AT tokens.

    Memory per token of both (KB), and the whole difference (MiB).
    """
    batch, _ = published.shapes("ring")[0]
    first, later = (
        published.value("ring", system, batch, FIRST_AT, "memory_per_token")
        for system in ("ring-standard", "ring-hilbert")
    )
    return first, later, (first - later) * FIRST_AT / KIB


def first_more(row: pd.Series | None) -> float | None:
    """Bytes that the peak of a process's first call lies above that of its second."""
    peaks = [quantities.bytes_of(row, f"calls_{call}_peak_bytes") for call in ("first", "second")]
    return None if None in peaks else peaks[0] - peaks[1]


def streamed(frame: pd.DataFrame, machine: str, seq_len: int) -> pd.Series | None:
    """Exact dilated attention over one real sequence of that length, by experiment `extreme`."""
    of_machine = frame[frame["machine"] == machine]
    if extreme_views.EXPERIMENT not in set(of_machine["experiment"]):
        return None
    rows = extreme_views.extreme(frame, machine).streamed()
    rows = rows[rows["seq_len"] == seq_len]
    return None if rows.empty else rows.iloc[0]


def largest(of: views.View, replica: str) -> pd.Series | None:
    """The record whose deviation is reported: not causal, longest, of fewest pairs."""
    rows = of.rows[(of.rows["variant"] == replica) & (of.rows["status"] == "ok")]
    order = ["is_causal", "seq_len", "realised_density", "path"]
    rows = rows.sort_values(order, ascending=[True, False, True, True], kind="stable")
    return None if rows.empty else rows.iloc[0]
