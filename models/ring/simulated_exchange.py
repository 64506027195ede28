"""The exchanges of virtual ranks in one process: messages are handed over in memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from models.ring.exchange import KEYS, VALUES, Message, record_sent
from models.ring.passes import as_sent
from models.ring.plan import KeyMessage, RingPlan


@dataclass(frozen=True)
class SimulatedExchange:
    """The exchange of one of several virtual ranks that all run.

    Args:
        rank: this virtual rank.
        queues: (from, to, tag) -> tensors in flight, in the order sent; shared by all ranks.
    """

    rank: int
    queues: dict[tuple[int, int, int], deque[torch.Tensor]]

    def post(self, sends: list[Message], receives: list[Message]) -> SimulatedReceives:
        """As `models.ring.exchange.Exchange.post`."""
        for to, tensor, tag in sends:
            record_sent(tensor, tag)
            self.queues[self.rank, to, tag].append(tensor)
        return SimulatedReceives(
            [(self.queues[source, self.rank, tag], flat) for source, flat, tag in receives]
        )


@dataclass(frozen=True)
class SimulatedReceives:
    """Messages that are being received.

    Args:
        expected: the queue that each message comes by, and the memory to fill.
    """

    expected: list[tuple[deque[torch.Tensor], torch.Tensor]]

    def is_ready(self) -> bool:
        """Whether all have been sent."""
        return all(queue for queue, _ in self.expected)

    def wait(self) -> None:
        """Copy all; to be called when `is_ready`."""
        for queue, flat in self.expected:
            flat.copy_(queue.popleft())


@dataclass(frozen=True)
class SingleVirtualExchange:
    """The exchange of one virtual rank that runs without the others.

    What it would receive of their keys is copied from their shards; of their gradients, zeros.

    Args:
        rank: this virtual rank.
        plan: all hops of the ring.
        shards: q, k, v and key_padding_mask of each rank.
    """

    rank: int
    plan: RingPlan
    shards: list[tuple[torch.Tensor | None, ...]]

    def post(self, sends: list[Message], receives: list[Message]) -> CopiedReceives:
        """As `models.ring.exchange.Exchange.post`."""
        for _, tensor, tag in sends:
            record_sent(tensor, tag)
        copies = []
        for source, flat, tag in receives:
            _, k, v, key_padding_mask = self.shards[source]
            given = {KEYS: (k, key_padding_mask), VALUES: (v,)}.get(tag)
            copies.append((flat, given and self.plan.hop(self.rank, source).message, given))
        return CopiedReceives(copies)


@dataclass(frozen=True)
class CopiedReceives:
    """Messages that are made on this rank where a real one would receive them.

    Args:
        copies: the memory to fill, the message, and the arguments of `as_sent`; None for zeros.
    """

    copies: list[tuple[torch.Tensor, KeyMessage | None, tuple | None]]

    def wait(self) -> None:
        """Make all."""
        for flat, message, given in self.copies:
            if message is None:
                flat.zero_()
            else:
                flat.copy_(message.pack(as_sent(*given)))
