"""What a rank computes per hop: its queries with some keys, joined in float32 by LSE.

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
from models.ring.padding_flags import clear_rows_without_keys, without_flags
from models.ring.pieces import Piece
from models.ring.plan import Hop
from models.strided import carry_grad_lse


@dataclass(frozen=True)
class Eager:
    """The explicit softmax of a piece, in float32 at least, on any device.

    The interface of `models.fused_ops`.

    Args:
        seen: (n,) int64, the number of keys that each query sees, none 0; None for all keys, or
            for the causal triangle where `is_causal`.
    """

    seen: np.ndarray | None = None

    name = "eager"

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        is_causal: bool,
        scale: float,
        bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """out (B, h, n, D) and LSE (B, h, n), float32 at least.

        Args:
            q: (B, h, n, D).
            k: (B, h, m, D).
            v: (B, h, m, D).
            is_causal: query i sees keys up to i; n = m.
            scale: factor on q.k.
            bias: (B, 1, 1, m), added to the scores; None for none.
        """
        scores = self._scores(q, k, is_causal, scale, bias)
        lse = scores.logsumexp(dim=-1)
        # Where no key is seen the weights are exp(-inf - 0) = 0, not exp(-inf + inf).
        weights = (scores - lse.masked_fill(lse.isneginf(), 0.0)[..., None]).exp()
        return weights @ v.to(weights.dtype), lse

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
        """dq, dk, dv, shaped as q, k, v, float32 at least.

        Args:
            grad_out: (B, h, n, D).
            q, k, v: as in `forward`.
            out: (B, h, n, D), of the whole softmax, of which this may be a part.
            lse: (B, h, n), of the whole softmax, finite.
            is_causal, scale, bias: as in `forward`.
        """
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
    """The dtype of a piece's operands: q's, but float32 for half types on a CPU.

    There partial results would be rounded to the operands' dtype; fused CUDA ops return float32.
    """
    if q.device.type == "cpu":
        return torch.promote_types(q.dtype, torch.float32)
    return q.dtype


class OutputAccumulator:
    """A rank's queries, and their attention to the keys of all hops so far.

    Keys have `models.ring.padding_flags` or not.

    Args:
        q: (B, n, H, D), in `working_dtype`.
        op: computes a piece, see `models.ring.call.Call`.
        scale: factor on q.k.
    """

    def __init__(self, q: torch.Tensor, op: object, scale: float):
        self.q, self.op, self.scale = q, op, scale
        self.dtype = torch.promote_types(q.dtype, torch.float32)
        self._joined: tuple[torch.Tensor, torch.Tensor] | None = None

    def attend(self, hop: Hop, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        """Join the attention to a hop's keys.

        Args:
            hop: whose pieces to compute.
            keys: (B, n, h, D) per subset of the hop's message.
            values: (B, n, h, D) per subset.
        """
        for pieces, k, v in zip(hop.pieces, keys, values, strict=True):
            for piece in pieces:
                op = _op(self.op, piece)
                q = _operand(piece.q.gather(self.q, piece.q_heads))
                k_part, v_part = (_operand(piece.k.gather(x, piece.kv_heads)) for x in (k, v))
                k_part, bias = without_flags(k_part, q.shape[-1])
                out, lse = op.forward(q, k_part, v_part, piece.is_causal, self.scale, bias)
                if bias is not None:
                    clear_rows_without_keys(out, lse, bias, piece)
                self._join(piece, _by_sets(out, self.q.shape[0]), _by_sets(lse, self.q.shape[0]))

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """out (B, n, H, D) and LSE (B, n, H), float32 at least; 0 and -inf in rows without keys."""
        if self._joined is None:
            out = self.q.new_zeros(self.q.shape, dtype=self.dtype)
            self._joined = out, self.q.new_full(self.q.shape[:3], -torch.inf, dtype=self.dtype)
        return self._joined

    def _join(self, piece, part_out, part_lse):
        if self._joined is None and part_out.numel() == self.q.numel() and piece.q.is_whole:
            # The first piece holds all queries: its results are taken over, not copied.
            self._joined = part_out[:, 0].to(self.dtype), part_lse[:, 0].contiguous()
            return
        whole = self.result()
        parts = [piece.q.gather(x, piece.q_heads) for x in whole]
        merge_into(*parts, part_out, part_lse)
        if not piece.q.is_view:
            for x, part in zip(whole, parts, strict=True):
                piece.q.scatter(x, piece.q_heads, part)


class GradientAccumulator:
    """The backward pass of a rank's queries, hop by hop in the order of the forward pass.

    Args:
        q: (B, n, H, D), in `working_dtype`.
        out: (B, n, H, D), the forward pass's.
        lse: (B, n, H), the forward pass's, finite.
        grad_out: (B, n, H, D).
        grad_lse: (B, n, H) or None.
        op: computes a piece, see `models.ring.call.Call`.
        scale: factor on q.k.
    """

    def __init__(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        grad_out: torch.Tensor,
        grad_lse: torch.Tensor | None,
        op: object,
        scale: float,
    ):
        self.scale, self.dim, self.lse, self.op = scale, q.shape[-1], lse, op
        self.extra = 0 if grad_lse is None else head_dim_multiple(q)
        if grad_lse is not None:
            q, out, grad_out = carry_grad_lse(q, out, grad_out, grad_lse)
            if isinstance(op, CudaFlash) and q.shape[-1] > CudaFlash.max_head_dim:
                self.op = CudaEfficient()
        self.q, self.out, self.grad_out = q, out, grad_out
        self.dq = q.new_zeros(q.shape, dtype=torch.promote_types(q.dtype, torch.float32))

    def attend(
        self,
        hop: Hop,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
        grad_keys: list[torch.Tensor],
        grad_values: list[torch.Tensor],
    ) -> None:
        """Add a hop's part to dq, and to `grad_keys` and `grad_values` in place.

        Args:
            hop: whose pieces to compute.
            keys: (B, n, h, D) per subset of the hop's message.
            values: (B, n, h, D) per subset.
            grad_keys: (B, n, h, D) per subset, float32 at least, without flags.
            grad_values: (B, n, h, D) per subset, float32 at least.
        """
        batch = self.q.shape[0]
        subsets = zip(hop.pieces, keys, values, grad_keys, grad_values, strict=True)
        for pieces, k, v, grad_k, grad_v in subsets:
            for piece in pieces:
                of_q = (self.grad_out, self.q, self.out, self.lse)
                grad_out, q, out, lse = (_operand(piece.q.gather(x, piece.q_heads)) for x in of_q)
                k_part, v_part = (_operand(piece.k.gather(x, piece.kv_heads)) for x in (k, v))
                k_part, bias = without_flags(k_part, self.dim)
                k_part, v_part = (F.pad(x, (0, self.extra)) for x in (k_part, v_part))
                dq, dk, dv = _op(self.op, piece).backward(
                    grad_out, q, k_part, v_part, out, lse, piece.is_causal, self.scale, bias
                )
                piece.q.scatter_add(self.dq, piece.q_heads, _by_sets(dq, batch))
                piece.k.scatter_add(grad_k, piece.kv_heads, _by_sets(dk, batch)[..., : self.dim])
                piece.k.scatter_add(grad_v, piece.kv_heads, _by_sets(dv, batch)[..., : self.dim])

    def result(self) -> torch.Tensor:
        """dq (B, n, H, D), float32 at least."""
        return self.dq[..., : self.dim]


def _op(op, piece: Piece):
    return op if piece.seen is None else Eager(piece.seen)


def _operand(x: torch.Tensor) -> torch.Tensor:
    """(B, S, n, h, ...) as the ops take it, (B * S, h, n, ...)."""
    return x.flatten(0, 1).transpose(1, 2)


def _by_sets(x: torch.Tensor, batch: int) -> torch.Tensor:
    """The inverse of `_operand`: (B * S, h, n, ...) -> (B, S, n, h, ...), a view."""
    return x.transpose(1, 2).unflatten(0, (batch, -1))
