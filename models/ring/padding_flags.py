"""Padding in a ring: flags that travel with the keys, and the masking of a piece by them.

A rank receives keys of others, so it must learn which of these are padding. The flags are extra
columns of k: packed and sent with it, and split off again where a piece is computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.fused_ops import head_dim_multiple
from models.ring.pieces import Piece


def with_flags(k: torch.Tensor, key_padding_mask: torch.Tensor | None) -> torch.Tensor:
    """k with extra columns, the first of which is 1 where a key is padding, else 0.

    Args:
        k: (B, n, Hkv, D).
        key_padding_mask: (B, n) bool; None returns k as it is.
    """
    if key_padding_mask is None:
        return k
    # As many columns as keep the keys aligned where the ops read them in place.
    flags = F.pad(key_padding_mask[:, :, None, None].to(k.dtype), (0, head_dim_multiple(k) - 1))
    return torch.cat([k, flags.expand(*k.shape[:3], -1)], dim=-1)


def without_flags(k: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Split the flags off k.

    Args:
        k: (B, h, n, D or more), with flags or without.
        dim: D.

    Returns:
        k (B, h, n, D), and the bias of the scores, (B, 1, 1, n) in k's dtype: -inf where a key
        is padding, else 0; None where k has no flags.
    """
    if k.shape[-1] == dim:
        return k, None
    flags = k[:, :1, None, :, dim]
    return k[..., :dim], torch.zeros_like(flags).masked_fill_(flags != 0, -torch.inf)


def clear_rows_without_keys(
    out: torch.Tensor, lse: torch.Tensor, bias: torch.Tensor, piece: Piece
) -> None:
    """Set out to 0 and LSE to -inf, in place, in rows whose keys in the piece are all padding.

    Unpadded keys are counted, as an LSE cannot tell such rows from rows of very negative scores.

    Args:
        out: (B, h, n, D), of the piece.
        lse: (B, h, n), of the piece.
        bias: (B, 1, 1, m), from `without_flags`.
        piece: whose mask says which keys each row sees.
    """
    unpadded = bias[:, :, 0] == 0
    if piece.is_causal or piece.seen is not None:
        unpadded = unpadded.cumsum(dim=-1) > 0
        if piece.seen is not None:
            unpadded = unpadded[..., torch.from_numpy(piece.seen - 1).to(bias.device)]
    else:
        unpadded = unpadded.any(dim=-1, keepdim=True)
    out.masked_fill_(~unpadded[..., None], 0.0)
    lse.masked_fill_(~unpadded, -torch.inf)
