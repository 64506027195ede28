"""Keys that are padding: never attended to, whatever they hold."""

from __future__ import annotations

import torch


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
    attended to. There k and v become 0, and of q what is no number or would make scores overflow.
    The scores of such keys are still to be left out of the softmax. Differentiable. ValueError as
    `check_padding_mask`.
    """
    check_padding_mask(key_padding_mask, q)
    padded = key_padding_mask[:, :, None, None]
    k, v = (x.masked_fill(padded, 0.0) for x in (k, v))
    # Half-precision scores are in float32, so a number overflows them where its square does.
    wide = q.detach().to(torch.promote_types(q.dtype, torch.float32))
    return q.masked_fill(padded & ~wide.square().isfinite(), 0.0), k, v
