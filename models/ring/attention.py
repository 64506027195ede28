"""Ring attention: each rank holds a shard of the sequence and gets attention to all of it.

In hop t a rank takes keys and values from the rank t before it and gives its own to the rank
t after it: straight, not handed on from neighbour to neighbour, so that a hop carries just the
keys which its one receiver needs (all of them for dense attention, then as many bytes as a ring
hands on), no hop waits for the one before, and in the backward pass gradients go straight home.
"""

from __future__ import annotations

import os
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models.errors import (
    UnsupportedBackend,
    check_choice,
    check_qkv,
    check_same_length,
    resolve_scale,
)
from models.fused_ops import as_operand, fused_op, head_dim_multiple
from models.patterns.block_mask import BlockMask
from models.patterns.branches import DilatedBranches, HeadPartition
from models.patterns.orders import Grid, check_order, positions
from models.ring.agreement import agree, check_lengths, terms
from models.ring.exchange import (
    GRAD_KEYS,
    GRAD_VALUES,
    KEYS,
    VALUES,
    Exchange,
    computing,
    count_waiting,
)
from models.ring.hops import Eager, Gradients, Queries, working_dtype
from models.ring.plan import Hop, plan

BACKENDS = ("auto", "sdpa", "eager")


@torch.compiler.disable
def ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group: dist.ProcessGroup | DeviceMesh | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    order: str | Grid = "zigzag",
    pattern: DilatedBranches | BlockMask | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    seq_len: int | None = None,
    timeout: float | None = None,
):
    """Self-attention over a sequence that is sharded over the ranks of `group`.

    q: (B, n, H, D), k, v: (B, n, Hkv, D) with H a multiple of Hkv: this rank's shard, as
    `models.ring.shard(x, rank, world_size, order)` cuts it; n may differ by rank and may be 0.
    Float dtypes, accumulated in float32 at least. group: a ProcessGroup, a 1-D DeviceMesh, or
    None for the default group; without torch.distributed this process alone is the ring.
    is_causal: by position in the whole sequence, in every order. pattern: None for dense,
    `patterns.DilatedBranches`, or a `patterns.BlockMask` over the whole sequence, the same on
    every rank. backend: "sdpa", PyTorch's fused ops; "eager", the explicit softmax; "auto".
    scale: factor on q.k, None for 1/sqrt(D).

    seq_len: tokens of the whole sequence. None: the ranks first tell each other their
    arguments, a small message to each, and all raise where these differ. Given: nothing is
    checked between ranks. timeout: seconds that one rank waits for another; None for the
    group's own limit.

    Returns this rank's out (B, n, H, D) in q's dtype, and with `return_lse` also LSE (B, H, n),
    natural log, float32 (float64 for float64); rows without keys give 0 and -inf. Both are
    differentiable, exactly; all ranks must then run the backward pass. Bitwise repeatable on a
    CPU. The same values, at any world size, as the call on one device.

    Raises ValueError on bad arguments, on every rank and before any work where these differ
    between ranks; UnsupportedBackend; RingError where a rank does not answer in time.
    Sources: Ring Attention (arXiv 2310.01889); striped order (arXiv 2311.09431).
    """
    group = _resolve_group(group)
    exchange = None if group is None else Exchange(group, timeout)
    try:
        _check_arguments(q, k, v, order, pattern, seq_len, timeout)
        scale = resolve_scale(scale, q.shape[3])
        op = resolve_op(q, backend)
        own = terms(q, k, v, is_causal, scale, order, pattern, backend)
    except (ValueError, UnsupportedBackend):
        if exchange is not None and seq_len is None:
            agree(exchange, None, q.device)
        raise
    if exchange is None:
        total = q.shape[1]
    elif seq_len is None:
        total = check_lengths(agree(exchange, own, q.device), order)
    else:
        total = seq_len
    rank, world_size = (0, 1) if exchange is None else (exchange.rank, exchange.world_size)
    held = len(positions(order, total, rank, world_size))
    if held != q.shape[1]:
        raise ValueError(
            f"seq_len={total}: expected {held} tokens on rank {rank} of {world_size} in the order "
            f"{order!r}, got {q.shape[1]}"
        )
    if isinstance(pattern, BlockMask):
        pattern.check_fits(total, q.shape[2])
    hops = plan(pattern, order, total, world_size, q.shape[2], k.shape[2], bool(is_causal))
    out, lse = _Ring.apply(q, k, v, exchange, hops, op, scale)
    return (out, lse) if return_lse else out


def resolve_backend(q: torch.Tensor, backend: str) -> str:
    """The backend that a call with `q` runs, with the op beneath it: "sdpa (cpu-flash)"."""
    op = resolve_op(q, backend)
    return "eager" if isinstance(op, Eager) else f"sdpa ({op.name})"


