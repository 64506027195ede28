"""How a run is stopped: by SIGINT, SIGTERM or SIGHUP alike, or by the end of its scheduler."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

# Ctrl-C, a cluster's or a container's time limit, a closed terminal.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The environment names a process with which a run ends: a killed scheduler stops nobody.
ENDS_WITH = "ATTENTION_ENDS_WITH"


class Stopped(KeyboardInterrupt):
    """A run is to stop; `number` is the signal that said so."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status, as a shell gives it."""
        return 128 + self.number


def raise_when_told() -> None:
    """Have each of STOPS raise Stopped here; what was ignored by whoever began this stays so."""
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def stop(number: int, _frame=None) -> None:
    """Raise Stopped, as after that signal."""
    # What stops a process often sends several: the first is obeyed, and nothing cuts that short.
    for one in STOPS:
        signal.signal(one, signal.SIG_IGN)
    raise Stopped(number)


def when_scheduler_ends() -> Callable[[], None]:
    """A function that raises Stopped once the process that ENDS_WITH names is gone."""
    named = os.environ.get(ENDS_WITH)
    if not named:
        return lambda: None
    try:
        scheduler = os.pidfd_open(int(named))
    except ProcessLookupError:
        raise Stopped(signal.SIGTERM) from None
    poll = select.poll()
    poll.register(scheduler, select.POLLIN)

    def check() -> None:
        if poll.poll(0):
            stop(signal.SIGTERM)

    return check
