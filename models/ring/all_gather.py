"""Distributed dilated attention as LongNet does it: one all-gather of the sparsified keys.

Source: LongNet (arXiv 2307.02486), section 3.1. Branches whose segments lie within a shard need
no communication; for the others each rank sends all ranks the keys that its segments keep, w / r
of w, and the backward pass is the reduce-scatter of their gradients, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models.patterns.branches import DilatedBranches
from models.patterns.curves import Grid
from models.ring.call import Call
from models.ring.call import resolve_backend as resolve_backend
from models.ring.exchange import (
    GRAD_KEYS,
    KEYS,
    Exchange,
    record_sent,
    timed_compute,
)
from models.ring.hops import OutputAccumulator
from models.ring.op import attend, rank_op
from models.ring.passes import (
    attend_local,
    gradient_accumulator,
    gradient_results,
    output_results,
    prepare_operands,
    unpack,
    zero_gradients,
)
from models.ring.plan import Hop, KeyMessage


def distributed_dilated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    pattern: DilatedBranches,
    group: dist.ProcessGroup | DeviceMesh | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    order: str | Grid = "contiguous",
    backend: str = "auto",
    return_lse: bool = False,
    key_padding_mask: torch.Tensor | None = None,
    seq_len: int | None = None,
    timeout: float | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`models.dilated_attention` over a sequence that is sharded over the ranks of `group`.

    One all-gather in the forward pass; another and one reduce-scatter in the backward pass. Memory
    for the kept keys of all ranks' branches that reach beyond a shard.

    Args:
        q: (B, n, H, D), this rank's shard, n may be 0.
        k: (B, n, Hkv, D), q's dtype.
        v: (B, n, Hkv, D), q's dtype.
        pattern: the branches, the same on every rank.
        group, is_causal, scale, order, backend, return_lse, key_padding_mask, seq_len, timeout:
            as in `models.ring.ring_attention`.

    Returns:
        out and, with `return_lse`, LSE as `models.ring.ring_attention` with this pattern.

    Raises:
        ValueError, UnsupportedBackend, RingError: as `models.ring.ring_attention`.
    """
    options = (is_causal, scale, order, pattern, backend, key_padding_mask)
    out, lse = attend(_op, q, k, v, group, *options, seq_len, timeout, patterns=(DilatedBranches,))
    return (out, lse) if return_lse else out


def _forward_steps(q, k, v, key_padding_mask, call: Call):
    """Arguments and results as `models.ring.passes.forward_steps`."""
    q_work, k_sent, v_sent = prepare_operands(q, k, v, key_padding_mask)
    accumulator = OutputAccumulator(q_work, call.op, call.scale)
    gathered = _AllGather(call, k_sent, v_sent)
    attend_local(accumulator, call, k_sent, v_sent)
    if gathered.pending is not None:
        yield gathered.pending
        with timed_compute():
            for _, hop, flats in gathered.hops():
                accumulator.attend(hop, *(unpack(hop, x, q_work) for x in flats))
    return output_results(accumulator, q)


def _backward_steps(grad_out, grad_lse, q, k, v, out, lse, key_padding_mask, call: Call):
    """Arguments and results as `models.ring.passes.backward_steps`."""
    q_work, k_sent, v_sent = prepare_operands(q, k, v, key_padding_mask)
    accumulator = gradient_accumulator(grad_out, grad_lse, q_work, out, lse, key_padding_mask, call)
    grads = zero_gradients(v_sent)
    gathered = _AllGather(call, k_sent, v_sent)
    attend_local(accumulator, call, k_sent, v_sent, *grads)
    if gathered.pending is not None:
        yield gathered.pending
        parts = list(grads[0].new_zeros(call.plan.world_size, gathered.size_of_gradients))
        with timed_compute():
            for source, hop, flats in gathered.hops():
                keys_and_values = (unpack(hop, x, q_work) for x in flats)
                own = gathered.gradients(hop.message, parts[source])
                own = (unpack(hop, x, grads[0]) for x in own)
                accumulator.attend(hop, *keys_and_values, *own)
        total = torch.empty_like(parts[0])
        if total.is_cuda:
            yield _Collective(call.exchange, dist.reduce_scatter, total, parts)
        else:
            yield _ReduceScatter(call.exchange, total, parts)
        message = call.plan.all_gather_message(call.rank)
        for grad, flat in zip(grads, gathered.gradients(message, total), strict=True):
            if message.rows:
                message.add_to(grad, flat)
    return gradient_results(q, accumulator, *grads)


