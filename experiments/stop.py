"""How a run is stopped: by SIGINT, SIGTERM or SIGHUP alike, or by the end of its scheduler."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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


# The signal that said so, once one has; whether it is to be obeyed yet, and what it waits for.
_told: int | None = None
_is_waiting, _depth = False, 0


def raise_when_told() -> None:
    """Have each of STOPS raise Stopped here; what was ignored by whoever began this stays so."""
    global _told, _is_waiting
    _told, _is_waiting = None, False
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def stop(number: int, _frame=None) -> None:
    """Raise Stopped, as after that signal, or have it raised where `deferred` ends."""
    global _told, _is_waiting
    _told = number
    if _depth:
        _is_waiting = True
        return
    # What stops a process often sends several: the first is obeyed, and nothing cuts that short.
    for one in STOPS:
        signal.signal(one, signal.SIG_IGN)
    raise Stopped(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Have a stop wait until this ends.

    That is one of which `raise_when_told` has the handler. A mask of signals is not enough: the
    kernel gives them to another thread, of a library's, and Python handles them in this one.
    """
    global _depth, _is_waiting
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _is_waiting and not _depth:
            _is_waiting = False
            stop(_told)


def told() -> int | None:
    """The signal that said to stop and waits for the end of `deferred`; None where none does."""
    return _told if _is_waiting else None


def check_stop() -> Callable[[], None]:
    """A function, to be called often, that raises Stopped where it is due.

    That is once the process that ENDS_WITH names is gone; and again where one was swallowed, as
    Python does with what is raised while it finalizes an object.
    """
    named = os.environ.get(ENDS_WITH)
    began = _began(named) if named else None
    if named and began is None:
        raise Stopped(signal.SIGTERM)

    def check() -> None:
        if _told is not None or (named and _began(named) != began):
            stop(_told or signal.SIGTERM)

    return check


def _began(pid: str) -> str | None:
    """When a process began, which tells it from a later one of its number; None once it ended."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    state, *fields = told.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
