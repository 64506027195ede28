"""Which tile for which kernel and card: candidates, drafted without a GPU or measured on one.

`python -m experiments tune` measures the candidates on the card at hand (`tune`) and
rewrites that card's entries of `models/kernels/*.json`. `python -m experiments.tune [TABLE ...]`
drafts tables anew for every card, without one: the first candidate that compiles
without a fault. Each entry says in `source` which of the two it is from.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import torch
import triton

from experiments.files import replacing
from models import patterns
from models.errors import UnsupportedBackend
from models.kernels import block_sparse, dilated, hop, tiles
from models.kernels.compile import KERNELS, build, forms
from models.kernels.tiles import Tile
from models.patterns.branches import DilatedBranches

HEAD_DIMS = (32, 64, 128, 256)
DRAFTED = "first candidate that compiles without a fault; not measured"
_LONGNET = DilatedBranches((2048, 4096, 8192, 16384, 32768), (1, 2, 4, 6, 12))
_TOKENS, _HEADS, _SPARSITY = 32768, 12, 0.9
# Of a piece of a hop, queries and keys: no fewer programs than a card runs at once.
_PIECE = 8192

# Best guesses first, by (kernel, bits) and head dimension: (block_m, block_n, warps, stages).
# Sources: Triton's fused-attention tutorial and FlashAttention-2's tiles for sm_80 and sm_90.
_SMALL = {
    16: ((64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 1), (16, 16, 4, 1)),
    32: ((32, 32, 8, 1), (32, 16, 8, 1), (16, 16, 4, 1)),
}
_UNBLOCKED = {
    ("forward", 16): {
        32: ((128, 128, 4, 3), (128, 64, 4, 3)),
        64: ((128, 64, 4, 3), (128, 128, 8, 3), (128, 64, 8, 3)),
        128: ((128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 2)),
        256: ((128, 64, 8, 2), (128, 32, 8, 2), (64, 64, 8, 2), (64, 32, 8, 2)),
    },
    ("backward_q", 16): {
        32: ((128, 64, 4, 3), (128, 64, 8, 3)),
        64: ((128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3)),
        128: ((128, 64, 8, 2), (128, 32, 8, 2), (64, 64, 8, 2)),
        256: ((64, 64, 8, 1), (64, 32, 8, 2), (64, 32, 8, 1), (32, 32, 8, 1)),
    },
    ("backward_kv", 16): {
        32: ((64, 128, 4, 3), (64, 128, 8, 3), (64, 128, 8, 2), (64, 64, 4, 2)),
        64: ((64, 128, 8, 3), (64, 128, 8, 2), (32, 128, 8, 2), (64, 64, 8, 2)),
        128: ((64, 128, 8, 2), (64, 64, 8, 2), (32, 128, 8, 2), (32, 64, 8, 2)),
        256: ((32, 64, 8, 2), (32, 64, 8, 1), (32, 32, 8, 1), (16, 32, 4, 1)),
    },
    ("forward", 32): {
        32: ((64, 64, 8, 2),),
        64: ((64, 64, 8, 2), (64, 32, 8, 2)),
        128: ((64, 32, 8, 2), (32, 32, 8, 2)),
        256: ((32, 32, 8, 2), (32, 32, 8, 1), (32, 16, 8, 1)),
    },
}
_UNBLOCKED["backward_q", 32] = _UNBLOCKED["forward", 32]
_UNBLOCKED["backward_kv", 32] = {32: ((32, 32, 4, 2),), 64: (), 128: (), 256: ()}


def candidates(
    table: str, kernel: str, head_dim: int, bits: int, block_size: int | None
) -> list[Tile]:
    """Tiles to try, best guesses first."""
    if table != "block_sparse":
        known = _UNBLOCKED[kernel, bits][head_dim]
        return [Tile(*values) for values in (*known, *_SMALL[bits])]
    # The mask's block is one side of the tile; the other takes several blocks a step.
    widest = {32: 128, 64: 128, 128: 64, 256: 32}[head_dim]
    widths = [w for w in (widest, 64, 32, 16) if w >= block_size] or [block_size]
    found = []
    for width, (warps, stages) in itertools.product(
        widths, ((4, 3), (8, 3), (4, 2), (8, 2), (4, 1), (8, 1))
    ):
        sides = (width, block_size) if kernel == "backward_kv" else (block_size, width)
        found.append(Tile(*sides, warps, stages))
    return found


def draft(tables, say: Callable[[str], None] = print) -> None:
    """Write tables, of `KERNELS`, anew for every card: the first candidate without a fault."""
    for table in tables:
        made: dict[str, list[dict]] = {kernel: [] for kernel in KERNELS[table]}
        wanted = list(_entries(table, tiles.CAPABILITIES))
        with ProcessPoolExecutor() as pool:
            for (kernel, entry), tile in zip(
                wanted, pool.map(_first_clean, [(table, *one) for one in wanted]), strict=True
            ):
                if tile is None:
                    say(f"{table}.{kernel} {entry}: no candidate compiles without a fault")
                    continue
                made[kernel].append(entry | _as_json(tile) | {"source": DRAFTED})
                say(f"{table}.{kernel} {entry}: {tile}")
        _write(table, made)


def _entries(table: str, capabilities) -> Iterator[tuple[str, dict]]:
    sizes, widths = (None,), (16, 32)
    if table == "block_sparse":
        sizes, widths = block_sparse.TILE_SIZES, (16,)
    for kernel, capability, head_dim, bits, size in itertools.product(
        KERNELS[table], capabilities, HEAD_DIMS, widths, sizes
    ):
        entry = {"capability": capability, "head_dim": head_dim, "bits": bits}
        yield kernel, entry | ({} if size is None else {"block_size": size})


def _first_clean(wanted: tuple[str, str, dict]) -> Tile | None:
    table, kernel, entry = wanted
    size = entry.get("block_size")
    for tile in candidates(table, kernel, entry["head_dim"], entry["bits"], size):
        # Lazily: the first fault rules a tile out.
        if not any(
            build(form).fault(entry["capability"]) for form in forms(table, kernel, entry, tile)
        ):
            return tile
    return None


def tune(tables, device: str, say: Callable[[str], None] = print) -> None:
    """Measure every candidate on `device`, the current one, and keep the fastest that is right.

    tables: of `KERNELS`. Only the entries of this card's generation are rewritten, one
    by one, so that an interrupted run keeps what it has. A tile whose result is not
    that of the table's own, to rounding, is not taken.
    """
    major, minor = torch.cuda.get_device_capability(device)
    capability = tiles.generation(10 * major + minor)
    name = torch.cuda.get_device_name(device)
    for table in tables:
        for kernel, entry in _entries(table, (capability,)):
            asked = (entry["head_dim"], entry["bits"], entry.get("block_size"))
            try:
                current = tiles.look_up(table, kernel, capability, *asked)
            except UnsupportedBackend as reason:
                say(f"{reason}: left out")
                continue
            call = _problem(table, kernel, entry, device)
            with tiles.forced(table, kernel, current):
                expected = call()
            times: dict[Tile, float] = {}
            for tile in dict.fromkeys([current, *candidates(table, kernel, *asked)]):
                if any(build(form).fault(capability) for form in forms(table, kernel, entry, tile)):
                    continue
                with tiles.forced(table, kernel, tile):
                    if all(map(_close, call(), expected)):
                        times[tile] = triton.testing.do_bench(call, return_mode="median")
            if current not in times:
                say(f"{table}.{kernel} {entry}: {current} has a fault here, left as it is")
                continue
            best = min(times, key=times.get)
            change = f"{times[best]:.3f} ms (was {times[current]:.3f})"
            say(f"{table}.{kernel} {entry}: {best}, {change}")
            source = (
                f"fastest of {len(times)} on {name}, torch {torch.__version__}, "
                f"triton {triton.__version__}: {times[best]:.3f} ms, median "
                f"{statistics.median(times.values()):.3f} ms"
            )
            _replace(table, kernel, entry | _as_json(best) | {"source": source})


def _problem(table: str, kernel: str, entry: dict, device: str) -> Callable[[], tuple]:
    """A call of the op around `kernel`.

    LongNet's schedule and a local window at 90 %, both causal, or a full piece of a hop.
    """
    dtype = {16: torch.float16, 32: torch.float32}[entry["bits"]]
    shape = (1, _TOKENS, _HEADS, entry["head_dim"])
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, grad = (
        torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(4)
    )
    scale = entry["head_dim"] ** -0.5
    if table == "hop":
        op = hop.Triton()
        q, k, v, grad = (x[:, :_PIECE].transpose(1, 2) for x in (q, k, v, grad))
        out, lse, saved = op.forward(q, k, v, False, scale)
        if kernel == "forward":
            return lambda: op.forward(q, k, v, False, scale)[:2]
        return lambda: op.backward(grad, q, k, v, out, lse, saved, False, scale)
    if table == "dilated":
        offsets = [h % r for r in _LONGNET.dilation_rates for h in range(_HEADS)]
        rest = [list(_LONGNET.segment_lengths), list(_LONGNET.dilation_rates), offsets]
        rest += [True, scale, False]
        ops = dilated
    else:
        mask = patterns.local_window(
            _TOKENS,
            sparsity=_SPARSITY,
            block_size=entry["block_size"],
            is_causal=True,
            device=device,
        ).causal()
        rest = []
        for lists in (mask, mask.transpose()):
            rest += [lists.row_ptr, lists.col_idx, lists.longest_first()]
        rest += [mask.block_size, True, scale]
        ops = block_sparse
    if kernel == "forward":
        return lambda: ops.forward(q, k, v, *rest)
    out, lse = ops.forward(q, k, v, *rest)
    return lambda: ops.backward(grad, None, q, k, v, out, lse, *rest)


def _close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    # Other tiles sum in another order: in float32 over 32k tokens some 1e-6.
    finite, allowed = expected.isfinite(), max(torch.finfo(got.dtype).eps, 4e-6)
    error, size = (x[finite].float().square().mean().sqrt() for x in (got - expected, expected))
    return bool(error <= allowed * size)


def _as_json(tile: Tile) -> dict:
    return {
        "block_m": tile.block_m,
        "block_n": tile.block_n,
        "warps": tile.warps,
        "stages": tile.stages,
    }


def _replace(table: str, kernel: str, entry: dict) -> None:
    made = tiles.read(table)
    same = [all(old.get(key) == entry.get(key) for key in tiles.KEYS) for old in made[kernel]]
    made[kernel] = [entry if is_it else old for is_it, old in zip(same, made[kernel], strict=True)]
    _write(table, made)


def _write(table: str, made: dict[str, list[dict]]) -> None:
    """A line an entry, so that a change of one is a change of one line."""
    kernels = []
    for kernel, entries in made.items():
        lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
        kernels.append(f" {json.dumps(kernel)}: [\n{lines}\n ]")
    with replacing(tiles.FOLDER / f"{table}.json") as partial:
        partial.write_text("{\n" + ",\n".join(kernels) + "\n}\n")


if __name__ == "__main__":
    draft(sys.argv[1:] or KERNELS)
