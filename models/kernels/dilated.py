"""Dilated attention by fused kernels; plain twin: `models.dilated._gather`.

`forward` and `backward` are called by `models.dilated_op`, without autograd. Call once before a
CUDA graph is captured: a new shape copies its plan to the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl

from models.fused_ops import as_operand
from models.kernels import cuda_graphs, dilated_backward, dilated_forward
from models.kernels.row_statistics import BLOCK as STATISTICS_BLOCK
from models.kernels.tile_math import LOG2_E, ROW_MULTIPLE
from models.kernels.tiles import choose, on_device, padded, strides, vector
from models.ops import empty_results, packed_like

TABLE = "dilated"


@dataclass(frozen=True)
class Plan:
    """Where the programs of both launches work: see `dilated_forward.owner`.

    table: int64, a row a branch, the base first. rows: of the compact buffer of the
    carried branches; base_rows: as many of the base, if it has keys.
    shortest: tokens of the shortest segment; longest_row: rows of the compact buffer from
    one segment to the next, at most.
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


@lru_cache(maxsize=256)
def plan(branches, offsets, batch, n, heads, base_owners, block, device) -> Plan:
    """The plan for tiles of `block` rows; branches: (w, r) pairs, offsets: of every head, each.

    base_owners: heads that tiles of the base branch are counted over. RuntimeError while a CUDA
    graph is captured, which cannot wait for a copy to the device.
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


def branch_lists(pattern, heads: int) -> tuple[list[int], list[int], list[int]]:
    """Segment lengths, rates and offsets as the ops take them."""
    offsets = []
    for branch in range(len(pattern.segment_lengths)):
        of_head = (pattern.offset(branch, head, heads) for head in range(heads))
        offsets += [-1 if offset is None else offset for offset in of_head]
    return list(pattern.segment_lengths), list(pattern.dilation_rates), offsets


def forward(
    q, k, v, key_padding_mask, segment_lengths, dilation_rates, offsets, is_causal, scale, tf32
):
    """out (B, N, H, D) and LSE (B, H, N) float32; rows without keys give 0 and -inf.

    q: (B, N, H, D), k, v: (B, N, Hkv, D), float16, bfloat16 or float32, D <= 256; copied
    only where the kernels cannot read them as they lie, in either pass. key_padding_mask: (B, N)
    bool, True where a key is not attended to; k and v must be 0 there and q finite
    (`models.padding.without_padding`). offsets: (branches x heads), flat, -1 where a head is not
    in a branch. tf32: round float32 products to TF32.
    """
    _, n, heads, _ = q.shape
    q, k, v = (as_operand(x) for x in (q, k, v))
    padding = padding_flags(key_padding_mask)
    tile = choose(TABLE, "forward", q)
    lists = (segment_lengths, dilation_rates, offsets)
    work = plan_of(q, *lists, heads, tile.block_m)
    out, lse = empty_results(q)
    part = q.new_empty(work.rows, q.shape[3], dtype=torch.float32)
    part_lse = q.new_empty(work.rows, dtype=torch.float32)
    tensors, results = (q, k, v), (out, lse, part, part_lse, work.table)
    numbers, options = (n, heads, scale * LOG2_E.value), (is_causal, tf32)
    _launch(dilated_forward.forward, tensors, padding, results, numbers, work, tile, *options)
    return out, lse


def backward(
    grad_out,
    grad_lse,
    q,
    k,
    v,
    out,
    lse,
    key_padding_mask,
    segment_lengths,
    dilation_rates,
    offsets,
    is_causal,
    scale,
    tf32,
):
    """dQ, dK, dV for the cotangents of out (B, N, H, D) and LSE (B, H, N)."""
    grad_out, q, k, v = (as_operand(x) for x in (grad_out, q, k, v))
    padding, options = padding_flags(key_padding_mask), (is_causal, tf32)
    heads, kv_heads = q.shape[2], k.shape[2]
    lists = (segment_lengths, dilation_rates, offsets)
    tensors = (q, k, v, grad_out)
    tile = choose(TABLE, "backward_q", q)
    work = plan_of(q, *lists, heads, tile.block_m)
    statistics = _statistics(grad_out, grad_lse, out, lse, work)
    grad_q = packed_like(q)
    part = q.new_empty(work.rows, q.shape[3], dtype=torch.float32)
    numbers = (q.shape[1], heads, work.base_rows, scale)
    results = (statistics, grad_q, part, work.table)
    _launch(dilated_backward.backward_q, tensors, padding, results, numbers, work, tile, *options)
    del part, results

    tile = choose(TABLE, "backward_kv", q)
    work = plan_of(q, *lists, kv_heads, tile.block_n)
    grad_k, grad_v = packed_like(k), packed_like(v)
    parts = tuple(q.new_empty(work.rows, q.shape[3], dtype=torch.float32) for _ in "kv")
    results = (statistics, grad_k, grad_v, *parts, work.table)
    _launch(dilated_backward.backward_kv, tensors, padding, results, numbers, work, tile, *options)
    return grad_q, grad_k, grad_v


def plan_of(q, segment_lengths, dilation_rates, offsets, base_owners, block, device=None) -> Plan:
    """The plan for tokens and heads of q (B, N, H, D), on its device unless another is given."""
    batch, n, heads, _ = q.shape
    branches = tuple(zip(segment_lengths, dilation_rates, strict=True))
    of_branch = tuple(tuple(offsets[i : i + heads]) for i in range(0, len(offsets), heads))
    found = plan(branches, of_branch, batch, n, heads, base_owners, block, device or q.device)
    cuda_graphs.keep(found.table)
    return found


def _statistics(grad_out, grad_lse, out, lse, work: Plan):
    """LSE in base 2 and delta of every branch's rows, as `dilated_backward.statistics` says."""
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
    """The mask as kernels read it: packed, a byte a key."""
    return None if key_padding_mask is None else key_padding_mask.contiguous().view(torch.uint8)


def _launch(kernel, tensors, padding, results, numbers, work: Plan, tile, is_causal, tf32) -> None:
    """The carried branches, then the base, which reads what they wrote.

    The kernel takes `tensors`, `padding`, `results`, the strides of `tensors`, and `numbers`.
    """
    q, k = tensors[:2]
    unit = vector(*tensors)
    arguments = (*tensors, padding, *results, *strides(*tensors, unit=unit), *numbers)
    if padding is not None:
        tile = tile.masked
    block = max(tile.block_m, tile.block_n)
    # A tile reaches into the next segment at most, unless segments are shorter than it.
    is_short = work.shortest < block
    rows = work.longest_row * (block if is_short else 1) + block
    reach = max(work.longest_rate * max(x.stride(1) for x in tensors) * block, rows * q.shape[3])
    options = {
        "N_CARRIED": work.carried,
        "SHORT": is_short,
        "PADDED": padding is not None,
        "IS_CAUSAL": is_causal,
        "GROUP": q.shape[2] // k.shape[2],
        "D": q.shape[3],
        "BLOCK_D": padded(q.shape[3]),
        "VECTOR": unit,
        "PRECISION": "tf32" if tf32 else "ieee",
        "INDEX": tl.int32 if reach < 2**31 else tl.int64,
        **tile.options(kernel),
    }
    with on_device(q):
        if work.carried_programs:
            kernel[(work.carried_programs,)](*arguments, BASE=False, HAS_KEYS=True, **options)
        kernel[(work.base_programs,)](*arguments, BASE=True, HAS_KEYS=work.base_has_keys, **options)
