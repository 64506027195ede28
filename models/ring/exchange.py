"""Moving parcels between ranks: posted early, waited for late, counted, never lost in silence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from models.errors import RingError

# gloo matches messages of a pair by these; NCCL by their order, which is the same.
KEYS, VALUES, GRAD_KEYS, GRAD_VALUES, TERMS = range(5)


@dataclass
class Traffic:
    """What this rank sent, and what its hops took, while `traffic` was recording.

    bytes_sent, messages_sent: to other ranks; `agreement_bytes`, for the check at the start
    of a call, apart. compute_s, wait_s: host seconds of each hop in order, the rank's own keys
    first, which wait for nothing. On a CUDA device both are times to launch.
    """

    bytes_sent: int = 0
    messages_sent: int = 0
    agreement_bytes: int = 0
    compute_s: list[float] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)


_recording: list[Traffic] = []


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Count what this process sends in ring attention, forward and backward, meanwhile."""
    counted = Traffic()
    _recording.append(counted)
    try:
        yield counted
    finally:
        _recording.remove(counted)


@contextmanager
def computing() -> Iterator[None]:
    """Time a hop's compute for `traffic`."""
    start = time.perf_counter()
    yield
    for counted in _recording:
        counted.compute_s.append(time.perf_counter() - start)


def count_waiting(seconds: float) -> None:
    """Note the time that a hop waited for its keys."""
    for counted in _recording:
        counted.wait_s.append(seconds)


def count_sent(tensor: torch.Tensor, tag: int) -> None:
    """Note a tensor sent to one rank."""
    size = tensor.numel() * tensor.element_size()
    for counted in _recording:
        if tag == TERMS:
            counted.agreement_bytes += size
        else:
            counted.bytes_sent += size
            counted.messages_sent += 1


class Exchange:
    """Point-to-point messages of one call among the ranks of a group.

    group: a ProcessGroup. timeout: seconds that a rank waits for another, None for the
    group's own limit.
    """

    def __init__(self, group: dist.ProcessGroup, timeout: float | None):
        self.group, self.timeout = group, timeout
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        self._unsent: list[_Posted] = []

    def post(self, sends, receives) -> Pending:
        """Start (rank, tensor, tag) `sends`, and `receives` into such tensors; does not wait."""
        operations = []
        for function, messages in ((dist.irecv, receives), (dist.isend, sends)):
            for rank, tensor, tag in messages:
                peer = dist.get_global_rank(self.group, rank)
                operations.append(dist.P2POp(function, tensor, peer, self.group, tag))
        for _, tensor, tag in sends:
            count_sent(tensor, tag)
        try:
            works = dist.batch_isend_irecv(operations) if operations else []
        except RuntimeError as error:
            ranks = sorted({rank for rank, *_ in (*receives, *sends)})
            raise self._lost(f"reaching rank {ranks[0]}", error) from error
        # NCCL gives one handle for the batch, gloo one for each message.
        each = [*receives, *sends]
        posted = [
            _Posted(work, f"{what} rank {rank}", tensor)
            for work, (rank, tensor, _), what in zip(
                works if len(works) == len(each) else works * len(each),
                each,
                ["waiting for"] * len(receives) + ["sending to"] * len(sends),
                strict=True,
            )
        ]
        self._unsent += posted[len(receives) :]
        return Pending(self, posted[: len(receives)])

    def finish(self) -> None:
        """Wait until all that was posted has gone out."""
        for posted in self._unsent:
            self.wait(posted)
        self._unsent.clear()

    def wait(self, posted: _Posted) -> None:
        """Wait for one message; RingError names the rank that it was for or from."""
        try:
            if self.timeout is None:
                posted.work.wait()
            else:
                posted.work.wait(timedelta(seconds=self.timeout))
        except RuntimeError as error:
            raise self._lost(posted.what, error) from error

    def _lost(self, what: str, error: RuntimeError) -> RingError:
        limit = "" if self.timeout is None else f" within {self.timeout:g} s"
        reason = str(error).splitlines()[0]
        return RingError(f"rank {self.rank} of {self.world_size}: {what} failed{limit}: {reason}")


class Alone:
    """The exchange of a ring of one: it has nobody to talk to."""

    rank, world_size = 0, 1

    def finish(self) -> None:
        """Nothing is under way."""


@dataclass(frozen=True)
class _Posted:
    """A message under way: its handle, what it is, and its memory, kept until it is through."""

    work: dist.Work
    what: str
    tensor: torch.Tensor


@dataclass(frozen=True)
class Pending:
    """Messages to be received."""

    exchange: Exchange
    posted: list[_Posted]

    def wait(self) -> None:
        """Wait until all have arrived; RingError if one does not."""
        for posted in self.posted:
            self.exchange.wait(posted)
