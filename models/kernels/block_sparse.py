"""Block-sparse attention by Triton; plain PyTorch: `models.block_sparse`, "sdpa".

Called by `models.block_sparse_op`. Call both passes once before a CUDA graph is captured: a mask
makes its other lists at the first call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.errors import UnsupportedBackend
from models.fused_ops import as_operand
from models.kernels import (
    block_sparse_backward,
    block_sparse_forward,
    block_sparse_pair,
    cuda_graphs,
    tiles,
)
from models.kernels.launch import on_device, operands
from models.kernels.row_statistics import row_statistics
from models.kernels.tile_math import LOG2_E
from models.ops import empty_results, packed_like
from models.patterns.block_mask import BlockMask

TABLE = "block_sparse"
BLOCK_SIZES = (16, 32, 64, 128)
# Blocks that kernels walk; a mask of larger blocks is split into these, which are as fast, since a
# step takes several of them.
TILE_SIZES = (64, 32, 16)
# Programs of two tiles each: 132 multiprocessors run two at once each, in two rounds.
LEAST_PAIRS = 528
ONE_TILE = (False, None)


def why_not(q: torch.Tensor, mask: BlockMask) -> str | None:
    """Why the kernels cannot take q (B, N, H, D) under `mask`, or None if they can."""
    if mask.block_size not in BLOCK_SIZES:
        return f"block_size={mask.block_size}: takes {', '.join(map(str, BLOCK_SIZES))}"
    # The smallest blocks have tiles wherever there are any: for half types.
    return tiles.why_not(q) or tiles.why_no_tile(TABLE, q, TILE_SIZES[-1])


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: BlockMask,
    is_causal: bool,
    scale: float,
    *,
    key_padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block-sparse attention, without autograd.

    Args:
        q: (B, N, H, D), float16 or bfloat16, D <= 256; it and k, v are copied only where the
            kernels of either pass cannot read them as they lie.
        k, v: (B, N, Hkv, D), of q's dtype; Hkv divides H.
        mask: of N tokens, its block size one of BLOCK_SIZES, on q's device.
        is_causal: whether queries see no later keys.
        scale: factor on q.k.
        key_padding_mask: (B, N) bool, True where a key is not attended to; k and v must be 0 there
            and q finite (`models.padding.without_padding`).
        document_ids: (B, N) integers; tokens attend to those with the same id.

    Returns:
        out (B, N, H, D), of q's dtype, and LSE (B, H, N) float32, natural logarithm; rows without
        keys give 0 and -inf.

    Raises:
        UnsupportedBackend: where the table has no tile for q.
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
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: BlockMask,
    is_causal: bool,
    scale: float,
    *,
    key_padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of block-sparse attention.

    Args:
        grad_out: dO (B, N, H, D), of q's dtype.
        grad_lse: (B, H, N) float32, or None where there is none.
        out, lse: what `forward` returned; the other arguments are those that it was given.

    Returns:
        dQ (B, N, H, D), dK and dV (B, N, Hkv, D), of q's dtype.

    Raises:
        As `forward`.
    """
    mask = _walked(mask, q, is_causal)
    ids = token_ids(key_padding_mask, document_ids)
    tensors = (grad_out, q, k, v, out)
    if document_ids is not None and grad_lse is not None:
        grad_lse = grad_lse.masked_fill(lse.isneginf(), 0.0)  # it may be NaN in rows without keys
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


