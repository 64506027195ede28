"""The forward and the backward pass of one rank, as steps between which it waits for others.

A step generator yields what it waits for. `run` waits for each in turn; `models.ring.simulated`
runs the generators of many ranks in one process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from models.fused_ops import as_operand, head_dim_multiple
from models.ring.call import Call
from models.ring.exchange import PendingReceives, record_wait, timed_compute
from models.ring.hops import GradientAccumulator, OutputAccumulator, working_dtype
from models.ring.padding_flags import with_flags
from models.ring.plan import Hop
from models.ring.transfers import GradReturn, KeyFetch


def run(steps: Iterator) -> tuple[torch.Tensor, ...]:
    """Run a step generator, waiting for all that it yields; returns what it returns."""
    while True:
        try:
            pending = next(steps)
        except StopIteration as stop:
            return stop.value
        start = time.perf_counter()
        pending.wait()
        record_wait(time.perf_counter() - start)


def forward_steps(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_padding_mask: torch.Tensor | None,
    call: Call,
) -> Iterator[PendingReceives]:
    """The steps of a rank's forward pass.

    Args:
        q: (B, n, H, D), this rank's; without padding's values, see `models.inputs.prepared`.
        k: (B, n, Hkv, D), this rank's.
        v: (B, n, Hkv, D), this rank's.
        key_padding_mask: (B, n) bool, this rank's, or None.
        call: the exchange, the plan and the op.

    Returns:
        out (B, n, H, D) in q's dtype and LSE (B, H, n), float32 at least.
    """
    steps = _steps(call)
    q_work, k_sent, v_sent = prepare_operands(q, k, v, key_padding_mask)
    accumulator = OutputAccumulator(q_work, call.op, call.scale)
    fetch = KeyFetch(call, k_sent, v_sent)
    coming = fetch.post(steps[0]) if steps else None
    attend_local(accumulator, call, k_sent, v_sent)
    for number in range(len(steps)):
        pending, hop, flats = coming
        yield pending
        coming = fetch.post(steps[number + 1]) if number + 1 < len(steps) else None
        if hop is not None:
            with timed_compute():
                accumulator.attend(hop, *(unpack(hop, x, q_work) for x in flats))
    return output_results(accumulator, q)


def backward_steps(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    key_padding_mask: torch.Tensor | None,
    call: Call,
) -> Iterator[PendingReceives]:
    """The steps of a rank's backward pass.

    Args:
        grad_out: (B, n, H, D), the cotangent of out.
        grad_lse: (B, H, n), the cotangent of LSE, or None.
        q, k, v, key_padding_mask, call: as `forward_steps`.
        out, lse: what `forward_steps` returned.

    Returns:
        dq, dk, dv, shaped as q, k, v and in q's dtype.
    """
    steps = _steps(call)
    q_work, k_sent, v_sent = prepare_operands(q, k, v, key_padding_mask)
    accumulator = gradient_accumulator(grad_out, grad_lse, q_work, out, lse, key_padding_mask, call)
    grad_k, grad_v = zero_gradients(v_sent)
    fetch = KeyFetch(call, k_sent, v_sent)
    grad_return = GradReturn(call, grad_k, grad_v)
    coming = fetch.post(steps[0]) if steps else None
    attend_local(accumulator, call, k_sent, v_sent, grad_k, grad_v)
    for number, step in enumerate(steps):
        pending, hop, flats = coming
        yield pending
        coming = fetch.post(steps[number + 1]) if number + 1 < len(steps) else None
        parts = ()
        if hop is not None:
            with timed_compute():
                parts = zero_gradients(flats[1])
                keys, values = (unpack(hop, x, q_work) for x in flats)
                grads = (hop.message.unpack(x, q.shape[0]) for x in parts)
                accumulator.attend(hop, keys, values, *grads)
        if number:
            yield grad_return.pending
            grad_return.add()
        grad_return.post(step, parts)
    if steps:
        yield grad_return.pending
        grad_return.add()
    return gradient_results(q, accumulator, grad_k, grad_v)


def _steps(call: Call) -> list[int]:
    """The hops in which this rank sends or receives anything."""
    rank, plan = call.rank, call.plan
    size = plan.world_size
    return [
        step
        for step in range(1, size)
        if plan.hop((rank + step) % size, rank) or plan.hop(rank, (rank - step) % size)
    ]


def prepare_operands(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_padding_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q in `working_dtype`, k and v by `as_sent`; head_dim padded to the ops' multiple.

    Args:
        q, k, v, key_padding_mask: as in `forward_steps`.
    """
    extra = -q.shape[3] % head_dim_multiple(q)
    q = F.pad(q, (0, extra)) if extra else q
    return as_operand(q.to(working_dtype(q))), as_sent(k, key_padding_mask), as_sent(v)


