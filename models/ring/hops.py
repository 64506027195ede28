"""What a rank computes in each hop: its queries with some keys, joined in float32 by LSE.

The backward pass starts from the joined output and LSE, so that P = exp(S - LSE) of each piece
is its part of the whole softmax and the pieces' gradients add up (`models.strided`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from models.fused_ops import CudaEfficient, CudaFlash, head_dim_multiple
from models.merge import merge_into
from models.ring.flags import leave_out, without_flags
from models.ring.pieces import Piece
from models.ring.plan import Hop
from models.strided import carry_grad_lse


@dataclass(frozen=True)
class Eager:
    """The explicit softmax of a piece, in float32 at least, on any device.

    seen: (n,) numbers of keys that each query sees, none 0; None for all, or the causal
    triangle. Same interface as `models.fused_ops`; layout (B, H, N, D).
    """

    seen: np.ndarray | None = None

    name = "eager"

    def forward(self, q, k, v, is_causal, scale, bias=None):
        scores = self._scores(q, k, is_causal, scale, bias)
        lse = scores.logsumexp(dim=-1)
        # Where no key is seen, weights are exp(-inf - 0).
        weights = (scores - lse.masked_fill(lse.isneginf(), 0.0)[..., None]).exp()
        return weights @ v.to(weights.dtype), lse

    def backward(self, grad_out, q, k, v, out, lse, is_causal, scale, bias=None):
        weights = (self._scores(q, k, is_causal, scale, bias) - lse[..., None]).exp()
        grad_out, out, q, k, v = (x.to(weights.dtype) for x in (grad_out, out, q, k, v))
        delta = (grad_out * out).sum(dim=-1, keepdim=True)
        ds = weights * (grad_out @ v.mT - delta)
        return scale * ds @ k, scale * ds.mT @ q, weights.mT @ grad_out

    def _scores(self, q, k, is_causal, scale, bias):
        dtype = torch.promote_types(q.dtype, torch.float32)
        scores = scale * q.to(dtype) @ k.to(dtype).mT
        if bias is not None:
            scores += bias
        if not is_causal and self.seen is None:
            return scores
        seen = np.arange(1, q.shape[-2] + 1) if is_causal else self.seen
        keys = torch.arange(k.shape[-2], device=q.device)
        limit = torch.from_numpy(np.array(seen)).to(q.device)
        return scores.masked_fill_(keys >= limit[:, None], -torch.inf)


def working_dtype(q: torch.Tensor) -> torch.dtype:
    """What pieces are computed in: on a CPU half types are widened, so that no partial result
    is rounded to them; fused CUDA ops take them as they are."""
    if q.device.type == "cpu":
        return torch.promote_types(q.dtype, torch.float32)
    return q.dtype


class Queries:
    """A rank's queries and what has been joined for them so far.

    q: (B, n, H, D), in `working_dtype`. op: one of `fused_ops`, or `Eager`. Keys come with
    `models.ring.flags` or without.
    """

    def __init__(self, q: torch.Tensor, op, scale: float):
        self.q, self.op, self.scale = q, op, scale
        self.dtype = torch.promote_types(q.dtype, torch.float32)
        self._joined: tuple[torch.Tensor, torch.Tensor] | None = None

    def attend(self, hop: Hop, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        """Join attention to these keys and values, (B, n, h, D) a share of the hop's parcel."""
        for pieces, k, v in zip(hop.pieces, keys, values, strict=True):
            for piece in pieces:
                op = _op(self.op, piece)
                q = _operand(piece.q.of(self.q, piece.q_heads))
                k_part, v_part = (_operand(piece.k.of(x, piece.kv_heads)) for x in (k, v))
                k_part, bias = without_flags(k_part, q.shape[-1])
                out, lse = op.forward(q, k_part, v_part, piece.is_causal, self.scale, bias)
                if bias is not None:
                    leave_out(out, lse, bias, piece)
                self._join(piece, _sets(out, self.q.shape[0]), _sets(lse, self.q.shape[0]))

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """out (B, n, H, D) and LSE (B, n, H), float32 at least."""
        if self._joined is None:
            out = self.q.new_zeros(self.q.shape, dtype=self.dtype)
            self._joined = out, self.q.new_full(self.q.shape[:3], -torch.inf, dtype=self.dtype)
        return self._joined

    def _join(self, piece, part_out, part_lse):
        if self._joined is None and part_out.numel() == self.q.numel() and piece.q.is_whole:
            # All queries at once, and nothing to join them to: adopted, not copied.
            self._joined = part_out[:, 0].to(self.dtype), part_lse[:, 0].contiguous()
            return
        whole = self.result()
        parts = [piece.q.of(x, piece.q_heads) for x in whole]
        merge_into(*parts, part_out, part_lse)
        if not piece.q.is_view:
            for x, part in zip(whole, parts, strict=True):
                piece.q.put(x, piece.q_heads, part)


