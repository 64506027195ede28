"""Both passes of one rank, as steps between which it waits for others.

A step generator yields what it waits for. `run` waits for each in turn; `models.ring.simulated`
runs those of many ranks in one process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from models.fused_ops import as_operand, head_dim_multiple
from models.ring.exchange import GRAD_KEYS, GRAD_VALUES, KEYS, VALUES, computing, count_waiting
from models.ring.flags import with_flags
from models.ring.hops import Gradients, Queries, working_dtype
from models.ring.plan import Hop


def run(steps: Iterator):
    """Go through the steps, waiting after each; returns what they return."""
    while True:
        try:
            pending = next(steps)
        except StopIteration as stop:
            return stop.value
        start = time.perf_counter()
        pending.wait()
        count_waiting(time.perf_counter() - start)


def forward_steps(q, k, v, key_padding_mask, call):
    """Steps to a rank's out (B, n, H, D) in q's dtype and LSE (B, H, n).

    q: (B, n, H, D), k, v: (B, n, Hkv, D), key_padding_mask: (B, n) bool or None, this rank's, by
    `models.padding.without_padding`. call: a `models.ring.call.Call`.
    """
    steps = _steps(call)
    q_work, k_sent, v_sent = prepare(q, k, v, key_padding_mask)
    queries = Queries(q_work, call.op, call.scale)
    fetch = _Fetch(call, k_sent, v_sent)
    coming = fetch.post(steps[0]) if steps else None
    attend_local(queries, call, k_sent, v_sent)
    for number in range(len(steps)):
        pending, hop, flats = coming
        yield pending
        coming = fetch.post(steps[number + 1]) if number + 1 < len(steps) else None
        if hop is not None:
            with computing():
                queries.attend(hop, *(unpack(hop, x, q_work) for x in flats))
    return results(queries, q)


def backward_steps(grad_out, grad_lse, q, k, v, out, lse, key_padding_mask, call):
    """Steps to a rank's dq, dk, dv for the cotangents, grad_lse or None, of its out and LSE."""
    steps = _steps(call)
    q_work, k_sent, v_sent = prepare(q, k, v, key_padding_mask)
    gradients = start_gradients(grad_out, grad_lse, q_work, out, lse, key_padding_mask, call)
    grad_k, grad_v = zero_gradients(v_sent)
    fetch = _Fetch(call, k_sent, v_sent)
    home = _Home(call, grad_k, grad_v)
    coming = fetch.post(steps[0]) if steps else None
    attend_local(gradients, call, k_sent, v_sent, grad_k, grad_v)
    for number, step in enumerate(steps):
        pending, hop, flats = coming
        yield pending
        coming = fetch.post(steps[number + 1]) if number + 1 < len(steps) else None
        parts = ()
        if hop is not None:
            with computing():
                parts = zero_gradients(flats[1])
                keys, values = (unpack(hop, x, q_work) for x in flats)
                grads = (hop.parcel.unpack(x, q.shape[0]) for x in parts)
                gradients.attend(hop, keys, values, *grads)
        if number:
            yield home.pending
            home.add()
        home.post(step, parts)
    if steps:
        yield home.pending
        home.add()
    return gradients_of(q, gradients, grad_k, grad_v)


class _Fetch:
    """Keys and values of other ranks, each in two buffers that the hops take in turn."""

    def __init__(self, call, k, v):
        self.exchange, self.hops, self.k, self.v = call.exchange, call.hops, k, v
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}
        self._posted = 0

    def post(self, step: int):
        """Ask for the keys of the rank `step` before, and send its due to the one after.

        Returns what is pending, the hop, None where it needs no keys, and their memory.
        """
        rank, size = self.exchange.rank, self.hops.world_size
        to, source = (rank + step) % size, (rank - step) % size
        given, taken = self.hops.hop(to, rank), self.hops.hop(rank, source)
        tagged = ((self.k, KEYS), (self.v, VALUES))
        sends, flats = [], ()
        if given is not None:
            sends = [(to, given.parcel.pack(x), tag) for x, tag in tagged]
        if taken is not None:
            flats = tuple(self._buffer(x, tag, taken) for x, tag in tagged)
        receives = [(source, x, tag) for x, tag in zip(flats, (KEYS, VALUES), strict=False)]
        self._posted += 1
        return self.exchange.post(sends, receives), taken, flats

    def _buffer(self, x: torch.Tensor, tag: int, hop: Hop) -> torch.Tensor:
        size = x.shape[0] * hop.parcel.rows * x.shape[3]
        key = (tag, self._posted % 2)
        if key not in self._buffers or len(self._buffers[key]) < size:
            self._buffers[key] = x.new_empty(size)
        return self._buffers[key][:size]


