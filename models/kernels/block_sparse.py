"""Block-sparse attention by Triton, as PyTorch ops; plain twin: `models.block_sparse`, "sdpa".

`attend` is what the rest calls. Below it `long_context::block_sparse_forward` and
`long_context::block_sparse_backward`, custom ops that autograd and torch.compile see whole.
Under torch.compile use the mask once before: it makes its other lists at the first call.
"""

from __future__ import annotations

import torch
import triton.language as tl

from models.errors import UnsupportedBackend
from models.fused_ops import as_operand
from models.kernels import (
    block_sparse_backward,
    block_sparse_forward,
    block_sparse_pair,
    graphs,
    tiles,
)
from models.kernels.row_statistics import row_statistics
from models.kernels.tile_math import LOG2_E

TABLE = "block_sparse"
BLOCK_SIZES = (16, 32, 64, 128)
# What kernels walk; a mask of larger blocks is split into these, which are as fast: they
# take several blocks a step.
TILE_SIZES = (64, 32, 16)
# Programs of two tiles each: two rounds of the two that each of 132 multiprocessors runs at once.
LEAST_PAIRS = 528


def why_not(q: torch.Tensor, mask) -> str | None:
    """Why the kernels cannot take q (B, N, H, D) under `mask`, or None if they can."""
    if mask.block_size not in BLOCK_SIZES:
        return f"block_size={mask.block_size}: takes {', '.join(map(str, BLOCK_SIZES))}"
    # The smallest blocks have tiles wherever there are any: for half types.
    return tiles.why_not(q) or tiles.why_no_tile(TABLE, q, TILE_SIZES[-1])


