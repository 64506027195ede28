"""Which entries of the tables are tuned, in which order; with torch alone, and no Triton."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from models.kernels.calls import TABLES, Call

if TYPE_CHECKING:  # it needs Triton
    from models.kernels.tiles import Tile

HEAD_DIMS = (32, 64, 128, 256)
KERNELS = ("forward", "backward_q", "backward_kv")
BLOCK_SIZES = (64, 32, 16)
# Head dimension, bits and block size for which two tiles of queries share a program.
PAIRED = ((32, 16, 64), (64, 16, 64))
# The kernels and blocks that the claims rest on most, best first.
_FIRST = (
    ("dilated", "forward", None),
    ("block_sparse", "forward", 64),
    ("block_sparse", "forward_pair", 64),
    ("dilated", "backward_kv", None),
    ("dilated", "backward_q", None),
    ("block_sparse", "backward_kv", 64),
    ("block_sparse", "backward_q", 64),
    ("hop", "forward", None),
    ("hop", "backward_kv", None),
    ("hop", "backward_q", None),
)
_HEAD_DIMS_FIRST = (64, 128, 32, 256)
_LONGNET = {
    "segment_lengths": (2048, 4096, 8192, 16384, 32768),
    "dilation_rates": (1, 2, 4, 6, 12),
}
_TOKENS, _HEADS = 32768, 12
# Of a piece of a hop, queries and keys: no fewer programs than a card runs at once.
_PIECE = 8192


@dataclass(frozen=True)
class Entry:
    """One line of a table on one card: what its tile is for."""

    table: str
    kernel: str
    head_dim: int
    bits: int
    block_size: int | None = None

    def __str__(self) -> str:
        blocks = "" if self.block_size is None else f", blocks of {self.block_size}"
        return f"{self.table}.{self.kernel}, D = {self.head_dim}, {self.bits} bit{blocks}"

    def key(self, capability: int) -> dict:
        """As a table has it: `models.kernels.tiles.KEYS`."""
        entry = {"capability": capability, "head_dim": self.head_dim, "bits": self.bits}
        return entry | ({} if self.block_size is None else {"block_size": self.block_size})

    def to_json(self) -> dict:
        return asdict(self)


def entries(tables: Iterable[str]) -> list[Entry]:
    """Every entry of the tables, for one card, in the order of the tables."""
    found = []
    for table in tables:
        sizes, widths = ((None,), (16, 32))
        if table == "block_sparse":
            sizes, widths = BLOCK_SIZES, (16,)
        every = itertools.product((table,), KERNELS, HEAD_DIMS, widths, sizes)
        found += [Entry(*values) for values in every]
        if table == "block_sparse":
            found += [Entry(table, "forward_pair", *values) for values in PAIRED]
    return found


def plan(tables: Iterable[str] = TABLES) -> list[Entry]:
    """The same, most valuable first: half precision before float32, blocks of 64 before others."""
    first = {key: place for place, key in enumerate(_FIRST)}

    def rank(entry: Entry):
        kernel = first.get((entry.table, entry.kernel, entry.block_size), len(first))
        likely = entry.bits == 16 and entry.head_dim in (64, 128) and kernel < len(first)
        return (not likely, entry.bits, _HEAD_DIMS_FIRST.index(entry.head_dim), kernel)

    return sorted(entries(tables), key=rank)


def call_of(entry: Entry, tile: Tile | None = None) -> Call:
    """What an entry is timed on: LongNet's schedule, a local window at 90 %, a full piece.

    The first causal; 32,768 tokens and 12 heads of them, a piece of a hop 8,192.
    """
    options: dict = {"tokens": _TOKENS}
    if entry.table == "dilated":
        options |= _LONGNET
    elif entry.table == "hop":
        options = {"tokens": _PIECE, "is_causal": False}
    else:
        mask = {"builder": "local_window", "sparsity": 0.9, "block_size": entry.block_size}
        options |= mask | {"is_causal": False}
    return Call(
        entry.table,
        entry.kernel,
        {16: "float16", 32: "float32"}[entry.bits],
        entry.head_dim,
        heads=_HEADS,
        kv_heads=_HEADS,
        tile=tile,
        **options,
    )
