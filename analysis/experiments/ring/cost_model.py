"""A cost model of ring attention over up to thousands of devices. Modelled: nothing here is timed.

A rank of p holds L = n / p tokens. In each of p hops it computes its queries with one shard of keys
and values, and meanwhile receives the next: a hop costs the longer of the two, a pass the sum over
hops, the rank's own keys first. What is put in are three constants with their sources, and the
rate of the compute, either a stated nominal one or one measured on one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from analysis.selection import rates

# The schedule of LongNet (arXiv 2307.02486, section 4.1) goes on as it began: lengths double.
LONGNET = ((2048, 1), (4096, 2), (8192, 4), (16384, 6), (32768, 12))
MAX_RANKS = 4096
MODEL_TOKENS = 2**20


@dataclass(frozen=True)
class Link:
    """What joins two devices.

    bandwidth: bytes per second, one way, of a rank. latency: seconds per message. source: where
    both are from.
    """

    name: str
    bandwidth: float
    latency: float
    source: str


NVLINK = Link(
    "NVLink", 270e9, 5e-6,
    "NVIDIA H100 data sheet, 2022: 450 GB/s one way; 60 % of it and the latency are assumed",
)  # fmt: skip
INFINIBAND = Link(
    "InfiniBand", 50e9, 10e-6,
    "NDR, 400 Gbit/s per device = 50 GB/s; the latency is assumed",
)  # fmt: skip
LINKS = (NVLINK, INFINIBAND)


@dataclass(frozen=True)
class Shape:
    """One layer of attention, forward, not causal, batch 1.

    itemsize: bytes a number as it travels. rate: FLOP/s of the compute; nominal: whether that is a
    stated one and not measured.
    """

    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 64
    itemsize: int = 2
    rate: float = 500e12
    nominal: bool = True

    def flops(self, pairs: float) -> float:
        """FLOPs of so many query-key pairs per head: two products over head_dim."""
        return 4.0 * self.heads * self.head_dim * pairs

    def bytes(self, tokens: float) -> float:
        """Bytes of the keys and values of so many tokens."""
        return 2.0 * self.kv_heads * self.head_dim * self.itemsize * tokens


NOMINAL = Shape()


@dataclass(frozen=True)
class Hop:
    """What a rank computes in a hop (query-key pairs per head) and receives (tokens of keys)."""

    pairs: float
    tokens: float


@dataclass(frozen=True)
class Cost:
    """Seconds of a pass on each rank: compute alone, transfer alone, and both overlapped."""

    compute: float
    transfer: float
    total: float

    @property
    def waiting(self) -> float:
        """Share of the pass in which a rank waits for keys."""
        return 1 - self.compute / self.total


def dense(n: float, ranks: int) -> list[Hop]:
    """Every rank meets every shard."""
    shard = n / ranks
    return [Hop(shard**2, 0.0), *[Hop(shard**2, shard)] * (ranks - 1)]


def spread_blocks(n: float, ranks: int, density: float) -> list[Hop]:
    """Kept blocks spread evenly, so that every shard of keys goes around whole."""
    shard = n / ranks
    hop = Hop(density * shard**2, shard)
    return [replace(hop, tokens=0.0), *[hop] * (ranks - 1)]


def window_blocks(n: float, ranks: int, density: float) -> list[Hop]:
    """A window of `density` n keys around each query, of which those in reach alone travel.

    Blocks are too small to count, and the ends of the text, where a window is cut, are left out.
    """
    shard, reach = n / ranks, density * n / 2
    if ranks == 1:
        return [Hop(density * n**2, 0.0)]
    # Of a rank in the middle: as many keys from either side, of the nearest shards first.
    sides = min(2, ranks - 1)
    left = min(sides * reach, n - shard)
    received: list[float] = []
    while left > 0 and len(received) < ranks - 1:
        nearest = min(sides, ranks - 1 - len(received))
        part = min(nearest * shard, left)
        received += [part / nearest] * nearest
        left -= part
    own = shard**2 if reach >= shard else reach * (2 * shard - reach)
    away = max(density * n * shard - own, 0.0)
    keys = sum(received)
    return [Hop(own, 0.0), *(Hop(away * tokens / keys, tokens) for tokens in received)]


def dilated(n: float, ranks: int, branches: Sequence[tuple[int, int]] = LONGNET) -> list[Hop]:
    """LongNet's branches (segment length, rate): segments within a shard need nothing of others.

    Of a longer segment a rank needs the keys that it keeps, a head one in `rate`; they are spread
    over the shards that the segment covers. A key that several branches keep travels once: all are
    of one residue of the rates' common divisor, so that no more than these are counted.
    """
    shard = n / ranks
    own, received, common = 0.0, {}, {}
    for length, rate in branches:
        segment = min(float(length), n)
        pairs = shard * segment / rate**2  # of one rank: kept queries times kept keys
        members = max(segment / shard, 1.0)  # shards in a segment
        own += pairs / members
        for number in range(1, _ceil(members)):
            part = min(1.0, members - number)
            before = received.get(number, Hop(0.0, 0.0))
            received[number] = Hop(
                before.pairs + pairs * part / members, before.tokens + shard * part / rate
            )
            common[number] = math.gcd(common.get(number, 0), rate)
    hops = (
        replace(hop, tokens=min(hop.tokens, shard / common[number]))
        for number, hop in sorted(received.items())
    )
    return [Hop(own, 0.0), *hops]


def cost(hops: Sequence[Hop], shape: Shape, link: Link) -> Cost:
    """Seconds of the hops one after the other, the keys of each sent while the one before computes.

    A transfer costs its latency, for keys and values a message each, and bytes over bandwidth.
    """
    computes = [shape.flops(hop.pairs) / shape.rate for hop in hops]
    transfers = [
        2 * link.latency + shape.bytes(hop.tokens) / link.bandwidth if hop.tokens else 0.0
        for hop in hops
    ]
    total = 0.0
    for number, compute in enumerate(computes):
        coming = transfers[number + 1] if number + 1 < len(hops) else 0.0
        total += max(compute, coming)
    return Cost(sum(computes), sum(transfers), total)


def break_even(shape: Shape, link: Link, density: float = 1.0) -> float:
    """Tokens per shard from which compute hides the transfer of a whole shard, without latency.

    A hop computes 4 H D L^2 density / rate seconds and receives 4 Hkv D L itemsize / 2 bytes, so
    L = (Hkv / H) (itemsize / 2) rate / bandwidth / density.
    """
    of_a_token = shape.bytes(1.0) / link.bandwidth
    return of_a_token * shape.rate / (shape.flops(1.0) * density)


@dataclass(frozen=True)
class System:
    """A modelled pattern: its name, the system that it is drawn like, its hops (n, ranks)."""

    name: str
    key: str
    hops: Callable[[float, int], list[Hop]]


def _blocks(percent: int) -> tuple[System, System]:
    density, key = 1 - percent / 100, f"ring-block-sparse@{percent}"
    return (
        System(f"sparse {percent} %, all keys", key, partial(spread_blocks, density=density)),
        System(f"sparse {percent} %, needed keys", key, partial(window_blocks, density=density)),
    )


SYSTEMS = (
    System("dense", "ring-distributed", dense),
    System("dilated", "ring-dilated", dilated),
    *_blocks(95),
    *_blocks(98),
)


def _ceil(x: float) -> int:
    return int(-(-x // 1))


def shape_on(rows: pd.DataFrame) -> Shape:
    """`NOMINAL`, at the rate of the longest dense record of a GPU among `rows` where there is one.

    The rate of a CPU says nothing of a device with such links.
    """
    dense = rows[(rows["variant"] == "dense") & (rows["status"] == "ok")]
    dense = dense[(dense["device_kind"] == "cuda") & (dense["pass"] == "forward")]
    dense = dense[dense["dtype"].isin(("float16", "bfloat16"))]
    if dense.empty:
        return NOMINAL
    longest = dense.sort_values(["seq_len", "path"], kind="stable").iloc[-1]
    return replace(NOMINAL, rate=rates.useful(longest).value, nominal=False)


def assumptions(shape: Shape) -> str:
    """What goes into the model, as a sentence."""
    rate = f"{shape.rate / 1e12:.0f} TFLOP/s per device"
    rate = f"a nominal {rate}" if shape.nominal else f"{rate} as measured on one"
    links = "; ".join(
        f"{link.name} {link.bandwidth / 1e9:.0f} GB/s, {1e6 * link.latency:.0f} µs per message"
        for link in LINKS
    )
    return (
        f"{shape.heads} heads of {shape.head_dim} in 16 bits, forward, not causal; {rate}; {links}."
    )
