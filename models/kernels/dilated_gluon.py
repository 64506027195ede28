"""Dilated attention, forward by Gluon on Hopper; plain PyTorch: `models.dilated._gather`.

The backward pass is that of the Triton kernels, which `models.dilated_op` calls. Carried branches
are launched one by one, the longest first, then the base, which joins them: the descriptors of a
launch have one rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.kernels import dilated, gluon_forward, tiles
from models.kernels.dilated_forward import KEPT, RATE, SEGMENTS, TILES
from models.kernels.gluon_descriptors import descriptors, readable
from models.kernels.launch import index_type, on_device
from models.kernels.tile_math import LOG2_E
from models.ops import empty_results

BLOCK_M, BLOCK_N = 128, 128
# Buffers of K, and as many of V, that shared memory holds beside the queries; by head dimension.
BUFFERS = {64: 3, 128: 2}
# Of keys and values that programs read at the same time: FlashAttention-3's share of 50 MB.
L2_BYTES = 32 * 2**20
MULTIPROCESSORS = 132  # of an H100, for compiling ahead of it


@dataclass(frozen=True)
class Walk:
    """One launch: row `branch` of the plan's table, its rate, the number of all its tiles, and how
    many units (`gluon_schedule.tile_at`) are taken together."""

    branch: int
    rate: int
    n_tiles: int
    span: int


def why_not(q: torch.Tensor) -> str | None:
    """Why the Gluon kernel cannot take q (B, N, H, D), or None if it can."""
    if q.device.type != "cuda":
        return f"needs a CUDA device of compute capability 9.0, and q is on {q.device.type}"
    capability = torch.cuda.get_device_capability(q.device)
    if capability != (9, 0):
        return f"is written for compute capability 9.0, not {capability}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 and bfloat16, not {q.dtype}"
    if q.shape[3] not in BUFFERS:
        listed = " or ".join(map(str, BUFFERS))
        return f"head_dim={q.shape[3]}: takes {listed}"
    return tiles.why_not(q) or tiles.why_no_tile(dilated.TABLE, q)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_lengths: list[int],
    dilation_rates: list[int],
    offsets: list[int],
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dilated attention, without autograd.

    Args:
        q: (B, N, H, D), float16 or bfloat16, D one of BUFFERS; it and k, v are copied only where
            TMA cannot read them as they lie.
        k, v: (B, N, Hkv, D), of q's dtype; Hkv divides H.
        segment_lengths, dilation_rates: in tokens, one of each per branch.
        offsets: (branches x heads), flat, -1 where a head is not in a branch.
        is_causal: whether queries see no later keys.
        scale: factor on q.k.

    Returns:
        out (B, N, H, D), of q's dtype, and LSE (B, H, N) float32, natural logarithm; rows without
        keys give 0 and -inf.

    Raises:
        RuntimeError: where a CUDA graph is captured and the shape is new, see `dilated.plan`.
    """
    q, k, v = (readable(x) for x in (q, k, v))
    batch, n, heads, dim = q.shape
    group = heads // k.shape[2]
    lists = (segment_lengths, dilation_rates, offsets)
    work = dilated.plan_of(q, *lists, heads, BLOCK_M)
    out, lse = empty_results(q)
    part, part_lse = work.buffer(q, dim), work.buffer(q)
    is_short = work.shortest < BLOCK_M
    reach = (work.longest_row * (BLOCK_M if is_short else 1) + BLOCK_M) * dim
    options = {
        "N_CARRIED": work.carried,
        "SHORT": is_short,
        "IS_CAUSAL": is_causal,
        "GROUP": group,
        "D": dim,
        "BLOCK_M": BLOCK_M,
        "BLOCK_N": BLOCK_N,
        "BUFFERS": BUFFERS[dim],
        "INDEX": index_type(reach),
        "num_warps": 4,
    }
    programs = _programs(q.device)
    with on_device(q):
        for walk in walks(q, *lists, group) if batch else ():
            is_base = walk.branch == 0
            views = [
                view
                for x, block in ((q, BLOCK_M // 2), (k, BLOCK_N), (v, BLOCK_N))
                for view in descriptors(x, walk.rate, block)
            ]
            gluon_forward.forward[(min(programs, walk.n_tiles),)](
                *views, out, lse, part, part_lse, work.table, walk.branch,
                n, heads, walk.span, walk.n_tiles, scale * LOG2_E.value,
                BASE=is_base, HAS_KEYS=work.base_has_keys or not is_base, **options,
            )  # fmt: skip
    return out, lse


def walks(
    q: torch.Tensor,
    segment_lengths: list[int],
    dilation_rates: list[int],
    offsets: list[int],
    group: int,
) -> list[Walk]:
    """The launches in their order: carried branches from the longest on, then the base.

    group: query heads that share keys.
    """
    batch, _, heads, dim = q.shape
    lists = (segment_lengths, dilation_rates, offsets)
    table = dilated.plan_of(q, *lists, heads, BLOCK_M, torch.device("cpu")).table.tolist()
    made = []
    for branch in (*range(1, len(table)), 0):
        row = table[branch]
        units = batch * heads * row[SEGMENTS.value]
        unit_bytes = 2 * row[KEPT.value] * dim * q.element_size()
        span = max(1, min(units, group * (L2_BYTES // unit_bytes)))
        made.append(Walk(branch, row[RATE.value], units * row[TILES.value], span))
    return made


def _programs(device: torch.device) -> int:
    """As many programs as run at once: one per multiprocessor."""
    if device.type == "cpu":
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
