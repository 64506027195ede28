"""Tile configurations: data beside each kernel (`dilated.json`, ...), read here.

A table maps a kernel to entries, each with the card (`capability`: 80, 90, 100), head
dimension (padded to a power of two), bits of the dtype and, for block masks, block size
that it is for; the tile; and `source`, where the tile came from. Tuning measures candidates
on the card at hand and rewrites the entries of that card; `tile_tables` says where a table lies.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton

from models.errors import UnsupportedBackend
from models.kernels import tile_tables, withdrawn

# As it was when Triton was imported, which decides then whether kernels are interpreted.
INTERPRETED = triton.knobs.runtime.interpret
MAX_HEAD_DIM = 256
# Cards that a table is kept for, by compute capability.
CAPABILITIES = (80, 90, 100)
KERNELS = ("forward", "backward_q", "backward_kv")
# These have tiles only for the sizes that they are used for.
EXTRA = {"block_sparse": ("forward_pair",)}
KEYS = ("capability", "head_dim", "bits", "block_size")


@dataclass(frozen=True)
class Tile:
    """block_m queries by block_n keys per step; warps per program; stages of the load pipeline.

    maxnreg: registers per thread at most, None for as many as the compiler takes.
    rotated: of a forward kernel, whether the product with the values of one step runs beside
    the softmax of the next (`tile_math.rotated_step`).
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    maxnreg: int | None = None
    rotated: bool = False

    def __post_init__(self):
        for name in ("block_m", "block_n", "warps", "stages", "maxnreg"):
            value = getattr(self, name)
            if name == "maxnreg" and value is None:
                continue
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r}: expected a positive integer")
        if type(self.rotated) is not bool:
            raise ValueError(f"rotated={self.rotated!r}: expected true or false")

    @property
    def masked(self) -> Tile:
        """The tile where any key may be masked: not rotated, since that needs rows that have seen a
        key, and without maxnreg, since masks take registers."""
        return replace(self, rotated=False, maxnreg=None)

    def options(self, kernel: triton.JITFunction) -> dict[str, object]:
        """Keyword arguments of a launch of `kernel`; ROTATED only if it has that constant."""
        options = {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "num_warps": self.warps,
            "num_stages": self.stages,
            "maxnreg": self.maxnreg,
        }
        return options | ({"ROTATED": self.rotated} if "ROTATED" in kernel.arg_names else {})


def read(table: str) -> dict[str, list[dict]]:
    """The table of kernel file `table` as it lies on disk: kernel -> entries."""
    return read_file(tile_tables.path(table))


def read_file(path: Path) -> dict[str, list[dict]]:
    """A table by its file; ValueError unless it holds complete entries for every kernel."""
    try:
        found = json.loads(path.read_text())
        kernels = (*KERNELS, *EXTRA.get(path.stem, ()))
        if not isinstance(found, dict) or set(found) != set(kernels):
            raise ValueError(f"expected an object with {', '.join(kernels)}")
        for kernel, entries in found.items():
            for entry in entries:
                if tile_of(entry).rotated and (kernel, entry.get("bits")) != ("forward", 16):
                    raise ValueError(f"{kernel}: rotated is a forward kernel's of 16 bits alone")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a table of tiles: {error}") from error
    return found


def tile_of(entry: dict) -> Tile:
    """The tile of a table's entry: all of it but KEYS and `source`."""
    return Tile(**{name: x for name, x in entry.items() if name not in (*KEYS, "source")})


def padded(head_dim: int) -> int:
    """The head dimension as kernels tile it: a power of two, 32 at least."""
    return withdrawn.padded(head_dim)


