"""Dilated attention, forward, for Hopper, in Gluon; plain PyTorch: `models.dilated._gather`.

Three parts of a program work at the same time: a warp that loads tiles by TMA, and two groups of
four warps with 64 query rows each, which share every tile of keys. Barriers around `BUFFERS`
buffers of K and as many of V keep them in step. One thread arrives for its group, after all of the
group have waited and read: the compiler puts a barrier of the group before. The grid is one program
per multiprocessor: each walks the tiles of `gluon_schedule.tile_at`, and the producer fetches the
next tile's K and Q while the consumers finish the one before. Results are written as by
`dilated_forward.forward`. Gluon has no interpreter: `tests/models/gluon_stand_in.py` runs these
functions as they stand, and `gluon_protocol.py` there explores all orders of what they do.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from models.kernels.dilated_forward import OFFSETS, compact_start, part_of
from models.kernels.gluon_producer import owned, produce
from models.kernels.gluon_schedule import filled, slot, steps_of
from models.kernels.tile_math import LN_2, finish

# Per thread: two groups of consumers and the producer's share the 504 that three could have.
CONSUMER_REGISTERS, PRODUCER_REGISTERS = gl.constexpr(216), gl.constexpr(72)
# Numbers that change from call to call, for which no forms are compiled.
NUMBERS = ("branch", "n_tokens", "n_heads", "span", "n_tiles")


@gluon.jit
def write(
    m, z, acc, start, kept, head, segment, batch, first, i_m, d, results, n_tokens, n_heads,
    N_CARRIED: gl.constexpr, BASE: gl.constexpr, SHORT: gl.constexpr, D: gl.constexpr,
    INDEX: gl.constexpr,
):  # fmt: skip
    """Write rows start + i_m of a tile, m, z: [BLOCK_M / 2], acc: [BLOCK_M / 2, D].

    A carried branch's as they are, the base's joined to those of the carried branches.
    """
    out, lse, part, part_lse, table, row = results
    # In 64 bits, since they are multiplied by strides.
    head, batch, first = head.to(gl.int64), batch.to(gl.int64), first.to(gl.int64)
    held = start + i_m < kept
    if BASE:
        # The LSE of all branches, then their rows.
        peak = m
        for i in gl.static_range(1, N_CARRIED + 1):
            part_2, row_0, rows, there = part_of(
                part_lse, table, i, first + start, i_m, head, n_heads, batch, n_tokens, SHORT, INDEX
            )
            peak = gl.maximum(peak, part_2)
        pivot = gl.where(peak == float("-inf"), 0.0, peak)  # -inf - (-inf) is NaN
        alpha = gl.exp2(m - pivot)
        m, z, acc = peak, z * alpha, acc * gl.expand_dims(alpha, 1)
        for i in range(1, N_CARRIED + 1):
            part_2, row_0, rows, there = part_of(
                part_lse, table, i, first + start, i_m, head, n_heads, batch, n_tokens, SHORT, INDEX
            )
            beta = gl.exp2(part_2 - pivot)
            z += beta
            p_part = part + row_0 * D + gl.expand_dims(rows, 1) * D + gl.expand_dims(d, 0)
            # [BLOCK_M / 2, D]
            b_part = gl.load(p_part, mask=gl.expand_dims(there, 1), other=0.0)
            acc += gl.expand_dims(beta, 1) * b_part
        b_out, lse_2 = finish(m, z, acc)
        tokens = first + start + i_m
        rows = (batch * n_tokens + tokens) * n_heads + head
        p_out = out + gl.expand_dims(rows, 1) * D + gl.expand_dims(d, 0)
        gl.store(p_out, b_out.to(out.dtype.element_ty), mask=gl.expand_dims(held, 1))
        gl.store(lse + (batch * n_heads + head) * n_tokens + tokens, lse_2 * LN_2, mask=held)
    else:
        b_out, lse_2 = finish(m, z, acc)
        rows = compact_start(row, head, n_heads, segment, batch) + start + i_m
        p_part = part + gl.expand_dims(rows, 1) * D + gl.expand_dims(d, 0)
        gl.store(p_part, b_out, mask=gl.expand_dims(held, 1))
        gl.store(part_lse + rows, lse_2, mask=held)


@gluon.jit
def consume(
    HALF: gl.constexpr, b_q, b_k, b_v, pin, bars, results, numbers, scale,
    N_CARRIED: gl.constexpr, BASE: gl.constexpr, HAS_KEYS: gl.constexpr,
    SHORT: gl.constexpr, IS_CAUSAL: gl.constexpr, D: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BUFFERS: gl.constexpr, INDEX: gl.constexpr,
):  # fmt: skip
    """Attention of half of every tile's queries, the first or the second (HALF 0 or 1).

    b_q: [2, 1, ROWS, 1, 1, D] in shared memory, b_k, b_v: [BUFFERS, 1, BLOCK_N, 1, 1, D].
    """
    ROWS: gl.constexpr = BLOCK_M // 2
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    R: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, R, 2)
    q_full, q_empty, k_full, k_empty, v_full, v_empty, _ = bars
    out, lse, part, part_lse, table, row = results
    n_tokens, n_heads, span, n_tiles = numbers
    zero = gl.zeros([ROWS, BLOCK_N], gl.float32, S)
    i_m = HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, S))
    i_n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, S))
    i_o = HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, R))
    d = gl.arange(0, D, gl.SliceLayout(0, R))
    done, tiles = 0, 0
    for index in range(gl.program_id(0), n_tiles, gl.num_programs(0)):
        start, head, segment, batch, first, r, kept = owned(
            index, row, n_heads, n_tokens, span, n_tiles, BLOCK_M
        )
        if start < kept:
            acc = gl.zeros([ROWS, D], gl.float32, R)
            if HAS_KEYS:
                steps = steps_of(start, kept, BLOCK_M, BLOCK_N, IS_CAUSAL)
                b = slot(done, BUFFERS)
                queries = b_q.index(HALF).reshape([ROWS, D])
                mbarrier.wait(q_full, filled(tiles, 1))
                mbarrier.wait(k_full.index(b), filled(done, BUFFERS))
                keys = b_k.index(b).reshape([BLOCK_N, D]).permute((1, 0))
                s = warpgroup_mma(queries, keys, zero, use_acc=False, is_async=True)
                s = warpgroup_mma_wait(0, [s])  # [ROWS, BLOCK_N]
                mbarrier.arrive(k_empty.index(b), count=1)
                # The last keys come first: only these can be beyond a query, or beyond the run.
                # Each query sees at least one of them.
                if IS_CAUSAL:
                    seen = gl.expand_dims(i_m, 1) >= gl.expand_dims(i_n, 0)
                else:
                    seen = gl.expand_dims((steps - 1) * BLOCK_N + i_n < kept, 0)
                s = gl.where(seen, s, float("-inf"))
                m = gl.max(s, 1) * scale
                p = gl.exp2(s * scale - gl.expand_dims(m, 1))
                z = gl.sum(p, 1)
                p = gl.convert_layout(p.to(out.dtype.element_ty), P)
                for i in range(1, steps):
                    count = done + i
                    before = slot(count - 1, BUFFERS)
                    b = slot(count, BUFFERS)
                    mbarrier.wait(k_full.index(b), filled(count, BUFFERS))
                    keys = b_k.index(b).reshape([BLOCK_N, D]).permute((1, 0))
                    s = warpgroup_mma(queries, keys, zero, use_acc=False, is_async=True)
                    mbarrier.wait(v_full.index(before), filled(count - 1, BUFFERS))
                    values = b_v.index(before).reshape([BLOCK_N, D])
                    acc = warpgroup_mma(p, values, acc, is_async=True)
                    s = warpgroup_mma_wait(1, [s])  # [ROWS, BLOCK_N]
                    mbarrier.arrive(k_empty.index(b), count=1)
                    # The softmax of this step, while the values of the step before are summed.
                    m_new = gl.maximum(m, gl.max(s, 1) * scale)
                    w = gl.exp2(s * scale - gl.expand_dims(m_new, 1))
                    alpha = gl.exp2(m - m_new)
                    z = z * alpha + gl.sum(w, 1)
                    m = m_new
                    # Stored only so that the assembler does not move the softmax past this point.
                    pin.store(z)
                    acc = warpgroup_mma_wait(0, [acc])  # [ROWS, D]
                    mbarrier.arrive(v_empty.index(before), count=1)
                    p = gl.convert_layout(w.to(out.dtype.element_ty), P)
                    acc = acc * gl.convert_layout(gl.expand_dims(alpha, 1), R)
                mbarrier.arrive(q_empty, count=1)
                done += steps
                tiles += 1
                b = slot(done - 1, BUFFERS)
                mbarrier.wait(v_full.index(b), filled(done - 1, BUFFERS))
                acc = warpgroup_mma(p, b_v.index(b).reshape([BLOCK_N, D]), acc, is_async=True)
                acc = warpgroup_mma_wait(0, [acc])  # [ROWS, D]
                mbarrier.arrive(v_empty.index(b), count=1)
                m = gl.convert_layout(m, gl.SliceLayout(1, R))
                z = gl.convert_layout(z, gl.SliceLayout(1, R))
            else:
                m = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, R))
                z = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, R))
            write(
                m, z, acc, start, kept, head, segment, batch, first, i_o, d, results,
                n_tokens, n_heads, N_CARRIED, BASE, SHORT, D, INDEX,
            )  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def forward(
    q_long, q_short, k_long, k_short, v_long, v_short, out, lse, part, part_lse, table, branch,
    n_tokens, n_heads, span, n_tiles, scale,
    N_CARRIED: gl.constexpr, BASE: gl.constexpr, HAS_KEYS: gl.constexpr, SHORT: gl.constexpr,
    IS_CAUSAL: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BUFFERS: gl.constexpr, INDEX: gl.constexpr,
):  # fmt: skip
    """All tiles of one branch, row `branch` of the table; one program per multiprocessor.

    *_long, *_short: descriptors of `gluon_descriptors`. Tensors as for `dilated_forward.forward`.
    span, n_tiles: as in `dilated_gluon.Walk`. scale: times log2(e).
    """
    row = table + branch * (OFFSETS + n_heads)
    ELEMENT: gl.constexpr = out.dtype.element_ty
    b_q = gl.allocate_shared_memory(ELEMENT, [2, 1, BLOCK_M // 2, 1, 1, D], q_long.layout)
    b_k = gl.allocate_shared_memory(ELEMENT, [BUFFERS, 1, BLOCK_N, 1, 1, D], k_long.layout)
    b_v = gl.allocate_shared_memory(ELEMENT, [BUFFERS, 1, BLOCK_N, 1, 1, D], v_long.layout)
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    pin_0 = gl.allocate_shared_memory(gl.float32, [BLOCK_M // 2], FLAT)
    pin_1 = gl.allocate_shared_memory(gl.float32, [BLOCK_M // 2], FLAT)
    ONE: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [1], ONE)
    q_empty = gl.allocate_shared_memory(gl.int64, [1], ONE)
    cut = gl.allocate_shared_memory(gl.int64, [1], ONE)
    k_full = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], ONE)
    k_empty = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], ONE)
    v_full = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], ONE)
    v_empty = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], ONE)
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=2)
    mbarrier.init(cut, count=1)
    for i in gl.static_range(BUFFERS):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()
    views = (q_long, q_short, k_long, k_short, v_long, v_short)
    bars = (q_full, q_empty, k_full, k_empty, v_full, v_empty, cut)
    numbers = (n_tokens, n_heads, span, n_tiles)
    results = (out, lse, part, part_lse, table, row)
    gl.warp_specialize(
        [
            (
                consume,
                (
                    0, b_q, b_k, b_v, pin_0, bars, results, numbers, scale, N_CARRIED, BASE,
                    HAS_KEYS, SHORT, IS_CAUSAL, D, BLOCK_M, BLOCK_N, BUFFERS, INDEX,
                ),
            ),
            (
                consume,
                (
                    1, b_q, b_k, b_v, pin_1, bars, results, numbers, scale, N_CARRIED, BASE,
                    HAS_KEYS, SHORT, IS_CAUSAL, D, BLOCK_M, BLOCK_N, BUFFERS, INDEX,
                ),
            ),
            (
                produce,
                (
                    views, b_q, b_k, b_v, bars, row, numbers, HAS_KEYS, IS_CAUSAL, GROUP,
                    D, BLOCK_M, BLOCK_N, BUFFERS,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
