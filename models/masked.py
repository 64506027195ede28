"""Block-sparse attention by masking the scores of a dense pass.

All N x N scores are computed and those of blocks that are not kept are masked, so a pass costs what
dense attention costs, whatever the sparsity. Over a few hundred tokens that is less than lists of
small blocks cost; over many it is what the lists are there to save.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.errors import UnsupportedBackend, check_choice
from models.inputs import prepared
from models.patterns.block_mask import BlockMask

BACKENDS = ("sdpa",)


def masked_block_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: BlockMask,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    backend: str = "sdpa",
    return_lse: bool = False,
    key_padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `models.block_sparse_attention` computes, where all keys but padding are finite.

    Args:
        q, k, v, mask, is_causal, scale, key_padding_mask: as of `models.block_sparse_attention`.
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
    if not isinstance(mask, BlockMask):
        raise ValueError(f"mask={type(mask).__name__}: expected a models.patterns.BlockMask")
    mask.check_fits(q.shape[1], q.shape[2])
    resolve_backend(q, mask, backend)
    refuse("masked blocks", "block_sparse_attention", return_lse, document_ids)
    kept = token_mask(mask, q.shape[1], is_causal)[None]
    if key_padding_mask is not None:
        kept = kept & ~key_padding_mask[:, None, None]
    is_empty = ~kept.any(dim=-1, keepdim=True)
    return attend(q, k, v, kept | is_empty, is_empty, scale)


def token_mask(mask: BlockMask, seq_len: int, is_causal: bool) -> torch.Tensor:
    """(G, N, N) bool, [head, query, key], True where a query attends to a key; G as of the mask."""
    kept = mask.to_dense()
    for dim in (1, 2):
        kept = kept.repeat_interleave(mask.block_size, dim=dim)
    kept = kept[:, :seq_len, :seq_len]
    return kept.tril() if is_causal else kept


def resolve_backend(q: torch.Tensor, mask: BlockMask, backend: str) -> str:
    """The backend that a call runs: "sdpa"; ValueError for another."""
    check_choice("backend", backend, BACKENDS)
    return backend


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    is_empty: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """PyTorch's attention with a mask.

    Args:
        q, k, v: as of `masked_block_attention`.
        mask: broadcast to (B, H, N, N): True where a query attends to a key, or what is added to
            the scores. A query without keys attends to all in it, so that nothing is NaN.
        is_empty: broadcast to (B, H, N, 1), the queries without keys, whose output is 0.
        scale: factor on q.k.

    Returns:
        (B, N, H, D).
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return out.masked_fill(is_empty, 0.0).transpose(1, 2)


def refuse(what: str, other: str, return_lse: bool, document_ids: torch.Tensor | None) -> None:
    """UnsupportedBackend for what masked scores have not and the function `other` has."""
    if return_lse or document_ids is not None:
        lacks = "no LSE" if return_lse else "no document_ids"
        raise UnsupportedBackend(f"{what}: {lacks}; {other} has it")
