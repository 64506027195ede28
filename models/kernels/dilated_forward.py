"""Dilated attention, forward; plain PyTorch: `models.dilated._gather`.

The kept tokens of a dilated segment lie r token strides apart, so a tile is read where it lies.
Every branch but one, the base (r = 1), writes normalised rows and LSE in float32 to a compact
buffer of its 1/r of the rows. The base branch, launched after these, goes through its own keys and
joins those rows in its epilogue: each output row is written once. The base itself may have no keys
(all rates > 1).
"""

import triton
import triton.language as tl

from models.kernels.inner_loops import forward_loop, run_offsets
from models.kernels.tile_math import (
    LN_2,
    ROW_MULTIPLE,
    finish,
    head_columns,
    load_rows,
    packed_row,
    row_of,
)

# A row of the branch table: these, then the offset of each head (-1: not in the branch). KEPT is
# a multiple of ROW_MULTIPLE.
WIDTH, RATE, SEGMENTS, KEPT, TILES, FIRST_PROGRAM, FIRST_ROW, OFFSETS = (
    tl.constexpr(i) for i in range(8)
)


@triton.jit
def owner(table, heads, n_heads, N_CARRIED: tl.constexpr, BASE: tl.constexpr):
    """What this program owns: its branch's row of the table, tile, head, segment, batch element.

    heads: those that tiles are counted over; n_heads: those that the table has offsets for.
    Tiles of one head and segment are neighbours, so they find its keys in L2.
    """
    pid = tl.program_id(0)
    row = table
    if not BASE:
        branch = 1
        for i in tl.static_range(2, N_CARRIED + 1):
            first = tl.load(table + i * (OFFSETS + n_heads) + FIRST_PROGRAM)
            branch = tl.where(pid >= first, i, branch)
        row = table + branch * (OFFSETS + n_heads)
        pid -= load_int32(row + FIRST_PROGRAM)
    tiles, segments = load_int32(row + TILES), load_int32(row + SEGMENTS)
    tile, rest = pid % tiles, pid // tiles
    head, rest = rest % heads, rest // heads
    segment, batch = rest % segments, rest // segments
    # In 64 bits, since they are multiplied by strides.
    return row, tiles, tile, head.to(tl.int64), segment, batch.to(tl.int64)


