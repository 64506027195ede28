"""Attention over strided views, joined by LSE, with the exact gradient of the joined result.

q, k, v are not copied: a dilated segment of some heads is a view of (B, N, H, D)
memory with a longer token stride. In the backward pass each view gets the *merged*
output and LSE. Then P = exp(S - LSE) is its part of the whole softmax, so the parts'
gradients add up to the exact gradient, through the mixing weights too (torchscale
detaches these).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from models.fused_ops import CudaEfficient, CudaFlash, FusedOp, head_dim_multiple
from models.merge import merge_into
from models.patterns.branches import HeadGroup


@dataclass(frozen=True)
class View:
    """The kept tokens of consecutive equal segments, for one head group.

    Attributes:
        batch: batch elements.
        start: first token of the first segment.
        segments: number of segments.
        length: tokens per segment.
        group: heads, offset and dilation rate.
    """

    batch: slice
    start: int
    segments: int
    length: int
    group: HeadGroup

    def of(self, x: torch.Tensor, heads: slice) -> torch.Tensor:
        """The view of a tensor.

        Args:
            x: (B, N, H, ...).
            heads: which heads, H' of them.

        Returns:
            (B * segments, H', kept tokens, ...) in x's memory.
        """
        tokens = slice(self.start, self.start + self.segments * self.length)
        x = x[self.batch, tokens, heads].unflatten(1, (self.segments, self.length))
        x = x[:, :, self.group.offset :: self.group.dilation_rate]
        if self.segments == 1:
            return x[:, 0].transpose(1, 2)
        batch, segments, *rest = x.shape
        strides = (x.stride(1), *x.stride()[2:])
        return x.as_strided((batch * segments, *rest), strides).transpose(1, 2)

    def of_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """Copy what there is per token.

        Args:
            x: (B, N).

        Returns:
            (B * segments, kept tokens).
        """
        tokens = slice(self.start, self.start + self.segments * self.length)
        x = x[self.batch, tokens].unflatten(1, (self.segments, self.length))
        return x[:, :, self.group.offset :: self.group.dilation_rate].flatten(0, 1)


def views(head_groups: Iterable[HeadGroup], shape: torch.Size, foldable: bool) -> Iterator[View]:
    """All views of a tensor, branch by branch.

    Args:
        head_groups: of all branches.
        shape: (B, N, H, D).
        foldable: whether batch and segment can be one dimension of a view, which needs a batch
            stride of N tokens.

    Yields:
        Views; those of one branch have no row in common.
    """
    batch, n = shape[:2]
    for group in head_groups:
        w = min(group.segment_length, n)
        full, rest = divmod(n, w)
        if group.offset < w:
            whole = full == 1 or batch == 1 or (foldable and rest == 0)
            for b in [slice(0, batch)] if whole else [slice(b, b + 1) for b in range(batch)]:
                yield View(b, 0, full, w, group)
        if group.offset < rest:
            yield View(slice(0, batch), full * w, 1, rest, group)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    op: FusedOp,
    head_groups: Iterable[HeadGroup],
    is_causal: bool,
    scale: float,
    key_padding_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of all branches, without autograd.

    Args:
        q: (B, N, H, D), last dimension contiguous.
        k, v: (B, N, Hkv, D), likewise.
        op: which computes each view.
        head_groups: of all branches.
        is_causal: whether a query attends to keys up to itself only.
        scale: factor on q.k.
        key_padding_mask: (B, N) bool, True where a key is not attended to, or None; k and v are 0
            there (`models.padding`).

    Returns:
        out (B, N, H, D) in q's dtype, and LSE (B, H, N), float32 at least; rows without keys give 0
        and -inf.
    """
    accumulator = torch.promote_types(q.dtype, torch.float32)
    out = lse = None
    for view, bias, is_empty in _views(q, k, v, head_groups, is_causal, key_padding_mask):
        group = view.group
        part_out, part_lse = op.forward(
            view.of(q, group.q_heads),
            view.of(k, group.kv_heads),
            view.of(v, group.kv_heads),
            is_causal,
            scale,
            bias,
        )
        if is_empty is not None:
            part_out = part_out.masked_fill(is_empty[..., None], 0.0)
            part_lse = part_lse.masked_fill(is_empty, -torch.inf)
        if out is None and part_lse.numel() == q.shape[0] * q.shape[1] * q.shape[2]:
            # The first view covers all rows: use it as it is, copied only where strides differ.
            out = part_out.transpose(1, 2).reshape(q.shape).to(accumulator).contiguous()
            lse = part_lse.transpose(1, 2).reshape(q.shape[:3]).contiguous()
            continue
        if out is None:
            out = q.new_zeros(q.shape, dtype=accumulator)
            lse = q.new_full(q.shape[:3], -torch.inf, dtype=accumulator)
        merge_into(view.of(out, group.q_heads), view.of(lse, group.q_heads), part_out, part_lse)
    return out.to(q.dtype), lse.transpose(1, 2).contiguous()


def backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    op: FusedOp,
    head_groups: Iterable[HeadGroup],
    is_causal: bool,
    scale: float,
    key_padding_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """The gradients of `forward`.

    Args:
        grad_out: (B, N, H, D).
        grad_lse: (B, H, N) or None.
        out, lse: results of `forward`.
        q, k, v, op, head_groups, is_causal, scale, key_padding_mask: as of `forward`.

    Returns:
        dq, dk, dv in q's dtype, contiguous.
    """
    # The views are made for the strides of q, k, v; autograd passes any.
    grad_out, out = grad_out.contiguous(), out.contiguous()
    # exp(S - LSE) of a row without keys is 0 for any finite LSE, and NaN for -inf.
    lse = lse.transpose(1, 2).masked_fill(lse.transpose(1, 2).isneginf(), 0.0).contiguous()
    all_views = list(_views(q, k, v, head_groups, is_causal, key_padding_mask))
    head_dim = q.shape[-1]
    if grad_lse is not None:
        k, v = (F.pad(x, (0, head_dim_multiple(q))) for x in (k, v))
        q, out, grad_out = carry_grad_lse(q, out, grad_out, grad_lse.transpose(1, 2))
        if isinstance(op, CudaFlash) and q.shape[-1] > CudaFlash.max_head_dim:
            op = CudaEfficient()
    accumulator = torch.promote_types(q.dtype, torch.float32)
    grads = [x.new_zeros(x.shape, dtype=accumulator) for x in (q, k, v)]
    for view, bias, _ in all_views:
        q_heads, kv_heads = view.group.q_heads, view.group.kv_heads
        parts = op.backward(
            view.of(grad_out, q_heads),
            view.of(q, q_heads),
            view.of(k, kv_heads),
            view.of(v, kv_heads),
            view.of(out, q_heads),
            view.of(lse, q_heads),
            is_causal,
            scale,
            bias,
        )
        for grad, part, heads in zip(grads, parts, (q_heads, kv_heads, kv_heads), strict=True):
            view.of(grad, heads).add_(part)
    return tuple(grad[..., :head_dim].to(q.dtype).contiguous() for grad in grads)


def _views(q, k, v, head_groups, is_causal, key_padding_mask):
    """Each view with its bias, 0 and -inf (B', 1, 1, kept keys), and which of its rows have no
    keys, (B', 1, kept queries) bool; both None without padding."""
    foldable = all(x.stride(0) == x.shape[1] * x.stride(1) for x in (q, k, v))
    for view in views(head_groups, q.shape, foldable):
        if key_padding_mask is None:
            yield view, None, None
            continue
        padded = view.of_tokens(key_padding_mask)
        bias = q.new_zeros(padded.shape).masked_fill_(padded, -torch.inf)
        is_empty = padded.cummin(dim=1).values if is_causal else padded.all(dim=1, keepdim=True)
        yield view, bias[:, None, None], is_empty[:, None]


def carry_grad_lse(
    q: torch.Tensor, out: torch.Tensor, grad_out: torch.Tensor, grad_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pass dLSE to ops that take only dO, in additional columns of the head dimension.

    The ops compute dS = P (dO V' - rowsum(dO * O)). A column that is 0 in q, k, v, -1 in `out` and
    dLSE in `grad_out` leaves S and dO V' alone and makes it dS = P (dO V' - rowsum(dO * O) + dLSE),
    which is the gradient through the LSE. The caller pads k and v likewise, with zeros.

    Args:
        q, out, grad_out: (B, N, H, D).
        grad_lse: (B, N, H).

    Returns:
        q, out and grad_out, (B, N, H, D + `head_dim_multiple`).
    """
    extra = head_dim_multiple(q)
    q, out, grad_out = (F.pad(x, (0, extra)) for x in (q, out, grad_out))
    out[..., -1] = -1
    grad_out[..., -1] = grad_lse
    return q, out, grad_out
