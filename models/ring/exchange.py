"""Moving parcels between ranks: posted early, waited for late, counted, never lost in silence."""

from __future__ import annotations

import time
import weakref
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from models.errors import RingError
from models.ring.notes import trace

# gloo matches messages of a pair by these; NCCL by their order, which is the same.
KEYS, VALUES, GRAD_KEYS, GRAD_VALUES, TERMS, NEVER = range(6)
# Hops whose sent keys, or whose sent gradients, may be under way at a time.
HOPS_UNDER_WAY = 2
# The least time that gloo and NCCL take for a limit.
_AT_ONCE_S = 0.001
# Groups in which a rank was lost, and what was said of it: a time-out closes connections.
_broken: weakref.WeakKeyDictionary[dist.ProcessGroup, str] = weakref.WeakKeyDictionary()


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
    group's own limit. RingError where an earlier call has lost a rank of the group.
    """

    def __init__(self, group: dist.ProcessGroup, timeout: float | None):
        self.group, self.timeout = group, timeout
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        self._unsent: defaultdict[int, deque[list[_Posted]]] = defaultdict(deque)
        if group in _broken:
            raise RingError(f"the group has lost a rank and is of no more use: {_broken[group]}")

    def post(self, sends, receives) -> Pending:
        """Start (rank, tensor, tag) `sends`, and `receives` into such tensors; does not wait."""
        messages = [(dist.irecv, *x) for x in receives] + [(dist.isend, *x) for x in sends]
        for _, tensor, tag in sends:
            count_sent(tensor, tag)
        # NCCL must get them together, lest a ring of sends wait for each other; one by one it
        # is known which of them failed.
        together = bool(messages) and messages[0][2].is_cuda
        posted = []
        for batch in [messages] if together else [[x] for x in messages]:
            operations = [
                dist.P2POp(what, tensor, dist.get_global_rank(self.group, rank), self.group, tag)
                for what, rank, tensor, tag in batch
            ]
            try:
                works = dist.batch_isend_irecv(operations)
            except RuntimeError as error:
                raise self.lost([rank for _, rank, *_ in batch], error) from error
            # NCCL gives one handle for the batch, gloo one for each message.
            works = works if len(works) == len(batch) else works * len(batch)
            posted += [
                _Posted(work, rank, tensor)
                for work, (_, rank, tensor, _) in zip(works, batch, strict=True)
            ]
        if sends:
            of_tag = self._unsent[sends[0][2]]
            of_tag.append(posted[len(receives) :])
            # What goes out is kept in memory until it is through; of all hops it would be as much
            # as the whole sequence. Those who receive it ask for it without waiting for us.
            while len(of_tag) > HOPS_UNDER_WAY:
                self.wait(of_tag.popleft())
        return Pending(self, posted[: len(receives)])

    @property
    def under_way(self) -> int:
        """Messages sent and not waited for."""
        return sum(len(batch) for of_tag in self._unsent.values() for batch in of_tag)

    def finish(self) -> None:
        """Wait until all that was posted has gone out."""
        self.wait([posted for of_tag in self._unsent.values() for x in of_tag for posted in x])
        self._unsent.clear()

    def wait(self, messages: list[_Posted]) -> None:
        """Wait for all of these, no longer than for one; RingError names the ranks at fault."""
        start = time.monotonic()
        for number, posted in enumerate(messages):
            left = None if self.timeout is None else self.timeout + start - time.monotonic()
            error = _failure(posted, left)
            if error is None:
                continue
            lost = [posted.rank]
            if _is_late(error):
                # The time is up for the rest as well.
                later = messages[number + 1 :]
                lost += [x.rank for x in later if _failure(x, _AT_ONCE_S) is not None]
            raise self.lost(lost, error) from error

    def lost(self, ranks: list[int], error: RuntimeError) -> RingError:
        """The error that names the ranks at fault: these, or those that they waited for."""
        limit = "in time" if self.timeout is None else f"within {self.timeout:g} s"
        what = f"did not answer {limit}" if _is_late(error) else "closed its connection"
        ranks = sorted(set(ranks))
        if not _is_late(error):
            self._hang_up()
        # Ranks that wait for the same one need not have begun together.
        patience = min(max(2.0, 0.1 * (self.timeout or 100.0)), 10.0)
        found = trace(self.group, self.rank, dict.fromkeys(ranks, what), patience)
        at_fault = "; ".join(f"rank {rank} {said}" for rank, said in sorted(found.culprits.items()))
        text = f"rank {self.rank} of {self.world_size}: {at_fault}"
        if found.told_by:
            text += f", as is known from {_named(found.told_by)}"
        if found.is_store_gone:
            text += ", maybe for want of another: the group's store is gone, which would tell"
        text += f"; a message to or from {_named(ranks)} failed: {str(error).splitlines()[0]}"
        _broken[self.group] = text
        return RingError(text)

    def unreachable(self) -> list[int]:
        """The ranks to which gloo has a connection no more, known without waiting."""
        others = set(range(self.world_size)) - {self.rank}
        return sorted(others - self._probe().keys())

    def _hang_up(self) -> None:
        """Close gloo's connections, as its time-outs do, so that nobody waits for this rank."""
        for never in self._probe().values():
            with suppress(RuntimeError):
                never.wait(timedelta(seconds=_AT_ONCE_S))

    def _probe(self) -> dict[int, dist.Work]:
        """Messages asked for that never come, of all ranks that gloo takes to be there."""
        asked = {}
        for rank in range(self.world_size):
            if rank != self.rank and dist.get_backend(self.group) == "gloo":
                peer = dist.get_global_rank(self.group, rank)
                with suppress(RuntimeError):
                    asked[rank] = dist.irecv(torch.empty(1), peer, self.group, tag=NEVER)
        return asked


class Alone:
    """The exchange of a ring of one: it has nobody to talk to."""

    rank, world_size = 0, 1

    def finish(self) -> None:
        """Nothing is under way."""


@dataclass(frozen=True)
class _Posted:
    """A message under way: its handle, its other rank, and its memory, kept until it is through."""

    work: dist.Work
    rank: int
    tensor: torch.Tensor


@dataclass(frozen=True)
class Pending:
    """Messages to be received."""

    exchange: Exchange
    posted: list[_Posted]

    def wait(self) -> None:
        """Wait until all have arrived; RingError if one does not."""
        self.exchange.wait(self.posted)


def _failure(posted: _Posted, seconds: float | None) -> RuntimeError | None:
    """Wait for a message, at most so long; what went wrong, None where it is through."""
    try:
        if seconds is None:
            done = posted.work.wait()
        else:
            done = posted.work.wait(timedelta(seconds=max(seconds, _AT_ONCE_S)))
    except RuntimeError as error:
        return error
    return RuntimeError("the wait was given up") if done is False else None


def _is_late(error: RuntimeError) -> bool:
    """Whether the time was up; else the connection is gone."""
    return "timed out" in str(error).lower() or "timing out" in str(error).lower()


def _named(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, sorted(ranks)))