def token_ids(
    key_padding_mask: torch.Tensor | None, document_ids: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Ids of the tokens as queries and as keys: a query sees the keys whose id equals its own.

    Args:
        key_padding_mask: (B, N) bool, True where a key is not attended to.
        document_ids: (B, N) integers.

    Returns:
        Two (B, N) int32, packed: documents are numbered from 0 in each row, keys that are padding
        have -1. None where there are neither documents nor padding.
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
    """Per document: which tokens (B, N) are in it, and ids with which only these see each other.

    For inputs that are not finite everywhere: a weight of 0 times Inf or NaN would be NaN.
    """
    queries, keys = ids
    for document in range(int(queries.max()) + 1):
        yield queries == document, (queries, keys.masked_fill(keys != document, -1))


def _zeroed(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(tokens[:, :, None, None], 0.0)


def _are_finite(*tensors: torch.Tensor | None) -> bool:
    # Minimum and maximum are NaN where any element is.
    bounds = [bound.float() for x in tensors if x is not None for bound in x.aminmax()]
    bounds = torch.stack(bounds)
    return bool(bounds.isfinite().all())


def _walked(mask: BlockMask, q: torch.Tensor, is_causal: bool) -> BlockMask:
    """The mask in blocks that have tiles, and without blocks above the diagonal when causal."""
    size = next(
        size
        for size in TILE_SIZES
        if size <= mask.block_size and tiles.why_no_tile(TABLE, q, size) is None
    )
    if size < mask.block_size:
        mask = mask.split(mask.block_size // size, q.shape[1])
    return mask.causal() if is_causal else mask


def two_tiles(
    q: torch.Tensor, k: torch.Tensor, mask: BlockMask, is_causal: bool
) -> tuple[bool, tuple[torch.Tensor, ...] | None]:
    """How two tiles of queries share a program, which loads the keys of both once.

    Returns:
        (True, None): tiles of two heads that have keys and lists in common. (False, lists): tiles
        of two neighbouring query blocks, where that saves loads; lists of
        `BlockMask.neighbours`. ONE_TILE: one tile per program, where no tile is for pairs, too few
        programs would be left, or no loads are saved.
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


def launch_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ids: tuple[torch.Tensor, torch.Tensor] | None,
    mask: BlockMask,
    is_causal: bool,
    scale: float,
    two: tuple[bool, tuple[torch.Tensor, ...] | None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """out and LSE, as `forward` gives them.

    Args:
        ids: of `token_ids`.
        mask: its blocks are tiles and, where is_causal, none is above the diagonal.
        two: of `two_tiles`; ONE_TILE where there are ids.
    """
    heads, (by_head, pairs) = q.shape[2], two
    q, k, v = (as_operand(x) for x in (q, k, v))
    out, lse = empty_results(q)
    lists = pairs or (mask.row_ptr, mask.col_idx, mask.longest_first())
    cuda_graphs.keep(*lists)
    results = (out, lse, *lists)
    numbers = (q.shape[1], heads, mask.blocks, scale * LOG2_E.value)
    if by_head or pairs is not None:
        kernel, owners = block_sparse_pair.forward_pair, heads // 2 if by_head else heads
        constants = {"BY_HEAD": by_head}
    else:
        kernel, owners = block_sparse_forward.forward, heads
        results, constants = (*(ids or (None, None)), *results), {"BY_IDS": ids is not None}
    _launch(kernel, (q, k, v), results, numbers, lists[2], mask, is_causal, owners, **constants)
    return out, lse


def launch_backward(
    grad_lse: torch.Tensor | None,
    lse: torch.Tensor,
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    ids: tuple[torch.Tensor, torch.Tensor] | None,
    mask: BlockMask,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dQ, dK, dV, as `backward` gives them; ids and mask as in `launch_forward`."""
    grad_out, q, k, v, out = (as_operand(x) for x in (grad_out, q, k, v, out))
    heads, kv_heads = q.shape[2], k.shape[2]
    grad_q, grad_k, grad_v = (packed_like(x) for x in (q, k, v))
    rows, columns = (
        (each.row_ptr, each.col_idx, each.longest_first()) for each in (mask, mask.transpose())
    )
    cuda_graphs.keep(*rows, *columns)
    statistics = row_statistics(grad_out, grad_lse, out, lse)
    numbers = (q.shape[1], heads, mask.blocks, scale)
    for kernel, grads, lists, owners in (
        (block_sparse_backward.backward_q, (grad_q,), rows, heads),
        (block_sparse_backward.backward_kv, (grad_k, grad_v), columns, kv_heads),
    ):
        others = (*(ids or (None, None)), statistics, *grads, *lists)
        options = (mask, is_causal, owners)
        tensors = (q, k, v, grad_out)
        _launch(kernel, tensors, others, numbers, lists[2], *options, BY_IDS=ids is not None)
    return grad_q, grad_k, grad_v


def _launch(
    kernel, tensors, others, numbers, order, mask: BlockMask, is_causal, owners, **constants
) -> None:  # fmt: skip
    """One program for each block in `order`, of each of `owners` heads and each batch element."""
    q, size = tensors[0], mask.block_size
    tile = tiles.choose(TABLE, kernel.fn.__name__, q, size)
    if constants.get("BY_IDS"):
        tile = tile.masked
    n = q.shape[1]
    reach = (n + size) * max(x.stride(1) for x in tensors)
    arguments, common = operands(kernel, tensors, others, numbers, tile, is_causal, reach)
    constants |= {"BLOCK_SIZE": size, "PER_HEAD": order.shape[0] > 1, "EVEN_N": n % size == 0}
    with on_device(q):
        programs = order.shape[1] * owners * q.shape[0]
        kernel[(programs,)](*arguments, PRECISION="ieee", **common, **constants)
