"""Dilated attention by Triton; plain PyTorch: `models.dilated._gather`.

Called by `models.dilated_op`. Call once before a CUDA graph is captured: a new shape copies its
plan to the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from models.fused_ops import as_operand
from models.kernels import cuda_graphs, dilated_backward, dilated_forward
from models.kernels.launch import on_device, operands, strides, vector
from models.kernels.row_statistics import BLOCK as STATISTICS_BLOCK
from models.kernels.tile_math import LOG2_E, ROW_MULTIPLE
from models.kernels.tiles import choose, padded
from models.ops import empty_results, packed_like

if TYPE_CHECKING:
    from models.patterns.branches import DilatedBranches, HeadPartition

TABLE = "dilated"


@dataclass(frozen=True)
class Plan:
    """Where the programs of both launches work: see `dilated_forward.owner`.

    table: int64, one row per branch, the base first. carried: how many branches the base joins.
    rows: of the compact buffer of the carried branches; base_rows: of the base's, 0 where it has no
    keys. longest_rate: the highest dilation rate. shortest: tokens of the shortest segment;
    longest_row: rows of the compact buffer from one segment to the next, at most.
    """

    table: torch.Tensor
    carried: int
    base_has_keys: bool
    base_programs: int
    carried_programs: int
    rows: int
    base_rows: int
    longest_rate: int
    shortest: int
    longest_row: int

    def buffer(self, q: torch.Tensor, *columns: int) -> torch.Tensor:
        """An empty compact buffer (rows, *columns) float32 on q's device."""
        return q.new_empty(self.rows, *columns, dtype=torch.float32)


