"""Packed sequences: several documents per batch element, each attending only within itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from models.errors import UnsupportedBackend

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


def check_document_ids(document_ids: torch.Tensor, q: torch.Tensor) -> None:
    """Check an argument `document_ids`.

    Args:
        document_ids: anything.
        q: (B, N, H, D).

    Raises:
        ValueError: unless it is (B, N) of an integer dtype on q's device.
    """
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
    """Documents of similar length, as a batch of sequences that end in padding.

    Attributes:
        tokens: (documents, L) int64, places in (B * N); 0 past a document's end.
        valid: (documents, L) bool, False past the end.
        padded: (documents, L) bool, True past the end and where the caller's padding is; None
            where there is none.
    """

    tokens: torch.Tensor
    valid: torch.Tensor
    padded: torch.Tensor | None

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """The documents' tokens.

        Args:
            x: (B, N, ...).

        Returns:
            (documents, L, ...), 0 past the end.
        """
        x = x.flatten(0, 1)[self.tokens]
        return x.masked_fill(~self.valid.view(*self.valid.shape, *(1,) * (x.dim() - 2)), 0)

    def scatter(self, x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Set the documents' tokens, out of place.

        Args:
            x: (B, N, ...).
            values: (documents, L, ...), not used past the end.

        Returns:
            (B, N, ...), x elsewhere.
        """
        places = self.tokens[self.valid]
        return x.flatten(0, 1).index_copy(0, places, values[self.valid]).view(x.shape)


def batches(
    document_ids: torch.Tensor, key_padding_mask: torch.Tensor | None = None
) -> Iterator[Documents]:
    """All documents, those of similar length together: at most an eighth of a batch is padding.

    Args:
        document_ids: (B, N) integers; a document is all tokens of one id, in their order.
        key_padding_mask: (B, N) bool, True where a key is not attended to, or None.

    Yields:
        The batches, by rising length.
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


def per_document(
    attend: Attend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    document_ids: torch.Tensor,
    key_padding_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention within each document; differentiable where `attend` is.

    Args:
        attend: (q, k, v, key_padding_mask) -> out, LSE or None.
        q: (B, N, H, D).
        k, v: (B, N, Hkv, D).
        document_ids: (B, N) integers.
        key_padding_mask: (B, N) bool, True where a key is not attended to, or None.

    Returns:
        out (B, N, H, D), and LSE (B, H, N), None where `attend` returns none.
    """
    out, lse = torch.zeros_like(q), None
    for documents in batches(document_ids, key_padding_mask):
        part, part_lse = attend(*(documents.gather(x) for x in (q, k, v)), documents.padded)
        out = documents.scatter(out, part)
        if part_lse is not None:
            lse = part_lse.new_zeros(q.shape[:3]) if lse is None else lse
            lse = documents.scatter(lse, part_lse.mT)
    return out, None if lse is None else lse.mT.contiguous()


def attend_packed(
    backend: str,
    attend: Attend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    document_ids: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention by a backend that is no `torch.library` op, per document where there are any.

    Args:
        backend: its name, for messages.
        attend, q, k, v, key_padding_mask: as of `per_document`.
        document_ids: (B, N) integers, or None.

    Returns:
        As `per_document`.

    Raises:
        UnsupportedBackend: for documents inside torch.compile, or mapped by vmap, where their
            number is unknown.
    """
    if document_ids is None or q.shape[0] == 0:
        return attend(q, k, v, key_padding_mask)
    if torch.compiler.is_compiling():
        raise UnsupportedBackend(f"{backend}: takes no document_ids inside torch.compile")
    if torch._C._functorch.is_batchedtensor(document_ids):
        raise UnsupportedBackend(f"{backend}: takes no document_ids that vmap maps")
    return per_document(attend, q, k, v, document_ids, key_padding_mask)


def _rounded(length: int) -> int:
    """`length` rounded up to a multiple of an eighth of the power of two below it."""
    step = max(1, 1 << (length.bit_length() - 4)) if length >= 8 else 1
    return -(-length // step) * step
