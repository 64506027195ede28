"""Block-sparse attention, forward; plain PyTorch: `models.block_sparse`'s "sdpa" backend.

One program per query block. Its key blocks are a sorted CSR row; a step takes BLOCK_N keys, that is
one entry or several, since wide tiles feed the tensor cores better than blocks of 64 do. Entries
that are left over are taken in narrower steps. Only the last entry of a row can be cut (by the
diagonal, or by the end of the sequence), so it alone is masked, unless tokens have ids.

BY_IDS: a query sees only keys with its own id. Ids are int32 (B, N), packed, and None otherwise;
padding has the id -1 among keys, which no query has.
"""

import triton
import triton.language as tl

from models.kernels.tile_math import (
    LN_2,
    attend_step,
    finish,
    head_columns,
    load_rows,
    packed_row,
    rotated_step,
    row_of,
    values_step,
)


@triton.jit
def owner(order, n_blocks, n_heads, GROUP: tl.constexpr, PER_HEAD: tl.constexpr):
    """What this program owns: block, head, batch element.

    n_heads: those that programs are counted over; there are lists for n_heads * GROUP heads.
    The longest lists of a head come first, and a head's programs are neighbours (L2).
    """
    pid = tl.program_id(0).to(tl.int64)
    rank, rest = pid % n_blocks, pid // n_blocks
    head, batch = rest % n_heads, rest // n_heads
    block = tl.load(order + (head * GROUP * n_blocks + rank if PER_HEAD else rank))
    return block, head, batch


@triton.jit
def entries(row_ptr, block, head, n_blocks, PER_HEAD: tl.constexpr):
    """Where the list of `block` begins, and how many entries it has."""
    row = row_ptr + block + (head * (n_blocks + 1) if PER_HEAD else 0)
    begin = tl.load(row)
    return begin, (tl.load(row + 1) - begin).to(tl.int32)