@triton.jit
def owned_queries(
    table, n_heads, n_tokens, N_CARRIED: tl.constexpr, BASE: tl.constexpr, IS_CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The tile of queries that this program owns, one of a segment's kept tokens.

    Returns its branch's row of the table, head, segment, batch element, `kept_tokens` of the
    segment, and the first kept token of the tile.
    """
    row, tiles, tile, head, segment, batch = owner(table, n_heads, n_heads, N_CARRIED, BASE)
    if IS_CAUSAL:
        tile = tiles - 1 - tile  # the longest first
    first, r, kept = kept_tokens(row, head, segment, n_tokens)
    return row, head, segment, batch, first, r, kept, tile * BLOCK_M


@triton.jit
def load_int32(pointer):
    """An entry of the table, in 32 bits, which all these fit into: 64-bit division is slow."""
    return tl.load(pointer).to(tl.int32)


@triton.jit
def kept_tokens(row, head, segment, n_tokens):
    """The first kept token of a segment, the step to the next, and how many there are."""
    w, r, offset = load_int32(row + WIDTH), load_int32(row + RATE), load_int32(row + OFFSETS + head)
    length = tl.minimum(w, n_tokens - segment * w)
    kept = tl.where(offset < 0, 0, tl.maximum(0, (length - offset + r - 1) // r))
    return (segment * w + offset).to(tl.int64), r.to(tl.int64), kept


@triton.jit
def compact_rows(
    row, t_0, lane, head, n_heads, batch, n_tokens, SHORT: tl.constexpr, INDEX: tl.constexpr
):  # fmt: skip
    """Where the tokens t_0 + lane have their rows in the compact buffer of a carried branch.

    Returns the row of t_0 (or of the kept token before it), the distances from it to the other
    rows, [lanes], and which of the tokens the branch keeps, [lanes]. SHORT: whether a branch may
    have segments shorter than a tile; otherwise the tile reaches into the next one at most.
    """
    w, r, offset = load_int32(row + WIDTH), load_int32(row + RATE), load_int32(row + OFFSETS + head)
    t_0 = t_0.to(tl.int32)
    segment = t_0 // w
    place = t_0 - segment * w
    index = place // r
    group = (batch * tl.load(row + SEGMENTS) + segment) * n_heads + head
    next_segment = n_heads * tl.load(row + KEPT)
    first = tl.load(row + FIRST_ROW) + group * tl.load(row + KEPT) + index
    if SHORT:
        segments = (t_0 + lane) // w
        places = t_0 + lane - segments * w
        quotient = places // r
        kept = places - quotient * r == offset
        distance = (segments - segment) * next_segment + (quotient - index)
    else:
        beyond = place + lane >= w
        rest = tl.where(beyond, place + lane - w, place - index * r + lane)
        # rest < r + 256, so the quotient needs no division: exact for r <= 256, as then
        # rest * r < 2^20; a longer r fits once at most.
        magic = ((1 << 20) + r - 1) // r
        quotient = tl.where(r > 256, (rest >= r).to(tl.int32), (rest * magic) >> 20)
        kept = rest - quotient * r == offset
        distance = quotient + tl.where(beyond, next_segment - index, 0).to(INDEX)
    return first, distance.to(INDEX), kept & (t_0 + lane < n_tokens)


@triton.jit
def part_of(
    part_lse, table, i, t_0, lane, head, n_heads, batch, n_tokens,
    SHORT: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """LSE of tokens in the carried branch i, [lanes], -inf where not in it; then `compact_rows`."""
    branch = table + i * (OFFSETS + n_heads)
    row_0, rows, there = compact_rows(
        branch, t_0, lane, head, n_heads, batch, n_tokens, SHORT, INDEX
    )
    part_2 = tl.load(part_lse + row_0 + rows, mask=there, other=float("-inf"))
    return part_2, row_0, rows, there


@triton.jit
def compact_start(row, head, n_heads, segment, batch):
    """The row of the compact buffer at which a segment's kept tokens begin."""
    group = (batch * tl.load(row + SEGMENTS) + segment) * n_heads + head
    return tl.multiple_of(tl.load(row + FIRST_ROW) + group * tl.load(row + KEPT), ROW_MULTIPLE)


@triton.jit
def forward(
    q, k, v, padding, out, lse, part, part_lse, table,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    n_tokens, n_heads, scale,
    N_CARRIED: tl.constexpr, BASE: tl.constexpr, HAS_KEYS: tl.constexpr, SHORT: tl.constexpr,
    PADDED: tl.constexpr, IS_CAUSAL: tl.constexpr,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROTATED: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_M kept queries of one branch, segment, head and batch element.

    q: (B, N, H, D), k, v: (B, N, H / GROUP, D) by strides *_b, *_n, *_h. padding: (B, N) uint8,
    packed, read where PADDED. out: (B, N, H, D), packed. lse: (B, H, N) float32. part: (R, D)
    float32 and part_lse: (R,) float32, base 2, of the carried branches. scale: times log2(e).
    """
    row, head, segment, batch, first, r, kept, start = owned_queries(
        table, n_heads, n_tokens, N_CARRIED, BASE, IS_CAUSAL, BLOCK_M
    )
    if start >= kept:
        return
    d, d_mask = head_columns(D, BLOCK_D)
    i_m = tl.arange(0, BLOCK_M)
    held = start + i_m < kept
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    z = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    if HAS_KEYS:
        p_q, q_step = row_of(q, q_b, q_n, q_h, batch, first, head, VECTOR)
        p_q += start * r * q_step + run_offsets(i_m, r * q_step, d, INDEX)
        b_q = load_rows(p_q, held, d_mask, D, BLOCK_D, True)  # [BLOCK_M, BLOCK_D]
        kv_head = head // GROUP
        p_k, k_step = row_of(k, k_b, k_n, k_h, batch, first, kv_head, VECTOR)
        p_v, v_step = row_of(v, v_b, v_n, v_h, batch, first, kv_head, VECTOR)
        p_padding = padding
        if PADDED:
            p_padding = padding + batch * n_tokens + first
        m, z, acc = forward_loop(
            m, z, acc, b_q, p_k, p_v, p_padding, r * k_step, r * v_step, r, start, kept, scale,
            PADDED, IS_CAUSAL, D, BLOCK_D, BLOCK_M, BLOCK_N, ROTATED, PRECISION, INDEX,
        )  # fmt: skip

    if BASE:
        tokens = first + start + i_m
        # The LSE of all branches, then their rows, each loaded while the one before is added.
        peak = m
        for i in tl.static_range(1, N_CARRIED + 1):
            part_2, row_0, rows, there = part_of(
                part_lse, table, i, first + start, i_m, head, n_heads, batch, n_tokens, SHORT, INDEX
            )
            peak = tl.maximum(peak, part_2)
        pivot = tl.where(peak == float("-inf"), 0.0, peak)  # -inf - (-inf) is NaN
        alpha = tl.exp2(m - pivot)
        m, z, acc = peak, z * alpha, acc * alpha[:, None]
        for i in tl.range(1, N_CARRIED + 1, num_stages=2):
            part_2, row_0, rows, there = part_of(
                part_lse, table, i, first + start, i_m, head, n_heads, batch, n_tokens, SHORT, INDEX
            )
            beta = tl.exp2(part_2 - pivot)
            z += beta
            p_part = part + row_0 * D + rows[:, None] * D + d[None, :]
            # [BLOCK_M, BLOCK_D]
            acc += beta[:, None] * load_rows(p_part, there, d_mask, D, BLOCK_D, True)
        b_out, lse_2 = finish(m, z, acc)  # [BLOCK_M, BLOCK_D], [BLOCK_M]
        out_rows = packed_row(batch, tokens, head, n_tokens, n_heads)
        p_out = out + out_rows[:, None] * D + d[None, :]
        tl.store(p_out, b_out.to(out.dtype.element_ty), mask=held[:, None] & d_mask[None, :])
        tl.store(lse + (batch * n_heads + head) * n_tokens + tokens, lse_2 * LN_2, mask=held)
    else:
        b_out, lse_2 = finish(m, z, acc)  # [BLOCK_M, BLOCK_D], [BLOCK_M]
        rows = compact_start(row, head, n_heads, segment, batch) + start + i_m
        tl.store(part + rows[:, None] * D + d[None, :], b_out, mask=held[:, None] & d_mask[None, :])
        tl.store(part_lse + rows, lse_2, mask=held)
