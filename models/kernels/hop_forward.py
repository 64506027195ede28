"""A piece of a ring's hop, forward; plain twin: `models.ring.hops.Eager`.

A piece is some queries with some keys, all or, where there are as many of both, the causal
triangle. Its rows and their LSE stay in float32: other pieces are joined to them.
"""

import triton
import triton.language as tl

from models.kernels.inner_loops import forward_loop, run_offsets
from models.kernels.tile_math import LN_2, finish, head_columns, load_rows, row_of

# Pieces are of many sizes, and code made for one is no faster than for all.
SIZES = ["n_queries", "n_keys", "n_heads"]


@triton.jit
def owner(tiles, n_heads):
    """What this program owns: tile, head, batch element.

    Tiles of one head are neighbours, so they find what they share in L2.
    """
    pid = tl.program_id(0)
    tile, rest = pid % tiles, pid // tiles
    # What is multiplied by a stride must not overflow there.
    return tile, (rest % n_heads).to(tl.int64), (rest // n_heads).to(tl.int64)


@triton.jit
def head_run(x, x_b, x_n, x_h, head, batch, VECTOR: tl.constexpr):
    """A head's rows of x (B, N, H, D): a pointer to the first, and the step to the next."""
    return row_of(x, x_b, x_n, x_h, batch, 0, head, VECTOR)


@triton.jit(do_not_specialize=SIZES)
def forward(
    q, k, v, padding, out, lse,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    n_queries, n_keys, n_heads, scale,
    PADDED: tl.constexpr, IS_CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROTATED: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_M queries of one head and batch element.

    q: (B, Nq, H, D), k, v: (B, Nk, H, D) by strides *_b, *_n, *_h. padding: (B, H, Nk) uint8,
    packed, read where PADDED. out: (B, Nq, H, D) and lse: (B, H, Nq), float32, packed. scale:
    times log2(e).
    """
    tiles = tl.cdiv(n_queries, BLOCK_M)
    tile, head, batch = owner(tiles, n_heads)
    if IS_CAUSAL:
        tile = tiles - 1 - tile  # the longest first
    start = tile * BLOCK_M
    d, d_mask = head_columns(D, BLOCK_D)
    i_m = tl.arange(0, BLOCK_M)
    queries = start + i_m
    held = queries < n_queries
    p_q, q_step = head_run(q, q_b, q_n, q_h, head, batch, VECTOR)
    p_k, k_step = head_run(k, k_b, k_n, k_h, head, batch, VECTOR)
    p_v, v_step = head_run(v, v_b, v_n, v_h, head, batch, VECTOR)
    p_q += start * q_step + run_offsets(i_m, q_step, d, INDEX)
    b_q = load_rows(p_q, held, d_mask, D, BLOCK_D, True)  # [BLOCK_M, BLOCK_D]
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    z = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    p_padding = padding
    if PADDED:
        p_padding = padding + (batch * n_heads + head) * n_keys
    m, z, acc = forward_loop(
        m, z, acc, b_q, p_k, p_v, p_padding, k_step, v_step, 1, start, n_keys, scale,
        PADDED, IS_CAUSAL, D, BLOCK_D, BLOCK_M, BLOCK_N, ROTATED, "ieee", INDEX,
    )  # fmt: skip
    b_out, lse_2 = finish(m, z, acc)
    p_out = out + ((batch * n_queries + queries) * n_heads + head)[:, None] * D + d[None, :]
    tl.store(p_out, b_out, mask=held[:, None] & d_mask[None, :])
    tl.store(lse + (batch * n_heads + head) * n_queries + queries, lse_2 * LN_2, mask=held)
