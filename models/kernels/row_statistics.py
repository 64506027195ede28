"""What a softmax's backward pass needs from each row; plain PyTorch: `plain_statistics`.

delta = rowsum(dO * O) - dLSE is subtracted from dP (FlashAttention-2, arXiv 2307.08691, algorithm
2, where dLSE = 0; with dLSE the gradient through the LSE costs nothing more). The LSE is converted
to base 2, as the kernels' scores are. Rows without keys have an LSE of -inf, whose gradient may be
NaN: their delta is 0.
"""

import torch
import triton
import triton.language as tl

from models.kernels.launch import on_device, strides, vector
from models.kernels.tile_math import (
    LOG2_E,
    ROW_MULTIPLE,
    head_columns,
    load_rows,
    pack_statistics,
    row_of,
    statistics_start,
)
from models.kernels.tiles import MAX_HEAD_DIM, padded

BLOCK = 64


def plain_statistics(
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None, out: torch.Tensor, lse: torch.Tensor
) -> torch.Tensor:
    """LSE in base 2 and delta, (B, H, N, 2); grad_out, out: (B, N, H, D), the others (B, H, N)."""
    delta = (grad_out * out).sum(dim=-1).transpose(1, 2)
    delta = delta if grad_lse is None else delta - grad_lse
    return torch.stack((lse * LOG2_E.value, delta.masked_fill(lse.isneginf(), 0.0)), dim=-1)


@triton.jit
def delta_of(
    p_grad, p_out, p_grad_lse, b_lse, held,
    HAS_GRAD_LSE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """delta of rows with the LSE b_lse, by pointers to each in dO, O and dLSE: all [BLOCK_M]."""
    d, d_mask = head_columns(D, BLOCK_D)
    # Both: [BLOCK_M, BLOCK_D].
    b_grad = load_rows(p_grad[:, None] + d[None, :], held, d_mask, D, BLOCK_D, True)
    b_out = load_rows(p_out[:, None] + d[None, :], held, d_mask, D, BLOCK_D, True)
    total = tl.sum(b_grad.to(tl.float32) * b_out.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        total -= tl.load(p_grad_lse, mask=held, other=0.0)
    return tl.where(b_lse == float("-inf"), 0.0, total)


@triton.jit
def kernel(
    grad_out, out, lse, grad_lse, statistics,
    g_b, g_n, g_h, o_b, o_n, o_h, l_b, l_h, l_n, n_tokens, n_heads,
    HAS_GRAD_LSE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of one head and batch element.

    grad_out, out: (B, N, H, D) by strides g_*, o_*; lse: (B, H, N) by strides l_*; grad_lse, if
    HAS_GRAD_LSE: (B, H, N), packed. statistics: (B, H, N'), see `row_statistics`.
    """
    pid = tl.program_id(0).to(tl.int64)
    # The heads of one token are neighbours in memory: neighbouring programs read them together.
    head, rest = pid % n_heads, pid // n_heads
    tiles = tl.cdiv(n_tokens, BLOCK_M)
    batch, tokens = rest // tiles, (rest % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    held = tokens < n_tokens
    rows = (batch * n_heads + head) * n_tokens + tokens
    b_lse = tl.load(lse + batch * l_b + head * l_h + tokens * l_n, mask=held)  # [BLOCK_M]
    total = delta_of(
        row_of(grad_out, g_b, g_n, g_h, batch, tokens, head, VECTOR)[0],
        row_of(out, o_b, o_n, o_h, batch, tokens, head, VECTOR)[0],
        grad_lse + rows, b_lse, held, HAS_GRAD_LSE, D, BLOCK_D,
    )  # fmt: skip
    rows = statistics_start(batch, head, n_heads, n_tokens) + tokens
    tl.store(statistics + rows, pack_statistics(b_lse * LOG2_E, total), mask=held)


def row_statistics(
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None, out: torch.Tensor, lse: torch.Tensor
) -> torch.Tensor:
    """LSE in base 2 and delta of each row, in one number, so that they are loaded at once.

    Args:
        grad_out, out: (B, N, H, D); their last dimension must be contiguous.
        grad_lse: (B, H, N) float32, or None where there is none.
        lse: (B, H, N) float32, natural logarithm.

    Returns:
        (B, H, N') int64, the bits of delta above those of the LSE, both float32; N' is N rounded up
        to a multiple of ROW_MULTIPLE, and rows beyond N are not written.
    """
    batch, n, heads, dim = out.shape
    length = triton.cdiv(n, ROW_MULTIPLE.value) * ROW_MULTIPLE.value
    statistics = lse.new_empty(batch, heads, length, dtype=torch.int64)
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    block = rows_per_program(dim)
    unit = vector(grad_out, out)
    with on_device(out):
        kernel[(batch * triton.cdiv(n, block) * heads,)](
            grad_out, out, lse, lse if grad_lse is None else grad_lse, statistics,
            *strides(grad_out, out, unit=unit), *lse.stride(), n, heads,
            HAS_GRAD_LSE=grad_lse is not None, D=dim, BLOCK_D=padded(dim), VECTOR=unit,
            BLOCK_M=block,
        )  # fmt: skip
    return statistics


def rows_per_program(head_dim: int) -> int:
    """As many rows as two tiles of them fit into registers."""
    return min(BLOCK, BLOCK * MAX_HEAD_DIM // padded(head_dim))
