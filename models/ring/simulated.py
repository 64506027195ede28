"""A ring of virtual ranks in one process: the same steps, with messages handed over in memory.

For tests, and for measuring what a rank of a ring computes and holds where there are fewer
devices than ranks. What is measured this way has no network in it: call it simulated.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

import torch

from models.errors import as_integer
from models.ops import AttentionOp, empty_results, packed_like
from models.patterns.block_mask import BlockMask
from models.patterns.orders import as_rank, shard, unshard
from models.ring.call import Call, resolve_op, scale_of
from models.ring.exchange import KEYS, VALUES, count_sent
from models.ring.op import prepared, typed
from models.ring.passes import as_sent, backward_steps, forward_steps, run
from models.ring.plan import RingPlan, plan
from models.ring.request import Request


def simulated_ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    world_size: int,
    is_causal: bool = False,
    scale: float | None = None,
    order="zigzag",
    pattern=None,
    backend: str = "auto",
    return_lse: bool = False,
    key_padding_mask: torch.Tensor | None = None,
):
    """`models.ring.ring_attention` of `world_size` virtual ranks over a whole sequence.

    q: (B, N, H, D), k, v: (B, N, Hkv, D), key_padding_mask: (B, N) or None, the whole sequence
    by position; cut, worked on rank by rank and put together again here. Other arguments, results
    and errors as there. Memory is that of all ranks.
    """
    world_size = as_integer("world_size", world_size)
    options = (is_causal, scale, order, pattern, backend, key_padding_mask)
    q, k, v, asked = prepared(q, k, v, *options)
    _check_whole(q, pattern)
    out, lse = _op(q, k, v, key_padding_mask, world_size, *asked)
    return (out, lse) if return_lse else out


class OneRank:
    """One rank of a simulated ring by itself, to time and to weigh it.

    Built on whole-sequence q, k, v as `simulated_ring_attention` takes them; the keys of other
    ranks are copied from their shards where the rank would receive them. `forward()` returns
    the rank's out and LSE. `forward_backward(grad_out)` also does the rank's work of the backward
    pass: its dq is whole, but dk and dv lack what other ranks would send home, for which zeros
    are added in its place, in the same time and memory; they are not returned.
    rank: None for the first of those that have most pairs to compute.
    """

    def __init__(
        self,
        q,
        k,
        v,
        *,
        world_size,
        rank=None,
        is_causal=False,
        scale=None,
        order="zigzag",
        pattern=None,
        backend="auto",
        key_padding_mask=None,
    ):
        world_size = as_integer("world_size", world_size)
        options = (is_causal, scale, order, pattern, backend, key_padding_mask)
        q, k, v, asked = prepared(q, k, v, *options)
        _check_whole(q, pattern)
        hops = _plan(q, k, world_size, asked)
        if rank is None:
            rank = max(range(world_size), key=lambda rank: _pairs(hops, rank))
        self.rank = as_rank(rank, world_size)
        q, k, v = (x.detach() for x in (q, k, v))
        shards = _cut(hops, q, k, v, key_padding_mask)
        self.q, self.k, self.v, self.key_padding_mask = shards[self.rank]
        exchange = _CutOut(self.rank, hops, shards)
        op = resolve_op(q, backend, key_padding_mask is not None)
        self._call = Call(exchange, hops, op, scale_of(asked, q))

    def pairs(self) -> int:
        """Query-key pairs of all heads that it computes, of one batch element."""
        return _pairs(self._call.hops, self.rank)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """out (B, n, H, D) and LSE (B, H, n)."""
        return run(forward_steps(*self._inputs, self._call))

    def forward_backward(self, grad_out: torch.Tensor) -> torch.Tensor:
        """dq (B, n, H, D) for the cotangent of out."""
        q, k, v, key_padding_mask = self._inputs
        results = self.forward()
        tensors = (grad_out, None, q, k, v, *results, key_padding_mask)
        return run(backward_steps(*tensors, self._call))[0]

    @property
    def _inputs(self):
        return self.q, self.k, self.v, self.key_padding_mask


def _pairs(hops: RingPlan, rank: int) -> int:
    """Query-key pairs of all heads that a rank computes."""
    others = (hops.hop(rank, source) for source in range(hops.world_size) if source != rank)
    return hops.local(rank).pairs() + sum(hop.pairs() for hop in others if hop)


def _forward(q, k, v, key_padding_mask, world_size, *rest):
    if q.shape[0] == 0:
        return empty_results(q)
    calls = _calls(q, k, key_padding_mask is not None, world_size, Request(*rest))
    shards = _cut(calls[0].hops, q, k, v, key_padding_mask)
    found = _run_all([forward_steps(*x, call) for x, call in zip(shards, calls, strict=True)])
    outs, lses = zip(*found, strict=True)
    order = calls[0].hops.order
    return unshard(outs, order), unshard(lses, order, dim=2)


def _backward(grad_out, grad_lse, q, k, v, out, lse, key_padding_mask, world_size, *rest):
    if q.shape[0] == 0:
        return tuple(packed_like(x) for x in (q, k, v))
    calls = _calls(q, k, key_padding_mask is not None, world_size, Request(*rest))
    hops = calls[0].hops
    shards = _cut(hops, grad_out, q, k, v, out, key_padding_mask)
    steps = []
    for rank, (part, *qkv, part_out, mask) in enumerate(shards):
        part_lse, part_grad = (
            None if x is None else shard(x, rank, world_size, hops.order, dim=2)
            for x in (lse, grad_lse)
        )
        tensors = (part, part_grad, *qkv, part_out, part_lse, mask)
        steps.append(backward_steps(*tensors, calls[rank]))
    return tuple(unshard(x, hops.order) for x in zip(*_run_all(steps), strict=True))


_op = AttentionOp("simulated_ring_attention", typed(_forward, 2), _backward)


def _calls(q, k, is_padded: bool, world_size: int, asked: Request) -> list[Call]:
    """The call of each virtual rank."""
    hops, mail = _plan(q, k, world_size, asked), defaultdict(deque)
    rest = (hops, resolve_op(q, asked.backend, is_padded), scale_of(asked, q))
    return [Call(_Posting(rank, mail), *rest) for rank in range(world_size)]


def _plan(q, k, world_size: int, asked: Request) -> RingPlan:
    sizes = (q.shape[1], world_size, q.shape[2], k.shape[2])
    return plan(asked.given_pattern(), asked.given_order(), *sizes, asked.is_causal)


def _check_whole(q, pattern) -> None:
    """ValueError unless there are tokens, and a block mask covers them."""
    if q.shape[1] == 0:
        raise ValueError(f"q.shape={tuple(q.shape)}: expected no empty dimension but the batch")
    if isinstance(pattern, BlockMask):
        pattern.check_fits(*q.shape[1:3])


def _cut(hops: RingPlan, *tensors) -> list[tuple]:
    """Each rank's part of tensors (B, N, ...) or None."""
    return [
        tuple(None if x is None else shard(x, rank, hops.world_size, hops.order) for x in tensors)
        for rank in range(hops.world_size)
    ]