def as_sent(x: torch.Tensor, key_padding_mask: torch.Tensor | None = None) -> torch.Tensor:
    """k with its padding flags, or v: contiguous, head_dim padded to the ops' multiple.

    Args:
        x: (B, n, Hkv, D).
        key_padding_mask: (B, n) bool, for k; None for none, and for v.
    """
    extra = -x.shape[3] % head_dim_multiple(x)
    return with_flags(F.pad(x, (0, extra)) if extra else x, key_padding_mask).contiguous()


def zero_gradients(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero gradients of keys and of values, each shaped as v, float32 at least.

    Of v, not k: padding flags have no gradients.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    return tuple(torch.zeros_like(v, dtype=wide) for _ in range(2))


def output_results(
    accumulator: OutputAccumulator, q: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B, n, H, D) in q's dtype and head_dim, and LSE (B, H, n).

    Args:
        accumulator: after the last hop.
        q: (B, n, H, D), the caller's.
    """
    out, lse = accumulator.result()
    return out[..., : q.shape[3]].to(q.dtype).contiguous(), lse.transpose(1, 2).contiguous()


def gradient_results(
    q: torch.Tensor, accumulator: GradientAccumulator, grad_k: torch.Tensor, grad_v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq (B, n, H, D), dk and dv (B, n, Hkv, D) in q's dtype and head_dim.

    Args:
        q: (B, n, H, D), the caller's.
        accumulator: after the last hop.
        grad_k: (B, n, Hkv, D or more), float32 at least, complete.
        grad_v: (B, n, Hkv, D or more), alike.
    """
    grads = (accumulator.result(), grad_k, grad_v)
    return tuple(x[..., : q.shape[3]].to(q.dtype).contiguous() for x in grads)


def gradient_accumulator(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    key_padding_mask: torch.Tensor | None,
    call: Call,
) -> GradientAccumulator:
    """The accumulator of a backward pass, before its first hop.

    Args:
        q: (B, n, H, D or more), from `prepare_operands`.
        grad_out, grad_lse, out, lse, key_padding_mask, call: as in `backward_steps`.
    """
    padding = (0, q.shape[3] - out.shape[3])
    lse = lse.transpose(1, 2)
    grad_lse = None if grad_lse is None else grad_lse.transpose(1, 2)
    if key_padding_mask is not None:
        # In rows without keys the weights become exp(-inf - 0) = 0, and no 0 times inf may arise.
        empty = lse.isneginf()
        lse, grad_out = lse.masked_fill(empty, 0.0), grad_out.masked_fill(empty[..., None], 0.0)
        grad_lse = None if grad_lse is None else grad_lse.masked_fill(empty, 0.0)
    # Autograd's cotangents have any strides; the ops want those of q.
    out, grad_out = (F.pad(x.to(q.dtype), padding).contiguous() for x in (out, grad_out))
    return GradientAccumulator(q, out, lse, grad_out, grad_lse, call.op, call.scale)


def attend_local(
    accumulator: OutputAccumulator | GradientAccumulator,
    call: Call,
    k: torch.Tensor,
    v: torch.Tensor,
    *grads: torch.Tensor,
) -> None:
    """The first hop: the rank's own keys and values.

    Args:
        accumulator: of the pass.
        call: the plan.
        k: (B, n, Hkv, D), from `as_sent`.
        v: (B, n, Hkv, D), from `as_sent`.
        grads: in the backward pass the gradients of k and v, added to in place.
    """
    hop = call.plan.local(call.rank)
    with timed_compute():
        wide = (x.to(accumulator.q.dtype) for x in (k, v))
        subsets = hop.message.subsets
        own = ([x[:, :, subset.heads] for subset in subsets] for x in (*wide, *grads))
        accumulator.attend(hop, *own)


def unpack(hop: Hop, flat: torch.Tensor, q: torch.Tensor) -> list[torch.Tensor]:
    """A message that arrived: (B, tokens, heads, D) per subset, in q's dtype.

    Args:
        hop: that it belongs to.
        flat: as `KeyMessage.pack` lays it out.
        q: (B, n, H, D), from `prepare_operands`.
    """
    return [x.to(q.dtype) for x in hop.message.unpack(flat, q.shape[0])]