def generation(capability: int) -> int | None:
    """Whose tiles a card uses: 80 also for 12.x, which has as little shared memory; None: none."""
    return {8: 80, 9: 90, 10: 100, 11: 100, 12: 80}.get(capability // 10)


def _index(table: str) -> dict[str, dict[tuple, Tile]]:
    return {
        kernel: {tuple(entry.get(key) for key in KEYS): tile_of(entry) for entry in entries}
        for kernel, entries in read(table).items()
    }


# Read once, so that torch.compile, which traces look-ups, opens no file.
_TILES: dict[str, dict[str, dict[tuple, Tile]]] = {}


def reread() -> None:
    """Read the tables from disk again, after tuning has changed them."""
    _TILES.update({table: _index(table) for table in tile_tables.tables()})


reread()


def look_up(
    table: str, kernel: str, capability: int, head_dim: int, bits: int, block_size: int | None
) -> Tile:
    """The tile of a table.

    Args:
        table, kernel: which.
        capability: compute capability of the card, 90 for Hopper.
        head_dim, bits: of the inputs.
        block_size: of the block mask, None for other tables.

    Raises:
        UnsupportedBackend: where the table has no such tile.
    """
    key = (generation(capability), padded(head_dim), bits, block_size)
    tile = _TILES[table][kernel].get(key)
    if tile is None:
        wanted = dict(zip(KEYS, key, strict=True))
        listed = ", ".join(f"{name} {value}" for name, value in wanted.items())
        raise UnsupportedBackend(f"{table}.json has no tile of {kernel} for {listed}")
    return tile


_FORCED: dict[tuple[str, str], Tile] = {}
# Compute capability (90 for Hopper) of the card that tensors on the CPU stand for, or None.
_ASSUMED: int | None = None


@contextlib.contextmanager
def assumed(capability: int) -> Iterator[None]:
    """A context in which tensors on the CPU get the tiles of that card: to compile without it."""
    global _ASSUMED
    before, _ASSUMED = _ASSUMED, capability
    try:
        yield
    finally:
        _ASSUMED = before


@contextlib.contextmanager
def forced(table: str, kernel: str, tile: Tile) -> Iterator[None]:
    """A context in which `kernel` runs with `tile`, not its table's: for tests and tuning."""
    _FORCED[table, kernel] = tile
    try:
        yield
    finally:
        del _FORCED[table, kernel]


def choose(table: str, kernel: str, q: torch.Tensor, block_size: int | None = None) -> Tile:
    """The tile for q (B, N, H, D); on a CPU, where kernels are interpreted, the smallest possible.

    UnsupportedBackend where the table has none.
    """
    if (table, kernel) in _FORCED:
        return _FORCED[table, kernel]
    if q.device.type == "cpu" and _ASSUMED is None:
        block = block_size or 16
        return Tile(block, block, 1, 1)
    capability = _ASSUMED or capability_of(q.device)
    return look_up(table, kernel, capability, q.shape[3], 8 * q.element_size(), block_size)


def capability_of(device: torch.device) -> int:
    """Compute capability of a CUDA device: 90 for Hopper."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def why_not(q: torch.Tensor) -> str | None:
    """Why the Triton kernels cannot take q (B, N, H, D), or None if they can."""
    if q.device.type == "cpu":
        if not INTERPRETED:
            return "needs a CUDA device (on a CPU only Triton's interpreter, TRITON_INTERPRET=1)"
        if q.dtype == torch.bfloat16:
            return "Triton's interpreter multiplies the bits of bfloat16 as integers"
    elif q.device.type != "cuda":
        return f"does not run on {q.device.type}"
    elif torch.cuda.get_device_capability(q.device) < (8, 0):
        return f"needs compute capability 8.0, not {torch.cuda.get_device_capability(q.device)}"
    if q.dtype == torch.float64:
        return "accumulates in float32, so it takes no float64"
    if q.shape[3] > MAX_HEAD_DIM:
        return f"head_dim={q.shape[3]}: takes up to {MAX_HEAD_DIM}"
    if q.shape[1] >= 2**31:
        return f"{q.shape[1]} tokens: counts them in 32 bits"
    return None


def why_no_tile(table: str, q: torch.Tensor, block_size: int | None = None) -> str | None:
    """Which kernel of `table` has no tile for q (B, N, H, D), or None where all have."""
    try:
        for kernel in KERNELS:
            choose(table, kernel, q, block_size)
    except UnsupportedBackend as error:
        return str(error)
    return None
