"""What every attention kernel does with a tile; plain PyTorch: `models.oracle.attend_rows`.

Scores are kept in base 2: `scale` is the factor on q.k times log2(e), `m` [BLOCK_M] a row's
running maximum of scaled scores, `z` [BLOCK_M] the sum of exp2(score - m), `acc` [BLOCK_M, BLOCK_D]
the sum of those weights times values. A row that has seen no key has m = -inf.

A tile has BLOCK_M queries, BLOCK_N keys, and BLOCK_D columns, of which D are there.
EMPTY_ROWS: whether a row may have seen no key yet after a step, as where keys are padding.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)
# A run of rows in a buffer of ours begins at a multiple of this, so that 16 bytes load at once.
ROW_MULTIPLE = tl.constexpr(16)


@triton.jit
def attend_step(
    m, z, acc, b_q, b_k, b_v, seen, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    EMPTY_ROWS: tl.constexpr = False,
):  # fmt: skip
    """Add keys b_k, values b_v [BLOCK_N, BLOCK_D] to the state of queries b_q [BLOCK_M, BLOCK_D].

    seen: [BLOCK_M, BLOCK_N], read only where MASKED. Unless EMPTY_ROWS, every row must see a key
    here or have seen one before.
    """
    s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    if MASKED:
        s = tl.where(seen, s, float("-inf"))
    m, z, alpha, p = softmax_step(m, z, s, scale, EMPTY_ROWS)
    # [BLOCK_M, BLOCK_D]
    acc = tl.dot(p.to(b_v.dtype), b_v, acc * alpha[:, None], input_precision=PRECISION)
    return m, z, acc


@triton.jit
def attend_two(
    m_0, z_0, acc_0, q_0, k_0, v_0, m_1, z_1, acc_1, q_1, k_1, v_1, seen, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`attend_step` for two tiles of queries, 0 and 1: softmax of one beside the products of both.

    seen: [BLOCK_M, BLOCK_N], the same for both.
    """
    s_0 = tl.dot(q_0, tl.trans(k_0), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    s_1 = tl.dot(q_1, tl.trans(k_1), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    if MASKED:
        s_0 = tl.where(seen, s_0, float("-inf"))
        s_1 = tl.where(seen, s_1, float("-inf"))
    # Both products with values: [BLOCK_M, BLOCK_D].
    m_0, z_0, alpha, p = softmax_step(m_0, z_0, s_0, scale)
    acc_0 = tl.dot(p.to(v_0.dtype), v_0, acc_0 * alpha[:, None], input_precision=PRECISION)
    m_1, z_1, alpha, p = softmax_step(m_1, z_1, s_1, scale)
    acc_1 = tl.dot(p.to(v_1.dtype), v_1, acc_1 * alpha[:, None], input_precision=PRECISION)
    return m_0, z_0, acc_0, m_1, z_1, acc_1


@triton.jit
def rotated_step(m, z, acc, alpha, p, b_q, b_k, b_v, scale, PRECISION: tl.constexpr):
    """Add keys b_k of this step and values b_v of the one before, [BLOCK_N, BLOCK_D], to the state.

    p [BLOCK_M, BLOCK_N] are the weights of the step before, as `bits_of` gives them, and alpha
    [BLOCK_M] its factor on acc; those of this step are returned in their place. The product with
    the values does not wait for this step's softmax, so tensor cores work while it is computed.
    acc is rescaled first: after the product, the assembler would wait for every product. In the
    first step p is 0 and b_v this step's values: infinite ones give NaN there.
    """
    acc = acc * alpha[:, None]
    # First, since products end in the order in which they began.
    s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    acc = values_step(acc, p, b_v, PRECISION)
    m, z, alpha, weights = softmax_step(m, z, s, scale)
    return m, z, acc, alpha, bits_of(weights, b_v.dtype)


@triton.jit
def values_step(acc, p, b_v, PRECISION: tl.constexpr):
    """acc plus the values b_v [BLOCK_N, BLOCK_D] by weights p [BLOCK_M, BLOCK_N] of `bits_of`."""
    # [BLOCK_M, BLOCK_D]
    return tl.dot(p.to(b_v.dtype, bitcast=True), b_v, acc, input_precision=PRECISION)


@triton.jit
def bits_of(weights, dtype: tl.constexpr):
    """Weights as integers of 16 bits, which a loop carries from step to step.

    The compiler moves the operand of a product through shared memory if a loop carries it, unless
    an operation lies between: the cast back to `dtype` is one, and costs nothing.
    """
    return weights.to(dtype).to(tl.int16, bitcast=True)


@triton.jit
def softmax_step(m, z, s, scale, EMPTY_ROWS: tl.constexpr = False):
    """Add scores s [BLOCK_M, BLOCK_N] to m and z.

    Returns m, z, the factor alpha [BLOCK_M] on earlier sums, and weights [BLOCK_M, BLOCK_N].
    """
    m_new = tl.maximum(m, tl.max(s, 1) * scale)
    pivot = m_new
    if EMPTY_ROWS:
        pivot = tl.where(m_new == float("-inf"), 0.0, m_new)  # -inf - (-inf) is NaN
    p = tl.exp2(s * scale - pivot[:, None])
    alpha = tl.exp2(m - pivot)
    return m_new, z * alpha + tl.sum(p, 1), alpha, p


@triton.jit
def dq_step(
    acc, b_q, b_g, b_lse, b_delta, b_k, b_v, seen, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to acc [BLOCK_M, BLOCK_D] the part of dQ / scale that comes through keys b_k, values b_v.

    b_q, b_g: queries and dO [BLOCK_M, BLOCK_D], b_lse (base 2) and b_delta: [BLOCK_M]. b_k, b_v:
    [BLOCK_N, BLOCK_D]. seen: [BLOCK_M, BLOCK_N], read only where MASKED.
    """
    # [BLOCK_M, BLOCK_N]
    s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale - b_lse[:, None]
    if MASKED:
        s = tl.where(seen, s, float("-inf"))
    dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    ds = (tl.exp2(s) * (dp - b_delta[:, None])).to(b_k.dtype)
    return tl.dot(ds, b_k, acc, input_precision=PRECISION)  # [BLOCK_M, BLOCK_D]


@triton.jit
def dkv_step(
    acc_k, acc_v, b_k, b_v, b_q, b_g, b_lse, b_delta, seen, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to acc_k, acc_v [BLOCK_N, BLOCK_D] the parts of dK / scale and dV through queries b_q.

    b_k, b_v: keys and values [BLOCK_N, BLOCK_D]. b_q, b_g: queries and dO [BLOCK_M, BLOCK_D], b_lse
    (base 2) and b_delta: [BLOCK_M]. seen: [BLOCK_N, BLOCK_M], read only where MASKED.
    """
    s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
    # Before the exponentials, which then run beside it. [BLOCK_N, BLOCK_M]
    dp = tl.dot(b_v, tl.trans(b_g), input_precision=PRECISION)
    s = s * scale - b_lse[None, :]
    if MASKED:
        s = tl.where(seen, s, float("-inf"))
    p = tl.exp2(s)
    # Both: [BLOCK_N, BLOCK_D].
    acc_v = tl.dot(p.to(b_g.dtype), b_g, acc_v, input_precision=PRECISION)
    ds = (p * (dp - b_delta[None, :])).to(b_q.dtype)
    return tl.dot(ds, b_q, acc_k, input_precision=PRECISION), acc_v


@triton.jit
def finish(m, z, acc):
    """Output rows [BLOCK_M, BLOCK_D] and their LSE [BLOCK_M], base 2; 0 and -inf without keys."""
    total = tl.where(z == 0, 1.0, z)
    return acc / total[:, None], tl.where(z == 0, float("-inf"), m + tl.log2(total))


@triton.jit
def row_of(
    x, x_b, x_n, x_h, batch, token, head, VECTOR: tl.constexpr, STEP: tl.constexpr = tl.int64
):  # fmt: skip
    """A pointer to the row of x (B, N, H, D) for a token, and the step to the next token's row.

    Strides count VECTOR elements, so that the compiler knows that it may load as many at once.
    batch, head: int64; STEP: the type of the step.
    """
    return x + (batch * x_b + token * x_n + head * x_h) * VECTOR, tl.cast(x_n, STEP) * VECTOR


@triton.jit
def head_columns(D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Columns of the head dimension, padded to a power of two, and which are there: [BLOCK_D]."""
    columns = tl.arange(0, BLOCK_D)
    return columns, columns < D


@triton.jit
def load_rows(
    pointers, rows, columns, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):
    """Load a tile [rows, BLOCK_D]; columns beyond D are 0 and, where MASKED, rows not in `rows`."""
    if MASKED:
        if D == BLOCK_D:
            return tl.load(pointers, mask=rows[:, None], other=0.0)
        else:
            return tl.load(pointers, mask=rows[:, None] & columns[None, :], other=0.0)
    else:
        if D == BLOCK_D:
            return tl.load(pointers)
        else:
            return tl.load(pointers, mask=columns[None, :], other=0.0)


@triton.jit
def packed_row(batch, token, head, n_tokens, n_heads):
    """The row of a token and head in a packed (B, N, H, D) tensor, taken as (B * N * H, D)."""
    return (batch * n_tokens + token) * n_heads + head


@triton.jit
def load_statistics(pointers, rows, MASKED: tl.constexpr):
    """LSE (base 2) and delta, [rows] each; where MASKED, 0 for rows not in the mask `rows`."""
    both = tl.load(pointers, mask=rows, other=0) if MASKED else tl.load(pointers)
    return _low(both), _low(both >> 32)


@triton.jit
def statistics_start(batch, head, n_heads, n_rows):
    """Where the statistics of a head begin in the buffer of `row_statistics`."""
    return (batch * n_heads + head) * (tl.cdiv(n_rows, ROW_MULTIPLE) * ROW_MULTIPLE)


@triton.jit
def pack_statistics(lse_2, delta):
    """Two float32 numbers in an int64, the LSE in the lower half, for `load_statistics`."""
    low = lse_2.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    return (delta.to(tl.int32, bitcast=True).to(tl.int64) << 32) | low


@triton.jit
def _low(both):
    return both.to(tl.int32).to(tl.float32, bitcast=True)
