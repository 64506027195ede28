"""GPU samples without the host's time: each call waits on the card behind a queue.

Between two events lies what the card does, and what it waits for: a call of 80 us on the host
around a kernel of 35 us reads as 115 us. So the card first spins, for longer than the host takes to
issue the call. That the start event is still ahead once all is issued proves that the card waited
for nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

QUEUED, EVENTS = "queued events", "events"
# More than any card's L2, written before every sample.
_FLUSHED_BYTES = 256 * 2**20
# A queue is so many times the host's median time, and these ms for the events themselves.
_MARGIN, _SLACK_MS = 1.5, 0.05
# The longest queue, ms, and the most that queues and samples taken again may cost a replicate.
LONGEST_MS, MOST_MS = 5.0, 100.0
_CYCLES = 2_000_000


class Card:
    """The current CUDA stream and the host's clock beside it, both in ms."""

    def __init__(self):
        self._flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device="cuda")
        torch.cuda._sleep(_CYCLES)  # the first call loads its code
        start = self.mark()
        torch.cuda._sleep(_CYCLES)
        stop = self.mark()
        stop.synchronize()
        self._cycles_per_ms = _CYCLES / start.elapsed_time(stop)

    def clock_ms(self) -> float:
        return 1e3 * time.perf_counter()

    def wait(self) -> None:
        torch.cuda.synchronize()

    def flush(self) -> None:
        """Put other data into L2."""
        self._flushed.zero_()

    def spin(self, ms: float) -> None:
        """Keep the card busy for about `ms`, without touching memory."""
        torch.cuda._sleep(round(ms * self._cycles_per_ms))

    def mark(self) -> torch.cuda.Event:
        """An event, recorded now."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Timer:
    """Times of `step()` on `card`, after one call at least to warm up.

    timed_by: "queued events" while every sample had its whole call in the queue before the card
    came to it. "events" once one had not, since the call waits for the card itself or takes the
    host too long for a queue: samples are then taken without one, and hold what the card waited.
    spent_ms: what queues and samples taken again have cost.
    """

    def __init__(self, step: Callable[[], object], card: Card, *, warm_ups: int):
        self._step, self._card = step, card
        self.timed_by, self.spent_ms = QUEUED, 0.0
        self._hosts_ms: list[float] = []
        for _ in range(warm_ups):
            card.wait()
            self._hosts_ms = [self._issue()]  # of the last, which loads no code
        card.wait()

    @property
    def host_ms(self) -> float:
        """The host's median time to issue a call."""
        return statistics.median(self._hosts_ms)

    @property
    def may_go_on(self) -> bool:
        """Whether more than the least samples are worth their queues."""
        return self.spent_ms < MOST_MS

    def sample(self) -> float:
        """The next sample, ms; taken again behind a longer queue where the card was too soon.

        Where `timed_by` changes with it, it is the first of its kind, and those before go.
        """
        queue_ms = _MARGIN * self.host_ms + _SLACK_MS
        while self.timed_by == QUEUED and queue_ms <= LONGEST_MS:
            ms, is_queued = self._take(queue_ms)
            self.spent_ms += queue_ms
            if is_queued:
                return ms
            self.spent_ms += ms
            queue_ms *= 2
            if ms > MOST_MS:  # too long to be taken again, and for the host to matter
                break
        self.timed_by = EVENTS
        return self._take(0.0)[0]

    def _take(self, queue_ms: float) -> tuple[float, bool]:
        """The card's ms of a pass, and whether all of it was issued before it began."""
        card = self._card
        card.flush()
        if queue_ms:
            card.spin(queue_ms)
        start = card.mark()
        self._hosts_ms.append(self._issue())
        stop = card.mark()
        is_queued = not start.query()
        stop.synchronize()
        return start.elapsed_time(stop), is_queued

    def _issue(self) -> float:
        begin = self._card.clock_ms()
        self._step()
        return self._card.clock_ms() - begin
