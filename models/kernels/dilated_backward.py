"""Dilated attention, backward; plain PyTorch: `models.dilated._gather` under autograd.

P = exp(S - LSE) with the LSE of all branches together is a branch's part of the whole softmax, so
the gradients of the branches just add up. Each branch but the base writes its rows in float32 to a
compact buffer, and the base adds those in its epilogue: one writer per row, no atomics, the same
bits every time. dQ is one kernel, dK and dV another.
"""

import triton
import triton.language as tl

from models.kernels.dilated_forward import (
    OFFSETS,
    compact_rows,
    compact_start,
    kept_tokens,
    owned_queries,
    owner,
)
from models.kernels.inner_loops import dkv_loop, dq_loop, load_two, unpadded
from models.kernels.row_statistics import delta_of
from models.kernels.tile_math import (
    LOG2_E,
    ROW_MULTIPLE,
    head_columns,
    load_rows,
    load_statistics,
    pack_statistics,
    packed_row,
    row_of,
)


@triton.jit
def statistics(
    grad_out, out, lse, grad_lse, statistics, table, g_b, g_n, g_h,
    n_tokens, n_heads, base_rows,
    N_CARRIED: tl.constexpr, HAS_KEYS: tl.constexpr, SHORT: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """LSE in base 2 and delta of BLOCK_M rows of a head, written where each branch reads them.

    The kernels below then read a segment's statistics as one run. statistics: int64, of the base,
    base_rows of them, then of the carried branches. grad_out: by strides g_*; out: (B, N, H, D),
    lse, grad_lse: (B, H, N) float32, packed.
    """
    pid = tl.program_id(0).to(tl.int64)
    head, rest = pid % n_heads, pid // n_heads
    tiles = tl.cdiv(n_tokens, BLOCK_M)
    batch, start = rest // tiles, (rest % tiles) * BLOCK_M
    lane = tl.arange(0, BLOCK_M)
    tokens = start + lane
    held = tokens < n_tokens
    rows = (batch * n_heads + head) * n_tokens + tokens
    b_lse = tl.load(lse + rows, mask=held)  # [BLOCK_M]
    total = delta_of(
        row_of(grad_out, g_b, g_n, g_h, batch, tokens, head, VECTOR)[0],
        out + packed_row(batch, tokens, head, n_tokens, n_heads) * D,
        grad_lse + rows, b_lse, held, HAS_GRAD_LSE, D, BLOCK_D,
    )  # fmt: skip
    both = pack_statistics(b_lse * LOG2_E, total)
    for i in range(0 if HAS_KEYS else 1, N_CARRIED + 1):
        branch = table + i * (OFFSETS + n_heads)
        row_0, rows, there = compact_rows(
            branch, start, lane, head, n_heads, batch, n_tokens, SHORT, INDEX
        )
        rows += row_0 + tl.where(i == 0, 0, base_rows)
        tl.store(statistics + rows, both, mask=there)


@triton.jit
def segment_start(row, head, n_heads, segment, batch, base_rows, BASE: tl.constexpr):
    """Where the statistics of a segment begin: at a multiple of ROW_MULTIPLE."""
    start = compact_start(row, head, n_heads, segment, batch)
    return start if BASE else tl.multiple_of(start + base_rows, ROW_MULTIPLE)


@triton.jit
def backward_q(
    q, k, v, grad_out, padding, statistics, grad_q, part, table,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, g_b, g_n, g_h,
    n_tokens, n_heads, base_rows, scale,
    N_CARRIED: tl.constexpr, BASE: tl.constexpr, HAS_KEYS: tl.constexpr, SHORT: tl.constexpr,
    PADDED: tl.constexpr, IS_CAUSAL: tl.constexpr,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dQ of a tile of BLOCK_M kept queries.

    grad_out: (B, N, H, D) by strides g_*. statistics: as the kernel of that name writes them.
    grad_q: (B, N, H, D), packed. part: (R, D) float32, dQ / scale in the carried branches. The
    others as in `dilated_forward.forward`, but scale: that of q.k.
    """
    row, head, segment, batch, first, r, kept, start = owned_queries(
        table, n_heads, n_tokens, N_CARRIED, BASE, IS_CAUSAL, BLOCK_M
    )
    if start >= kept:
        return
    d, d_mask = head_columns(D, BLOCK_D)
    i_m = tl.arange(0, BLOCK_M)
    held = start + i_m < kept
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    if HAS_KEYS:
        p_q, q_step = row_of(q, q_b, q_n, q_h, batch, first, head, VECTOR)
        p_g, g_step = row_of(grad_out, g_b, g_n, g_h, batch, first, head, VECTOR)
        # [BLOCK_M, BLOCK_D]
        b_q, b_g = load_two(p_q, p_g, q_step, g_step, r, start, i_m, held, D, BLOCK_D, INDEX)
        at = segment_start(row, head, n_heads, segment, batch, base_rows, BASE) + start + i_m
        b_lse, b_delta = load_statistics(statistics + at, held, True)  # [BLOCK_M]
        kv_head = head // GROUP
        p_k, k_step = row_of(k, k_b, k_n, k_h, batch, first, kv_head, VECTOR)
        p_v, v_step = row_of(v, v_b, v_n, v_h, batch, first, kv_head, VECTOR)
        p_padding = padding
        if PADDED:
            p_padding = padding + batch * n_tokens + first
        acc = dq_loop(
            acc, b_q, b_g, b_lse, b_delta, p_k, p_v, p_padding, r * k_step, r * v_step, r,
            start, kept, scale * LOG2_E,
            PADDED, IS_CAUSAL, D, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION, INDEX,
        )  # fmt: skip

    if BASE:
        tokens = first + start + i_m
        for i in tl.range(1, N_CARRIED + 1, num_stages=2):
            branch = table + i * (OFFSETS + n_heads)
            row_0, rows, there = compact_rows(
                branch, first + start, i_m, head, n_heads, batch, n_tokens, SHORT, INDEX
            )
            p_part = part + row_0 * D + rows[:, None] * D + d[None, :]
            acc += load_rows(p_part, there, d_mask, D, BLOCK_D, True)  # [BLOCK_M, BLOCK_D]
        out_rows = packed_row(batch, tokens, head, n_tokens, n_heads)
        p_out = grad_q + out_rows[:, None] * D + d[None, :]
        b_out = (acc * scale).to(grad_q.dtype.element_ty)
        tl.store(p_out, b_out, mask=held[:, None] & d_mask[None, :])
    else:
        rows = compact_start(row, head, n_heads, segment, batch) + start + i_m
        tl.store(part + rows[:, None] * D + d[None, :], acc, mask=held[:, None] & d_mask[None, :])


@triton.jit
def backward_kv(
    q, k, v, grad_out, padding, statistics, grad_k, grad_v, part_k, part_v, table,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, g_b, g_n, g_h,
    n_tokens, n_heads, base_rows, scale,
    N_CARRIED: tl.constexpr, BASE: tl.constexpr, HAS_KEYS: tl.constexpr, SHORT: tl.constexpr,
    PADDED: tl.constexpr, IS_CAUSAL: tl.constexpr,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of BLOCK_N kept keys.

    In the base branch a tile belongs to a key head, and the queries of its GROUP of heads come one
    after another. In the other branches the heads of a group keep different keys, so a tile belongs
    to a query head, and the base adds the results up. grad_k, grad_v: (B, N, H / GROUP, D), packed.
    part_k, part_v: (R, D) float32, dK / scale and dV in the carried branches. The others as in
    `backward_q`.
    """
    n_owners = n_heads // GROUP if BASE else n_heads
    row, _, tile, own_head, segment, batch = owner(table, n_owners, n_heads, N_CARRIED, BASE)
    kv_head = own_head if BASE else own_head // GROUP
    first_head = own_head * GROUP if BASE else own_head
    first, r, kept = kept_tokens(row, first_head, segment, n_tokens)
    start = tile * BLOCK_N
    if start >= kept:
        return
    d, d_mask = head_columns(D, BLOCK_D)
    i_n = tl.arange(0, BLOCK_N)
    held = start + i_n < kept
    acc_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

    if HAS_KEYS:
        p_k, k_step = row_of(k, k_b, k_n, k_h, batch, first, kv_head, VECTOR)
        p_v, v_step = row_of(v, v_b, v_n, v_h, batch, first, kv_head, VECTOR)
        # [BLOCK_N, BLOCK_D]
        b_k, b_v = load_two(p_k, p_v, k_step, v_step, r, start, i_n, held, D, BLOCK_D, INDEX)
        for g in range(0, GROUP if BASE else 1):
            head = first_head + g
            p_q, q_step = row_of(q, q_b, q_n, q_h, batch, first, head, VECTOR)
            p_g, g_step = row_of(grad_out, g_b, g_n, g_h, batch, first, head, VECTOR)
            at = segment_start(row, head, n_heads, segment, batch, base_rows, BASE)
            acc_k, acc_v = dkv_loop(
                acc_k, acc_v, b_k, b_v, p_q, p_g, statistics + at, r * q_step, r * g_step,
                start, kept, scale * LOG2_E,
                IS_CAUSAL, D, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION, INDEX,
            )  # fmt: skip

    stored = held[:, None] & d_mask[None, :]
    if BASE:
        tokens = first + start + i_n
        for g in range(0, GROUP):
            for i in tl.range(1, N_CARRIED + 1, num_stages=1):
                branch = table + i * (OFFSETS + n_heads)
                row_0, rows, there = compact_rows(
                    branch, first + start, i_n, first_head + g, n_heads, batch, n_tokens,
                    SHORT, INDEX,
                )  # fmt: skip
                o_part = rows[:, None] * D + d[None, :]
                # Both: [BLOCK_N, BLOCK_D].
                acc_k += load_rows(part_k + row_0 * D + o_part, there, d_mask, D, BLOCK_D, True)
                acc_v += load_rows(part_v + row_0 * D + o_part, there, d_mask, D, BLOCK_D, True)
        if PADDED:
            there = unpadded(padding + batch * n_tokens, 1, tokens, held)[:, None]
            acc_k, acc_v = tl.where(there, acc_k, 0.0), tl.where(there, acc_v, 0.0)
        out_rows = packed_row(batch, tokens, kv_head, n_tokens, n_owners)
        o_out = out_rows[:, None] * D + d[None, :]
        tl.store(grad_k + o_out, (acc_k * scale).to(grad_k.dtype.element_ty), mask=stored)
        tl.store(grad_v + o_out, acc_v.to(grad_v.dtype.element_ty), mask=stored)
    else:
        rows = compact_start(row, own_head, n_heads, segment, batch) + start + i_n
        o_part = rows[:, None] * D + d[None, :]
        tl.store(part_k + o_part, acc_k, mask=stored)
        tl.store(part_v + o_part, acc_v, mask=stored)
