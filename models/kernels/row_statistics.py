"""What a softmax's backward pass needs of each row; plain twin: `plain_statistics`.

delta = rowsum(dO * O) - dLSE is what it takes off dP (FlashAttention-2, arXiv
2307.08691, algorithm 2; less dLSE it carries the gradient through the LSE for nothing).
The LSE goes to base 2, as the kernels' scores are.
"""

import torch
import triton
import triton.language as tl

from models.kernels.tile_math import LOG2_E, head_columns, load_rows
from models.kernels.tiles import on_device, padded

BLOCK = 64


def plain_statistics(grad_out, grad_lse, out, lse):
    """LSE in base 2 and delta (B, H, N); grad_out, out: (B, N, H, D), the others (B, H, N)."""
    delta = (grad_out * out).sum(dim=-1).transpose(1, 2)
    return lse * LOG2_E.value, delta if grad_lse is None else delta - grad_lse


@triton.jit
def delta_of(
    grad_out, out, grad_lse, g_b, g_n, g_h, tokens, held, head, batch, n_tokens, n_heads,
    HAS_GRAD_LSE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """delta of the tokens (rows,) of one head; `out` and `grad_lse` are packed."""
    d, d_mask = head_columns(D, BLOCK_D)
    p_grad = grad_out + batch * g_b + tokens[:, None] * g_n + head * g_h + d[None, :]
    p_out = out + ((batch * n_tokens + tokens) * n_heads + head)[:, None] * D + d[None, :]
    b_grad = load_rows(p_grad, held, d_mask, D, BLOCK_D, True).to(tl.float32)
    b_out = load_rows(p_out, held, d_mask, D, BLOCK_D, True).to(tl.float32)
    total = tl.sum(b_grad * b_out, 1)
    if HAS_GRAD_LSE:
        rows = (batch * n_heads + head) * n_tokens + tokens
        total -= tl.load(grad_lse + rows, mask=held, other=0.0)
    return total


@triton.jit
def kernel(
    grad_out, out, lse, grad_lse, lse_2, delta, g_b, g_n, g_h, n_tokens, n_heads,
    HAS_GRAD_LSE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of one head and batch element."""
    pid = tl.program_id(0).to(tl.int64)
    # Heads of a token are neighbours in memory: neighbouring programs read them together.
    head, rest = pid % n_heads, pid // n_heads
    tiles = tl.cdiv(n_tokens, BLOCK_M)
    batch, tokens = rest // tiles, (rest % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    held = tokens < n_tokens
    total = delta_of(
        grad_out, out, grad_lse, g_b, g_n, g_h, tokens, held, head, batch, n_tokens, n_heads,
        HAS_GRAD_LSE, D, BLOCK_D,
    )  # fmt: skip
    rows = (batch * n_heads + head) * n_tokens + tokens
    tl.store(delta + rows, total, mask=held)
    tl.store(lse_2 + rows, tl.load(lse + rows, mask=held) * LOG2_E, mask=held)


def row_statistics(
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None, out: torch.Tensor, lse: torch.Tensor
):
    """As `plain_statistics`, float32; grad_out with a contiguous last dimension, `out` packed."""
    batch, n, heads, dim = out.shape
    lse_2, delta = (torch.empty_like(lse) for _ in range(2))
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    with on_device(out):
        kernel[(batch * triton.cdiv(n, BLOCK) * heads,)](
            grad_out, out, lse, lse if grad_lse is None else grad_lse, lse_2, delta,
            *grad_out.stride()[:3], n, heads,
            HAS_GRAD_LSE=grad_lse is not None, D=dim, BLOCK_D=padded(dim), BLOCK_M=BLOCK,
        )  # fmt: skip
    return lse_2, delta
