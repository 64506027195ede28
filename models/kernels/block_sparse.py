"""Block-sparse attention by Triton; plain twin: `models.block_sparse`, "sdpa".

Called by `models.block_sparse_op`. Before a CUDA graph is captured call once, both passes: a mask
makes its other lists at the first call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton.language as tl

from models.errors import UnsupportedBackend
from models.fused_ops import as_operand
from models.kernels import (
    block_sparse_backward,
    block_sparse_forward,
    block_sparse_pair,
    cuda_graphs,
    tiles,
)
from models.kernels.row_statistics import row_statistics
from models.kernels.tile_math import LOG2_E
from models.ops import empty_results, packed_like
from models.patterns.block_mask import BlockMask

TABLE = "block_sparse"
BLOCK_SIZES = (16, 32, 64, 128)
# What kernels walk; a mask of larger blocks is split into these, which are as fast: they
# take several blocks a step.
TILE_SIZES = (64, 32, 16)
# Programs of two tiles each: two rounds of the two that each of 132 multiprocessors runs at once.
LEAST_PAIRS = 528
ONE_TILE = (False, None)


def why_not(q: torch.Tensor, mask) -> str | None:
    """Why the kernels cannot take q (B, N, H, D) under `mask`, or None if they can."""
    if mask.block_size not in BLOCK_SIZES:
        return f"block_size={mask.block_size}: takes {', '.join(map(str, BLOCK_SIZES))}"
    # The smallest blocks have tiles wherever there are any: for half types.
    return tiles.why_not(q) or tiles.why_no_tile(TABLE, q, TILE_SIZES[-1])


def forward(
    q, k, v, mask: BlockMask, is_causal: bool, scale: float, *, key_padding_mask, document_ids
):
    """Attention under `mask`: out and LSE, without autograd.

    q: (B, N, H, D), k, v: (B, N, Hkv, D), float16 or bfloat16, D <= 256; copied
    only where the kernels cannot read them as they lie, in either pass. key_padding_mask: (B, N)
    bool or None, True where a key is not attended to; k and v must be 0 there and q finite
    (`models.padding.without_padding`). document_ids: (B, N) integers or None, tokens attend to
    those of the same. Returns out (B, N, H, D) and LSE (B, H, N) float32; rows without keys give 0
    and -inf.
    """
    mask = _walked(mask, q, is_causal)
    ids = token_ids(key_padding_mask, document_ids)
    if document_ids is None or _are_finite(q, k, v):
        two = ONE_TILE if ids else two_tiles(q, k, mask, is_causal)
        return launch_forward(q, k, v, ids, mask, is_causal, scale, two)
    out, lse = torch.zeros_like(packed_like(q)), None
    for own, own_ids in _one_by_one(ids):
        inputs = (_zeroed(x, ~own) for x in (q, k, v))
        part, part_lse = launch_forward(*inputs, own_ids, mask, is_causal, scale, ONE_TILE)
        out = torch.where(own[:, :, None, None], part, out)
        lse = part_lse if lse is None else torch.where(own[:, None], part_lse, lse)
    return out, lse


def backward(
    grad_out,
    grad_lse,
    q,
    k,
    v,
    out,
    lse,
    mask: BlockMask,
    is_causal: bool,
    scale: float,
    *,
    key_padding_mask,
    document_ids,
):
    """dQ, dK, dV for the cotangents of out (B, N, H, D) and, unless None, of LSE (B, H, N)."""
    mask = _walked(mask, q, is_causal)
    ids = token_ids(key_padding_mask, document_ids)
    tensors = (grad_out, q, k, v, out)
    if document_ids is not None and grad_lse is not None:
        grad_lse = grad_lse.masked_fill(lse.isneginf(), 0.0)  # what is no number there is of no use
    if document_ids is None or _are_finite(*tensors, grad_lse):
        return launch_backward(grad_lse, lse, *tensors, ids, mask, is_causal, scale)
    grads = tuple(torch.zeros_like(packed_like(x)) for x in (q, k, v))
    for own, own_ids in _one_by_one(ids):
        inputs = (_zeroed(x, ~own) for x in tensors)
        own_grad_lse = None if grad_lse is None else grad_lse.masked_fill(~own[:, None], 0.0)
        parts = launch_backward(own_grad_lse, lse, *inputs, own_ids, mask, is_causal, scale)
        pairs = zip(grads, parts, strict=True)
        grads = tuple(torch.where(own[:, :, None, None], part, x) for x, part in pairs)
    return grads


def token_ids(key_padding_mask, document_ids) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Ids (B, N) int32 of the tokens as queries and as keys: these see each other where equal.

    Documents are numbered from 0 in each row, and keys that are padding are -1; None where there
    is neither.
    """
    if document_ids is None and key_padding_mask is None:
        return None
    if document_ids is None:
        queries = torch.zeros_like(key_padding_mask, dtype=torch.int32)
    else:
        ordered, order = document_ids.long().sort(dim=1)  # any integers: not all types are sorted
        is_next = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
        queries = torch.empty_like(order, dtype=torch.int32)
        queries.scatter_(1, order, is_next.cumsum(dim=1, dtype=torch.int32))
    keys = queries if key_padding_mask is None else queries.masked_fill(key_padding_mask, -1)
    return queries.contiguous(), keys.contiguous()


def _one_by_one(ids):
    """Which tokens (B, N) are of a document, and the ids with which they see each other alone.

    For documents in which something is not finite: a weight of 0 times that would be NaN.
    """
    queries, keys = ids
    for document in range(int(queries.max()) + 1):
        yield queries == document, (queries, keys.masked_fill(keys != document, -1))


