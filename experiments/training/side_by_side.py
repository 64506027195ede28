"""Calls of a function in processes of their own, as many at once as there are cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from experiments.die_with_parent import die_with_parent

# Between the end of a process's pipe and its own.
_END_S = 1.0


class TrainingFailed(Exception):
    """A process gave no result; the message says why."""


class Prepared:
    """Processes that wait to be told to begin."""

    def __init__(self, children: list, connections: list, count: int):
        self._children, self._connections, self._count = children, connections, count

    def results(self) -> list:
        """Begin, and wait for what the function returns, in the order of the arguments.

        Raises:
            TrainingFailed: where a call raised or its process ended.
            MemoryError: where that is what a call raised.
        """
        for connection in self._connections:
            # Of one that has ended it is told below.
            with suppress(BrokenPipeError):
                connection.send("begin")
        found = [None] * self._count
        for number in range(self._count):
            place = number % len(self._connections)
            try:
                error, found[number] = self._connections[place].recv()
            except (EOFError, ConnectionResetError):
                raise TrainingFailed(_ending(self._children[place])) from None
            if error is not None:
                kind, told = error
                raise kind(told)
        return found


@contextmanager
def prepared(function: Callable, arguments: Sequence[tuple]) -> Iterator[Prepared]:
    """Fork the processes before this one runs an op of torch's on several threads.

    Args:
        function: what is called, on one core and one thread.
        arguments: of each call.

    Yields:
        What begins them and gives their results; all are gone at the end.
    """
    cores = sorted(os.sched_getaffinity(0))[: len(arguments)]
    context = multiprocessing.get_context("fork")
    children, connections = [], []
    try:
        for place, core in enumerate(cores):
            ours, theirs = context.Pipe()
            connections.append(ours)
            own = arguments[place :: len(cores)]
            child = context.Process(target=_serve, args=(function, own, core, theirs))
            child.start()
            children.append(child)
            theirs.close()
        yield Prepared(children, connections, len(arguments))
    finally:
        for child in children:
            child.kill()
            child.join()
        for connection in connections:
            connection.close()


def _ending(child) -> str:
    """How a process ended without a result."""
    child.join(_END_S)
    code = child.exitcode
    if code is not None and code < 0:
        return f"a training's process was killed by {signal.Signals(-code).name}"
    return "a training's process ended without a result"


def _serve(function: Callable, arguments: Sequence[tuple], core: int, pipe) -> None:
    die_with_parent()
    try:
        pipe.recv()
        os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
        for one in arguments:
            pipe.send((None, function(*one)))
    except MemoryError as error:
        pipe.send(((MemoryError, str(error)), None))
    except Exception as error:  # The parent raises it: nothing is swallowed.
        pipe.send(((TrainingFailed, f"{type(error).__name__}: {error}"), None))
    os._exit(0)
