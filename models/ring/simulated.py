"""A ring of virtual ranks in one process: the same passes, with messages handed over in memory.

For tests, and for measuring what one rank of a ring computes and holds where there are fewer
devices than ranks. Such measurements have no network in them: they are to be called simulated.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator

import torch

from models.errors import as_integer
from models.ops import AttentionOp, empty_results, packed_like
from models.patterns.block_mask import BlockMask
from models.patterns.curves import Grid
from models.patterns.orders import as_rank, shard, unshard
from models.ring.call import Call, resolve_op
from models.ring.op import prepared, with_schema
from models.ring.options import RingOptions
from models.ring.passes import backward_steps, forward_steps, run
from models.ring.plan import Pattern, RingPlan, ring_plan
from models.ring.simulated_exchange import SimulatedExchange, SingleVirtualExchange


def simulated_ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    world_size: int,
    is_causal: bool = False,
    scale: float | None = None,
    order: str | Grid = "zigzag",
    pattern: Pattern = None,
    backend: str = "auto",
    return_lse: bool = False,
    key_padding_mask: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`models.ring.ring_attention` of `world_size` virtual ranks over a whole sequence.

    The sequence is cut into shards, which the virtual ranks attend to in turns. Memory is that of
    all ranks.

    Args:
        q: (B, N, H, D), the whole sequence by position, N >= 1.
        k: (B, N, Hkv, D), q's dtype.
        v: (B, N, Hkv, D), q's dtype.
        world_size: virtual ranks.
        key_padding_mask: (B, N) bool, the whole sequence by position, or None.
        is_causal, scale, order, pattern, backend, return_lse: as in
            `models.ring.ring_attention`.

    Returns:
        out (B, N, H, D) and, with `return_lse`, LSE (B, H, N) as `models.ring.ring_attention`.

    Raises:
        ValueError: bad arguments.
        UnsupportedBackend: the named backend cannot take q.
    """
    world_size = as_integer("world_size", world_size)
    given = (is_causal, scale, order, pattern, backend, key_padding_mask)
    q, k, v, options = prepared(q, k, v, *given)
    _check_whole(q, pattern)
    out, lse = _op(q, k, v, key_padding_mask, world_size, *options)
    return (out, lse) if return_lse else out