def attend(q, k, v, mask, is_causal: bool, scale: float):
    """Attention under `mask`, a `models.patterns.BlockMask`: out and LSE, both differentiable.

    q: (B, N, H, D), k, v: (B, N, Hkv, D), float16 or bfloat16, D <= 256; copied
    only where the kernels cannot read them as they lie, in either pass. Returns out
    (B, N, H, D) and LSE (B, H, N) float32; rows without keys give 0 and -inf.
    """
    size = next(
        size
        for size in TILE_SIZES
        if size <= mask.block_size and tiles.why_no_tile(TABLE, q, size) is None
    )
    if size < mask.block_size:
        mask = mask.split(mask.block_size // size, q.shape[1])
    mask = mask.causal() if is_causal else mask
    lists = [mask.row_ptr, mask.col_idx, mask.longest_first()]
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        columns = mask.transpose()
        lists += [columns.row_ptr, columns.col_idx, columns.longest_first()]
    else:
        lists += [None] * 3
    two = two_tiles(q, k, mask, is_causal)
    return forward(q, k, v, *lists, mask.block_size, is_causal, scale, *two)


def two_tiles(q, k, mask, is_causal: bool) -> tuple:
    """The last arguments of `forward`: how two tiles of queries share a program, if they do.

    They are of two heads with keys and lists in common where there are such, or else of two
    neighbouring blocks where that saves loads, and neither where no tile is for it or too few
    programs would be left.
    """
    pairs = q.shape[0] * q.shape[2] * mask.blocks // 2
    if q.is_cuda and pairs < LEAST_PAIRS:
        return (False, None, None, None)
    try:
        tiles.choose(TABLE, "forward_pair", q, mask.block_size)
    except UnsupportedBackend:
        return (False, None, None, None)
    if q.shape[2] // k.shape[2] % 2 == 0 and mask.pairs_heads:
        return (True, None, None, None)
    return (False, *(mask.neighbours(is_causal) or (None,) * 3))


@torch.library.custom_op("long_context::block_sparse_forward", mutates_args=())
def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    row_ptr: torch.Tensor,
    col_idx: torch.Tensor,
    order: torch.Tensor,
    column_row_ptr: torch.Tensor | None,
    column_col_idx: torch.Tensor | None,
    column_order: torch.Tensor | None,
    block_size: int,
    is_causal: bool,
    scale: float,
    by_head: bool = False,
    pair_row_ptr: torch.Tensor | None = None,
    pair_col_idx: torch.Tensor | None = None,
    pair_order: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out and LSE. The lists of the mask by rows, and by columns for the backward pass.

    When causal, the lists hold no block above the diagonal. A program takes two heads at once
    where by_head, and two blocks where there are lists of `BlockMask.neighbours`.
    """
    batch, n, heads, _ = q.shape
    q, k, v = (as_operand(x) for x in (q, k, v))  # here, where tensors have an address
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = q.new_empty(batch, heads, n, dtype=torch.float32)
    is_pair = by_head or pair_order is not None
    kernel = block_sparse_pair.forward_pair if is_pair else block_sparse_forward.forward
    lists = (row_ptr, col_idx, order)
    if pair_order is not None:
        lists = (pair_row_ptr, pair_col_idx, pair_order)
    graphs.keep(*lists)
    numbers = (n, heads, order.shape[1], scale * LOG2_E.value)
    _launch(
        kernel, (q, k, v, out, lse, *lists), numbers, (q, k, v), lists[2],
        block_size, is_causal, tiles.choose(TABLE, kernel.fn.__name__, q, block_size),
        heads // 2 if by_head else heads, **({"BY_HEAD": by_head} if is_pair else {}),
    )  # fmt: skip
    return out, lse


@forward.register_fake
def _(q, k, v, *_):
    batch, n, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, q.new_empty(batch, heads, n, dtype=torch.float32)


@torch.library.custom_op("long_context::block_sparse_backward", mutates_args=())
def backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    row_ptr: torch.Tensor,
    col_idx: torch.Tensor,
    order: torch.Tensor,
    column_row_ptr: torch.Tensor,
    column_col_idx: torch.Tensor,
    column_order: torch.Tensor,
    block_size: int,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dQ, dK, dV for the cotangents of out (B, N, H, D) and LSE (B, H, N)."""
    grad_out, q, k, v = (as_operand(x) for x in (grad_out, q, k, v))
    heads, kv_heads = q.shape[2], k.shape[2]
    tensors = (q, k, v, grad_out)
    grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    graphs.keep(row_ptr, col_idx, order, column_row_ptr, column_col_idx, column_order)
    statistics = row_statistics(grad_out, grad_lse, out, lse)
    options = ((q.shape[1], heads, order.shape[1], scale), tensors, order, block_size, is_causal)
    _launch(
        block_sparse_backward.backward_q,
        (*tensors, statistics, grads[0], row_ptr, col_idx, order),
        *options, tiles.choose(TABLE, "backward_q", q, block_size), heads,
    )  # fmt: skip
    lists = (column_row_ptr, column_col_idx, column_order)
    _launch(
        block_sparse_backward.backward_kv,
        (*tensors, statistics, *grads[1:], *lists),
        *options, tiles.choose(TABLE, "backward_kv", q, block_size), kv_heads,
    )  # fmt: skip
    return grads


@backward.register_fake
def _(grad_out, grad_lse, q, k, v, *_):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    tensors, ctx.options = inputs[:9], inputs[9:12]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, grad_out, grad_lse):
    *tensors, out, lse = ctx.saved_tensors
    nothing = (None,) * (6 + len(ctx.options) + 4)
    if grad_out is None and grad_lse is None:
        return (None,) * 3 + nothing
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    qkv, lists = tensors[:3], tensors[3:]
    return *backward(grad_out, grad_lse, *qkv, out, lse, *lists, *ctx.options), *nothing


forward.register_autograd(_backward, setup_context=_setup_context)


def _launch(
    kernel, arguments, numbers, tensors, order, block_size, is_causal, tile, owners, **constants
) -> None:  # fmt: skip
    """One program for each row of `order`, of `owners` heads and of each batch element.

    The kernel takes `arguments`, the strides of `tensors`, and `numbers`.
    """
    q, k = tensors[:2]
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