def resolve_op(q: torch.Tensor, backend: str):
    """The op that does a hop's pieces; UnsupportedBackend where a named backend has none."""
    check_choice("backend", backend, BACKENDS)
    if backend == "eager":
        return Eager()
    try:
        return fused_op(q)
    except UnsupportedBackend:
        if backend == "sdpa":
            raise
        return Eager()


class _Ring(torch.autograd.Function):
    """One rank's part: (q, k, v) -> (out, LSE); exchange: None where the rank is alone."""

    @staticmethod
    def forward(ctx, q, k, v, exchange, hops, op, scale):
        q_work, k_sent, v_sent = prepare(q, k, v)
        rank, order = _order(exchange, hops)
        batch, dtype = q.shape[0], q_work.dtype
        queries = Queries(q_work, op, scale)
        fetch = _Fetch(exchange, hops, rank, k_sent, v_sent)
        coming = fetch.post(order[0]) if order else None
        with computing():
            local = hops.local(rank)
            keys, values = of_shares(local, k_sent, dtype), of_shares(local, v_sent, dtype)
            queries.attend(local, keys, values)
        for number, step in enumerate(order):
            hop, flats = fetch.take(coming)
            coming = fetch.post(order[number + 1]) if number + 1 < len(order) else None
            if hop is not None:
                with computing():
                    queries.attend(hop, *(_unpack(hop, x, batch, dtype) for x in flats))
        if exchange is not None:
            exchange.finish()
        out, lse = queries.out[..., : q.shape[3]].to(q.dtype), queries.lse.transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, queries.lse)
        ctx.set_materialize_grads(False)
        ctx.options = (exchange, hops, op, scale, queries.saved)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, grad_lse):
        q, k, v, out, lse = ctx.saved_tensors
        exchange, hops, op, scale, saved = ctx.options
        q_work, k_sent, v_sent = prepare(q, k, v)
        rank, order = _order(exchange, hops)
        batch, dtype = q.shape[0], q_work.dtype
        gradients = start_gradients(q_work, out, lse, grad_out, grad_lse, op, scale, saved)
        wide = torch.promote_types(q.dtype, torch.float32)
        grad_k, grad_v = (torch.zeros_like(x, dtype=wide) for x in (k_sent, v_sent))
        fetch = _Fetch(exchange, hops, rank, k_sent, v_sent)
        home = _Home(exchange, hops, rank, grad_k, grad_v)
        coming = fetch.post(order[0]) if order else None
        with computing():
            local = hops.local(rank)
            keys, values = of_shares(local, k_sent, dtype), of_shares(local, v_sent, dtype)
            grads = (of_shares(local, x, wide) for x in (grad_k, grad_v))
            gradients.attend(local, keys, values, *grads)
        for number, step in enumerate(order):
            hop, flats = fetch.take(coming)
            coming = fetch.post(order[number + 1]) if number + 1 < len(order) else None
            parts = ()
            if hop is not None:
                with computing():
                    parts = tuple(torch.zeros_like(x, dtype=wide) for x in flats)
                    keys, values = (_unpack(hop, x, batch, dtype) for x in flats)
                    grads = (hop.parcel.unpack(x, batch) for x in parts)
                    gradients.attend(hop, keys, values, *grads)
            home.take()
            home.post(step, parts)
        home.take()
        if exchange is not None:
            exchange.finish()
        dim = q.shape[3]
        grads = (gradients.result(), grad_k[..., :dim], grad_v[..., :dim])
        return *(x[..., :dim].to(q.dtype) for x in grads), None, None, None, None


class _Fetch:
    """Keys and values of other ranks, each in two buffers that the hops take in turn."""

    def __init__(self, exchange, hops, rank, k, v):
        self.exchange, self.hops, self.rank, self.k, self.v = exchange, hops, rank, k, v
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}
        self._posted = 0

    def post(self, step: int):
        """Ask for the keys of the rank `step` before, and send its due to the one after."""
        size = self.hops.world_size
        to, source = (self.rank + step) % size, (self.rank - step) % size
        given, taken = self.hops.hop(to, self.rank), self.hops.hop(self.rank, source)
        sends, flats = [], ()
        if given is not None:
            tagged = ((self.k, KEYS), (self.v, VALUES))
            sends = [(to, given.parcel.pack(x), tag) for x, tag in tagged]
        if taken is not None:
            flats = tuple(self._buffer(tag, taken) for tag in (KEYS, VALUES))
        receives = [(source, x, tag) for x, tag in zip(flats, (KEYS, VALUES), strict=False)]
        self._posted += 1
        return self.exchange.post(sends, receives), taken, flats

    def take(self, coming) -> tuple[Hop | None, tuple[torch.Tensor, ...]]:
        """Wait for what `post` asked for."""
        pending, hop, flats = coming
        start = time.perf_counter()
        pending.wait()
        if hop is not None:
            count_waiting(time.perf_counter() - start)
        return hop, flats

    def _buffer(self, tag: int, hop: Hop) -> torch.Tensor:
        size = self.k.shape[0] * hop.parcel.rows * self.k.shape[3]
        key = (tag, self._posted % 2)
        if key not in self._buffers or len(self._buffers[key]) < size:
            self._buffers[key] = self.k.new_empty(size)
        return self._buffers[key][:size]


