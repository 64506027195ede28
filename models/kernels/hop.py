"""The ring's own attention op by Triton, in the place of PyTorch's; plain twin: `hops.Eager`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from models.fused_ops import as_operand
from models.kernels import hop_backward, hop_forward, tiles
from models.kernels.row_statistics import row_statistics
from models.kernels.tile_math import LOG2_E

TABLE = "hop"


def why_not(q: torch.Tensor) -> str | None:
    """Why the kernels cannot take q (B, N, H, D), or None if they can."""
    return tiles.why_not(q) or tiles.why_no_tile(TABLE, q)


@dataclass(frozen=True)
class Triton:
    """Pieces of a hop whose results are never rounded to half: float16, bfloat16 and float32.

    Same interface as `models.fused_ops`: q (B, H, Nq, D), k, v (B, H, Nk, D), D <= 256, any
    strides with a contiguous last dimension; causal ones have Nq = Nk. bias: (B, 1 or H, 1, Nk),
    -inf for keys that are left out, whose k and v must be 0, else 0; None for none.
    """

    name = "triton"

    def forward(self, q, k, v, is_causal: bool, scale: float, bias=None):
        """Returns out (B, H, Nq, D) and LSE (B, H, Nq), both float32; 0 and -inf without keys."""
        q, k, v = (as_operand(x.transpose(1, 2)) for x in (q, k, v))
        batch, n, heads, _ = q.shape
        out = q.new_empty(q.shape, dtype=torch.float32)
        lse = q.new_empty(batch, heads, n, dtype=torch.float32)
        tile = tiles.choose(TABLE, "forward", q)
        count = triton.cdiv(n, tile.block_m)
        options = (is_causal, scale * LOG2_E.value, tile, count)
        _launch(hop_forward.forward, (q, k, v), bias, (out, lse), *options)
        return out.transpose(1, 2), lse

    def backward(self, grad_out, q, k, v, out, lse, is_causal: bool, scale: float, bias=None):
        """dq, dk, dv of the keys at hand, float32, given out and LSE of all that a row sees.

        out: in any type. Columns beyond 256, which can only be those that `carry_grad_lse` adds,
        are 0 in q, k and v: they count in rowsum(grad_out * out), and their gradients
        are given as 0.
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
    batch, n, heads, dim = q.shape
    padding = None
    if bias is not None:
        tile = tile.masked
        padding = (bias[:, :, 0] != 0).expand(batch, heads, -1).contiguous().view(torch.uint8)
    # Within a tile; from tile to tile kernels count in 64 bits.
    reach = max(tile.block_m, tile.block_n) * max(x.stride(1) for x in tensors)
    vector = tiles.vector(*tensors)
    with tiles.on_device(q):
        kernel[(batch * heads * count,)](
            *tensors, padding, *packed, *tiles.strides(*tensors, unit=vector),
            n, k.shape[1], heads, scale,
            PADDED=padding is not None, IS_CAUSAL=is_causal, D=dim, BLOCK_D=tiles.padded(dim),
            VECTOR=vector, INDEX=tl.int32 if reach < 2**31 else tl.int64, **tile.options(kernel),
        )  # fmt: skip
