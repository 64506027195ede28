"""A piece of a ring's hop, backward; plain PyTorch: `models.ring.hops.Eager`.

P = exp(S - LSE) with the LSE of everything that a row sees is the piece's part of the whole
softmax, so the gradients of pieces add up; they are float32, as the sums are. Programs own tiles
of queries for dQ and tiles of keys for dK and dV: one writer per row, no atomics, the same bits
every time.
"""

import triton
import triton.language as tl

from models.kernels.hop_forward import SIZES, head_padding, owned_queries, owner
from models.kernels.inner_loops import dkv_loop, dq_loop, load_two, unpadded
from models.kernels.tile_math import (
    LOG2_E,
    head_columns,
    load_statistics,
    packed_row,
    row_of,
    statistics_start,
)


@triton.jit(do_not_specialize=SIZES)
def backward_q(
    q, k, v, grad_out, padding, statistics, grad_q,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, g_b, g_n, g_h,
    n_queries, n_keys, n_heads, scale,
    PADDED: tl.constexpr, IS_CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dQ of a tile of BLOCK_M queries.

    grad_out: (B, Nq, H, D) by strides g_*. statistics: of `row_statistics`. grad_q: (B, Nq, H, D)
    float32, packed. The others as in `hop_forward.forward`, but scale: that of q.k.
    """
    start, head, batch = owned_queries(n_queries, n_heads, IS_CAUSAL, BLOCK_M)
    d, d_mask = head_columns(D, BLOCK_D)
    i_m = tl.arange(0, BLOCK_M)
    queries = start + i_m
    held = queries < n_queries
    p_q, q_step = row_of(q, q_b, q_n, q_h, batch, 0, head, VECTOR)
    p_g, g_step = row_of(grad_out, g_b, g_n, g_h, batch, 0, head, VECTOR)
    p_k, k_step = row_of(k, k_b, k_n, k_h, batch, 0, head, VECTOR)
    p_v, v_step = row_of(v, v_b, v_n, v_h, batch, 0, head, VECTOR)
    # [BLOCK_M, BLOCK_D]
    b_q, b_g = load_two(p_q, p_g, q_step, g_step, 1, start, i_m, held, D, BLOCK_D, INDEX)
    rows = statistics_start(batch, head, n_heads, n_queries) + queries
    b_lse, b_delta = load_statistics(statistics + rows, held, True)  # [BLOCK_M]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    p_padding = head_padding(padding, batch, head, n_heads, n_keys, PADDED)
    acc = dq_loop(
        acc, b_q, b_g, b_lse, b_delta, p_k, p_v, p_padding, k_step, v_step, 1,
        start, n_keys, scale * LOG2_E,
        PADDED, IS_CAUSAL, D, BLOCK_D, BLOCK_M, BLOCK_N, "ieee", INDEX,
    )  # fmt: skip
    o_out = packed_row(batch, queries, head, n_queries, n_heads)[:, None] * D + d[None, :]
    tl.store(grad_q + o_out, acc * scale, mask=held[:, None] & d_mask[None, :])


@triton.jit(do_not_specialize=SIZES)
def backward_kv(
    q, k, v, grad_out, padding, statistics, grad_k, grad_v,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, g_b, g_n, g_h,
    n_queries, n_keys, n_heads, scale,
    PADDED: tl.constexpr, IS_CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of BLOCK_N keys; grad_k, grad_v: (B, Nk, H, D) float32, packed."""
    tile, head, batch = owner(tl.cdiv(n_keys, BLOCK_N), n_heads)
    start = tile * BLOCK_N
    d, d_mask = head_columns(D, BLOCK_D)
    i_n = tl.arange(0, BLOCK_N)
    keys = start + i_n
    held = keys < n_keys
    p_q, q_step = row_of(q, q_b, q_n, q_h, batch, 0, head, VECTOR)
    p_g, g_step = row_of(grad_out, g_b, g_n, g_h, batch, 0, head, VECTOR)
    p_k, k_step = row_of(k, k_b, k_n, k_h, batch, 0, head, VECTOR)
    p_v, v_step = row_of(v, v_b, v_n, v_h, batch, 0, head, VECTOR)
    # [BLOCK_N, BLOCK_D]
    b_k, b_v = load_two(p_k, p_v, k_step, v_step, 1, start, i_n, held, D, BLOCK_D, INDEX)
    at = statistics_start(batch, head, n_heads, n_queries)
    acc_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_k, acc_v = dkv_loop(
        acc_k, acc_v, b_k, b_v, p_q, p_g, statistics + at, q_step, g_step,
        start, n_queries, scale * LOG2_E,
        IS_CAUSAL, D, BLOCK_D, BLOCK_M, BLOCK_N, "ieee", INDEX,
    )  # fmt: skip
    if PADDED:
        there = unpadded(padding + (batch * n_heads + head) * n_keys, 1, keys, held)[:, None]
        acc_k, acc_v = tl.where(there, acc_k, 0.0), tl.where(there, acc_v, 0.0)
    o_out = packed_row(batch, keys, head, n_keys, n_heads)[:, None] * D + d[None, :]
    stored = held[:, None] & d_mask[None, :]
    tl.store(grad_k + o_out, acc_k * scale, mask=stored)
    tl.store(grad_v + o_out, acc_v, mask=stored)
