"""Block-sparse attention, forward, two tiles of queries per program; plain PyTorch: as of one tile.

The two share keys and values: key blocks that both list are loaded once, which halves the traffic
from the L2 cache, and the softmax of one runs beside the products of the other. They are two
neighbouring query blocks of a head, or the same block of two heads that have keys and lists in
common. An entry that only one of them lists is added to the state of that one alone, so that a tile
is as unaffected by blocks that it does not list as in `block_sparse_forward`. Tokens have no ids
here.
"""

import triton
import triton.language as tl

from models.kernels.block_sparse_forward import (
    attend_list,
    cut,
    entries,
    load_cut,
    load_entries,
    load_queries,
    owner,
    seen_of_cut,
    store_result,
)
from models.kernels.tile_math import FLOAT32_MAX, attend_two, head_columns, row_of


@triton.jit
def forward_pair(
    q, k, v, out, lse, row_ptr, col_idx, order,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    n_tokens, n_heads, n_blocks, scale,
    BLOCK_SIZE: tl.constexpr, PER_HEAD: tl.constexpr, BY_HEAD: tl.constexpr,
    EVEN_N: tl.constexpr, IS_CAUSAL: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Two tiles of BLOCK_M = BLOCK_SIZE queries, called 0 and 1, of one batch element.

    Arguments as of `block_sparse_forward.forward`. BY_HEAD: the tiles are of two heads, which both
    have the list of the first; otherwise of neighbouring blocks, by the lists of
    `BlockMask.neighbours`. A step takes one entry that both have, or BLOCK_N keys that one has.
    """
    if BY_HEAD:
        block_0, head_0, batch = owner(order, n_blocks, n_heads // 2, 2, PER_HEAD)
        head_0 *= 2
        block_1, head_1 = block_0, head_0 + 1
        begin, count = entries(row_ptr, block_0, head_0, n_blocks, PER_HEAD)
        cut_0 = cut(col_idx, begin, count, block_0, n_blocks, IS_CAUSAL, EVEN_N)
        shared = count - cut_0
        p_last_0 = col_idx + begin + shared
        cut_1, p_last_1 = cut_0, p_last_0
    else:
        n_pairs = tl.cdiv(n_blocks, 2)
        pair, head_0, batch = owner(order, n_pairs, n_heads, 1, PER_HEAD)
        block_0, block_1, head_1 = 2 * pair, 2 * pair + 1, head_0
        begin, shared = entries(row_ptr, 3 * pair, head_0, 3 * n_pairs, PER_HEAD)
        begin_0, count_0 = entries(row_ptr, 3 * pair + 1, head_0, 3 * n_pairs, PER_HEAD)
        begin_1, count_1 = entries(row_ptr, 3 * pair + 2, head_0, 3 * n_pairs, PER_HEAD)
        cut_0 = cut(col_idx, begin_0, count_0, block_0, n_blocks, IS_CAUSAL, EVEN_N)
        cut_1 = cut(col_idx, begin_1, count_1, block_1, n_blocks, IS_CAUSAL, EVEN_N)
        count_0, count_1 = count_0 - cut_0, count_1 - cut_1
        p_last_0, p_last_1 = col_idx + begin_0 + count_0, col_idx + begin_1 + count_1
    d, d_mask = head_columns(D, BLOCK_D)
    i_m = tl.arange(0, BLOCK_M)
    rows_0, rows_1 = block_0 * BLOCK_SIZE + i_m, block_1 * BLOCK_SIZE + i_m
    p_k, k_step = row_of(k, k_b, k_n, k_h, batch, 0, head_0 // GROUP, VECTOR, INDEX)
    p_v, v_step = row_of(v, v_b, v_n, v_h, batch, 0, head_0 // GROUP, VECTOR, INDEX)
    p_k, p_v = p_k + d[None, :], p_v + d[None, :]
    m_0 = tl.full([BLOCK_M], float("-inf"), tl.float32)
    z_0 = tl.zeros([BLOCK_M], tl.float32)
    acc_0 = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m_1, z_1, acc_1 = m_0, z_0, acc_0
    if IS_CAUSAL or not EVEN_N:
        # All four: [BLOCK_SIZE, BLOCK_D].
        k_0, v_0 = load_cut(
            p_last_0, cut_0, p_k, p_v, k_step, v_step, n_tokens, BLOCK_SIZE, D, BLOCK_D, INDEX
        )
        k_1, v_1 = load_cut(
            p_last_1, cut_1, p_k, p_v, k_step, v_step, n_tokens, BLOCK_SIZE, D, BLOCK_D, INDEX
        )
    q_0 = load_queries(  # [BLOCK_M, BLOCK_D]
        q, q_b, q_n, q_h, batch, head_0, rows_0, n_tokens, D, BLOCK_D, VECTOR, False, INDEX
    )
    q_1 = load_queries(  # [BLOCK_M, BLOCK_D]
        q, q_b, q_n, q_h, batch, head_1, rows_1, n_tokens, D, BLOCK_D, VECTOR, False, INDEX
    )
    # The cut entries first, since their keys are loaded together with the queries.
    if IS_CAUSAL or not EVEN_N:  # noqa: SIM102  known when compiled, the next when run
        if cut_0 | cut_1:
            # A tile that has no such block adds zeros with weights of 0.
            m_0, m_1 = tl.where(cut_0 > 0, m_0, FLOAT32_MAX), tl.where(cut_1 > 0, m_1, FLOAT32_MAX)
            seen = seen_of_cut(n_tokens, n_blocks, BLOCK_SIZE, IS_CAUSAL)
            m_0, z_0, acc_0, m_1, z_1, acc_1 = attend_two(
                m_0, z_0, acc_0, q_0, k_0, v_0, m_1, z_1, acc_1, q_1, k_1, v_1, seen, scale,
                True, PRECISION,
            )  # fmt: skip
            m_0 = tl.where(cut_0 > 0, m_0, float("-inf"))
            m_1 = tl.where(cut_1 > 0, m_1, float("-inf"))
            z_0, z_1 = tl.where(cut_0 > 0, z_0, 0.0), tl.where(cut_1 > 0, z_1, 0.0)
    p_col, lane = col_idx + begin, tl.arange(0, BLOCK_SIZE)
    for e in range(0, shared):
        b_k, b_v, _ = load_entries(  # [BLOCK_SIZE, BLOCK_D]
            p_k, p_v, k_step, v_step, p_col, e, shared, lane, d_mask,
            BLOCK_SIZE, 1, D, BLOCK_D, INDEX,
        )  # fmt: skip
        m_0, z_0, acc_0, m_1, z_1, acc_1 = attend_two(
            m_0, z_0, acc_0, q_0, b_k, b_v, m_1, z_1, acc_1, q_1, b_k, b_v, lane, scale,
            False, PRECISION,
        )  # fmt: skip
    if not BY_HEAD:
        # Entries that each has alone: one of each per step as long as both have any.
        p_col_0, p_col_1 = col_idx + begin_0, col_idx + begin_1
        both = tl.minimum(count_0, count_1)
        for e in range(0, both):
            k_0, v_0, _ = load_entries(  # [BLOCK_SIZE, BLOCK_D]
                p_k, p_v, k_step, v_step, p_col_0, e, both, lane, d_mask,
                BLOCK_SIZE, 1, D, BLOCK_D, INDEX,
            )  # fmt: skip
            k_1, v_1, _ = load_entries(  # [BLOCK_SIZE, BLOCK_D]
                p_k, p_v, k_step, v_step, p_col_1, e, both, lane, d_mask,
                BLOCK_SIZE, 1, D, BLOCK_D, INDEX,
            )  # fmt: skip
            m_0, z_0, acc_0, m_1, z_1, acc_1 = attend_two(
                m_0, z_0, acc_0, q_0, k_0, v_0, m_1, z_1, acc_1, q_1, k_1, v_1, lane, scale,
                False, PRECISION,
            )  # fmt: skip
        if count_0 > both:
            m_0, z_0, acc_0 = attend_list(
                m_0, z_0, acc_0, q_0, None, p_k, p_v, None, k_step, v_step,
                p_col_0 + both, count_0 - both, scale,
                False, BLOCK_SIZE, D, BLOCK_D, BLOCK_M, BLOCK_N, False, PRECISION, INDEX,
            )  # fmt: skip
        if count_1 > both:
            m_1, z_1, acc_1 = attend_list(
                m_1, z_1, acc_1, q_1, None, p_k, p_v, None, k_step, v_step,
                p_col_1 + both, count_1 - both, scale,
                False, BLOCK_SIZE, D, BLOCK_D, BLOCK_M, BLOCK_N, False, PRECISION, INDEX,
            )  # fmt: skip
    # Where nothing is listed, acc may hold weights of 0 times NaN.
    acc_0 = tl.where((z_0 == 0)[:, None], 0.0, acc_0)
    acc_1 = tl.where((z_1 == 0)[:, None], 0.0, acc_1)
    store_result(out, lse, m_0, z_0, acc_0, batch, head_0, rows_0, n_tokens, n_heads, D, BLOCK_D)
    store_result(out, lse, m_1, z_1, acc_1, batch, head_1, rows_1, n_tokens, n_heads, D, BLOCK_D)
