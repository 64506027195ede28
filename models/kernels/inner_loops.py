"""A tile of queries over a run of keys, or of keys over queries; plain PyTorch: `models.oracle`.

A run is evenly spaced tokens, read where they lie: a dilated segment's kept tokens, or the rows of
a piece of a hop. A causal run has as many queries as keys, and query i sees keys up to i. p_*
point to the run's first row; *_step, int64, is the distance from one row to the next.

PADDED: p_padding points to flags of the run's keys, 1 where a key is never attended to; keys and
values there must be 0.
"""

import triton
import triton.language as tl

from models.kernels.tile_math import (
    attend_step,
    dkv_step,
    dq_step,
    head_columns,
    load_rows,
    load_statistics,
    rotated_step,
    values_step,
)


@triton.jit
def run_offsets(lane, step, columns, INDEX: tl.constexpr):
    """Where the rows `lane` of a tile lie from its first: [rows, BLOCK_D]."""
    return lane.to(INDEX)[:, None] * step.to(INDEX) + columns[None, :]


@triton.jit
def load_two(
    p_x, p_y, x_step, y_step, spacing, start, lane, held,
    D: tl.constexpr, BLOCK_D: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Rows start + lane of a run in two tensors: [rows, BLOCK_D] each, 0 where not held.

    p_x, p_y: to the run's first token; *_step, int64: to the next token; spacing: tokens from one
    of the run to the next.
    """
    d, d_mask = head_columns(D, BLOCK_D)
    p_x += start * spacing * x_step + run_offsets(lane, spacing * x_step, d, INDEX)
    p_y += start * spacing * y_step + run_offsets(lane, spacing * y_step, d, INDEX)
    b_x = load_rows(p_x, held, d_mask, D, BLOCK_D, True)
    b_y = load_rows(p_y, held, d_mask, D, BLOCK_D, True)
    return b_x, b_y


@triton.jit
def keys_of(
    start, n_keys, IS_CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Ends of the keys that all queries of a tile see, a multiple of BLOCK_N, and that any sees."""
    full, end = n_keys // BLOCK_N * BLOCK_N, n_keys
    if IS_CAUSAL:
        full, end = start // BLOCK_N * BLOCK_N, tl.minimum(n_keys, start + BLOCK_M)
    return full, end


@triton.jit
def unpadded(p_padding, step, rows, here):
    """Which of the keys `rows` of a run are there and not padding: [rows]."""
    return tl.load(p_padding + rows * step, mask=here, other=1) == 0


@triton.jit
def seen_in_cut(
    n, i_m, i_n, start, n_keys, p_padding, padding_step,
    PADDED: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """Which keys n + i_n are there [BLOCK_N], and which of them queries start + i_m see.

    The latter: [BLOCK_M or 1, BLOCK_N].
    """
    here = n + i_n < n_keys
    seen = here[None, :]
    if IS_CAUSAL:  # a query that is there sees no key that is not
        seen = start + i_m[:, None] >= n + i_n[None, :]
    if PADDED:
        seen = seen & unpadded(p_padding, padding_step, n + i_n, here)[None, :]
    return here, seen


@triton.jit
def forward_loop(
    m, z, acc, b_q, p_k, p_v, p_padding, k_step, v_step, padding_step, start, n_keys, scale,
    PADDED: tl.constexpr, IS_CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROTATED: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Add a run of keys to the state of the queries b_q [BLOCK_M, BLOCK_D], rows `start` on.

    scale: in base 2. Not ROTATED where PADDED: a rotated step needs rows that have seen a key.
    """
    d, d_mask = head_columns(D, BLOCK_D)
    i_m, i_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    o_k, o_v = run_offsets(i_n, k_step, d, INDEX), run_offsets(i_n, v_step, d, INDEX)
    full, end = keys_of(start, n_keys, IS_CAUSAL, BLOCK_M, BLOCK_N)
    # At most one tile is cut, so there is nothing to pipeline, and pipelining makes the tensor-core
    # instructions of the loop before wait for one another. float32 has no such instructions, and
    # spills unless it is pipelined.
    CUT_STAGES: tl.constexpr = None if IS_CAUSAL or b_q.dtype == tl.float32 else 1
    if ROTATED:
        alpha = tl.full([BLOCK_M], 1.0, tl.float32)
        p = tl.zeros([BLOCK_M, BLOCK_N], tl.int16)  # of the step before the first
        for n in range(0, full, BLOCK_N):
            p_before = p_v + tl.maximum(n - BLOCK_N, 0) * v_step
            # Both: [BLOCK_N, BLOCK_D].
            b_k = load_rows(p_k + n * k_step + o_k, i_n, d_mask, D, BLOCK_D, False)
            b_v = load_rows(p_before + o_v, i_n, d_mask, D, BLOCK_D, False)
            m, z, acc, alpha, p = rotated_step(m, z, acc, alpha, p, b_q, b_k, b_v, scale, PRECISION)
        some = (i_n >= 0) & (full > 0)
        p_last = p_v + tl.maximum(full - BLOCK_N, 0) * v_step
        b_v = load_rows(p_last + o_v, some, d_mask, D, BLOCK_D, True)  # [BLOCK_N, BLOCK_D]
        acc = values_step(acc * alpha[:, None], p, b_v, PRECISION)
    else:
        for n in range(0, full, BLOCK_N):
            # Both: [BLOCK_N, BLOCK_D].
            b_k = load_rows(p_k + n * k_step + o_k, i_n, d_mask, D, BLOCK_D, False)
            b_v = load_rows(p_v + n * v_step + o_v, i_n, d_mask, D, BLOCK_D, False)
            seen = i_n
            if PADDED:
                seen = unpadded(p_padding, padding_step, n + i_n, i_n >= 0)[None, :]
            m, z, acc = attend_step(
                m, z, acc, b_q, b_k, b_v, seen, scale, PADDED, PRECISION, PADDED
            )
    for n in tl.range(full, end, BLOCK_N, num_stages=CUT_STAGES):
        here, seen = seen_in_cut(
            n, i_m, i_n, start, n_keys, p_padding, padding_step, PADDED, IS_CAUSAL
        )
        # Both: [BLOCK_N, BLOCK_D].
        b_k = load_rows(p_k + n * k_step + o_k, here, d_mask, D, BLOCK_D, True)
        b_v = load_rows(p_v + n * v_step + o_v, here, d_mask, D, BLOCK_D, True)
        m, z, acc = attend_step(m, z, acc, b_q, b_k, b_v, seen, scale, True, PRECISION, PADDED)
    return m, z, acc


@triton.jit
def dq_loop(
    acc, b_q, b_g, b_lse, b_delta, p_k, p_v, p_padding, k_step, v_step, padding_step,
    start, n_keys, scale,
    PADDED: tl.constexpr, IS_CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Add to acc [BLOCK_M, BLOCK_D] the part of dQ / scale that comes through a run of keys.

    b_q, b_g, b_lse, b_delta: of rows `start` on, as in `tile_math.dq_step`. scale: in base 2.
    """
    d, d_mask = head_columns(D, BLOCK_D)
    i_m, i_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    o_k, o_v = run_offsets(i_n, k_step, d, INDEX), run_offsets(i_n, v_step, d, INDEX)
    full, end = keys_of(start, n_keys, IS_CAUSAL, BLOCK_M, BLOCK_N)
    # As in `forward_loop`.
    CUT_STAGES: tl.constexpr = None if IS_CAUSAL or b_q.dtype == tl.float32 else 1
    for n in range(0, full, BLOCK_N):
        # Both: [BLOCK_N, BLOCK_D].
        b_k = load_rows(p_k + n * k_step + o_k, i_n, d_mask, D, BLOCK_D, False)
        b_v = load_rows(p_v + n * v_step + o_v, i_n, d_mask, D, BLOCK_D, False)
        seen = i_n
        if PADDED:
            seen = unpadded(p_padding, padding_step, n + i_n, i_n >= 0)[None, :]
        acc = dq_step(acc, b_q, b_g, b_lse, b_delta, b_k, b_v, seen, scale, PADDED, PRECISION)
    for n in tl.range(full, end, BLOCK_N, num_stages=CUT_STAGES):
        here, seen = seen_in_cut(
            n, i_m, i_n, start, n_keys, p_padding, padding_step, PADDED, IS_CAUSAL
        )
        # Both: [BLOCK_N, BLOCK_D].
        b_k = load_rows(p_k + n * k_step + o_k, here, d_mask, D, BLOCK_D, True)
        b_v = load_rows(p_v + n * v_step + o_v, here, d_mask, D, BLOCK_D, True)
        acc = dq_step(acc, b_q, b_g, b_lse, b_delta, b_k, b_v, seen, scale, True, PRECISION)
    return acc


@triton.jit
def dkv_loop(
    acc_k, acc_v, b_k, b_v, p_q, p_g, p_rows, q_step, g_step, start, n_queries, scale,
    IS_CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Add to acc_k, acc_v [BLOCK_N, BLOCK_D] dK / scale and dV that come through a run of queries.

    b_k, b_v: keys and values [BLOCK_N, BLOCK_D], rows `start` on. p_rows: to the statistics of the
    run's first query, as `row_statistics` packs them. scale: in base 2. No key's sums contain
    another key, so those of padded keys, which may be NaN, are dropped when they are written.
    """
    d, d_mask = head_columns(D, BLOCK_D)
    i_m, i_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    o_q, o_g = run_offsets(i_m, q_step, d, INDEX), run_offsets(i_m, g_step, d, INDEX)
    p_rows += i_m
    begin, diagonal = 0, 0
    if IS_CAUSAL:
        begin = start // BLOCK_M * BLOCK_M
        # Where the first tile of queries begins that all see the last key here; or the end of all.
        diagonal = tl.cdiv(tl.minimum(n_queries, start + BLOCK_N), BLOCK_M) * BLOCK_M
    full = tl.maximum(diagonal, n_queries // BLOCK_M * BLOCK_M)
    # Tiles on the diagonal, then the tile that the end of the run cuts, if there is one. Rows
    # beyond the last query are loaded as 0 and add nothing.
    n_cut = (diagonal - begin) // BLOCK_M + tl.cdiv(tl.maximum(n_queries - full, 0), BLOCK_M)
    for i in range(diagonal, full, BLOCK_M):
        # Both: [BLOCK_M, BLOCK_D].
        b_q = load_rows(p_q + i * q_step + o_q, i_m, d_mask, D, BLOCK_D, False)
        b_g = load_rows(p_g + i * g_step + o_g, i_m, d_mask, D, BLOCK_D, False)
        b_lse, b_delta = load_statistics(p_rows + i, i_m, False)  # [BLOCK_M]
        acc_k, acc_v = dkv_step(
            acc_k, acc_v, b_k, b_v, b_q, b_g, b_lse, b_delta, i_m, scale, False, PRECISION
        )
    for e in tl.range(0, n_cut, num_stages=1):
        i = begin + e * BLOCK_M
        i = tl.where(i < diagonal, i, full + i - diagonal)
        here = i + i_m < n_queries
        seen = here[None, :]
        if IS_CAUSAL:
            seen = start + i_n[:, None] <= i + i_m[None, :]
        # Both: [BLOCK_M, BLOCK_D].
        b_q = load_rows(p_q + i * q_step + o_q, here, d_mask, D, BLOCK_D, True)
        b_g = load_rows(p_g + i * g_step + o_g, here, d_mask, D, BLOCK_D, True)
        b_lse, b_delta = load_statistics(p_rows + i, here, True)  # [BLOCK_M]
        acc_k, acc_v = dkv_step(
            acc_k, acc_v, b_k, b_v, b_q, b_g, b_lse, b_delta, seen, scale, True, PRECISION
        )
    return acc_k, acc_v
