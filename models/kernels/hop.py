"""The ring's own attention op by Triton, in place of PyTorch's; plain PyTorch: `hops.Eager`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton

from models.fused_ops import as_operand
from models.kernels import hop_backward, hop_forward, tiles
from models.kernels.launch import on_device, operands
from models.kernels.row_statistics import row_statistics
from models.kernels.tile_math import LOG2_E

TABLE = "hop"


def why_not(q: torch.Tensor) -> str | None:
    """Why the kernels cannot take q (B, N, H, D), or None if they can."""
    return tiles.why_not(q) or tiles.why_no_tile(TABLE, q)


@dataclass(frozen=True)
class Triton:
    """Attention of a piece of a hop, results in float32; interface as in `models.fused_ops`."""

    name = "triton"

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        is_causal: bool,
        scale: float,
        bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of some queries with some keys.

        Args:
            q: (B, H, Nq, D), float16, bfloat16 or float32, D <= 256; it and k, v are copied only
                where the kernels cannot read them as they lie.
            k, v: (B, H, Nk, D), of q's dtype.
            is_causal: whether query i sees keys up to i; needs Nq = Nk.
            scale: factor on q.k.
            bias: (B, 1 or H, 1, Nk), -inf for keys that are left out, whose k and v must be 0, and
                0 for the others.

        Returns:
            out (B, H, Nq, D) and LSE (B, H, Nq), natural logarithm, both float32; rows without keys
            give 0 and -inf.

        Raises:
            UnsupportedBackend: where the table has no tile for q.
        """
        q, k, v = (as_operand(x.transpose(1, 2)) for x in (q, k, v))
        batch, n, heads, _ = q.shape
        out = q.new_empty(q.shape, dtype=torch.float32)
        lse = q.new_empty(batch, heads, n, dtype=torch.float32)
        tile = tiles.choose(TABLE, "forward", q)
        count = triton.cdiv(n, tile.block_m)
        options = (is_causal, scale * LOG2_E.value, tile, count)
        _launch(hop_forward.forward, (q, k, v), bias, (out, lse), *options)
        return out.transpose(1, 2), lse

    def backward(
        self,
        grad_out: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        is_causal: bool,
        scale: float,
        bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients that come through the keys at hand.

        Args:
            grad_out: dO (B, H, Nq, D), of q's dtype.
            out, lse: (B, H, Nq, D) of any dtype and (B, H, Nq), over all keys that a row sees and
                not only those at hand; the other arguments are those that `forward` was given.

        Columns beyond 256 can only be those that `carry_grad_lse` adds, which are 0 in q, k and v:
        they count in rowsum(grad_out * out), and their gradients are returned as 0.

        Returns:
            dQ (B, H, Nq, D), dK and dV (B, H, Nk, D), float32.

        Raises:
            As `forward`.
        """
        grad_out, q, k, v, out = (as_operand(x.transpose(1, 2)) for x in (grad_out, q, k, v, out))
        statistics = row_statistics(grad_out, None, out, lse)
        extra = max(0, q.shape[3] - tiles.MAX_HEAD_DIM)
        if extra:
            grad_out, q, k, v = (x[..., : tiles.MAX_HEAD_DIM] for x in (grad_out, q, k, v))
        grads = tuple(x.new_empty(x.shape, dtype=torch.float32) for x in (q, k, v))
        tensors = (q, k, v, grad_out)
        tile = tiles.choose(TABLE, "backward_q", q)
        options = (is_causal, scale, tile, triton.cdiv(q.shape[1], tile.block_m))
        _launch(hop_backward.backward_q, tensors, bias, (statistics, grads[0]), *options)
        tile = tiles.choose(TABLE, "backward_kv", q)
        options = (is_causal, scale, tile, triton.cdiv(k.shape[1], tile.block_n))
        _launch(hop_backward.backward_kv, tensors, bias, (statistics, *grads[1:]), *options)
        return tuple((F.pad(x, (0, extra)) if extra else x).transpose(1, 2) for x in grads)


def _launch(kernel, tensors, bias, packed, is_causal, scale, tile, count) -> None:
    """`count` programs for each head and batch element; tensors: q, k, v, and dO going back."""
    q, k = tensors[:2]
    batch, n, heads, _ = q.shape
    padding = None
    if bias is not None:
        tile = tile.masked
        padding = (bias[:, :, 0] != 0).expand(batch, heads, -1).contiguous().view(torch.uint8)
    # Within a tile; from tile to tile kernels count in 64 bits.
    reach = max(tile.block_m, tile.block_n) * max(x.stride(1) for x in tensors)
    others, numbers = (padding, *packed), (n, k.shape[1], heads, scale)
    arguments, constants = operands(kernel, tensors, others, numbers, tile, is_causal, reach)
    with on_device(q):
        kernel[(batch * heads * count,)](*arguments, PADDED=padding is not None, **constants)
