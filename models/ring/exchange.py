"""Point-to-point messages between ranks: posted early, waited for late, and counted.

A message that does not arrive is an error that names the ranks at fault.
"""

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
from models.ring.fault_trace import trace_fault

# Message tags: gloo matches the messages of a pair of ranks by tag, NCCL by order, which agrees.
KEYS, VALUES, GRAD_KEYS, GRAD_VALUES, ARGUMENTS, PROBE = range(6)
# Most hops whose sent keys, or sent gradients, are in flight at a time.
HOPS_IN_FLIGHT = 2
# The shortest time limit that gloo and NCCL take.
_SHORTEST_S = 0.001
# Groups that lost a rank, and the error: after a time-out their connections are closed.
_failed_groups: weakref.WeakKeyDictionary[dist.ProcessGroup, str] = weakref.WeakKeyDictionary()


@dataclass
class Traffic:
    """What this rank sent, and how long its hops took, while `traffic` was recording.

    On a CUDA device the seconds are host seconds to launch a hop.

    Args:
        bytes_sent: to other ranks, without `agreement_bytes`.
        messages_sent: to other ranks, without those of the check at the start of a call.
        agreement_bytes: sent for the check at the start of a call.
        compute_s: host seconds per hop, that of the rank's own keys first.
        wait_s: host seconds that each hop waited for its keys; the own keys wait for nothing.
    """

    bytes_sent: int = 0
    messages_sent: int = 0
    agreement_bytes: int = 0
    compute_s: list[float] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)


# The other rank, the tensor, and the tag.
Message = tuple[int, torch.Tensor, int]

_recording: list[Traffic] = []


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Record what this process sends in ring attention, forward and backward, in this context."""
    counted = Traffic()
    _recording.append(counted)
    try:
        yield counted
    finally:
        _recording.remove(counted)


@contextmanager
def timed_compute() -> Iterator[None]:
    """Record the seconds of a hop's compute in `traffic`."""
    start = time.perf_counter()
    yield
    for counted in _recording:
        counted.compute_s.append(time.perf_counter() - start)


def record_wait(seconds: float) -> None:
    """Record the seconds that a hop waited for its keys in `traffic`."""
    for counted in _recording:
        counted.wait_s.append(seconds)


def record_sent(tensor: torch.Tensor, tag: int) -> None:
    """Record a message to one rank in `traffic`.

    Args:
        tensor: what is sent.
        tag: one of the message tags.
    """
    size = tensor.numel() * tensor.element_size()
    for counted in _recording:
        if tag == ARGUMENTS:
            counted.agreement_bytes += size
        else:
            counted.bytes_sent += size
            counted.messages_sent += 1


