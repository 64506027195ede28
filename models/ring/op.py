"""Ring attention as ops of `torch.library`: each is one op to autograd and to torch.compile.

The body of an op is the pass of one rank: it sends, receives and computes. The check that all
ranks call with the same arguments is an op of its own, `long_context::ring_agreement`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import get_type_hints

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models import inputs
from models.ops import AttentionOp, empty_results, packed_like
from models.patterns.curves import Grid
from models.ring.call import Call, agreed_seq_len, make_call, report_bad_arguments
from models.ring.options import (
    PATTERNS,
    RingOptions,
    checked_seq_len,
    checked_timeout,
    group_name,
    ring_options,
)
from models.ring.passes import run
from models.ring.plan import Pattern

# The types of an op's arguments, as torch.library infers its schema from them.
_TYPES = {
    **dict.fromkeys(("q", "k", "v"), torch.Tensor),
    "key_padding_mask": torch.Tensor | None,
    **get_type_hints(RingOptions),
    **{"agreed": torch.Tensor, "group": str, "timeout": float, "seq_len": int, "world_size": int},
    **{"is_padded": bool, "requires_grad": bool},
}


def with_schema(function: Callable, results: int) -> Callable:
    """`function` with the signature that `torch.library.infer_schema` reads.

    Args:
        function: its last parameter, *rest, takes the fields of `RingOptions`.
        results: number of tensors that it returns.
    """
    names = [*inspect.signature(function).parameters][:-1] + list(RingOptions._fields)
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=_TYPES[name])
        for name in names
    ]
    returned = torch.Tensor if results == 1 else tuple[(torch.Tensor,) * results]
    function.__signature__ = inspect.Signature(parameters, return_annotation=returned)
    return function


def rank_op(
    name: str, forward_steps: Callable[..., Iterator], backward_steps: Callable[..., Iterator]
) -> AttentionOp:
    """The op of one rank.

    Its arguments: q, k, v, key_padding_mask, the length of the whole sequence as
    `ring_agreement` returns it, the group's name, the time limit, and the `RingOptions`.

    Args:
        name: of the op, `long_context::{name}`.
        forward_steps: as `models.ring.passes.forward_steps`.
        backward_steps: as `models.ring.passes.backward_steps`.
    """

    def forward(q, k, v, key_padding_mask, agreed, group, timeout, *rest):
        if q.shape[0] == 0:
            return empty_results(q)
        is_padded = key_padding_mask is not None
        call = make_call(q, k, is_padded, int(agreed), group, timeout, RingOptions(*rest))
        return _run_to_end(forward_steps(q, k, v, key_padding_mask, call), call)

    def backward(
        grad_out, grad_lse, q, k, v, out, lse, key_padding_mask, agreed, group, timeout, *rest
    ):  # fmt: skip
        if q.shape[0] == 0:
            return tuple(packed_like(x) for x in (q, k, v))
        is_padded = key_padding_mask is not None
        call = make_call(q, k, is_padded, int(agreed), group, timeout, RingOptions(*rest))
        tensors = (grad_out, grad_lse, q, k, v, out, lse, key_padding_mask)
        return _run_to_end(backward_steps(*tensors, call), call)

    return AttentionOp(name, with_schema(forward, 2), backward)


def attend(
    op: AttentionOp,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group: dist.ProcessGroup | DeviceMesh | None,
    is_causal: bool,
    scale: float | None,
    order: str | Grid,
    pattern: Pattern,
    backend: str,
    key_padding_mask: torch.Tensor | None,
    seq_len: int | None,
    timeout: float | None,
    patterns: tuple[type, ...] = PATTERNS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's out (B, n, H, D) and LSE (B, H, n).

    Args:
        op: from `rank_op`.
        q, k, v, group, is_causal, scale, order, pattern, backend, key_padding_mask, seq_len,
            timeout: as in `models.ring.ring_attention`.
        patterns: the pattern classes that the call takes.

    Raises:
        ValueError, UnsupportedBackend, RingError: as `models.ring.ring_attention`.
    """
    name = group_name(group)
    given = (is_causal, scale, order, pattern, backend, key_padding_mask)
    try:
        q, k, v, options = prepared(q, k, v, *given, patterns)
        whole, limit = checked_seq_len(seq_len), checked_timeout(timeout)
    except ValueError:
        if seq_len is None:
            report_bad_arguments(name, timeout, q)
        raise
    requires_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    is_padded = key_padding_mask is not None
    shared = (is_padded, requires_grad, whole, name, limit, *options)
    agreed = _agreement(q.detach(), k.detach(), *shared)
    return op(q, k, v, key_padding_mask, agreed, name, limit, *options)


def prepared(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    is_causal: bool,
    scale: float | None,
    order: str | Grid,
    pattern: Pattern,
    backend: str,
    key_padding_mask: torch.Tensor | None,
    patterns: tuple[type, ...] = PATTERNS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, RingOptions]:
    """q, k, v as `models.inputs.prepared` returns them, and the options.

    Args:
        q: (B, N, H, D), N may be 0.
        k: (B, N, Hkv, D).
        v: (B, N, Hkv, D).
        is_causal, scale, order, pattern, backend: as in `models.ring.ring_attention`.
        key_padding_mask: (B, N) bool or None.
        patterns: the pattern classes that the call takes.

    Raises:
        ValueError: bad arguments.
    """
    q, k, v, scale = inputs.prepared(q, k, v, scale, key_padding_mask, may_lack_tokens=True)
    return q, k, v, ring_options(is_causal, scale, order, pattern, backend, patterns)


def _agree(q, k, is_padded, requires_grad, seq_len, group, timeout, *rest):
    shared = (is_padded, requires_grad, seq_len, group, timeout)
    return torch.tensor(agreed_seq_len(q, k, *shared, RingOptions(*rest)))


def _agreement_vmap(info, in_dims, *arguments):
    """The vmap rule of the agreement: the mapped dimension is folded into the batch."""
    tensors = [
        x if dim is None else x.movedim(dim, 0).flatten(0, 1)
        for x, dim in zip(arguments[:2], in_dims, strict=False)
    ]
    return _agreement(*tensors, *arguments[2:]), None


# As `models.ops` makes an op, but this one returns a length.
_LIBRARY = torch.library.Library("long_context", "FRAGMENT")
_SCHEMA = torch.library.infer_schema(with_schema(_agree, 1), mutates_args=())
_LIBRARY.define("ring_agreement" + _SCHEMA)
_LIBRARY.impl("ring_agreement", _agree, "CompositeExplicitAutograd")
_agreement = torch.ops.long_context.ring_agreement.default
torch.library.register_fake(
    _agreement, lambda q, *_: torch.empty((), dtype=torch.int64), lib=_LIBRARY
)
torch.library.register_vmap(_agreement, _agreement_vmap, lib=_LIBRARY)


def _run_to_end(steps: Iterator, call: Call) -> tuple[torch.Tensor, ...]:
    """What the steps return, once all that was sent has gone out."""
    results = run(steps)
    call.exchange.finish()
    return results
