"""Time of a campaign: each step has a share of it, and never more."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

# Of each step but the last, in order: the part of the time that it may take, and seconds that it
# never exceeds. What a step leaves, and all else, is for measuring.
SHARES = {
    "look": (0.05, 10.0),
    "build": (0.10, 75.0),
    "trust": (0.20, 90.0),
    "first": (0.15, 120.0),
    "tune": (0.20, 420.0),
}
STEPS = (*SHARES, "measure")
# Seconds for the last archive, and their part of a short campaign.
_PACKING_S, _PACKING_PART = 6.0, 0.05


@dataclass(frozen=True)
class Clock:
    """`seconds` from `start` (`time.monotonic()`) on."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def end(self) -> float:
        """When the last step must be over, on the monotonic clock: what follows is packing."""
        return self.start + self.seconds - min(_PACKING_S, _PACKING_PART * self.seconds)

    def left(self) -> float:
        """Seconds until then, 0 at least."""
        return max(0.0, self.end - time.monotonic())

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def share(self, step: str) -> float:
        """Seconds that `step` has, if it begins now."""
        return min(share(step, self.seconds), self.left())


def share(step: str, seconds: float) -> float:
    """Seconds of a campaign of `seconds` that `step` may take at most."""
    if step not in SHARES:
        return seconds - sum(share(other, seconds) for other in SHARES)
    part, at_most = SHARES[step]
    return min(part * seconds, at_most)
