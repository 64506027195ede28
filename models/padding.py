"""Keys that are padding: never attended to, whatever they hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.fused_ops import head_dim_multiple

_MASKED = -30000.0


def check_padding_mask(mask: torch.Tensor, q: torch.Tensor) -> None:
    """ValueError unless the mask is bool (B, N), as q (B, N, H, D) is, on its device."""
    if not isinstance(mask, torch.Tensor):
        raise ValueError(f"key_padding_mask={type(mask).__name__}: expected a bool tensor")
    if mask.dtype != torch.bool or mask.shape != q.shape[:2]:
        raise ValueError(
            f"key_padding_mask={mask.dtype} {tuple(mask.shape)}: "
            f"expected bool (batch, tokens) = {tuple(q.shape[:2])}"
        )
    if mask.device != q.device:
        raise ValueError(f"key_padding_mask is on {mask.device}: expected {q.device}, as q is")


def without_padding(q, k, v, key_padding_mask: torch.Tensor):
    """q, k, v in which padding can do no harm: a weight of 0 times inf or NaN would be NaN.

    q: (B, N, H, D), k, v: (B, N, Hkv, D); key_padding_mask: (B, N) bool, True where a key is not
    attended to. There k and v become 0, and of q what is inf or NaN. The scores of such keys are
    still to be left out of the softmax. Differentiable. ValueError as `check_padding_mask`.
    """
    check_padding_mask(key_padding_mask, q)
    padded = key_padding_mask[:, :, None, None]
    k, v = (x.masked_fill(padded, 0.0) for x in (k, v))
    return q.masked_fill(padded & ~q.isfinite(), 0.0), k, v


def mask_keys(q, k, v, key_padding_mask: torch.Tensor, scale: float):
    """q, k, v with the mask folded in: q gets a 1, a padded key a score of -30000.

    q: (B, N, H, D), k, v: (B, N, Hkv, D); key_padding_mask: (B, N) bool, True where a key is not
    attended to. exp(-30000) is 0 beside any real score in every dtype, every backend can do it,
    and its gradient needs nothing of its own. ValueError as `check_padding_mask`.
    """
    check_padding_mask(key_padding_mask, q)
    extra = -q.shape[3] % head_dim_multiple(q) or head_dim_multiple(q)
    q, k, v = (F.pad(x, (0, extra)) for x in (q, k, v))
    column = torch.where(key_padding_mask, _MASKED, 0.0).to(k.dtype)
    k = torch.cat([k[..., :-1], column[:, :, None, None].expand(*k.shape[:3], 1)], dim=-1)
    q = torch.cat([q[..., :-1], torch.full_like(q[..., :1], 1 / scale)], dim=-1)
    return q, k, v


def unmask(out: torch.Tensor, lse: torch.Tensor, head_dim: int):
    """out (B, N, H, head_dim) and LSE (B, H, N) of masked keys; rows that saw none: 0, -inf."""
    empty = lse < _MASKED / 2
    lse = lse.masked_fill(empty, -torch.inf)
    return out[..., :head_dim].masked_fill(empty.transpose(1, 2)[..., None], 0.0), lse
