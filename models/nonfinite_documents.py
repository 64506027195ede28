"""Attention over documents of which some hold inf or NaN, by a function that takes finite ones.

Such a document shares blocks with others, whose weights for it are 0, and 0 times inf is NaN. So
each is computed by itself, and all others together: the remaining tokens are zeroed, and masked as
padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch


def all_finite(*tensors: torch.Tensor | None) -> bool:
    """Whether all elements are finite.

    Args:
        tensors: of any shapes and float dtypes, on one device; None counts as finite.

    Returns:
        May be False for very large finite elements, where a sum overflows.
    """
    given = [x for x in tensors if x is not None]
    sums = [x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in given]
    return bool(torch.stack(sums).isfinite().all())


def forward(
    attend: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of each document, where some hold inf or NaN.

    Args:
        attend: (q, k, v, key_padding_mask, document_ids) -> out, LSE or None.
        q: (B, N, H, D).
        k, v: (B, N, Hkv, D).
        key_padding_mask: (B, N) bool, True where a key is not attended to, or None.
        document_ids: (B, N) integers.

    Returns:
        As `attend`: out (B, N, H, D), and LSE (B, H, N) or None.
    """
    out = lse = None
    for own in _parts(document_ids, q, k, v):
        qkv = (_only(own, x) for x in (q, k, v))
        part, part_lse = attend(*qkv, _padded(own, key_padding_mask), document_ids)
        out = _joined(own, part, out)
        lse = None if part_lse is None else _joined(own, part_lse, lse, tokens=2)
    return out, lse


def backward(
    differentiate: Callable[..., tuple[torch.Tensor, ...]],
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The gradients of each document, where some hold inf or NaN.

    Args:
        differentiate: (grad_out, grad_lse, q, k, v, out, lse, key_padding_mask, document_ids) ->
            dq, dk, dv.
        grad_out, out: (B, N, H, D).
        grad_lse, lse: (B, H, N) or None.
        q, k, v, key_padding_mask, document_ids: as of `forward`.

    Returns:
        dq, dk, dv.
    """
    grads = None
    of_rows = () if grad_lse is None else (grad_lse.mT[..., None],)
    for own in _parts(document_ids, q, k, v, out, grad_out, *of_rows):
        part = differentiate(
            _only(own, grad_out),
            None if grad_lse is None else _only(own, grad_lse, tokens=2),
            *(_only(own, x) for x in (q, k, v, out)),
            None if lse is None else _only(own, lse, -torch.inf, tokens=2),
            _padded(own, key_padding_mask),
            document_ids,
        )
        grads = part if grads is None else [_joined(own, *x) for x in zip(part, grads, strict=True)]
    return tuple(grads)


def _parts(document_ids, *tensors) -> Iterator[torch.Tensor]:
    """(B, N) bool, the tokens of each pass: all finite documents first, then each other one."""
    nonfinite = torch.zeros_like(document_ids, dtype=torch.bool)
    for x in tensors:
        nonfinite |= ~x.isfinite().flatten(2).all(dim=2)
    documents = document_ids[nonfinite].unique()
    yield ~torch.isin(document_ids, documents)
    for document in documents:
        yield document_ids == document


def _only(own, x, elsewhere=0.0, *, tokens=1):
    """x at tokens of `own`, `elsewhere` at the others; tokens: their dimension in x."""
    return x.masked_fill(~_along(own, x, tokens), elsewhere)


def _joined(own, part, whole, *, tokens=1):
    """`part` at tokens of `own`, `whole` at the others, which is None before the first part."""
    return part if whole is None else torch.where(_along(own, part, tokens), part, whole)


def _along(own, x, tokens):
    """own (B, N) broadcast against x (B, N, H, D), or against x (B, H, N) where tokens is 2."""
    return own[:, None] if tokens == 2 else own[:, :, None, None]


def _padded(own, key_padding_mask):
    return ~own if key_padding_mask is None else ~own | key_padding_mask
