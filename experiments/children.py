"""Functions run in forked children: however the child ends, its parent gets an outcome.

A child leads a process group of its own, which is killed as a whole: compilers and ranks that
it started go with it. To be called where torch has not yet run an op on several threads: a fork
would inherit a thread pool without its threads, and hang.
"""

from __future__ import annotations

import errno
import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait

from experiments.atomic_write import DISK_FULL, full_disk, is_disk_full
from experiments.forked_process import (
    TICK_S,
    Outcome,
    Process,
    ProcessEnded,
    Report,
    send,
    uninterrupted,
)

__all__ = ["Outcome", "attempt", "over", "resolve", "run", "run_all"]

_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory")
# Where an error of torch stands for the one of the system.
_NOT_WRITTEN = ("PytorchStreamWriter failed", "file write failed", os.strerror(errno.ENOSPC))


def run(
    function: str | Callable,
    arguments: Sequence,
    *,
    deadline: float,
    memory_gib: float | None = None,
    tick: Callable[[], object] | None = None,
) -> Outcome:
    """The outcome of `function(*arguments)` in a child that is gone when this returns.

    function: a callable, or "module.name" under `experiments`. deadline: by time.monotonic().
    memory_gib: address space beyond what it has at its start, at most what the machine has
    free; math.inf for all of that; None for no limit, as a process that uses CUDA needs.
    tick: called at least once per second while the child runs.
    """
    task = [(function, arguments)]
    limits = {"deadline": deadline, "each_s": math.inf, "memory_gib": memory_gib}
    return run_all(task, processes=1, tick=tick, **limits)[0]


def run_all(
    tasks: Sequence[tuple[str | Callable, Sequence]],
    *,
    processes: int,
    deadline: float,
    each_s: float,
    memory_gib: float | None = None,
    tick: Callable[[], object] | None = None,
) -> list[Outcome]:
    """The outcomes of `tasks`, (function, arguments) each, in their order; as `run` does one.

    At most `processes` run at once, each for `each_s` seconds at most, and all are over by
    `deadline`: those that had not started then are "not run". memory_gib: of each child.
    """
    if processes < 1:
        raise ValueError(f"processes={processes}: expected an integer >= 1")
    named = [(resolve(function), arguments) for function, arguments in tasks]
    not_run = Outcome("not run", reason="not started: no time was left", cause="day")
    outcomes = [not_run] * len(named)
    waiting, running = list(enumerate(named)), {}
    try:
        while True:
            while waiting and len(running) < processes and time.monotonic() < deadline:
                number, task = waiting.pop(0)
                with uninterrupted():
                    running[number] = Process(_report, task, memory_gib=memory_gib)
            if not running:
                return outcomes
            ends = {n: min(deadline, process.started + each_s) for n, process in running.items()}
            left = min(ends.values()) - time.monotonic()
            wait([x.pipe for x in running.values()], max(0.0, min(left, TICK_S)))
            for number, process in list(running.items()):
                outcome = _outcome_by(process, ends[number])
                if outcome is not None:
                    outcomes[number] = outcome
                    running.pop(number).kill()
            if tick is not None:
                tick()
    finally:
        for process in running.values():
            process.kill()


def _outcome_by(process: Process, end: float) -> Outcome | None:
    """What `process` reported, or that it is gone or over its time; None while it may go on."""
    spent = time.monotonic() - process.started
    try:
        report = process.received()
    except ProcessEnded as gone:
        return gone.outcome
    if report is None:
        return over(end - process.started, spent) if spent >= end - process.started else None
    return Outcome(*report, spent)


def over(limit_s: float, seconds: float) -> Outcome:
    """The outcome of what was ended after `seconds`, for it was over its limit."""
    return Outcome("timeout", None, f"over its limit of {round(limit_s, 1):g} s", "case", seconds)


def resolve(function: str | Callable) -> Callable:
    """The function named "module.name" under `experiments`; a callable is itself."""
    if callable(function):
        return function
    module, _, name = function.rpartition(".")
    return getattr(importlib.import_module(f"experiments.{module}"), name)


def _report(pipe, function: Callable, arguments: Sequence) -> None:
    send(pipe, attempt(function, arguments))


def attempt(function: Callable, arguments: Sequence) -> Report:
    """Status, value, reason and cause of `function(*arguments)`, called here."""
    try:
        return "ok", function(*arguments), None, None
    except BaseException as error:  # The outcome says what it was; nothing is swallowed.
        status, reason, cause = _judge(error)
        return status, None, reason, cause


def _judge(error: BaseException) -> tuple[str, str, str]:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    no_memory = isinstance(error, MemoryError) or _is(error, "torch", "OutOfMemoryError")
    says_so = any(text in str(error) for text in _OUT_OF_MEMORY)
    if no_memory or says_so or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "oom", reason, "case"
    if _is(error, "models.errors", "UnsupportedBackend"):
        return "unsupported", reason, "case"
    if _is(error, "experiments.check", "CheckFailed"):
        return "failed", reason, "case"
    if is_disk_full(error) or any(text in str(error) for text in _NOT_WRITTEN):
        return "failed", f"{DISK_FULL}: {full_disk() or reason}", "day"
    cause = "day" if isinstance(error, OSError | KeyboardInterrupt) else "case"
    return "failed", f"{type(error).__name__}: {reason}", cause


def _is(error: BaseException, module: str, name: str) -> bool:
    # What was raised is imported: a child that needs no torch does not import it for this.
    return module in sys.modules and isinstance(error, getattr(sys.modules[module], name))