class OneRank:
    """One rank of a simulated ring by itself, to measure its time and memory.

    The keys of other ranks are copied from their shards where the rank would receive them.

    Args:
        q: (B, N, H, D), the whole sequence by position, N >= 1.
        k: (B, N, Hkv, D), q's dtype.
        v: (B, N, Hkv, D), q's dtype.
        world_size: virtual ranks.
        rank: None for the rank with most query-key pairs, the first of several.
        key_padding_mask: (B, N) bool, the whole sequence by position, or None.
        is_causal, scale, order, pattern, backend: as in `models.ring.ring_attention`.

    Raises:
        ValueError: bad arguments.
        UnsupportedBackend: the named backend cannot take q.
    """

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        world_size: int,
        rank: int | None = None,
        is_causal: bool = False,
        scale: float | None = None,
        order: str | Grid = "zigzag",
        pattern: Pattern = None,
        backend: str = "auto",
        key_padding_mask: torch.Tensor | None = None,
    ):
        world_size = as_integer("world_size", world_size)
        given = (is_causal, scale, order, pattern, backend, key_padding_mask)
        q, k, v, options = prepared(q, k, v, *given)
        _check_whole(q, pattern)
        plan = _plan(q, k, world_size, options)
        if rank is None:
            rank = max(range(world_size), key=lambda rank: _pairs(plan, rank))
        self.rank = as_rank(rank, world_size)
        q, k, v = (x.detach() for x in (q, k, v))
        shards = _cut(plan, q, k, v, key_padding_mask)
        self.q, self.k, self.v, self.key_padding_mask = shards[self.rank]
        exchange = SingleVirtualExchange(self.rank, plan, shards)
        op = resolve_op(q, backend, key_padding_mask is not None)
        self._call = Call(exchange, plan, op, options.scale)

    def pairs(self) -> int:
        """Query-key pairs of all heads that the rank computes, per batch element."""
        return _pairs(self._call.plan, self.rank)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The rank's out (B, n, H, D) in q's dtype and LSE (B, H, n)."""
        return run(forward_steps(*self._inputs, self._call))

    def forward_backward(self, grad_out: torch.Tensor) -> torch.Tensor:
        """Both passes of the rank.

        dk and dv lack what other ranks would send back, in whose place zeros are added, in the
        same time and memory; so they are not returned.

        Args:
            grad_out: (B, n, H, D), the cotangent of the rank's out.

        Returns:
            The rank's dq (B, n, H, D), complete.
        """
        return self.backward(grad_out, *self.forward())

    def backward(
        self, grad_out: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
    ) -> torch.Tensor:
        """The backward pass of `forward_backward`; out, lse: what `forward` returned."""
        q, k, v, key_padding_mask = self._inputs
        tensors = (grad_out, None, q, k, v, out, lse, key_padding_mask)
        return run(backward_steps(*tensors, self._call))[0]

    @property
    def _inputs(self):
        return self.q, self.k, self.v, self.key_padding_mask


def _pairs(plan: RingPlan, rank: int) -> int:
    """Query-key pairs of all heads that a rank computes, per batch element."""
    others = (plan.hop(rank, source) for source in range(plan.world_size) if source != rank)
    return plan.local(rank).pairs() + sum(hop.pairs() for hop in others if hop)


def _forward(q, k, v, key_padding_mask, world_size, *rest):
    if q.shape[0] == 0:
        return empty_results(q)
    calls = _calls(q, k, key_padding_mask is not None, world_size, RingOptions(*rest))
    shards = _cut(calls[0].plan, q, k, v, key_padding_mask)
    found = _run_all([forward_steps(*x, call) for x, call in zip(shards, calls, strict=True)])
    outs, lses = zip(*found, strict=True)
    order = calls[0].plan.order
    return unshard(outs, order), unshard(lses, order, dim=2)


def _backward(grad_out, grad_lse, q, k, v, out, lse, key_padding_mask, world_size, *rest):
    if q.shape[0] == 0:
        return tuple(packed_like(x) for x in (q, k, v))
    calls = _calls(q, k, key_padding_mask is not None, world_size, RingOptions(*rest))
    plan = calls[0].plan
    shards = _cut(plan, grad_out, q, k, v, out, key_padding_mask)
    steps = []
    for rank, (part, *qkv, part_out, mask) in enumerate(shards):
        part_lse, part_grad = (
            None if x is None else shard(x, rank, world_size, plan.order, dim=2)
            for x in (lse, grad_lse)
        )
        tensors = (part, part_grad, *qkv, part_out, part_lse, mask)
        steps.append(backward_steps(*tensors, calls[rank]))
    return tuple(unshard(x, plan.order) for x in zip(*_run_all(steps), strict=True))


_op = AttentionOp("simulated_ring_attention", with_schema(_forward, 2), _backward)


def _calls(q, k, is_padded: bool, world_size: int, options: RingOptions) -> list[Call]:
    """The call of each virtual rank."""
    plan, queues = _plan(q, k, world_size, options), defaultdict(deque)
    op = resolve_op(q, options.backend, is_padded)
    return [
        Call(SimulatedExchange(rank, queues), plan, op, options.scale) for rank in range(world_size)
    ]


def _plan(q, k, world_size: int, options: RingOptions) -> RingPlan:
    sizes = (q.shape[1], world_size, q.shape[2], k.shape[2])
    return ring_plan(options.given_pattern(), options.given_order(), *sizes, options.is_causal)


def _check_whole(q: torch.Tensor, pattern: Pattern) -> None:
    """ValueError unless there are tokens, and a block mask covers them."""
    if q.shape[1] == 0:
        raise ValueError(f"q.shape={tuple(q.shape)}: expected no empty dimension but the batch")
    if isinstance(pattern, BlockMask):
        pattern.check_fits(*q.shape[1:3])


def _cut(plan: RingPlan, *tensors: torch.Tensor | None) -> list[tuple[torch.Tensor | None, ...]]:
    """Each rank's shards of tensors (B, N, ...) or None."""
    return [
        tuple(None if x is None else shard(x, rank, plan.world_size, plan.order) for x in tensors)
        for rank in range(plan.world_size)
    ]


def _run_all(steps: list[Iterator]) -> list[tuple[torch.Tensor, ...]]:
    """Run step generators in turns, each as far as its messages have been sent."""
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