_op = rank_op("distributed_dilated_attention", _forward_steps, _backward_steps)


class _AllGather:
    """The all-gather of every rank's message, keys then values, padded to the longest.

    pending: None where no rank needs another's keys. of_rank: each rank's message, flat.
    size_of_gradients: numbers in the longest message's keys without flags, and values.
    """

    def __init__(self, call: Call, k: torch.Tensor, v: torch.Tensor):
        self.call = call
        # Numbers per row of keys, with flags or without, and per row of values.
        self.widths = tuple(x.shape[0] * x.shape[3] for x in (k, v))
        world_size = call.plan.world_size
        self.pending, self.of_rank = None, []
        if world_size == 1:
            return
        messages = [call.plan.all_gather_message(rank) for rank in range(world_size)]
        rows = max(message.rows for message in messages)
        if rows == 0:
            return
        self.size_of_gradients = 2 * rows * self.widths[1]
        own, given = messages[call.rank], k.new_zeros(rows * sum(self.widths))
        if own.rows:
            for part, x in zip(_split(given, own, self.widths), (k, v), strict=True):
                part.copy_(own.pack(x))
        self.of_rank = list(k.new_empty(world_size, len(given)))
        self.pending = _Collective(call.exchange, dist.all_gather, self.of_rank, given)

    def hops(self) -> Iterator[tuple[int, Hop, tuple[torch.Tensor, ...]]]:
        """Per other rank whose keys this one needs: rank, hop, and keys and values, flat."""
        for source, flat in enumerate(self.of_rank):
            hop = self.call.plan.all_gather_hop(self.call.rank, source)
            if source != self.call.rank and hop.message.rows:
                yield source, hop, _split(flat, hop.message, self.widths)

    def gradients(self, message: KeyMessage, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gradients of a message's keys and of its values, views of `flat`."""
        return _split(flat, message, 2 * self.widths[1:])


def _split(flat: torch.Tensor, message: KeyMessage, widths: tuple[int, ...]):
    """Two parts of a flat tensor; widths: numbers per row of the message in each."""
    sizes = [width * message.rows for width in widths]
    return flat[: sum(sizes)].split(sizes)


class _ReduceScatter:
    """A reduce-scatter in flight: `total` becomes the sum, in rank order, of all ranks' parts.

    parts: one tensor per rank. By point-to-point messages: gloo's own collective ignores time
    limits, and does not end once a rank is lost.
    """

    def __init__(self, exchange: Exchange, total: torch.Tensor, parts: list[torch.Tensor]):
        self.exchange, self.total, self.parts = exchange, total, list(parts)
        others = [rank for rank in range(exchange.world_size) if rank != exchange.rank]
        sends = [(rank, parts[rank], GRAD_KEYS) for rank in others]
        for rank in others:
            self.parts[rank] = torch.empty_like(total)
        receives = [(rank, self.parts[rank], GRAD_KEYS) for rank in others]
        self.pending = exchange.post(sends, receives)

    def wait(self) -> None:
        """Wait for all parts, and add them; RingError if one does not arrive."""
        self.pending.wait()
        self.exchange.finish()
        torch.sum(torch.stack(self.parts), dim=0, out=self.total)


class _Collective:
    """`function(out, given)` of torch.distributed among all ranks, in flight.

    given: a tensor, or a list of one per rank.
    """

    def __init__(self, exchange, function, out, given):
        self.exchange, self.function = exchange, function
        parts = given if isinstance(given, list) else [given] * exchange.world_size
        for rank, part in enumerate(parts):
            if rank != exchange.rank:
                record_sent(part, KEYS)
        self.work = self._or_lost(function, out, given, group=exchange.group, async_op=True)

    def wait(self) -> None:
        """Wait until it is done; RingError if it fails or takes too long."""
        limit = self.exchange.timeout
        self._or_lost(self.work.wait, *([] if limit is None else [timedelta(seconds=limit)]))

    def _or_lost(self, step, *arguments, **options):
        try:
            return step(*arguments, **options)
        except RuntimeError as error:
            # The error does not say which rank was lost.
            others = [x for x in range(self.exchange.world_size) if x != self.exchange.rank]
            lost = self.exchange.unreachable() or others
            raise self.exchange.lost_ranks_error(lost, error) from error