def _zeroed(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(tokens[:, :, None, None], 0.0)


def _are_finite(*tensors: torch.Tensor | None) -> bool:
    # The least and the most are NaN where anything is.
    bounds = [bound.float() for x in tensors if x is not None for bound in x.aminmax()]
    bounds = torch.stack(bounds)
    return bool(bounds.isfinite().all())


def _walked(mask: BlockMask, q: torch.Tensor, is_causal: bool) -> BlockMask:
    """The mask in blocks that there are tiles for, and none above the diagonal when causal."""
    size = next(
        size
        for size in TILE_SIZES
        if size <= mask.block_size and tiles.why_no_tile(TABLE, q, size) is None
    )
    if size < mask.block_size:
        mask = mask.split(mask.block_size // size, q.shape[1])
    return mask.causal() if is_causal else mask


def two_tiles(q, k, mask, is_causal: bool) -> tuple:
    """How two tiles of queries share a program: whether by heads, and lists of two blocks.

    They are of two heads with keys and lists in common where there are such, or else of two
    neighbouring blocks where that saves loads, and neither where no tile is for it or too few
    programs would be left.
    """
    pairs = q.shape[0] * q.shape[2] * mask.blocks // 2
    if q.is_cuda and pairs < LEAST_PAIRS:
        return ONE_TILE
    try:
        tiles.choose(TABLE, "forward_pair", q, mask.block_size)
    except UnsupportedBackend:
        return ONE_TILE
    if q.shape[2] // k.shape[2] % 2 == 0 and mask.pairs_heads:
        return (True, None)
    return (False, mask.neighbours(is_causal))


def launch_forward(q, k, v, ids, mask: BlockMask, is_causal: bool, scale: float, two):
    """out and LSE under `mask`, whose blocks are tiles, and causal where is_causal.

    ids: of `token_ids`. two: as `two_tiles` says, ONE_TILE where there are ids.
    """
    heads, (by_head, pairs) = q.shape[2], two
    q, k, v = (as_operand(x) for x in (q, k, v))
    out, lse = empty_results(q)
    is_pair = by_head or pairs is not None
    kernel = block_sparse_pair.forward_pair if is_pair else block_sparse_forward.forward
    lists = pairs or (mask.row_ptr, mask.col_idx, mask.longest_first())
    cuda_graphs.keep(*lists)
    ids = () if is_pair else ids or (None, None)
    numbers = (q.shape[1], heads, mask.blocks, scale * LOG2_E.value)
    _launch(
        kernel, (q, k, v, *ids, out, lse, *lists), numbers, (q, k, v), lists[2],
        mask.block_size, is_causal, tiles.choose(TABLE, kernel.fn.__name__, q, mask.block_size),
        heads // 2 if by_head else heads,
        **({"BY_HEAD": by_head} if is_pair else {"BY_IDS": ids[0] is not None}),
    )  # fmt: skip
    return out, lse


def launch_backward(
    grad_lse, lse, grad_out, q, k, v, out, ids, mask: BlockMask, is_causal: bool, scale: float
):
    """dQ, dK, dV under `mask`, as `launch_forward` takes it."""
    grad_out, q, k, v, out = (as_operand(x) for x in (grad_out, q, k, v, out))
    heads, kv_heads = q.shape[2], k.shape[2]
    tensors = (q, k, v, grad_out)
    ids = ids or (None, None)
    grads = tuple(packed_like(x) for x in (q, k, v))
    columns = mask.transpose()
    lists = [(each.row_ptr, each.col_idx, each.longest_first()) for each in (mask, columns)]
    cuda_graphs.keep(*lists[0], *lists[1])
    statistics = row_statistics(grad_out, grad_lse, out, lse)
    numbers = (q.shape[1], heads, mask.blocks, scale)
    options = (numbers, tensors, lists[0][2], mask.block_size, is_causal)
    _launch(
        block_sparse_backward.backward_q,
        (*tensors, *ids, statistics, grads[0], *lists[0]),
        *options, tiles.choose(TABLE, "backward_q", q, mask.block_size), heads,
        BY_IDS=ids[0] is not None,
    )  # fmt: skip
    _launch(
        block_sparse_backward.backward_kv,
        (*tensors, *ids, statistics, *grads[1:], *lists[1]),
        *options, tiles.choose(TABLE, "backward_kv", q, mask.block_size), kv_heads,
        BY_IDS=ids[0] is not None,
    )  # fmt: skip
    return grads


def _launch(
    kernel, arguments, numbers, tensors, order, block_size, is_causal, tile, owners, **constants
) -> None:  # fmt: skip
    """One program for each row of `order`, of `owners` heads and of each batch element.

    The kernel takes `arguments`, the strides of `tensors`, and `numbers`.
    """
    q, k = tensors[:2]
    if constants.get("BY_IDS"):
        tile = tile.masked
    unit = tiles.vector(*tensors)
    n = q.shape[1]
    reach = (n + block_size) * max(x.stride(1) for x in tensors)
    with tiles.on_device(q):
        kernel[(order.shape[1] * owners * q.shape[0],)](
            *arguments,
            *tiles.strides(*tensors, unit=unit),
            *numbers,
            BLOCK_SIZE=block_size,
            PER_HEAD=order.shape[0] > 1,
            EVEN_N=n % block_size == 0,
            IS_CAUSAL=is_causal,
            GROUP=q.shape[2] // k.shape[2],
            D=q.shape[3],
            BLOCK_D=tiles.padded(q.shape[3]),
            VECTOR=unit,
            PRECISION="ieee",
            INDEX=tl.int32 if reach < 2**31 else tl.int64,
            **tile.options(kernel),
            **constants,
        )
