"""Block-sparse attention, backward; plain PyTorch: `models.block_sparse`'s "sdpa" backend.

dQ walks the rows of the mask, dK and dV walk its columns, that is the rows of its transpose: one
writer per block, no atomics, the same order and bits every time.
"""

import triton
import triton.language as tl

from models.kernels.block_sparse_forward import (
    cut,
    entries,
    load_entries,
    load_ids,
    owner,
    same_id,
    tokens_of,
)
from models.kernels.tile_math import (
    LOG2_E,
    dkv_step,
    dq_step,
    head_columns,
    load_rows,
    load_statistics,
    packed_row,
    row_of,
    statistics_start,
)


@triton.jit
def load_two(
    p_x, p_y, x_step, y_step, tokens, held,
    D: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_N: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Rows of `tokens` in two tensors: [rows, BLOCK_D] each, 0 where not held.

    p_x, p_y: to token 0 of a head; *_step: to the next token.
    """
    d, d_mask = head_columns(D, BLOCK_D)
    p_x += tokens.to(INDEX)[:, None] * x_step + d[None, :]
    p_y += tokens.to(INDEX)[:, None] * y_step + d[None, :]
    b_x = load_rows(p_x, held, d_mask, D, BLOCK_D, not EVEN_N)
    b_y = load_rows(p_y, held, d_mask, D, BLOCK_D, not EVEN_N)
    return b_x, b_y


@triton.jit
def backward_q(
    q, k, v, grad_out, query_ids, key_ids, statistics, grad_q, row_ptr, col_idx, order,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, g_b, g_n, g_h,
    n_tokens, n_heads, n_blocks, scale,
    BY_IDS: tl.constexpr, BLOCK_SIZE: tl.constexpr, PER_HEAD: tl.constexpr,
    EVEN_N: tl.constexpr, IS_CAUSAL: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dQ of one query block; as in the forward pass only the last step is masked.

    grad_out: (B, N, H, D) by strides g_*. statistics: of `row_statistics`. grad_q: (B, N, H, D),
    packed. The others as in `block_sparse_forward.forward`, but scale: that of q.k.
    """
    block, head, batch = owner(order, n_blocks, n_heads, 1, PER_HEAD)
    begin, count = entries(row_ptr, block, head, n_blocks, PER_HEAD)
    d, d_mask = head_columns(D, BLOCK_D)
    i_m, i_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    queries = block * BLOCK_SIZE + i_m
    held = queries < n_tokens
    p_q, q_step = row_of(q, q_b, q_n, q_h, batch, 0, head, VECTOR, INDEX)
    p_g, g_step = row_of(grad_out, g_b, g_n, g_h, batch, 0, head, VECTOR, INDEX)
    # [BLOCK_M, BLOCK_D]
    b_q, b_g = load_two(p_q, p_g, q_step, g_step, queries, held, D, BLOCK_D, EVEN_N, INDEX)
    rows = statistics_start(batch, head, n_heads, n_tokens) + queries
    b_lse, b_delta = load_statistics(statistics + rows, held, True)  # [BLOCK_M]
    p_k, k_step = row_of(k, k_b, k_n, k_h, batch, 0, head // GROUP, VECTOR, INDEX)
    p_v, v_step = row_of(v, v_b, v_n, v_h, batch, 0, head // GROUP, VECTOR, INDEX)
    p_k += d[None, :]
    p_v += d[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if BY_IDS:
        p_ids = key_ids + batch * n_tokens
        b_ids = load_ids(query_ids, batch, queries, n_tokens, held, 0)  # [BLOCK_M]

    STEP: tl.constexpr = BLOCK_N // BLOCK_SIZE
    is_cut = cut(col_idx, begin, count, block, n_blocks, IS_CAUSAL, EVEN_N)
    full = (count - is_cut) // STEP * STEP
    p_col = col_idx + begin
    scale_2 = scale * LOG2_E
    for e in range(0, full, STEP):
        b_k, b_v, keys = load_entries(  # [BLOCK_N, BLOCK_D], [BLOCK_N]
            p_k, p_v, k_step, v_step, p_col, e, count, i_n, d_mask,
            BLOCK_SIZE, STEP, D, BLOCK_D, INDEX,
        )  # fmt: skip
        seen = held
        if BY_IDS:
            seen = same_id(b_ids, p_ids, keys, i_n >= 0)
        acc = dq_step(acc, b_q, b_g, b_lse, b_delta, b_k, b_v, seen, scale_2, BY_IDS, PRECISION)
    for e in tl.range(full, count, STEP, num_stages=1):
        keys = tokens_of(p_col, e, count, i_n, BLOCK_SIZE, STEP, 1, True)
        here = (e + i_n // BLOCK_SIZE < count) & (keys < n_tokens)
        seen = here[None, :]
        if IS_CAUSAL:
            seen = queries[:, None] >= tl.where(here, keys, n_tokens + BLOCK_SIZE)[None, :]
        if BY_IDS:
            seen = seen & same_id(b_ids, p_ids, keys, here)
        # Both: [BLOCK_N, BLOCK_D].
        b_k = load_rows(p_k + keys.to(INDEX)[:, None] * k_step, here, d_mask, D, BLOCK_D, True)
        b_v = load_rows(p_v + keys.to(INDEX)[:, None] * v_step, here, d_mask, D, BLOCK_D, True)
        acc = dq_step(acc, b_q, b_g, b_lse, b_delta, b_k, b_v, seen, scale_2, True, PRECISION)

    out_rows = packed_row(batch, queries, head, n_tokens, n_heads)
    p_out = grad_q + out_rows[:, None] * D + d[None, :]
    b_out = (acc * scale).to(grad_q.dtype.element_ty)
    tl.store(p_out, b_out, mask=held[:, None] & d_mask[None, :])


@triton.jit
def backward_kv(
    q, k, v, grad_out, query_ids, key_ids, statistics, grad_k, grad_v, row_ptr, col_idx, order,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, g_b, g_n, g_h,
    n_tokens, n_heads, n_blocks, scale,
    BY_IDS: tl.constexpr, BLOCK_SIZE: tl.constexpr, PER_HEAD: tl.constexpr,
    EVEN_N: tl.constexpr, IS_CAUSAL: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dK and dV of one key block of a key head, over its GROUP of query heads; BLOCK_N: its size.

    row_ptr, col_idx, order: of the transposed mask, key block -> query blocks. Lists are walked
    from their end, so that the diagonal, first in a causal list, is in the last step. grad_k,
    grad_v: (B, N, H / GROUP, D), packed. The others as in `backward_q`.
    """
    block, kv_head, batch = owner(order, n_blocks, n_heads // GROUP, GROUP, PER_HEAD)
    d, d_mask = head_columns(D, BLOCK_D)
    i_m, i_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    keys = block * BLOCK_SIZE + i_n
    held = keys < n_tokens
    p_k, k_step = row_of(k, k_b, k_n, k_h, batch, 0, kv_head, VECTOR, INDEX)
    p_v, v_step = row_of(v, v_b, v_n, v_h, batch, 0, kv_head, VECTOR, INDEX)
    # [BLOCK_N, BLOCK_D]
    b_k, b_v = load_two(p_k, p_v, k_step, v_step, keys, held, D, BLOCK_D, EVEN_N, INDEX)
    acc_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if BY_IDS:
        p_ids = query_ids + batch * n_tokens
        b_ids = load_ids(key_ids, batch, keys, n_tokens, held, -1)  # [BLOCK_N]

    STEP: tl.constexpr = BLOCK_M // BLOCK_SIZE
    scale_2 = scale * LOG2_E
    for g in range(0, GROUP):
        head = kv_head * GROUP + g
        begin, count = entries(row_ptr, block, head, n_blocks, PER_HEAD)
        is_cut = 0
        if IS_CAUSAL:
            first = tl.load(col_idx + begin, mask=count > 0, other=-1)
            is_cut = (first == block).to(tl.int32)
        full = (count - is_cut) // STEP * STEP
        p_row = col_idx + begin + count - 1
        p_q, q_step = row_of(q, q_b, q_n, q_h, batch, 0, head, VECTOR, INDEX)
        p_g, g_step = row_of(grad_out, g_b, g_n, g_h, batch, 0, head, VECTOR, INDEX)
        p_q += d[None, :]
        p_g += d[None, :]
        of_head = statistics_start(batch, head, n_heads, n_tokens)
        for e in range(0, full, STEP):
            queries = tokens_of(p_row, e, count, i_m, BLOCK_SIZE, STEP, -1, False)
            here = queries < n_tokens
            at = queries.to(INDEX)[:, None]
            # Both: [BLOCK_M, BLOCK_D].
            b_q = load_rows(p_q + at * q_step, here, d_mask, D, BLOCK_D, not EVEN_N)
            b_g = load_rows(p_g + at * g_step, here, d_mask, D, BLOCK_D, not EVEN_N)
            b_lse, b_delta = load_statistics(statistics + of_head + queries, here, not EVEN_N)
            seen = here
            if BY_IDS:
                seen = same_id(b_ids, p_ids, queries, here)
            acc_k, acc_v = dkv_step(
                acc_k, acc_v, b_k, b_v, b_q, b_g, b_lse, b_delta, seen, scale_2, BY_IDS, PRECISION
            )
        for e in tl.range(full, count, STEP, num_stages=1):
            queries = tokens_of(p_row, e, count, i_m, BLOCK_SIZE, STEP, -1, True)
            # Rows that are not there are loaded as 0 and add nothing.
            here = (e + i_m // BLOCK_SIZE < count) & (queries < n_tokens)
            at = queries.to(INDEX)[:, None]
            # Both: [BLOCK_M, BLOCK_D].
            b_q = load_rows(p_q + at * q_step, here, d_mask, D, BLOCK_D, True)
            b_g = load_rows(p_g + at * g_step, here, d_mask, D, BLOCK_D, True)
            b_lse, b_delta = load_statistics(statistics + of_head + queries, here, True)
            seen = here[None, :]
            if IS_CAUSAL:
                seen = keys[:, None] <= queries[None, :]
            if BY_IDS:
                seen = seen & same_id(b_ids, p_ids, queries, here)
            acc_k, acc_v = dkv_step(
                acc_k, acc_v, b_k, b_v, b_q, b_g, b_lse, b_delta, seen, scale_2, True, PRECISION
            )

    n_kv_heads = n_heads // GROUP
    o_out = packed_row(batch, keys, kv_head, n_tokens, n_kv_heads)[:, None] * D + d[None, :]
    stored = held[:, None] & d_mask[None, :]
    tl.store(grad_k + o_out, (acc_k * scale).to(grad_k.dtype.element_ty), mask=stored)
    tl.store(grad_v + o_out, acc_v.to(grad_v.dtype.element_ty), mask=stored)