class Exchange:
    """Point-to-point messages of one call among the ranks of a group.

    Args:
        group: the group.
        timeout: seconds that a rank waits for another; None for the group's own limit.

    Raises:
        RingError: an earlier call lost a rank of the group.
    """

    def __init__(self, group: dist.ProcessGroup, timeout: float | None):
        self.group, self.timeout = group, timeout
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        self._unsent: defaultdict[int, deque[list[_PostedMessage]]] = defaultdict(deque)
        if group in _failed_groups:
            raise RingError(
                f"the group lost a rank and cannot be used again: {_failed_groups[group]}"
            )

    def post(self, sends: list[Message], receives: list[Message]) -> PendingReceives:
        """Start to send and to receive, without waiting for what is received.

        Args:
            sends: (rank, tensor, tag): the receiver, contiguous data, and a message tag.
            receives: (rank, tensor, tag): the sender, the memory to fill, and a message tag.

        Raises:
            RingError: a rank is gone.
        """
        messages = [(dist.irecv, *x) for x in receives] + [(dist.isend, *x) for x in sends]
        for _, tensor, tag in sends:
            record_sent(tensor, tag)
        # NCCL gets all in one batch, so that a cycle of sends does not deadlock; gloo gets one
        # at a time, so that it is known which of them failed.
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
                raise self.lost_ranks_error([rank for _, rank, *_ in batch], error) from error
            # NCCL returns one handle per batch, gloo one per message.
            works = works if len(works) == len(batch) else works * len(batch)
            posted += [
                _PostedMessage(work, rank, tensor)
                for work, (_, rank, tensor, _) in zip(works, batch, strict=True)
            ]
        if sends:
            of_tag = self._unsent[sends[0][2]]
            of_tag.append(posted[len(receives) :])
            # What is sent stays in memory until it has gone out; for all hops together that is as
            # much as the whole sequence. Receivers do not wait for this rank, so the wait ends.
            while len(of_tag) > HOPS_IN_FLIGHT:
                self.wait(of_tag.popleft())
        return PendingReceives(self, posted[: len(receives)])

    @property
    def in_flight(self) -> int:
        """Messages sent and not yet waited for."""
        return sum(len(batch) for of_tag in self._unsent.values() for batch in of_tag)

    def finish(self) -> None:
        """Wait until all that was posted has gone out; RingError as `wait`."""
        self.wait([posted for of_tag in self._unsent.values() for x in of_tag for posted in x])
        self._unsent.clear()

    def wait(self, messages: list[_PostedMessage]) -> None:
        """Wait for all of these within one time limit.

        Raises:
            RingError: a message failed; names the ranks at fault.
        """
        start = time.monotonic()
        for number, posted in enumerate(messages):
            left = None if self.timeout is None else self.timeout + start - time.monotonic()
            error = _failure(posted, left)
            if error is None:
                continue
            lost = [posted.rank]
            if _is_late(error):
                # The time limit has passed for the rest as well.
                later = messages[number + 1 :]
                lost += [x.rank for x in later if _failure(x, _SHORTEST_S) is not None]
            raise self.lost_ranks_error(lost, error) from error

    def lost_ranks_error(self, ranks: list[int], error: RuntimeError) -> RingError:
        """The error that names the ranks at fault; the group cannot be used after it.

        Args:
            ranks: the ranks whose messages failed; at fault are they, or those they waited for.
            error: of torch.distributed.
        """
        limit = "in time" if self.timeout is None else f"within {self.timeout:g} s"
        what = f"did not answer {limit}" if _is_late(error) else "closed its connection"
        ranks = sorted(set(ranks))
        if not _is_late(error):
            self._close_connections()
        # Ranks that wait for the same one did not all begin to wait at the same time.
        patience = min(max(2.0, 0.1 * (self.timeout or 100.0)), 10.0)
        found = trace_fault(self.group, self.rank, dict.fromkeys(ranks, what), patience)
        at_fault = "; ".join(f"rank {rank} {what}" for rank, what in sorted(found.culprits.items()))
        text = f"rank {self.rank} of {self.world_size}: {at_fault}"
        if found.reported_by:
            text += f", as reported by {rank_names(found.reported_by)}"
        if found.is_store_gone:
            text += (
                ", perhaps because of another rank: the group's store is gone, and with it the "
                "reports of other ranks"
            )
        text += f"; a message to or from {rank_names(ranks)} failed: {str(error).splitlines()[0]}"
        _failed_groups[self.group] = text
        return RingError(text)

    def unreachable(self) -> list[int]:
        """The ranks to which gloo has no connection any more, found without waiting."""
        others = set(range(self.world_size)) - {self.rank}
        return sorted(others - self._probe().keys())

    def _close_connections(self) -> None:
        """Close gloo's connections, as its time-outs do, so that no rank waits for this one."""
        for probe in self._probe().values():
            with suppress(RuntimeError):
                probe.wait(timedelta(seconds=_SHORTEST_S))

    def _probe(self) -> dict[int, dist.Work]:
        """Receives that nobody sends to, from each rank to which gloo has a connection."""
        probes = {}
        for rank in range(self.world_size):
            if rank != self.rank and dist.get_backend(self.group) == "gloo":
                peer = dist.get_global_rank(self.group, rank)
                with suppress(RuntimeError):
                    probes[rank] = dist.irecv(torch.empty(1), peer, self.group, tag=PROBE)
        return probes


class SingleRankExchange:
    """The exchange of a ring of one rank, which sends nothing."""

    rank, world_size = 0, 1

    def finish(self) -> None:
        """Nothing is in flight."""


@dataclass(frozen=True)
class _PostedMessage:
    """A message in flight: its handle, the other rank, and its memory, kept until it is done."""

    work: dist.Work
    rank: int
    tensor: torch.Tensor


@dataclass(frozen=True)
class PendingReceives:
    """Messages that are being received."""

    exchange: Exchange
    posted: list[_PostedMessage]

    def wait(self) -> None:
        """Wait until all have arrived; RingError as `Exchange.wait`."""
        self.exchange.wait(self.posted)


def _failure(posted: _PostedMessage, seconds: float | None) -> RuntimeError | None:
    """Wait for a message, at most `seconds`; the error, or None where it has arrived."""
    try:
        if seconds is None:
            done = posted.work.wait()
        else:
            done = posted.work.wait(timedelta(seconds=max(seconds, _SHORTEST_S)))
    except RuntimeError as error:
        return error
    return RuntimeError("the wait was aborted") if done is False else None


def _is_late(error: RuntimeError) -> bool:
    """Whether the time limit passed; if not, the connection is gone."""
    return "timed out" in str(error).lower() or "timing out" in str(error).lower()


def rank_names(ranks: list[int]) -> str:
    """ "rank 1", "ranks 0, 2"; in ascending order."""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, sorted(ranks)))
