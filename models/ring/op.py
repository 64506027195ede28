"""Ring attention as ops of `torch.library`: whole to autograd and to torch.compile.

An op's body is what a rank does: it meets the others, sends, receives and computes. What all
ranks must have agreed on before comes from an op of its own, `long_context::ring_agreement`.
"""

from __future__ import annotations

import inspect
from typing import get_type_hints

import torch

from models.ops import AttentionOp, empty_results, packed_like, under_autocast
from models.padding import without_padding
from models.ring.call import call, negotiate, refuse
from models.ring.passes import run
from models.ring.request import PATTERNS, Request, group_name, length, request, seconds

# Types of arguments by which torch.library knows them.
_TYPES = {
    **dict.fromkeys(("q", "k", "v"), torch.Tensor),
    "key_padding_mask": torch.Tensor | None,
    **get_type_hints(Request),
    **{"agreed": torch.Tensor, "group": str, "timeout": float, "seq_len": int, "world_size": int},
    **{"is_padded": bool, "requires_grad": bool},
}


def typed(function, results: int):
    """`function`, whose last parameter is *rest, with the fields of a `Request` in its place."""
    names = [*inspect.signature(function).parameters][:-1] + list(Request._fields)
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=_TYPES[name])
        for name in names
    ]
    returned = torch.Tensor if results == 1 else tuple[(torch.Tensor,) * results]
    function.__signature__ = inspect.Signature(parameters, return_annotation=returned)
    return function


def rank_op(name: str, forward_steps, backward_steps) -> AttentionOp:
    """The op of one rank, by steps as those of `models.ring.passes`.

    Its arguments: q, k, v, key_padding_mask, the length of the whole sequence as
    `ring_agreement` gives it, the group's name, the time limit, and a `Request`.
    """

    def forward(q, k, v, key_padding_mask, agreed, group, timeout, *rest):
        if q.shape[0] == 0:
            return empty_results(q)
        is_padded = key_padding_mask is not None
        made = call(q, k, is_padded, int(agreed), group, timeout, Request(*rest))
        return _finished(forward_steps(q, k, v, key_padding_mask, made), made)

    def backward(
        grad_out, grad_lse, q, k, v, out, lse, key_padding_mask, agreed, group, timeout, *rest
    ):  # fmt: skip
        if q.shape[0] == 0:
            return tuple(packed_like(x) for x in (q, k, v))
        is_padded = key_padding_mask is not None
        made = call(q, k, is_padded, int(agreed), group, timeout, Request(*rest))
        tensors = (grad_out, grad_lse, q, k, v, out, lse, key_padding_mask)
        return _finished(backward_steps(*tensors, made), made)

    return AttentionOp(name, typed(forward, 2), backward)


def attend(
    op: AttentionOp, q, k, v, group, is_causal, scale, order, pattern, backend, key_padding_mask,
    seq_len, timeout, patterns=PATTERNS,
):  # fmt: skip
    """This rank's out (B, n, H, D) and LSE (B, H, n), by an op of `rank_op`; see `ring_attention`.

    patterns: the classes of pattern that the call takes.
    """
    name = group_name(group)
    options = (is_causal, scale, order, pattern, backend, key_padding_mask)
    try:
        q, k, v, asked = prepared(q, k, v, *options, patterns)
        told, limit = length(seq_len), seconds(timeout)
    except ValueError:
        if seq_len is None:
            refuse(name, timeout, q)
        raise
    requires_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    is_padded = key_padding_mask is not None
    shared = (is_padded, requires_grad, told, name, limit, *asked)
    agreed = _agreement(q.detach(), k.detach(), *shared)
    return op(q, k, v, key_padding_mask, agreed, name, limit, *asked)


def prepared(
    q, k, v, is_causal, scale, order, pattern, backend, key_padding_mask, patterns=PATTERNS
):  # fmt: skip
    """q, k, v as an op takes them, and the `Request`: by autocast's rule, padding cleared."""
    if all(isinstance(x, torch.Tensor) for x in (q, k, v)):
        q, k, v = under_autocast(q, k, v)
    options = (is_causal, scale, order, pattern, backend, key_padding_mask)
    asked = request(q, k, v, *options, patterns)
    if key_padding_mask is not None:
        q, k, v = without_padding(q, k, v, key_padding_mask)
    return q, k, v, asked


def _agree(q, k, is_padded, requires_grad, seq_len, group, timeout, *rest):
    shared = (is_padded, requires_grad, seq_len, group, timeout)
    return torch.tensor(negotiate(q, k, *shared, Request(*rest)))


def _folded(info, in_dims, *arguments):
    """The vmap rule of the agreement: the mapped dimension and the batch are one."""
    tensors = [
        x if dim is None else x.movedim(dim, 0).flatten(0, 1)
        for x, dim in zip(arguments[:2], in_dims, strict=False)
    ]
    return _agreement(*tensors, *arguments[2:]), None


# As `models.ops` makes its own, but that a length comes of it.
_LIBRARY = torch.library.Library("long_context", "FRAGMENT")
_LIBRARY.define("ring_agreement" + torch.library.infer_schema(typed(_agree, 1), mutates_args=()))
_LIBRARY.impl("ring_agreement", _agree, "CompositeExplicitAutograd")
_agreement = torch.ops.long_context.ring_agreement.default
torch.library.register_fake(
    _agreement, lambda q, *_: torch.empty((), dtype=torch.int64), lib=_LIBRARY
)
torch.library.register_vmap(_agreement, _folded, lib=_LIBRARY)


def _finished(steps, made):
    """What the steps return, when all that was sent is through."""
    results = run(steps)
    made.exchange.finish()
    return results
