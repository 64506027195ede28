"""What travels in a hop: keys and values to the ranks that need them, and gradients back."""

from __future__ import annotations

import torch

from models.ring.call import Call
from models.ring.exchange import GRAD_KEYS, GRAD_VALUES, KEYS, VALUES, PendingReceives
from models.ring.plan import Hop


class KeyFetch:
    """Receives keys and values of other ranks, each in two buffers that the hops use in turn.

    Args:
        call: the exchange and the plan.
        k: (B, n, Hkv, D), this rank's, from `as_sent`.
        v: (B, n, Hkv, D), from `as_sent`.
    """

    def __init__(self, call: Call, k: torch.Tensor, v: torch.Tensor):
        self.exchange, self.plan, self.k, self.v = call.exchange, call.plan, k, v
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}
        self._posted = 0

    def post(self, step: int) -> tuple[PendingReceives, Hop | None, tuple[torch.Tensor, ...]]:
        """Ask the rank `step` before this one for keys, and send the rank `step` after it its own.

        Args:
            step: the hop's number, from 1.

        Returns:
            What is pending, the hop, None where it needs no keys, and its keys and values as
            `KeyMessage.pack` lays them out, valid once nothing is pending.
        """
        rank, size = self.exchange.rank, self.plan.world_size
        to, source = (rank + step) % size, (rank - step) % size
        given, taken = self.plan.hop(to, rank), self.plan.hop(rank, source)
        tagged = ((self.k, KEYS), (self.v, VALUES))
        sends, flats = [], ()
        if given is not None:
            sends = [(to, given.message.pack(x), tag) for x, tag in tagged]
        if taken is not None:
            flats = tuple(self._buffer(x, tag, taken) for x, tag in tagged)
        receives = [(source, x, tag) for x, tag in zip(flats, (KEYS, VALUES), strict=False)]
        self._posted += 1
        return self.exchange.post(sends, receives), taken, flats

    def _buffer(self, x: torch.Tensor, tag: int, hop: Hop) -> torch.Tensor:
        size = x.shape[0] * hop.message.rows * x.shape[3]
        key = (tag, self._posted % 2)
        if key not in self._buffers or len(self._buffers[key]) < size:
            self._buffers[key] = x.new_empty(size)
        return self._buffers[key][:size]


class GradReturn:
    """Sends gradients of keys and values back to the ranks that hold these, and adds ours.

    Args:
        call: the exchange and the plan.
        grad_k: (B, n, Hkv, D), of this rank's keys, float32 at least; added to in place.
        grad_v: (B, n, Hkv, D), of this rank's values, alike.
    """

    def __init__(self, call: Call, grad_k: torch.Tensor, grad_v: torch.Tensor):
        self.exchange, self.plan, self.grads = call.exchange, call.plan, (grad_k, grad_v)

    def post(self, step: int, parts: tuple[torch.Tensor, ...]) -> None:
        """Send the gradients of the hop `step`, and ask for those of this rank's keys.

        Args:
            step: the hop's number, from 1.
            parts: gradients of its keys and of its values, as `KeyMessage.pack` lays them out;
                empty where it has none.
        """
        rank, size = self.exchange.rank, self.plan.world_size
        after, before = (rank + step) % size, (rank - step) % size
        self.lent = self.plan.hop(after, rank)
        tags = (GRAD_KEYS, GRAD_VALUES)
        sends = [(before, x, tag) for x, tag in zip(parts, tags, strict=False)]
        self.receives = []
        if self.lent is not None:
            rows = self.grads[0].shape[0] * self.lent.message.rows * self.grads[0].shape[3]
            self.receives = [(after, self.grads[0].new_empty(rows), tag) for tag in tags]
        self.pending = self.exchange.post(sends, self.receives)

    def add(self) -> None:
        """Add the gradients that arrived, once nothing is pending."""
        for grad, (_, flat, _) in zip(self.grads, self.receives, strict=False):
            self.lent.message.add_to(grad, flat)
