"""Calls of a function in processes of their own, as many at once as there are cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from experiments.die_with_parent import die_with_parent


class TrainingFailed(Exception):
    """A process gave no result; the message says why."""


class Prepared:
    """Processes that wait to be told to begin."""

    def __init__(self, connections: list, count: int):
        self._connections, self._count = connections, count

    def results(self) -> list:
        """Begin, and wait for what the function returns, in the order of the arguments.

        Raises:
            TrainingFailed: where a call raised or its process ended.
        """
        for connection in self._connections:
            connection.send("begin")
        found = [None] * self._count
        for number in range(self._count):
            connection = self._connections[number % len(self._connections)]
            try:
                error, found[number] = connection.recv()
            except EOFError:
                raise TrainingFailed("a training's process ended without a result") from None
            if error is not None:
                raise TrainingFailed(error)
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
            own = arguments[place :: len(cores)]
            children.append(context.Process(target=_serve, args=(function, own, core, theirs)))
            children[-1].start()
            theirs.close()
            connections.append(ours)
        yield Prepared(connections, len(arguments))
    finally:
        for child in children:
            child.kill()
            child.join()


def _serve(function: Callable, arguments: Sequence[tuple], core: int, pipe) -> None:
    die_with_parent()
    try:
        pipe.recv()
        os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
        for one in arguments:
            pipe.send((None, function(*one)))
    except EOFError:
        # The parent needs no result.
        pass
    except Exception as error:  # The parent raises it: nothing is swallowed.
        pipe.send((f"{type(error).__name__}: {error}", None))
    os._exit(0)