def _run_all(steps: list) -> list:
    """Run step generators in turns, each as far as its messages have been posted."""
    results = [None] * len(steps)
    waiting = deque((rank, generator, None) for rank, generator in enumerate(steps))
    while waiting:
        rank, generator, pending = waiting.popleft()
        if pending is not None and not pending.is_ready():
            waiting.append((rank, generator, pending))
            continue
        if pending is not None:
            pending.wait()
        try:
            waiting.append((rank, generator, next(generator)))
        except StopIteration as stop:
            results[rank] = stop.value
    return results


@dataclass(frozen=True)
class _Posting:
    """The exchange of a virtual rank; mail: (from, to, tag) -> tensors under way, in order."""

    rank: int
    mail: dict

    def post(self, sends, receives) -> _Letters:
        for to, tensor, tag in sends:
            count_sent(tensor, tag)
            self.mail[self.rank, to, tag].append(tensor)
        return _Letters([(self.mail[s, self.rank, tag], flat) for s, flat, tag in receives])


@dataclass(frozen=True)
class _Letters:
    expected: list

    def is_ready(self) -> bool:
        return all(box for box, _ in self.expected)

    def wait(self) -> None:
        for box, flat in self.expected:
            flat.copy_(box.popleft())


@dataclass(frozen=True)
class _CutOut:
    """The exchange of one virtual rank without the others: see `OneRank`.

    shards: q, k, v and key_padding_mask of each rank.
    """

    rank: int
    hops: RingPlan
    shards: list[tuple]

    def post(self, sends, receives) -> _Copies:
        for _, tensor, tag in sends:
            count_sent(tensor, tag)
        copies = []
        for source, flat, tag in receives:
            _, k, v, key_padding_mask = self.shards[source]
            given = {KEYS: (k, key_padding_mask), VALUES: (v,)}.get(tag)
            copies.append((flat, given and self.hops.hop(self.rank, source).parcel, given))
        return _Copies(copies)


@dataclass(frozen=True)
class _Copies:
    copies: list

    def wait(self) -> None:
        for flat, parcel, given in self.copies:
            if parcel is None:
                flat.zero_()
            else:
                flat.copy_(parcel.pack(as_sent(*given)))
