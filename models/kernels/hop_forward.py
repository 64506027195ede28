"""A piece of a ring's hop, forward; plain PyTorch: `models.ring.hops.Eager`.

A piece is some queries with some keys: with all of them or, where there are as many of both, the
causal triangle. Its rows and their LSE stay in float32, since other pieces are joined to them.
"""

import triton
import triton.language as tl

from models.kernels.inner_loops import forward_loop, run_offsets
from models.kernels.tile_math import LN_2, finish, head_columns, load_rows, packed_row, row_of

# Pieces have many sizes, and code compiled for one size is no faster than for all.
SIZES = ["n_queries", "n_keys", "n_heads"]


@triton.jit
def owner(tiles, n_heads):
    """What this program owns: tile, head, batch element.

    Tiles of one head are neighbours, so they find what they share in L2.
    """
    pid = tl.program_id(0)
    tile, rest = pid % tiles, pid // tiles
    # In 64 bits, since they are multiplied by strides.
    return tile, (rest % n_heads).to(tl.int64), (rest // n_heads).to(tl.int64)


@triton.jit
def owned_queries(n_queries, n_heads, IS_CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr):
    """The same with the first query of the tile in the place of the tile."""
    tiles = tl.cdiv(n_queries, BLOCK_M)
    tile, head, batch = owner(tiles, n_heads)
    if IS_CAUSAL:
        tile = tiles - 1 - tile  # the longest first
    return tile * BLOCK_M, head, batch


@triton.jit
def head_padding(padding, batch, head, n_heads, n_keys, PADDED: tl.constexpr):
    """A pointer to the flags of a head's keys, where PADDED."""
    p_padding = padding
    if PADDED:
        p_padding = padding + (batch * n_heads + head) * n_keys
    return p_padding


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
    start, head, batch = owned_queries(n_queries, n_heads, IS_CAUSAL, BLOCK_M)
    d, d_mask = head_columns(D, BLOCK_D)
    i_m = tl.arange(0, BLOCK_M)
    queries = start + i_m
    held = queries < n_queries
    p_q, q_step = row_of(q, q_b, q_n, q_h, batch, 0, head, VECTOR)
    p_k, k_step = row_of(k, k_b, k_n, k_h, batch, 0, head, VECTOR)
    p_v, v_step = row_of(v, v_b, v_n, v_h, batch, 0, head, VECTOR)
    p_q += start * q_step + run_offsets(i_m, q_step, d, INDEX)
    b_q = load_rows(p_q, held, d_mask, D, BLOCK_D, True)  # [BLOCK_M, BLOCK_D]
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    z = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    p_padding = head_padding(padding, batch, head, n_heads, n_keys, PADDED)
    m, z, acc = forward_loop(
        m, z, acc, b_q, p_k, p_v, p_padding, k_step, v_step, 1, start, n_keys, scale,
        PADDED, IS_CAUSAL, D, BLOCK_D, BLOCK_M, BLOCK_N, ROTATED, "ieee", INDEX,
    )  # fmt: skip
    b_out, lse_2 = finish(m, z, acc)  # [BLOCK_M, BLOCK_D], [BLOCK_M]
    out_rows = packed_row(batch, queries, head, n_queries, n_heads)
    p_out = out + out_rows[:, None] * D + d[None, :]
    tl.store(p_out, b_out, mask=held[:, None] & d_mask[None, :])
    tl.store(lse + (batch * n_heads + head) * n_queries + queries, lse_2 * LN_2, mask=held)