class _Home:
    """Gradients of keys and values on their way to the ranks that hold these."""

    def __init__(self, exchange, hops, rank, grad_k, grad_v):
        self.exchange, self.hops, self.rank = exchange, hops, rank
        self.grads = (grad_k, grad_v)
        self._coming = None

    def post(self, step: int, parts) -> None:
        """Send `parts`, the flat gradients of the hop `step`, and ask for those it owes us."""
        size = self.hops.world_size
        after, before = (self.rank + step) % size, (self.rank - step) % size
        owed = self.hops.hop(after, self.rank)
        tags = (GRAD_KEYS, GRAD_VALUES)
        sends = [(before, x, tag) for x, tag in zip(parts, tags, strict=False)]
        receives = []
        if owed is not None:
            rows = self.grads[0].shape[0] * owed.parcel.rows * self.grads[0].shape[3]
            receives = [(after, self.grads[0].new_empty(rows), tag) for tag in tags]
        self._coming = self.exchange.post(sends, receives), owed, receives

    def take(self) -> None:
        """Wait for what the last `post` asked for, and add it."""
        if self._coming is None:
            return
        pending, owed, receives = self._coming
        pending.wait()
        for grad, (_, flat, _) in zip(self.grads, receives, strict=False):
            owed.parcel.add(grad, flat)
        self._coming = None


def prepare(q, k, v) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q as hops compute it, k and v as they travel: head_dim padded, strides that ops can read."""
    extra = -q.shape[3] % head_dim_multiple(q)
    if extra:
        q, k, v = (torch.nn.functional.pad(x, (0, extra)) for x in (q, k, v))
    return as_operand(q.to(working_dtype(q))), k.contiguous(), v.contiguous()


def start_gradients(q, out, lse, grad_out, grad_lse, op, scale, saved) -> Gradients:
    """The state of a backward pass; q from `prepare`, cotangents as autograd gives them."""
    out, grad_out = (None if x is None else x.to(q.dtype) for x in (out, grad_out))
    extra = q.shape[3] - out.shape[3]
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    if extra:
        out, grad_out = (torch.nn.functional.pad(x, (0, extra)) for x in (out, grad_out))
    grad_lse = None if grad_lse is None else grad_lse.transpose(1, 2)
    grad_out = grad_out.contiguous()
    return Gradients(q, out, lse, grad_out, grad_lse, op, scale, saved)


def of_shares(hop: Hop, x: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """The rank's own x (B, n, Hkv, D) as the pieces of its local hop read it."""
    x = x.to(dtype)
    return [x[:, :, share.heads] for share in hop.parcel.shares]


def _unpack(hop, flat, batch, dtype) -> list[torch.Tensor]:
    return [x.to(dtype) for x in hop.parcel.unpack(flat, batch)]


def _order(exchange, hops) -> tuple[int, list[int]]:
    """This rank, and the hops in which it sends or receives anything."""
    if exchange is None:
        return 0, []
    rank, size = exchange.rank, exchange.world_size
    steps = [
        step
        for step in range(1, size)
        if hops.hop((rank + step) % size, rank) or hops.hop(rank, (rank - step) % size)
    ]
    return rank, steps


def _resolve_group(group) -> dist.ProcessGroup | None:
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"group={group}: expected a mesh of one dimension, as mesh['name'] is")
        return group.get_group()
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"group={group!r}: expected a ProcessGroup, a DeviceMesh or None")
    if group is not None:
        return group
    if dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != "1":
        raise ValueError(
            f"group=None: launched with WORLD_SIZE={launched}, but torch.distributed is not "
            "initialised; call torch.distributed.init_process_group first"
        )
    return None


def _check_arguments(q, k, v, order, pattern, seq_len, timeout) -> None:
    check_qkv(q, k, v, may_lack_tokens=True)
    check_same_length(q, k)
    check_order(order)
    if not isinstance(pattern, (DilatedBranches, HeadPartition, BlockMask, type(None))):
        raise ValueError(
            f"pattern={type(pattern).__name__}: expected None, DilatedBranches or BlockMask"
        )
    if seq_len is not None and (type(seq_len) is not int or seq_len < 1):
        raise ValueError(f"seq_len={seq_len!r}: expected an integer >= 1 or None")
    if timeout is not None and (type(timeout) not in (int, float) or not timeout > 0):
        raise ValueError(f"timeout={timeout!r}: expected a positive number of seconds or None")
