"""What every attention function does with its arguments first."""

from __future__ import annotations

import torch

from models.documents import check_document_ids
from models.errors import resolve_scale
from models.ops import under_autocast
from models.padding import without_padding
from models.qkv import check_qkv, check_same_length


def prepared(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None,
    key_padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
    *,
    may_lack_tokens: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Check the arguments of an attention function, apply autocast, and clear padding.

    Args:
        q: (B, N, H, D).
        k, v: (B, N, Hkv, D).
        scale: factor on q.k, None for 1/sqrt(D).
        key_padding_mask: (B, N) bool, True where a key is not attended to, or None.
        document_ids: (B, N) integers, or None.
        may_lack_tokens: allow N = 0.

    Returns:
        q, k, v in autocast's dtype where that is on, cleared by `models.padding.without_padding`,
        and the scale.

    Raises:
        ValueError: on bad arguments.
    """
    if all(isinstance(x, torch.Tensor) for x in (q, k, v)):
        q, k, v = under_autocast(q, k, v)
    check_qkv(q, k, v, may_lack_tokens=may_lack_tokens)
    check_same_length(q, k)
    scale = resolve_scale(scale, q.shape[3])
    if document_ids is not None:
        check_document_ids(document_ids, q)
    if key_padding_mask is not None:
        q, k, v = without_padding(q, k, v, key_padding_mask)
    return q, k, v, scale
