"""Keys that are padding: never attended to, whatever they hold."""

from __future__ import annotations

import torch


def check_padding_mask(mask: torch.Tensor, q: torch.Tensor) -> None:
    """Check an argument `key_padding_mask`.

    Args:
        mask: anything.
        q: (B, N, H, D).

    Raises:
        ValueError: unless it is (B, N) bool on q's device.
    """
    if not isinstance(mask, torch.Tensor):
        raise ValueError(f"key_padding_mask={type(mask).__name__}: expected a bool tensor")
    if mask.dtype != torch.bool or mask.shape != q.shape[:2]:
        raise ValueError(
            f"key_padding_mask={mask.dtype} {tuple(mask.shape)}: "
            f"expected bool (batch, tokens) = {tuple(q.shape[:2])}"
        )
    if mask.device != q.device:
        raise ValueError(f"key_padding_mask is on {mask.device}: expected {q.device}, as q is")


def without_padding(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_padding_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clear padding, where a weight of 0 times inf or NaN would be NaN. Differentiable.

    Padded keys must still be masked in the softmax.

    Args:
        q: (B, N, H, D).
        k, v: (B, N, Hkv, D).
        key_padding_mask: (B, N) bool, True where a key is not attended to.

    Returns:
        q, k, v. In padding k and v are 0, and so are elements of q that are not finite or would
        make scores overflow.

    Raises:
        ValueError: as of `check_padding_mask`.
    """
    check_padding_mask(key_padding_mask, q)
    padded = key_padding_mask[:, :, None, None]
    k, v = (x.masked_fill(padded, 0.0) for x in (k, v))
    # Half-precision scores are in float32, so a number overflows them where its square does.
    wide = q.detach().to(torch.promote_types(q.dtype, torch.float32))
    return q.masked_fill(padded & ~wide.square().isfinite(), 0.0), k, v
