"""Block-sparse attention over documents of which some hold inf or NaN.

They share blocks with others, whose weights for them are 0, and 0 times inf is NaN. So such a
document is done by itself, and the others without it: elsewhere is zero, and masked as padding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


def all_finite(*tensors: torch.Tensor) -> bool:
    """Whether all elements are finite; may be False for very large ones, where a sum overflows."""
    sums = [x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in tensors]
    return bool(torch.stack(sums).isfinite().all())


def forward(attend, q, k, v, *arguments, return_lse, key_padding_mask, document_ids):
    """`models.block_gather.forward` by way of `attend`, the same for finite tensors."""
    out = lse = None
    for own in _parts(document_ids, q, k, v):
        qkv = (_only(own, x) for x in (q, k, v))
        masks = {"key_padding_mask": _padded(own, key_padding_mask), "document_ids": document_ids}
        part, part_lse = attend(*qkv, *arguments, return_lse=return_lse, **masks)
        out = _joined(own, part, out)
        lse = _joined(own, part_lse, lse, tokens=2) if return_lse else None
    return out, lse


def backward(differentiate, grad_out, grad_lse, q, k, v, out, lse, *arguments, **masks):
    """`models.block_gather.backward` by way of `differentiate`, the same for finite tensors."""
    ids, grads = masks["document_ids"], None
    for own in _parts(ids, q, k, v, out, grad_out):
        part = differentiate(
            _only(own, grad_out),
            None if grad_lse is None else _only(own, grad_lse, tokens=2),
            *(_only(own, x) for x in (q, k, v, out)),
            None if lse is None else _only(own, lse, -torch.inf, tokens=2),
            *arguments,
            key_padding_mask=_padded(own, masks["key_padding_mask"]),
            document_ids=ids,
        )
        grads = part if grads is None else [_joined(own, *x) for x in zip(part, grads, strict=True)]
    return tuple(grads)


def _parts(document_ids, *tensors) -> Iterator[torch.Tensor]:
    """(B, N) bool, the tokens of each pass: all finite documents first, then the others."""
    harmful = torch.zeros_like(document_ids, dtype=torch.bool)
    for x in tensors:
        harmful |= ~x.isfinite().flatten(2).all(dim=2)
    documents = document_ids[harmful].unique()
    yield ~torch.isin(document_ids, documents)
    for document in documents:
        yield document_ids == document


def _only(own, x, elsewhere=0.0, *, tokens=1):
    """x, with `elsewhere` in its place but at tokens of `own`; tokens: their dimension in x."""
    return x.masked_fill(~_along(own, x, tokens), elsewhere)


def _joined(own, part, whole, *, tokens=1):
    """`part` at tokens of `own`, elsewhere `whole`, which is None before the first part."""
    return part if whole is None else torch.where(_along(own, part, tokens), part, whole)


def _along(own, x, tokens):
    """own (B, N) to go with x (B, N, H, D), or with x (B, H, N) where tokens is 2."""
    return own[:, None] if tokens == 2 else own[:, :, None, None]


def _padded(own, key_padding_mask):
    return ~own if key_padding_mask is None else ~own | key_padding_mask
