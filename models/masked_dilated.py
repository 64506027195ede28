"""Dilated attention by one dense pass, to whose scores the branches' counts are added.

The mix of LongNet's branches is `softmax(S + log C) V`, C the number of branches that hold a pair.
All N x N scores are computed, so a pass costs what dense attention costs. Over a few hundred tokens
that is less than five branches cost; over many it is what they are there to save.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from models.errors import check_choice
from models.inputs import prepared
from models.masked import BACKENDS, attend, refuse
from models.ops import without_autocast
from models.patterns.branches import DilatedBranches


def masked_dilated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    is_causal: bool = False,
    scale: float | None = None,
    head_offset: str = "modulo",
    backend: str = "sdpa",
    return_lse: bool = False,
    key_padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `models.dilated_attention` computes, where all keys but padding are finite.

    Args:
        q, k, v, segment_lengths, dilation_rates, is_causal, scale, head_offset, key_padding_mask:
            as of `models.dilated_attention`; computed in float32 at least.
        backend: "sdpa", PyTorch's fused attention with a mask.
        return_lse: False; it has none.
        document_ids: None; it takes none.

    Returns:
        out (B, N, H, D) in q's dtype. A query without keys gives 0.

    Raises:
        ValueError: on bad arguments.
        UnsupportedBackend: for the LSE or documents.
    """
    q, k, v, scale = prepared(q, k, v, scale, key_padding_mask, document_ids)
    pattern = DilatedBranches(segment_lengths, dilation_rates, head_offset)
    resolve_backend(q, backend)
    refuse("masked branches", "dilated_attention", return_lse, document_ids)
    # Rounded to half precision, a logarithm would change weights by some tenths of a percent.
    wide = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q.device):
        counts = pair_counts(pattern, q.shape[1], q.shape[2], q.device)[None]
        if is_causal:
            counts = counts.tril()
        if key_padding_mask is not None:
            counts = counts.masked_fill(key_padding_mask[:, None, None], 0)
        is_empty = ~(counts > 0).any(dim=-1, keepdim=True)
        added = counts.to(wide).log().masked_fill(is_empty, 0.0)
        out = attend(*(x.to(wide) for x in (q, k, v)), added, is_empty, scale)
    return out.to(q.dtype)


def pair_counts(
    pattern: DilatedBranches, seq_len: int, heads: int, device: torch.device
) -> torch.Tensor:
    """C, the number of branches that hold a pair of tokens.

    Args:
        pattern: the branches.
        seq_len: N.
        heads: H.
        device: of the result.

    Returns:
        (H, N, N) float32, [head, query, key]; causality is not applied.
    """
    places, segments = torch.arange(seq_len, device=device), []
    for branch, (w, r) in enumerate(pattern.branches()):
        offsets = [pattern.offset(branch, head, heads) for head in range(heads)]
        is_kept = (places % w) % r == torch.tensor(offsets, device=device)[:, None]
        inside = F.one_hot(places // w, -(-seq_len // w))
        segments.append((is_kept[:, :, None] * inside).float())
    # Tokens by segments, 1 where the segment keeps the token: pairs share as many as their product.
    kept = torch.cat(segments, dim=2)
    return kept @ kept.mT


def resolve_backend(q: torch.Tensor, backend: str) -> str:
    """The backend that a call runs: "sdpa"; ValueError for another."""
    check_choice("backend", backend, BACKENDS)
    return backend
