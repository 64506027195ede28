"""What every attention function does with its arguments before any work."""

from __future__ import annotations

import torch

from models.documents import check_document_ids
from models.errors import check_qkv, check_same_length, resolve_scale
from models.ops import under_autocast
from models.padding import without_padding


def prepared(
    q, k, v, scale, key_padding_mask=None, document_ids=None, *, may_lack_tokens=False
):  # fmt: skip
    """q, k, v checked, in autocast's dtype and without what padding holds; the scale as a float.

    q: (B, N, H, D), k, v: (B, N, Hkv, D); masks: (B, N) or None. may_lack_tokens: allow N = 0.
    ValueError on bad arguments.
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
