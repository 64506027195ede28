"""A ring of virtual ranks in one process: the same steps, with messages handed over in memory.

For tests, and for measuring what a rank of a ring computes and holds where there are fewer
devices than ranks. What is measured this way has no network in it: call it simulated.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

import torch

from models.errors import check_qkv, check_same_length, resolve_scale
from models.patterns.block_mask import BlockMask
from models.patterns.orders import check_order, shard, unshard
from models.ring.call import Call, resolve_op
from models.ring.exchange import KEYS, VALUES, count_sent
from models.ring.passes import backward_steps, forward_steps, run
from models.ring.plan import RingPlan, plan


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
):
    """`models.ring.ring_attention` of `world_size` virtual ranks over a whole sequence.

    q: (B, N, H, D), k, v: (B, N, Hkv, D), the whole sequence by position; cut, worked on rank
    by rank and put together again here. Other arguments, results and errors as there. Memory is
    that of all ranks.
    """
    shards, *rest = _cut(q, k, v, world_size, is_causal, scale, order, pattern, backend)
    mail = defaultdict(deque)
    calls = [Call(_Posting(rank, mail), *rest) for rank in range(world_size)]
    results = _Simulated.apply(calls, *(x for of_rank in shards for x in of_rank))
    out = unshard(list(results[:world_size]), order)
    if not return_lse:
        return out
    return out, unshard(list(results[world_size:]), order, dim=2)


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
    ):
        shards, hops, *rest = _cut(q, k, v, world_size, is_causal, scale, order, pattern, backend)
        if rank is None:
            rank = max(range(world_size), key=lambda rank: _pairs(hops, rank))
        self.rank = rank
        self.q, self.k, self.v = shards[self.rank]
        keys, values = ([x[which] for x in shards] for which in (1, 2))
        self._call = Call(_CutOut(self.rank, hops, keys, values), hops, *rest)

    def pairs(self) -> int:
        """Query-key pairs of all heads that it computes, of one batch element."""
        return _pairs(self._call.hops, self.rank)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """out (B, n, H, D) and LSE (B, H, n)."""
        return run(forward_steps(self.q, self.k, self.v, self._call))[:2]

    def forward_backward(self, grad_out: torch.Tensor) -> torch.Tensor:
        """dq (B, n, H, D) for the cotangent of out."""
        qkv = (self.q, self.k, self.v)
        out, lse, saved = run(forward_steps(*qkv, self._call))
        return run(backward_steps(*qkv, out, lse, grad_out, None, self._call, saved))[0]


def _pairs(hops: RingPlan, rank: int) -> int:
    """Query-key pairs of all heads that a rank computes."""
    others = (hops.hop(rank, source) for source in range(hops.world_size) if source != rank)
    return hops.local(rank).pairs() + sum(hop.pairs() for hop in others if hop)


class _Simulated(torch.autograd.Function):
    """q, k, v of each rank in turn -> all ranks' out, then all ranks' LSE."""

    @staticmethod
    def forward(ctx, calls, *shards):
        ranks = _threes(shards)
        steps = [forward_steps(*qkv, call) for qkv, call in zip(ranks, calls, strict=True)]
        outs, lses, saved = zip(*_run_all(steps), strict=True)
        ctx.save_for_backward(*shards, *outs, *lses)
        ctx.set_materialize_grads(False)
        ctx.options = (calls, saved)
        return *outs, *lses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        calls, saved = ctx.options
        size, tensors = len(calls), ctx.saved_tensors
        outs, lses = tensors[3 * size : 4 * size], tensors[4 * size :]
        of_rank = zip(
            _threes(tensors[: 3 * size]), outs, lses, grads[:size], grads[size:], calls, saved,
            strict=True,
        )  # fmt: skip
        found = _run_all([backward_steps(*qkv, *rest) for qkv, *rest in of_rank])
        return None, *(grad for of_rank in found for grad in of_rank)


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
    """The exchange of one virtual rank without the others: see `OneRank`."""

    rank: int
    hops: RingPlan
    k: list[torch.Tensor]
    v: list[torch.Tensor]

    def post(self, sends, receives) -> _Copies:
        for _, tensor, tag in sends:
            count_sent(tensor, tag)
        copies = []
        for source, flat, tag in receives:
            shards = {KEYS: self.k, VALUES: self.v}.get(tag)
            parcel = self.hops.hop(self.rank, source).parcel if shards else None
            copies.append((flat, parcel, shards and shards[source]))
        return _Copies(copies)


@dataclass(frozen=True)
class _Copies:
    copies: list

    def wait(self) -> None:
        for flat, parcel, x in self.copies:
            if parcel is None:
                flat.zero_()
            else:
                flat.copy_(parcel.pack(x.detach().contiguous()))


def _threes(shards) -> list[tuple]:
    """(q, k, v) of each rank."""
    return [tuple(shards[i : i + 3]) for i in range(0, len(shards), 3)]


def _cut(q, k, v, world_size, is_causal, scale, order, pattern, backend):
    """(q, k, v) shards of each rank, the plan, the op, and the scale."""
    check_qkv(q, k, v)
    check_same_length(q, k)
    check_order(order)
    if type(world_size) is not int or world_size < 1:
        raise ValueError(f"world_size={world_size!r}: expected an integer >= 1")
    seq_len, heads = q.shape[1:3]
    if isinstance(pattern, BlockMask):
        pattern.check_fits(seq_len, heads)
    hops = plan(pattern, order, seq_len, world_size, heads, k.shape[2], bool(is_causal))
    shards = [
        tuple(shard(x, rank, world_size, order) for x in (q, k, v)) for rank in range(world_size)
    ]
    return shards, hops, resolve_op(q, backend), resolve_scale(scale, q.shape[3])