class _Home:
    """Gradients of keys and values on their way to the ranks that hold these."""

    def __init__(self, call, grad_k, grad_v):
        self.exchange, self.hops, self.grads = call.exchange, call.hops, (grad_k, grad_v)

    def post(self, step: int, parts) -> None:
        """Send `parts`, the flat gradients of the hop `step`, and ask for those owed to us."""
        rank, size = self.exchange.rank, self.hops.world_size
        after, before = (rank + step) % size, (rank - step) % size
        self.owed = self.hops.hop(after, rank)
        tags = (GRAD_KEYS, GRAD_VALUES)
        sends = [(before, x, tag) for x, tag in zip(parts, tags, strict=False)]
        self.receives = []
        if self.owed is not None:
            rows = self.grads[0].shape[0] * self.owed.parcel.rows * self.grads[0].shape[3]
            self.receives = [(after, self.grads[0].new_empty(rows), tag) for tag in tags]
        self.pending = self.exchange.post(sends, self.receives)

    def add(self) -> None:
        """Add what has come."""
        for grad, (_, flat, _) in zip(self.grads, self.receives, strict=False):
            self.owed.parcel.add(grad, flat)


def _steps(call) -> list[int]:
    """The hops in which this rank sends or receives anything."""
    rank, hops = call.rank, call.hops
    size = hops.world_size
    return [
        step
        for step in range(1, size)
        if hops.hop((rank + step) % size, rank) or hops.hop(rank, (rank - step) % size)
    ]


def prepare(q, k, v, key_padding_mask) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q as hops compute it, k and v as they travel."""
    extra = -q.shape[3] % head_dim_multiple(q)
    q = F.pad(q, (0, extra)) if extra else q
    return as_operand(q.to(working_dtype(q))), as_sent(k, key_padding_mask), as_sent(v)


def as_sent(x: torch.Tensor, key_padding_mask: torch.Tensor | None = None) -> torch.Tensor:
    """k with its flags, or v: packed, head_dim padded where the ops ask for it."""
    extra = -x.shape[3] % head_dim_multiple(x)
    return with_flags(F.pad(x, (0, extra)) if extra else x, key_padding_mask).contiguous()


def zero_gradients(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The zero gradients of keys and values like v, float32 at least; flags have none."""
    wide = torch.promote_types(v.dtype, torch.float32)
    return tuple(torch.zeros_like(v, dtype=wide) for _ in range(2))


def results(queries: Queries, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B, n, H, D) in q's dtype and LSE (B, H, n) of what `queries` joined."""
    out, lse = queries.result()
    return out[..., : q.shape[3]].to(q.dtype).contiguous(), lse.transpose(1, 2).contiguous()


def gradients_of(q, gradients: Gradients, grad_k, grad_v) -> tuple[torch.Tensor, ...]:
    """dq, dk, dv in q's dtype and head_dim."""
    grads = (gradients.result(), grad_k, grad_v)
    return tuple(x[..., : q.shape[3]].to(q.dtype).contiguous() for x in grads)


def start_gradients(grad_out, grad_lse, q, out, lse, key_padding_mask, call) -> Gradients:
    """q: from `prepare`; lse, grad_lse: (B, H, n)."""
    padding = (0, q.shape[3] - out.shape[3])
    lse = lse.transpose(1, 2)
    grad_lse = None if grad_lse is None else grad_lse.transpose(1, 2)
    if key_padding_mask is not None:
        # Rows without keys: their weights are exp(-inf - 0), and nothing may be 0 times inf.
        empty = lse.isneginf()
        lse, grad_out = lse.masked_fill(empty, 0.0), grad_out.masked_fill(empty[..., None], 0.0)
        grad_lse = None if grad_lse is None else grad_lse.masked_fill(empty, 0.0)
    # Autograd hands over any strides; the ops want those of q.
    out, grad_out = (F.pad(x.to(q.dtype), padding).contiguous() for x in (out, grad_out))
    return Gradients(q, out, lse, grad_out, grad_lse, call.op, call.scale)


def attend_local(work: Queries | Gradients, call, k, v, *grads) -> None:
    """The first hop: the rank's own keys, values and, going back, their gradients."""
    hop = call.hops.local(call.rank)
    with computing():
        wide = (x.to(work.q.dtype) for x in (k, v))
        own = ([x[:, :, share.heads] for share in hop.parcel.shares] for x in (*wide, *grads))
        work.attend(hop, *own)


def unpack(hop: Hop, flat: torch.Tensor, q: torch.Tensor) -> list[torch.Tensor]:
    """A parcel that came, (B, tokens, heads, D) a share, in q's dtype."""
    return [x.to(q.dtype) for x in hop.parcel.unpack(flat, q.shape[0])]
