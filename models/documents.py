"""Packed sequences: several documents in a row of the batch, each attended to by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from models.errors import UnsupportedBackend


def check_document_ids(document_ids: torch.Tensor, q: torch.Tensor) -> None:
    """ValueError unless the ids are integers (B, N), as q (B, N, H, D) is, on its device."""
    if not isinstance(document_ids, torch.Tensor):
        raise ValueError(f"document_ids={type(document_ids).__name__}: expected an integer tensor")
    is_integer = not document_ids.is_floating_point() and not document_ids.is_complex()
    if document_ids.dtype == torch.bool or not is_integer or document_ids.shape != q.shape[:2]:
        raise ValueError(
            f"document_ids={document_ids.dtype} {tuple(document_ids.shape)}: "
            f"expected integers (batch, tokens) = {tuple(q.shape[:2])}"
        )
    if document_ids.device != q.device:
        raise ValueError(f"document_ids is on {document_ids.device}: expected {q.device}, as q is")


@dataclass(frozen=True)
class Documents:
    """Documents of about one length, as a batch of sequences that end in padding.

    tokens: (documents, L) int64, places in (B * N); those past a document's end are place 0.
    padded: (documents, L) bool, True past the end and where the caller's padding is; None where
    there is none. valid: (documents, L) bool, False past the end.
    """

    tokens: torch.Tensor
    valid: torch.Tensor
    padded: torch.Tensor | None

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, N, ...) as (documents, L, ...), 0 past the end."""
        x = x.flatten(0, 1)[self.tokens]
        return x.masked_fill(~self.valid.view(*self.valid.shape, *(1,) * (x.dim() - 2)), 0)

    def put(self, x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """x (B, N, ...) with these documents' values (documents, L, ...) in place."""
        places = self.tokens[self.valid]
        return x.flatten(0, 1).index_copy(0, places, values[self.valid]).view(x.shape)


def batches(document_ids: torch.Tensor, key_padding_mask=None) -> Iterator[Documents]:
    """All documents, those of about one length together: at most an eighth of a batch is padding.

    A document is all tokens of one id, in their order. Both: (B, N), the mask bool or None.
    """
    batch, n = document_ids.shape
    device = document_ids.device
    ids, order = document_ids.sort(dim=1, stable=True)
    tokens = (order + n * torch.arange(batch, device=device)[:, None]).flatten()
    is_start = torch.ones_like(ids, dtype=torch.bool)
    is_start[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = is_start.flatten().nonzero()[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([batch * n]))
    padding = None if key_padding_mask is None else key_padding_mask.flatten()
    sizes = torch.tensor([_rounded(length) for length in lengths.tolist()])
    for size in sizes.unique().tolist():
        chosen = (sizes == size).to(device)
        start, length = starts[chosen, None], lengths[chosen, None]
        place = torch.arange(int(length.max()), device=device)
        valid = place < length
        index = tokens[torch.where(valid, start + place, 0)]
        padded = ~valid if padding is None else padding[index] | ~valid
        yield Documents(index, valid, padded if bool(padded.any()) else None)


def apart(attend, q, k, v, document_ids, key_padding_mask):
    """out (B, N, H, D) and LSE (B, H, N) of `attend(q, k, v, key_padding_mask)` for each document.

    The LSE is None where `attend` gives none. Differentiable where `attend` is.
    """
    out, lse = torch.zeros_like(q), None
    for documents in batches(document_ids, key_padding_mask):
        part, part_lse = attend(*(documents.of(x) for x in (q, k, v)), documents.padded)
        out = documents.put(out, part)
        if part_lse is not None:
            lse = part_lse.new_zeros(q.shape[:3]) if lse is None else lse
            lse = documents.put(lse, part_lse.mT)
    return out, None if lse is None else lse.mT.contiguous()


def traced(backend: str, attend, q, k, v, document_ids, key_padding_mask):
    """`attend` of all, or `apart` where there are documents: for backends that are no op.

    UnsupportedBackend for documents inside torch.compile or vmap, which would have to know how
    many there are.
    """
    if document_ids is None or q.shape[0] == 0:
        return attend(q, k, v, key_padding_mask)
    if torch.compiler.is_compiling():
        raise UnsupportedBackend(f"{backend}: takes no document_ids inside torch.compile")
    if torch._C._functorch.is_batchedtensor(document_ids):
        raise UnsupportedBackend(f"{backend}: takes no document_ids that vmap maps")
    return apart(attend, q, k, v, document_ids, key_padding_mask)


def _rounded(length: int) -> int:
    """Up to a multiple of an eighth of the power of two below."""
    step = max(1, 1 << (length.bit_length() - 4)) if length >= 8 else 1
    return -(-length // step) * step
