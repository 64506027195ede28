"""Whether the machine was another's while a case ran: its processors, and its memory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from experiments.machine import address_space, memory_available

# Of the processors' time, what others may take before a time-out is theirs.
_BUSY = 0.1
# Of the machine's memory, what must be free for "out of memory" to be the case's own.
_ROOMY = 0.5


@dataclass(frozen=True)
class Start:
    """What was known when a case began."""

    clock: float
    busy_s: float
    own_s: float
    free_bytes: int

    @classmethod
    def now(cls) -> Start:
        """Of this moment."""
        return cls(time.monotonic(), _busy_s(), _own_s(), free_bytes())

    def was_busy(self) -> bool:
        """Whether, since then, others took much of the time of this process's processors."""
        cores = len(os.sched_getaffinity(0))
        others = (_busy_s() - self.busy_s) - (_own_s() - self.own_s)
        return others > _BUSY * cores * max(1e-3, time.monotonic() - self.clock)

    def was_short(self, memory_bytes: int) -> bool:
        """Whether much of the machine's memory, `memory_bytes`, was not to be had then."""
        return self.free_bytes < _ROOMY * memory_bytes


def free_bytes() -> int:
    """Memory that this process can take: what is free, and what its limit (ulimit -v) leaves."""
    used, most = address_space()
    free = memory_available()
    return free if most is None else min(free, max(0, most - used))


def _busy_s() -> float:
    """Seconds that the processors of this process were at work, for whomever."""
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    with open("/proc/stat", encoding="ascii") as lines:
        for line in lines:
            name, *values = line.split()
            if name in ours:
                # user nice system idle iowait irq softirq steal; guests are in user and nice.
                counts = [int(value) for value in values[:8]]
                ticks += sum(counts) - sum(counts[3:5])
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Seconds that this process took and its children that have ended, with all of theirs."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
