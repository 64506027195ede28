"""A forked process that leads a group of its own, its messages, and how it ended."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from experiments.atomic_write import DISK_FULL, full_disk
from experiments.die_with_parent import die_with_parent
from experiments.machine import address_space, memory_available
from experiments.stop import STOPS, deferred

_PR_SET_CHILD_SUBREAPER = 36

# How often a waiting parent calls `tick` and looks whether its children still live.
TICK_S = 0.5
# A killed process gives its GPU memory back before it is gone; one that a driver holds never is.
_KILL_WAIT_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """What came of a child's job.

    status: "ok", "failed" (also killed by a signal), "oom", "timeout", "unsupported", or "not run".
    reason: one line, None exactly when ok. cause: of what is not ok, whether it lies in the "case"
    or in the "day": the same may go well on another. seconds: from its start to its report or its
    end.
    """

    status: str
    value: object = None
    reason: str | None = None
    cause: str | None = None
    seconds: float = 0.0


class ProcessEnded(Exception):
    """A process ended without a result; `outcome` says how."""

    def __init__(self, outcome: Outcome):
        super().__init__(outcome.reason)
        self.outcome = outcome


# Status, value, reason and cause, as in an Outcome.
Report = tuple[str, object, str | None, str | None]
# What ends a process from outside; other signals say that it crashed.
_FROM_OUTSIDE = (signal.SIGKILL, *STOPS)


def send(pipe: Connection, report: Report) -> None:
    """Send a report; a value that cannot be pickled makes it a failure that says so."""
    try:
        # Not `pipe.send`: torch has that send tensors by handles, which end with the process.
        text = pickle.dumps(report)
    except Exception as error:  # Whatever a value's own pickling raises.
        text = pickle.dumps(("failed", None, f"its result cannot be sent: {error!r}", "case"))
    pipe.send_bytes(text)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have a stop wait: a process that is forked within is noted before anything can interrupt."""
    with deferred():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Process:
    """A fork that runs `serve(pipe, *arguments)` and ends; always `kill` it in the end.

    None of the parent's signal handlers and exit functions runs in it.
    """

    def __init__(self, serve: Callable, arguments: Sequence, *, memory_gib: float | None = None):
        self.pipe, theirs = multiprocessing.Pipe()
        self.note_oom_kills()
        self.started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = _fork()
        if self.pid == 0:
            self.pipe.close()
            _be_a_child(parent, memory_gib, serve, theirs, arguments)
        theirs.close()
        # Here as there: whoever is first, the group is there for `kill`.
        with suppress(OSError):
            os.setpgid(self.pid, self.pid)

    def send(self, message: object) -> None:
        """Send what it waits for; ProcessEnded if it no longer does."""
        try:
            self.pipe.send_bytes(pickle.dumps(message))
        except OSError:
            raise ProcessEnded(self.ending()) from None

    def received(self) -> object | None:
        """The next message, or None if there is none yet; ProcessEnded if there will be none."""
        # A pipe may outlast its process in the hands of that one's own children.
        has_ended = self._exit() is not None
        try:
            if self.pipe.poll():
                return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            has_ended = True
        except Exception as error:  # Whatever a value's own unpickling raises.
            return "failed", None, f"its result cannot be read: {error!r}", "case"
        if has_ended:
            raise ProcessEnded(self.ending())
        return None

    def receive(self, deadline: float, tick: Callable[[], object] | None = None) -> object | None:
        """The next message, or None if there is none by the deadline. Raises as `received`."""
        while True:
            left = deadline - time.monotonic()
            self.pipe.poll(max(0.0, min(left, TICK_S)))
            message = self.received()
            if message is not None or left <= 0:
                return message
            if tick is not None:
                tick()

    def kill(self) -> None:
        """End it and its group, and wait until all are gone; nothing if that was done before."""
        if self.pipe.closed:
            return
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        end = time.monotonic() + _KILL_WAIT_S
        # Of its group those too that it started itself, where they have come to this process.
        with suppress(ChildProcessError):
            while time.monotonic() < end:
                if not os.waitpid(-self.pid, os.WNOHANG)[0]:
                    time.sleep(0.001)
        self.pipe.close()

    def _exit(self):
        # Without taking note of it: until `kill`, its number and its group's stay their own.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)

    def note_oom_kills(self) -> None:
        """What the kernel kills from here on may be this process, and not before."""
        self._oom_kills = _oom_kills()

    def ending(self) -> Outcome:
        """How it ended without a result."""
        seconds, cause = time.monotonic() - self.started, "case"
        # The pipe's end comes a moment before the process's.
        while (end := self._exit()) is None and time.monotonic() < self.started + seconds + 1:
            time.sleep(0.001)
        if end is None:
            reason = "its process closed its pipe and went on without a result"
        elif end.si_code == os.CLD_EXITED:
            reason = f"its process ended with exit code {end.si_status} and no result"
        elif end.si_status == signal.SIGKILL and _oom_kills() > self._oom_kills:
            reason = "killed by the kernel: out of host memory"
            return Outcome("oom", None, reason, cause, seconds)
        elif end.si_status == signal.SIGBUS and (full := full_disk()):
            reason, cause = f"{DISK_FULL}: {full}", "day"
        else:
            reason = f"its process was killed by {signal.Signals(end.si_status).name}"
            cause = "day" if end.si_status in _FROM_OUTSIDE else "case"
        return Outcome("failed", None, reason, cause, seconds)


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Have what children leave behind come to this process, so that `kill` can wait for it."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of threads that a fork leaves behind: libraries' idle ones here.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        return os.fork()


def _be_a_child(parent: int, memory_gib, serve: Callable, pipe, arguments: Sequence) -> None:
    """Serve and end: die with the parent, be the first to go when memory is short."""
    try:
        die_with_parent()
        if os.getppid() != parent:
            return
        os.setpgid(0, 0)
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        # A terminal would stop a process of another group that reads from it.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
        if memory_gib is not None:
            _limit_memory(memory_gib)
        serve(pipe, *arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        # Nobody else will see it: the parent hears only that there was no result.
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    finally:
        os._exit(0)


def _limit_memory(memory_gib: float) -> None:
    """Let allocations fail before the machine swaps: the address space may grow by what is free."""
    allowed = int(min(memory_available() * 9 // 10, memory_gib * 2**30))
    used, most = address_space()
    limit = used + allowed if most is None else min(used + allowed, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _oom_kills() -> int:
    with open("/proc/vmstat", encoding="utf-8") as lines:
        return next((int(x.split()[1]) for x in lines if x.startswith("oom_kill ")), 0)