@lru_cache(maxsize=256)
def plan(
    branches: tuple[tuple[int, int], ...],
    offsets: tuple[tuple[int, ...], ...],
    batch: int,
    n: int,
    heads: int,
    base_owners: int,
    block: int,
    device: torch.device,
) -> Plan:
    """The plan for tiles of `block` rows.

    Args:
        branches: (segment length, dilation rate) of each.
        offsets: of each branch, those of all heads; -1 where a head is not in it.
        batch, n, heads: sizes of q.
        base_owners: heads that tiles of the base branch are counted over.

    Raises:
        RuntimeError: while a CUDA graph is captured, which cannot wait for a copy to the device.
    """
    if cuda_graphs.is_capturing(device):
        raise RuntimeError(
            f"{n} tokens, {batch} x {heads} heads: this shape is new, and its plan cannot be made "
            "while a CUDA graph is captured; call once before"
        )
    whole = [i for i, (_, r) in enumerate(branches) if r == 1 and not any(offsets[i])]
    base = max(whole, key=lambda i: branches[i][0]) if whole else None
    carried = [i for i in range(len(branches)) if i != base]
    carried.sort(key=lambda i: -(-min(branches[i][0], n) // branches[i][1]), reverse=True)
    # Without a branch of rate 1 the base only joins the others: one segment, no keys.
    first = (n, 1, (0,) * heads) if base is None else (*branches[base], offsets[base])
    multiple = ROW_MULTIPLE.value
    table, programs, rows = [], 0, 0
    for w, r, of_head in [first, *((*branches[i], offsets[i]) for i in carried)]:
        w = min(w, n)
        segments, kept = -(-n // w), -(-w // r)
        tiles, kept = -(-kept // block), -(-kept // multiple) * multiple
        table.append([w, r, segments, kept, tiles, programs, rows, *of_head])
        if len(table) == 1:
            base_programs = batch * segments * base_owners * tiles
            base_rows = batch * segments * heads * kept
        else:
            programs += batch * segments * heads * tiles
            rows += batch * segments * heads * kept
    return Plan(
        torch.tensor(table, dtype=torch.int64).to(device),
        len(carried),
        base is not None,
        base_programs,
        programs,
        rows,
        0 if base is None else base_rows,
        max(r for _, r in branches),
        min(row[0] for row in table),
        max((heads * row[3] for row in table[1:]), default=0),
    )


def branch_lists(
    pattern: DilatedBranches | HeadPartition, heads: int
) -> tuple[list[int], list[int], list[int]]:
    """Segment lengths, dilation rates and offsets of `heads` heads, as `forward` takes them."""
    offsets = []
    for branch in range(len(pattern.segment_lengths)):
        of_head = (pattern.offset(branch, head, heads) for head in range(heads))
        offsets += [-1 if offset is None else offset for offset in of_head]
    return list(pattern.segment_lengths), list(pattern.dilation_rates), offsets


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_padding_mask: torch.Tensor | None,
    segment_lengths: list[int],
    dilation_rates: list[int],
    offsets: list[int],
    is_causal: bool,
    scale: float,
    tf32: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dilated attention, without autograd.

    Args:
        q: (B, N, H, D), float16, bfloat16 or float32, D <= 256; it and k, v are copied only where
            the kernels of either pass cannot read them as they lie.
        k, v: (B, N, Hkv, D), of q's dtype; Hkv divides H.
        key_padding_mask: (B, N) bool, True where a key is not attended to; k and v must be 0 there
            and q finite (`models.padding.without_padding`).
        segment_lengths, dilation_rates: in tokens, one of each per branch.
        offsets: (branches x heads), flat, -1 where a head is not in a branch; see `branch_lists`.
        is_causal: whether queries see no later keys.
        scale: factor on q.k.
        tf32: whether products of float32 are rounded to TF32.

    Returns:
        out (B, N, H, D), of q's dtype, and LSE (B, H, N) float32, natural logarithm; rows without
        keys give 0 and -inf.

    Raises:
        UnsupportedBackend: where the table has no tile for q.
        RuntimeError: where a CUDA graph is captured and the shape is new, see `plan`.
    """
    _, n, heads, _ = q.shape
    q, k, v = (as_operand(x) for x in (q, k, v))
    tile = choose(TABLE, "forward", q)
    work = plan_of(q, segment_lengths, dilation_rates, offsets, heads, tile.block_m)
    out, lse = empty_results(q)
    part, part_lse = work.buffer(q, q.shape[3]), work.buffer(q)
    results = (out, lse, part, part_lse, work.table)
    numbers, padding = (n, heads, scale * LOG2_E.value), padding_flags(key_padding_mask)
    options = (work, tile, is_causal, tf32)
    _launch(dilated_forward.forward, (q, k, v), padding, results, numbers, *options)
    return out, lse


def backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    key_padding_mask: torch.Tensor | None,
    segment_lengths: list[int],
    dilation_rates: list[int],
    offsets: list[int],
    is_causal: bool,
    scale: float,
    tf32: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of dilated attention.

    Args:
        grad_out: dO (B, N, H, D), of q's dtype.
        grad_lse: (B, H, N) float32, or None where there is none.
        out, lse: what `forward` returned; the other arguments are those that it was given.

    Returns:
        dQ (B, N, H, D), dK and dV (B, N, Hkv, D), of q's dtype.

    Raises:
        As `forward`.
    """
    grad_out, q, k, v = (as_operand(x) for x in (grad_out, q, k, v))
    n, heads, kv_heads, dim = *q.shape[1:3], *k.shape[2:]
    tile_q, tile_kv = choose(TABLE, "backward_q", q), choose(TABLE, "backward_kv", q)
    lists = (segment_lengths, dilation_rates, offsets)
    work_q = plan_of(q, *lists, heads, tile_q.block_m)
    work_kv = plan_of(q, *lists, kv_heads, tile_kv.block_n)
    tensors, padding = (q, k, v, grad_out), padding_flags(key_padding_mask)
    statistics = _statistics(grad_out, grad_lse, out, lse, work_q)
    grads = []
    for kernel, inputs, work, tile in (
        (dilated_backward.backward_q, (q,), work_q, tile_q),
        (dilated_backward.backward_kv, (k, v), work_kv, tile_kv),
    ):
        grads += [packed_like(x) for x in inputs]
        parts = [work.buffer(q, dim) for _ in inputs]
        results = (statistics, *grads[-len(inputs) :], *parts, work.table)
        numbers = (n, heads, work.base_rows, scale)
        _launch(kernel, tensors, padding, results, numbers, work, tile, is_causal, tf32)
        del parts, results  # before those of dK and dV are allocated
    return tuple(grads)


def plan_of(
    q: torch.Tensor,
    segment_lengths: list[int],
    dilation_rates: list[int],
    offsets: list[int],
    base_owners: int,
    block: int,
    device: torch.device | None = None,
) -> Plan:
    """`plan` for the tokens and heads of q (B, N, H, D), on its device unless another is given."""
    batch, n, heads, _ = q.shape
    branches = tuple(zip(segment_lengths, dilation_rates, strict=True))
    of_branch = tuple(tuple(offsets[i : i + heads]) for i in range(0, len(offsets), heads))
    found = plan(branches, of_branch, batch, n, heads, base_owners, block, device or q.device)
    cuda_graphs.keep(found.table)
    return found


def _statistics(grad_out, grad_lse, out, lse, work: Plan) -> torch.Tensor:
    """LSE in base 2 and delta of every branch's rows, as `dilated_backward.statistics` has them."""
    batch, n, heads, dim = out.shape
    out, lse = out.contiguous(), lse.contiguous()  # a caller's may be views
    unit = vector(grad_out)
    packed = lse.new_empty(work.base_rows + work.rows, dtype=torch.int64)
    with on_device(out):
        dilated_backward.statistics[(batch * heads * triton.cdiv(n, STATISTICS_BLOCK),)](
            grad_out, out, lse, lse if grad_lse is None else grad_lse.contiguous(), packed,
            work.table, *strides(grad_out, unit=unit), n, heads, work.base_rows,
            N_CARRIED=work.carried, HAS_KEYS=work.base_has_keys,
            SHORT=work.shortest < STATISTICS_BLOCK, HAS_GRAD_LSE=grad_lse is not None,
            D=dim, BLOCK_D=padded(dim), VECTOR=unit, BLOCK_M=STATISTICS_BLOCK, INDEX=tl.int64,
        )  # fmt: skip
    return packed


def padding_flags(key_padding_mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask as kernels read it: packed, one byte per key."""
    return None if key_padding_mask is None else key_padding_mask.contiguous().view(torch.uint8)


def _launch(kernel, tensors, padding, results, numbers, work: Plan, tile, is_causal, tf32) -> None:
    """The carried branches, then the base, which reads what they wrote."""
    q, tile = tensors[0], tile if padding is None else tile.masked
    block = max(tile.block_m, tile.block_n)
    # A tile reaches into the next segment at most, unless segments are shorter than it.
    is_short = work.shortest < block
    rows = work.longest_row * (block if is_short else 1) + block
    reach = max(work.longest_rate * max(x.stride(1) for x in tensors) * block, rows * q.shape[3])
    others = (padding, *results)
    arguments, constants = operands(kernel, tensors, others, numbers, tile, is_causal, reach)
    constants |= {
        "N_CARRIED": work.carried,
        "SHORT": is_short,
        "PADDED": padding is not None,
        "PRECISION": "tf32" if tf32 else "ieee",
    }
    with on_device(q):
        if work.carried_programs:
            kernel[(work.carried_programs,)](*arguments, BASE=False, HAS_KEYS=True, **constants)
        has_keys = work.base_has_keys
        kernel[(work.base_programs,)](*arguments, BASE=True, HAS_KEYS=has_keys, **constants)
