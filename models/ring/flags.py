"""Padding in a ring: flags that travel with the keys, and what they mask of a piece.

A rank gets keys of others, so it must be told which of those are padding. The flags are columns
of k: they are packed, sent and cut as it is, and split off again where a piece is computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.fused_ops import head_dim_multiple
from models.ring.pieces import Piece


def with_flags(k: torch.Tensor, key_padding_mask: torch.Tensor | None) -> torch.Tensor:
    """k (B, n, Hkv, D) and more columns, the first of which is 1 where a key is padding, else 0.

    key_padding_mask: (B, n) bool, or None, where k stays as it is.
    """
    if key_padding_mask is None:
        return k
    # As many columns as keep the keys aligned when the ops read them in place.
    flags = F.pad(key_padding_mask[:, :, None, None].to(k.dtype), (0, head_dim_multiple(k) - 1))
    return torch.cat([k, flags.expand(*k.shape[:3], -1)], dim=-1)


def without_flags(k: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An operand's keys (B, h, n, D) and their bias (B, 1, 1, n), of k with or without flags.

    bias: what is added to scores, -inf where a key is padding, else 0; None without flags.
    """
    if k.shape[-1] == dim:
        return k, None
    flags = k[:, :1, None, :, dim]
    return k[..., :dim], torch.zeros_like(flags).masked_fill_(flags != 0, -torch.inf)


def leave_out(out: torch.Tensor, lse: torch.Tensor, bias: torch.Tensor, piece: Piece) -> None:
    """Set a piece's out (B, h, Nq, D) to 0 and its LSE (B, h, Nq) to -inf, in place, in rows
    whose keys in this piece are all padding.

    They are counted, as no LSE tells such rows from those of very negative scores.
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
