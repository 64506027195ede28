"""The processes that cases are measured in: on a GPU with contexts kept, or made ahead.

A context, the libraries' handles and a first call cost a process about a second there. So one
process, the reference worker, makes the references of case after case; and while it does, or once a
replicate has reported, the next replicate's fresh process makes its context and waits: the
standby. Nothing is started while samples are taken. On a CPU a fork is all that a process costs,
and the state of its allocator is a reason for a fresh one each time.
"""

from __future__ import annotations

import gc
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments import device_lock, loopback
from experiments.children import Outcome, attempt, over, resolve, run
from experiments.forked_process import Process, ProcessEnded, send, uninterrupted


@dataclass(frozen=True)
class Context:
    """How a process gets ready for its job, and how it gives memory back after one.

    make: a bare context. Nothing else, as the first calls in a process are measured too.
    """

    make: Callable[[], object]
    give_back: Callable[[], object]


def _make_cuda_context() -> None:
    import torch

    # Allocates nothing, draws no random number and loads no library of operations.
    torch.cuda.synchronize()


def _give_back_cuda_memory() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()


CUDA = Context(_make_cuda_context, _give_back_cuda_memory)


Tick = Callable[[], object] | None


class Workers:
    """A run's processes on one device; its end (it is a context manager) is theirs.

    context: what a process makes before its job, or None where nothing is to be made. tick, of
    the methods: called at least once per second while they wait.
    """

    def __init__(self, context: Context | None):
        self._context = context
        self._reference_worker: _Worker | None = None
        self._standby: _Worker | None = None

    @classmethod
    def of(cls, device: str) -> Workers:
        """That of "cpu" or "cuda"."""
        return cls(None if device == "cpu" else CUDA)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_) -> None:
        self.end_case()
        self._end_reference_worker()

    def reference(
        self,
        function: str,
        arguments: Sequence,
        *,
        deadline: float,
        memory_gib: float | None = None,
        ahead: bool = True,
        tick: Tick = None,
    ) -> Outcome:
        """The outcome of "module.name" under `experiments`, untimed work: in the reference worker.

        memory_gib: as for `children.run`, where there is no context. ahead: whether a replicate
        with a context follows, whose process gets ready meanwhile.
        """
        if self._context is None:
            limits = {"deadline": deadline, "memory_gib": memory_gib}
            return run(function, arguments, tick=tick, **limits)
        if self._reference_worker is not None and self._reference_worker.cards != _cards():
            self._end_reference_worker()
        if self._reference_worker is None:
            with uninterrupted():
                self._reference_worker = _Worker(self._context, is_lasting=True)
        try:
            outcome = self._reference_worker.begin(function, arguments, deadline, tick)
            if outcome is None:
                if ahead:
                    with uninterrupted():
                        self._standby = _Worker(self._context, is_lasting=False)
                outcome = self._reference_worker.outcome(deadline, tick)
            # One that failed may have lost its context, or not have its memory back.
            if outcome.status not in ("ok", "unsupported"):
                self._end_reference_worker()
            return outcome
        except BaseException:
            # It may be at work, and what it will say is no answer to the next question.
            self._end_reference_worker()
            raise

    def replicate(
        self,
        function: str,
        arguments: Sequence,
        *,
        deadline: float,
        memory_gib: float | None = None,
        forks: bool = False,
        ahead: bool = False,
        tick: Tick = None,
    ) -> Outcome:
        """The same of timed work, in a fresh process: the standby, where there is one.

        forks: whether the work forks, which a process that has a context must not. ahead:
        whether another such replicate follows.
        """
        if forks:
            loopback.bind_ranks()
        if self._context is None or forks:
            limits = {"deadline": deadline, "memory_gib": memory_gib}
            return run(function, arguments, tick=tick, **limits)
        process, self._standby = self._standby, None
        process = process or _Worker(self._context, is_lasting=False)
        try:
            outcome = process.begin(function, arguments, deadline, tick)
            if outcome is None:
                outcome = process.outcome(deadline, tick)
            if ahead and outcome.status == "ok":
                # Its context is made while that of the one before goes.
                with uninterrupted():
                    self._standby = _Worker(self._context, is_lasting=False)
            return outcome
        finally:
            process.kill()

    def end_case(self) -> None:
        """Have no process left but the reference worker."""
        if self._standby is not None:
            self._standby.kill()
            self._standby = None

    def _end_reference_worker(self) -> None:
        if self._reference_worker is not None:
            self._reference_worker.kill()
            self._reference_worker = None


class _Worker:
    """A process that makes a context and waits for its job, or for one job after another."""

    def __init__(self, context: Context, *, is_lasting: bool):
        self._serve = (context, is_lasting)
        self._start()

    def _start(self) -> None:
        self.cards = _cards()
        self._is_ready = False
        self._process = Process(_serve, self._serve)

    def begin(
        self, function: str, arguments: Sequence, deadline: float, tick: Tick
    ) -> Outcome | None:
        """Hand it its job once it is ready; None once it has begun, else why it has not."""
        outcome = self._begin(function, arguments, deadline, tick)
        if outcome is not None and outcome.status != "timeout":
            # It was gone before its job, which is no fault of the job's.
            self.kill()
            self._start()
            outcome = self._begin(function, arguments, deadline, tick)
        return outcome

    def _begin(
        self, function: str, arguments: Sequence, deadline: float, tick: Tick
    ) -> Outcome | None:
        start = time.monotonic()
        process = self._process
        try:
            if not self._is_ready:
                made = process.receive(deadline, tick)
                if made is None:
                    return over(deadline - start, time.monotonic() - start)
                if made[0] != "ok":
                    return Outcome(*made, seconds=time.monotonic() - start)
                self._is_ready = True
            process.note_oom_kills()
            process.send((function, arguments))
            if process.receive(deadline, tick) is None:
                return over(deadline - start, time.monotonic() - start)
        except ProcessEnded as gone:
            return gone.outcome
        self._begun = time.monotonic()
        return None

    def outcome(self, deadline: float, tick: Tick) -> Outcome:
        """What came of the job that it has begun."""
        try:
            report = self._process.receive(deadline, tick)
        except ProcessEnded as gone:
            ended = gone.outcome
            report = (ended.status, None, ended.reason, ended.cause)
        seconds = time.monotonic() - self._begun
        if report is None:
            return over(deadline - self._begun, seconds)
        return Outcome(*report, seconds=seconds)

    def kill(self) -> None:
        self._process.kill()


def _serve(pipe, context: Context, is_lasting: bool) -> None:
    """Runs in the fork: a message when ready, one when a job has begun, one of what came of it."""
    if is_lasting:
        # Else its own run would wait for the device at the next case.
        device_lock.release_in_fork()
    made = attempt(context.make, ())
    send(pipe, made)
    if made[0] != "ok":
        return
    if is_lasting:
        # What is there now stays: to look for garbage is then a matter of what a job made.
        gc.freeze()
    while True:
        function, arguments = pickle.loads(pipe.recv_bytes())
        send(pipe, ("ok", None, None, None))
        send(pipe, attempt(_do, (function, arguments, context if is_lasting else None)))
        if not is_lasting:
            return


def _do(function: str, arguments: Sequence, context: Context | None):
    value = resolve(function)(*arguments)
    if context is not None:
        context.give_back()
    return value


def _cards() -> str | None:
    """Which cards a process forked now would see: the device lock sets it."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
