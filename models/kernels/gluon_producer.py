"""The producer of the Gluon kernel, a warp that loads K, Q and V by TMA; see `gluon_forward`."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from models.kernels.dilated_forward import SEGMENTS, TILES, kept_tokens, load_int32
from models.kernels.gluon_schedule import emptied, filled, place_of, slot, steps_of, tile_at

# Rows that the producer clears at once: the height of a swizzle atom.
ATOM = gl.constexpr(8)


@gluon.jit
def owned(index, row, n_heads, n_tokens, span, n_tiles, BLOCK_M: gl.constexpr):
    """The tile at place `index`: first row, head, segment, batch element, and `kept_tokens`."""
    tiles = load_int32(row + TILES)
    segments = load_int32(row + SEGMENTS)
    tile, unit = tile_at(index, n_tiles // tiles, tiles, span)
    head, rest = unit % n_heads, unit // n_heads
    segment, batch = rest % segments, rest // segments
    first, r, kept = kept_tokens(row, head, segment, n_tokens)
    return tile * BLOCK_M, head, segment, batch, first.to(gl.int32), r.to(gl.int32), kept


@gluon.jit
def fetch(long, short, is_long, batch, row, residue, head, bar, buffer):
    """Load rows from `row` on of one residue and head; long, short: descriptors of one tensor.

    buffer: [1, BLOCK, 1, 1, D], BLOCK rows as in the descriptors.
    """
    place = [batch, row, residue, head, 0]
    tma.async_copy_global_to_shared(long, place, bar, buffer, pred=is_long)
    tma.async_copy_global_to_shared(short, place, bar, buffer, pred=is_long == 0)


@gluon.jit
def clear_from(buffer, kept, BLOCK_N: gl.constexpr, D: gl.constexpr):
    """Set rows of a buffer [BLOCK_N, D] from `kept` on to 0, whatever they hold; by one warp."""
    L: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    rows = gl.arange(0, ATOM, gl.SliceLayout(1, L))
    for i in gl.static_range(BLOCK_N // ATOM):
        if kept < (i + 1) * ATOM:
            atom = buffer.slice(i * ATOM, ATOM)
            held = gl.expand_dims(rows + i * ATOM < kept, 1)
            old = atom.load(L)  # [ATOM, D]
            atom.store(gl.where(held, old, gl.zeros_like(old)))


@gluon.jit
def produce(
    views, b_q, b_k, b_v, bars, row, numbers,
    HAS_KEYS: gl.constexpr, IS_CAUSAL: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BUFFERS: gl.constexpr,
):  # fmt: skip
    """Fetch K, Q and V of every tile, in the order in which consumers wait for them.

    views: the descriptors of `forward`. b_q: [2, 1, BLOCK_M / 2, 1, 1, D] in shared memory, b_k and
    b_v: [BUFFERS, 1, BLOCK_N, 1, 1, D].
    """
    q_long, q_short, k_long, k_short, v_long, v_short = views
    q_full, q_empty, k_full, k_empty, v_full, v_empty, cut = bars
    n_tokens, n_heads, span, n_tiles = numbers
    done, tiles, cuts = 0, 0, 0
    for index in range(gl.program_id(0), n_tiles, gl.num_programs(0)):
        start, head, segment, batch, first, r, kept = owned(
            index, row, n_heads, n_tokens, span, n_tiles, BLOCK_M
        )
        if start < kept and HAS_KEYS:
            row_0, residue, is_long = place_of(first, r, n_tokens)
            kv_head = head // GROUP
            steps = steps_of(start, kept, BLOCK_M, BLOCK_N, IS_CAUSAL)
            # V follows one step behind K, as consumers use it.
            for i in range(steps + 1):
                if i < steps:
                    count = done + i
                    n = (steps - 1 - i) * BLOCK_N
                    b = slot(count, BUFFERS)
                    mbarrier.wait(k_empty.index(b), emptied(count, BUFFERS))
                    mbarrier.expect(k_full.index(b), k_long.block_type.nbytes)
                    fetch(  # [BLOCK_N, D]
                        k_long, k_short, is_long, batch, row_0 + n, residue, kv_head,
                        k_full.index(b), b_k.index(b),
                    )  # fmt: skip
                if i == 0:
                    mbarrier.wait(q_empty, emptied(tiles, 1))
                    mbarrier.expect(q_full, 2 * q_long.block_type.nbytes)
                    for half in gl.static_range(2):
                        fetch(  # [BLOCK_M / 2, D]
                            q_long, q_short, is_long, batch,
                            row_0 + start + half * (BLOCK_M // 2), residue, head,
                            q_full, b_q.index(half),
                        )  # fmt: skip
                else:
                    count = done + i - 1
                    n = (steps - i) * BLOCK_N
                    b = slot(count, BUFFERS)
                    mbarrier.wait(v_empty.index(b), emptied(count, BUFFERS))
                    if n + BLOCK_N > kept:
                        # Beyond the run lie other tokens, whose NaN would not vanish by a weight
                        # of 0. The producer clears them before it signals the consumers.
                        mbarrier.expect(cut, v_long.block_type.nbytes)
                        fetch(  # [BLOCK_N, D]
                            v_long, v_short, is_long, batch, row_0 + n, residue, kv_head,
                            cut, b_v.index(b),
                        )  # fmt: skip
                        mbarrier.wait(cut, filled(cuts, 1))
                        clear_from(b_v.index(b).reshape([BLOCK_N, D]), kept - n, BLOCK_N, D)
                        fence_async_shared()
                        mbarrier.arrive(v_full.index(b), count=1)
                        cuts += 1
                    else:
                        mbarrier.expect(v_full.index(b), v_long.block_type.nbytes)
                        fetch(  # [BLOCK_N, D]
                            v_long, v_short, is_long, batch, row_0 + n, residue, kv_head,
                            v_full.index(b), b_v.index(b),
                        )  # fmt: skip
            done += steps
            tiles += 1