class Gradients:
    """The backward pass of a rank's queries, hop by hop in the order of the forward pass.

    grad_out, out: (B, n, H, D), lse: (B, n, H), finite, grad_lse: (B, n, H) or None. `dq` is
    float32 at least.
    """

    def __init__(self, q, out, lse, grad_out, grad_lse, op, scale):
        self.scale, self.dim, self.lse, self.op = scale, q.shape[-1], lse, op
        self.extra = 0 if grad_lse is None else head_dim_multiple(q)
        if grad_lse is not None:
            q, out, grad_out = carry_grad_lse(q, out, grad_out, grad_lse)
            if isinstance(op, CudaFlash) and q.shape[-1] > CudaFlash.max_head_dim:
                self.op = CudaEfficient()
        self.q, self.out, self.grad_out = q, out, grad_out
        self.dq = q.new_zeros(q.shape, dtype=torch.promote_types(q.dtype, torch.float32))

    def attend(self, hop: Hop, keys, values, grad_keys, grad_values) -> None:
        """Add to dq, and to the keys' and values' float32 gradients, laid out as they are."""
        batch = self.q.shape[0]
        of_share = zip(hop.pieces, keys, values, grad_keys, grad_values, strict=True)
        for pieces, k, v, grad_k, grad_v in of_share:
            for piece in pieces:
                of_q = (self.grad_out, self.q, self.out, self.lse)
                grad_out, q, out, lse = (_operand(piece.q.of(x, piece.q_heads)) for x in of_q)
                k_part, v_part = (_operand(piece.k.of(x, piece.kv_heads)) for x in (k, v))
                k_part, bias = without_flags(k_part, self.dim)
                k_part, v_part = (F.pad(x, (0, self.extra)) for x in (k_part, v_part))
                dq, dk, dv = _op(self.op, piece).backward(
                    grad_out, q, k_part, v_part, out, lse, piece.is_causal, self.scale, bias
                )
                piece.q.add(self.dq, piece.q_heads, _sets(dq, batch))
                piece.k.add(grad_k, piece.kv_heads, _sets(dk, batch)[..., : self.dim])
                piece.k.add(grad_v, piece.kv_heads, _sets(dv, batch)[..., : self.dim])

    def result(self) -> torch.Tensor:
        """dq (B, n, H, D), float32 at least."""
        return self.dq[..., : self.dim]


def _op(op, piece: Piece):
    return op if piece.seen is None else Eager(piece.seen)


def _operand(x: torch.Tensor) -> torch.Tensor:
    """(B, S, n, h, ...) as the ops take it, (B * S, h, n, ...)."""
    return x.flatten(0, 1).transpose(1, 2)


def _sets(x: torch.Tensor, batch: int) -> torch.Tensor:
    """The inverse of `_operand`, without a copy."""
    return x.transpose(1, 2).unflatten(0, (batch, -1))