@triton.jit
def tokens_of(
    p_entry, e, count, lane, BLOCK_SIZE: tl.constexpr, STEP: tl.constexpr,
    SIGN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Tokens of STEP entries from the e-th on, walking by SIGN from p_entry: [lanes].

    lane: [STEP * BLOCK_SIZE]. Entries are read as scalars, which all threads share, so addresses
    take few registers. Where MASKED, block 0 stands for entries from `count` on.
    """
    tokens = lane % BLOCK_SIZE
    for j in tl.static_range(STEP):
        if MASKED:
            entry = tl.load(p_entry + SIGN * (e + j), mask=e + j < count, other=0)
        else:
            entry = tl.load(p_entry + SIGN * (e + j))
        tokens += tl.where(lane // BLOCK_SIZE == j, entry * BLOCK_SIZE, 0)
    return tl.max_contiguous(tl.multiple_of(tokens, BLOCK_SIZE), BLOCK_SIZE)


@triton.jit
def load_entries(
    p_k, p_v, k_step, v_step, p_entry, e, count, lane, d_mask,
    BLOCK_SIZE: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """Keys and values of STEP whole blocks, [STEP * BLOCK_SIZE, BLOCK_D] each, and their tokens.

    p_k, p_v: to the columns [1, BLOCK_D] of token 0. The others as in `tokens_of`.
    """
    keys = tokens_of(p_entry, e, count, lane, BLOCK_SIZE, STEP, 1, False).to(INDEX)
    b_k = load_rows(p_k + keys[:, None] * k_step, lane, d_mask, D, BLOCK_D, False)
    b_v = load_rows(p_v + keys[:, None] * v_step, lane, d_mask, D, BLOCK_D, False)
    return b_k, b_v, keys


@triton.jit
def load_ids(ids, batch, tokens, n_tokens, held, OTHER: tl.constexpr):
    """Ids of tokens, OTHER where not held: [rows]."""
    return tl.load(ids + batch * n_tokens + tokens, mask=held, other=OTHER)


@triton.jit
def cut(col_idx, begin, count, block, n_blocks, IS_CAUSAL: tl.constexpr, EVEN_N: tl.constexpr):
    """Whether the last entry of a row of key blocks must be masked: 0 or 1."""
    last = tl.load(col_idx + begin + count - 1, mask=count > 0, other=-1)
    is_cut = 0
    if IS_CAUSAL:
        is_cut = (last == block).to(tl.int32)
    if not EVEN_N:
        is_cut = is_cut | (last == n_blocks - 1).to(tl.int32)
    return is_cut


@triton.jit
def same_id(b_ids, p_ids, tokens, here):
    """Which of `tokens` are here and have the ids b_ids [rows]: [rows, tokens]."""
    return b_ids[:, None] == tl.load(p_ids + tokens, mask=here, other=-2)[None, :]


@triton.jit
def attend_entries(
    m, z, acc, b_q, b_ids, p_k, p_v, p_ids, k_step, v_step, p_col, scale,
    BY_IDS: tl.constexpr, BLOCK_SIZE: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Add STEP entries from p_col on, whole blocks of keys, to the state of queries b_q.

    b_q: [BLOCK_M, BLOCK_D]. p_k, p_v: as in `load_entries`. scale: in base 2. BY_IDS: b_ids
    [BLOCK_M] are the queries', p_ids points to the id of key 0.
    """
    d, d_mask = head_columns(D, BLOCK_D)
    i_n = tl.arange(0, STEP * BLOCK_SIZE)
    b_k, b_v, keys = load_entries(
        p_k, p_v, k_step, v_step, p_col, 0, STEP, i_n, d_mask, BLOCK_SIZE, STEP, D, BLOCK_D, INDEX
    )
    seen = i_n
    if BY_IDS:
        seen = same_id(b_ids, p_ids, keys, i_n >= 0)
    return attend_step(m, z, acc, b_q, b_k, b_v, seen, scale, BY_IDS, PRECISION, BY_IDS)


@triton.jit
def attend_list(
    m, z, acc, b_q, b_ids, p_k, p_v, p_ids, k_step, v_step, p_col, count, scale,
    BY_IDS: tl.constexpr, BLOCK_SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROTATED: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Add `count` entries from p_col on, BLOCK_N keys per step, and the remainder in smaller steps.

    Arguments as of `attend_entries`. Not ROTATED where BY_IDS: a rotated step needs rows that have
    seen a key.
    """
    d, d_mask = head_columns(D, BLOCK_D)
    i_n = tl.arange(0, BLOCK_N)
    STEP: tl.constexpr = BLOCK_N // BLOCK_SIZE
    full = count // STEP * STEP
    if ROTATED:
        alpha = tl.full([BLOCK_M], 1.0, tl.float32)
        p = tl.zeros([BLOCK_M, BLOCK_N], tl.int16)  # of the step before the first
        for e in range(0, full, STEP):
            keys = tokens_of(p_col, e, count, i_n, BLOCK_SIZE, STEP, 1, False)
            before = tl.maximum(e - STEP, 0)
            last = tokens_of(p_col, before, count, i_n, BLOCK_SIZE, STEP, 1, False)
            # Both: [BLOCK_N, BLOCK_D].
            b_k = load_rows(p_k + keys.to(INDEX)[:, None] * k_step, i_n, d_mask, D, BLOCK_D, False)
            b_v = load_rows(p_v + last.to(INDEX)[:, None] * v_step, i_n, d_mask, D, BLOCK_D, False)
            m, z, acc, alpha, p = rotated_step(m, z, acc, alpha, p, b_q, b_k, b_v, scale, PRECISION)
        some = (i_n >= 0) & (full > 0)
        last = tokens_of(p_col, tl.maximum(full - STEP, 0), full, i_n, BLOCK_SIZE, STEP, 1, True)
        # [BLOCK_N, BLOCK_D]
        b_v = load_rows(p_v + last.to(INDEX)[:, None] * v_step, some, d_mask, D, BLOCK_D, True)
        acc = values_step(acc * alpha[:, None], p, b_v, PRECISION)
    else:
        for e in range(0, full, STEP):
            m, z, acc = attend_entries(
                m, z, acc, b_q, b_ids, p_k, p_v, p_ids, k_step, v_step, p_col + e, scale,
                BY_IDS, BLOCK_SIZE, STEP, D, BLOCK_D, PRECISION, INDEX,
            )  # fmt: skip
    # Half as many entries, a quarter, ...: each at most once.
    for j in tl.static_range(1, STEP.bit_length()):
        if count & (STEP >> j):
            m, z, acc = attend_entries(
                m, z, acc, b_q, b_ids, p_k, p_v, p_ids, k_step, v_step, p_col + full, scale,
                BY_IDS, BLOCK_SIZE, STEP >> j, D, BLOCK_D, PRECISION, INDEX,
            )  # fmt: skip
            full += STEP >> j
    return m, z, acc


@triton.jit
def load_queries(
    q, q_b, q_n, q_h, batch, head, queries, n_tokens, D: tl.constexpr, BLOCK_D: tl.constexpr,
    VECTOR: tl.constexpr, EVEN_N: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The rows `queries` of one head, 0 beyond the last: [BLOCK_M, BLOCK_D]."""
    d, d_mask = head_columns(D, BLOCK_D)
    p_q, q_step = row_of(q, q_b, q_n, q_h, batch, 0, head, VECTOR, INDEX)
    p_q += queries.to(INDEX)[:, None] * q_step + d[None, :]
    return load_rows(p_q, queries < n_tokens, d_mask, D, BLOCK_D, not EVEN_N)


@triton.jit
def store_result(
    out, lse, m, z, acc, batch, head, queries, n_tokens, n_heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write out and LSE of the rows `queries` of one head, given their state."""
    d, d_mask = head_columns(D, BLOCK_D)
    held = queries < n_tokens
    b_out, lse_2 = finish(m, z, acc)  # [BLOCK_M, BLOCK_D], [BLOCK_M]
    rows = packed_row(batch, queries, head, n_tokens, n_heads)
    p_out = out + rows[:, None] * D + d[None, :]
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=held[:, None] & d_mask[None, :])
    tl.store(lse + (batch * n_heads + head) * n_tokens + queries, lse_2 * LN_2, mask=held)


@triton.jit
def load_cut(
    p_last, is_cut, p_k, p_v, k_step, v_step, n_tokens,
    BLOCK_SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Keys and values of the entry at p_last, [BLOCK_SIZE, BLOCK_D]; 0, unread, if is_cut is 0."""
    d, d_mask = head_columns(D, BLOCK_D)
    keys = tl.load(p_last, mask=is_cut > 0, other=0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    here = (keys < n_tokens) & (is_cut > 0)
    b_k = load_rows(p_k + keys.to(INDEX)[:, None] * k_step, here, d_mask, D, BLOCK_D, True)
    b_v = load_rows(p_v + keys.to(INDEX)[:, None] * v_step, here, d_mask, D, BLOCK_D, True)
    return b_k, b_v


@triton.jit
def seen_of_cut(n_tokens, n_blocks, BLOCK_SIZE: tl.constexpr, IS_CAUSAL: tl.constexpr):
    """Which keys of a cut entry are seen by the queries that list it: [BLOCK_M or 1, BLOCK_SIZE].

    When causal the entry is the queries' own block, otherwise the last one, which may have fewer
    keys.
    """
    lane = tl.arange(0, BLOCK_SIZE)
    if IS_CAUSAL:  # a query that is there sees no key that is not
        return lane[:, None] >= lane[None, :]
    else:
        return ((n_blocks - 1) * BLOCK_SIZE + lane < n_tokens)[None, :]


@triton.jit
def forward(
    q, k, v, query_ids, key_ids, out, lse, row_ptr, col_idx, order,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    n_tokens, n_heads, n_blocks, scale,
    BY_IDS: tl.constexpr, BLOCK_SIZE: tl.constexpr, PER_HEAD: tl.constexpr, EVEN_N: tl.constexpr,
    IS_CAUSAL: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROTATED: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The queries of one block, one head, one batch element; BLOCK_M is BLOCK_SIZE.

    q: (B, N, H, D), k, v: (B, N, H / GROUP, D) by strides *_b, *_n, *_h. out: (B, N, H, D), packed;
    lse: (B, H, N) float32. row_ptr, col_idx: CSR rows of key blocks; order: the blocks with the
    longest rows first; one of each per head where PER_HEAD. When causal, no row lists a block
    beyond its own. EVEN_N: whether BLOCK_SIZE divides N. scale: times log2(e).
    """
    block, head, batch = owner(order, n_blocks, n_heads, 1, PER_HEAD)
    begin, count = entries(row_ptr, block, head, n_blocks, PER_HEAD)
    queries = block * BLOCK_SIZE + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)[None, :]
    p_k, k_step = row_of(k, k_b, k_n, k_h, batch, 0, head // GROUP, VECTOR, INDEX)
    p_v, v_step = row_of(v, v_b, v_n, v_h, batch, 0, head // GROUP, VECTOR, INDEX)
    p_k, p_v = p_k + columns, p_v + columns
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    z = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    is_cut = cut(col_idx, begin, count, block, n_blocks, IS_CAUSAL, EVEN_N)
    p_col, count = col_idx + begin, count - is_cut
    if IS_CAUSAL or not EVEN_N:
        # [BLOCK_SIZE, BLOCK_D]
        b_k, b_v = load_cut(
            p_col + count, is_cut, p_k, p_v, k_step, v_step, n_tokens, BLOCK_SIZE, D, BLOCK_D, INDEX
        )
    b_q = load_queries(  # [BLOCK_M, BLOCK_D]
        q, q_b, q_n, q_h, batch, head, queries, n_tokens, D, BLOCK_D, VECTOR, EVEN_N, INDEX
    )
    b_ids, p_ids = query_ids, key_ids
    if BY_IDS:
        p_ids = key_ids + batch * n_tokens
        b_ids = load_ids(query_ids, batch, queries, n_tokens, queries < n_tokens, 0)  # [BLOCK_M]
    # The cut entry first, since its keys are loaded together with the queries.
    if IS_CAUSAL or not EVEN_N:  # noqa: SIM102  known when compiled, the next when run
        if is_cut:
            seen = seen_of_cut(n_tokens, n_blocks, BLOCK_SIZE, IS_CAUSAL)
            if BY_IDS:
                keys = tl.load(p_col + count) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
                seen = seen & same_id(b_ids, p_ids, keys, keys < n_tokens)
            m, z, acc = attend_step(m, z, acc, b_q, b_k, b_v, seen, scale, True, PRECISION, BY_IDS)
    m, z, acc = attend_list(
        m, z, acc, b_q, b_ids, p_k, p_v, p_ids, k_step, v_step, p_col, count, scale,
        BY_IDS, BLOCK_SIZE, D, BLOCK_D, BLOCK_M, BLOCK_N, ROTATED, PRECISION, INDEX,
    )  # fmt: skip
    store_result(out, lse, m, z, acc, batch, head, queries, n_tokens, n_heads, D, BLOCK_D)
