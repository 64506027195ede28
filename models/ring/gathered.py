"""Distributed dilated attention as LongNet does it: one all-gather of the sparsified keys.

Source: LongNet (arXiv 2307.02486), section 3.1. Branches whose segments lie in a shard need
nothing; of the others each rank gives all ranks the keys that its segments keep, w / r of w,
and its backward pass is the reduce-scatter of their gradients, in float32.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models.patterns.branches import DilatedBranches
from models.patterns.orders import Grid
from models.ring.call import Call
from models.ring.call import resolve_backend as resolve_backend
from models.ring.exchange import GRAD_KEYS, KEYS, computing, count_sent
from models.ring.hops import Queries
from models.ring.op import attend, rank_op
from models.ring.passes import (
    attend_local,
    gradients_of,
    prepare,
    results,
    start_gradients,
    unpack,
    zero_gradients,
)


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
):
    """`models.dilated_attention` over a sequence that is sharded over the ranks of `group`.

    As `models.ring.ring_attention` with this pattern: the same arguments, results and errors, by
    one all-gather and, in the backward pass, another and one reduce-scatter. Memory for the kept
    keys of all ranks' long branches.
    """
    options = (is_causal, scale, order, pattern, backend, key_padding_mask)
    out, lse = attend(_op, q, k, v, group, *options, seq_len, timeout, patterns=(DilatedBranches,))
    return (out, lse) if return_lse else out


def forward_steps(q, k, v, key_padding_mask, call: Call):
    """As `models.ring.passes.forward_steps`."""
    q_work, k_sent, v_sent = prepare(q, k, v, key_padding_mask)
    queries = Queries(q_work, call.op, call.scale)
    gathered = _Gathering(call, k_sent, v_sent)
    attend_local(queries, call, k_sent, v_sent)
    if gathered.pending is not None:
        yield gathered.pending
        with computing():
            for _, hop, flats in gathered.hops():
                queries.attend(hop, *(unpack(hop, x, q_work) for x in flats))
    return results(queries, q)


def backward_steps(grad_out, grad_lse, q, k, v, out, lse, key_padding_mask, call: Call):
    """As `models.ring.passes.backward_steps`."""
    q_work, k_sent, v_sent = prepare(q, k, v, key_padding_mask)
    gradients = start_gradients(grad_out, grad_lse, q_work, out, lse, key_padding_mask, call)
    grads = zero_gradients(v_sent)
    gathered = _Gathering(call, k_sent, v_sent)
    attend_local(gradients, call, k_sent, v_sent, *grads)
    if gathered.pending is not None:
        yield gathered.pending
        parts = list(grads[0].new_zeros(call.hops.world_size, gathered.size_of_gradients))
        with computing():
            for source, hop, flats in gathered.hops():
                keys_and_values = (unpack(hop, x, q_work) for x in flats)
                own = gathered.gradients(hop.parcel, parts[source])
                gradients.attend(hop, *keys_and_values, *(unpack(hop, x, grads[0]) for x in own))
        total = torch.empty_like(parts[0])
        if total.is_cuda:
            yield _Collective(call.exchange, dist.reduce_scatter, total, parts)
        else:
            yield _ReduceScatter(call.exchange, total, parts)
        parcel = call.hops.gathered(call.rank)
        for grad, flat in zip(grads, gathered.gradients(parcel, total), strict=True):
            if parcel.rows:
                parcel.add(grad, flat)
    return gradients_of(q, gradients, *grads)


_op = rank_op("distributed_dilated_attention", forward_steps, backward_steps)


class _Gathering:
    """The all-gather of every rank's parcel, keys then values, padded to the largest.

    pending: None where no rank needs another's keys. of_rank: each rank's parcel, flat.
    size_of_gradients: numbers of the largest parcel's keys without flags, and values.
    """

    def __init__(self, call: Call, k, v):
        self.call = call
        # Numbers of a row of keys, which come with flags or without, and of a row of values.
        self.widths = tuple(x.shape[0] * x.shape[3] for x in (k, v))
        world_size = call.hops.world_size
        self.pending, self.of_rank = None, []
        if world_size == 1:
            return
        parcels = [call.hops.gathered(rank) for rank in range(world_size)]
        rows = max(parcel.rows for parcel in parcels)
        if rows == 0:
            return
        self.size_of_gradients = 2 * rows * self.widths[1]
        own, given = parcels[call.rank], k.new_zeros(rows * sum(self.widths))
        if own.rows:
            for part, x in zip(_split(given, own, self.widths), (k, v), strict=True):
                part.copy_(own.pack(x))
        self.of_rank = list(k.new_empty(world_size, len(given)))
        self.pending = _Collective(call.exchange, dist.all_gather, self.of_rank, given)

    def hops(self):
        """Each other rank that has keys for this one, its hop, and its keys and values, flat."""
        for source, flat in enumerate(self.of_rank):
            hop = self.call.hops.gathered_hop(self.call.rank, source)
            if source != self.call.rank and hop.parcel.rows:
                yield source, hop, _split(flat, hop.parcel, self.widths)

    def gradients(self, parcel, flat):
        """The keys' and the values' gradients of a parcel in their flat tensor."""
        return _split(flat, parcel, 2 * self.widths[1:])


def _split(flat, parcel, widths):
    """Two parts of a flat tensor; widths: numbers of a parcel's row in each."""
    sizes = [width * parcel.rows for width in widths]
    return flat[: sum(sizes)].split(sizes)


class _ReduceScatter:
    """total: the sum, in rank order, of every rank's `parts` of this rank; under way.

    By messages: gloo's own collective minds no time limit, and once a rank is lost never ends.
    """

    def __init__(self, exchange, total, parts):
        self.exchange, self.total, self.parts = exchange, total, list(parts)
        others = [rank for rank in range(exchange.world_size) if rank != exchange.rank]
        sends = [(rank, parts[rank], GRAD_KEYS) for rank in others]
        for rank in others:
            self.parts[rank] = torch.empty_like(total)
        receives = [(rank, self.parts[rank], GRAD_KEYS) for rank in others]
        self.pending = exchange.post(sends, receives)

    def wait(self) -> None:
        """Wait for all parts, and add them; RingError if one does not come."""
        self.pending.wait()
        self.exchange.finish()
        torch.sum(torch.stack(self.parts), dim=0, out=self.total)


class _Collective:
    """`function(out, given)` of torch.distributed among all ranks, under way.

    given: a tensor, or a list of one for each rank.
    """

    def __init__(self, exchange, function, out, given):
        self.exchange, self.function = exchange, function
        parts = given if isinstance(given, list) else [given] * exchange.world_size
        for rank, part in enumerate(parts):
            if rank != exchange.rank:
                count_sent(part, KEYS)
        self.work = self._or_lost(function, out, given, group=exchange.group, async_op=True)

    def wait(self) -> None:
        """Wait until it is done; RingError if it fails or takes too long."""
        limit = self.exchange.timeout
        self._or_lost(self.work.wait, *([] if limit is None else [timedelta(seconds=limit)]))

    def _or_lost(self, step, *arguments, **options):
        try:
            return step(*arguments, **options)
        except RuntimeError as error:
            # It does not tell whom it lost.
            others = [x for x in range(self.exchange.world_size) if x != self.exchange.rank]
            raise self.exchange.lost(self.exchange.unreachable() or others, error) from error
