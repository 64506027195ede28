"""Tiles against one another by successive halving, in a process that may die of one of them."""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from experiments.die_with_parent import die_with_parent
from experiments.tuning.clocks import Wrong
from experiments.tuning.plan import Entry
from models.kernels.tiles import Tile

# Samples of a tile in the first round; each round later takes twice as many.
FIRST = 5
MOST = 80
# Seconds for samples of one tile, and for the process to start and make the tensors.
SAMPLE_S, OPEN_S = 20.0, 60.0


class TimeUp(Exception):
    """The share of the time is spent."""


class CannotStart(Exception):
    """There is no race: the problem itself fails, by which the reason says."""


class _Lost(Exception):
    """A tile is out of the race, and why."""


@dataclass
class Result:
    """best: the fastest tile, `current` where none is faster; ms: medians of both, side by side.

    lost: tile -> why it is out. raced: tiles with samples. finished: False where time was up.
    """

    best: object
    ms_before: float | None = None
    ms_after: float | None = None
    raced: int = 0
    finished: bool = True
    lost: dict = field(default_factory=dict)


def race(
    entry: Entry,
    current: Tile,
    tiles: Sequence[Tile],
    clock: Callable,
    deadline: float,
    *,
    sample_s: float = SAMPLE_S,
) -> Result:
    """Race `tiles` and the current one of `entry` until one is left or the deadline is there.

    deadline: by `time.monotonic()`. A tile that hangs for `sample_s`, crashes, runs out of memory
    or computes something else loses the race and nothing else. CannotStart where the current
    one does.
    """
    lane = _Lane(entry, current, clock, deadline, sample_s)
    result = Result(current)
    try:
        _halve(lane.sample, current, list(dict.fromkeys([current, *tiles])), result)
    except TimeUp:
        result.finished = False
    finally:
        lane.close()
    return result


def _halve(sample: Callable, current, running: list, result: Result) -> None:
    count, times = FIRST, {}
    while True:
        for tile in list(running):
            try:
                times[tile] = times.get(tile, []) + sample(tile, count)
            except _Lost as reason:
                if tile == current:
                    raise CannotStart(f"the current tile: {reason}") from None
                running.remove(tile)
                result.lost[tile] = str(reason)
                times.pop(tile, None)
                continue
        result.raced = len(times)
        medians = {tile: statistics.median(times[tile]) for tile in running}
        # The current one runs to the end, so that both stand side by side.
        others = sorted((t for t in running if t != current), key=medians.get)
        fastest = min(running, key=medians.get)
        result.best, result.ms_before = fastest, medians[current]
        result.ms_after = medians[fastest]
        if not others or (len(others) == 1 and count >= 4 * FIRST) or count >= MOST:
            return
        running = [current, *others[: max(1, len(others) // 2)]]
        count *= 2


class _Lane:
    """The process that runs tiles; started anew after one that took it down."""

    def __init__(self, entry, current, clock, deadline, sample_s):
        self.entry, self.current, self.clock = entry, current, clock
        self.deadline, self.sample_s = deadline, sample_s
        self.process = self.connection = None

    def sample(self, tile: Tile, count: int) -> list[float]:
        if self.process is None:
            self._open()
        kind, value = self._answer(self.sample_s, (tile, count))
        if kind == "ms":
            return value
        if kind != "wrong":
            self.close()
        raise _Lost(value)

    def _open(self) -> None:
        if time.monotonic() >= self.deadline:
            raise TimeUp
        self.connection, theirs = multiprocessing.Pipe()
        arguments = (self.connection, theirs, self.entry, self.current, self.clock)
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_child, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        kind, value = self._answer(OPEN_S)
        if kind != "open":
            self.close()
            raise CannotStart(value)

    def _answer(self, seconds: float, asked=None):
        left = self.deadline - time.monotonic()
        try:
            if asked is not None:
                self.connection.send(asked)
            if self.connection.poll(max(0.0, min(seconds, left))):
                return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            return "dead", f"its process ended with {how}"
        if left <= seconds:
            raise TimeUp
        return "dead", f"no answer within {seconds:g} s"

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
        self.process = None


def _child(ours, connection, entry, current, clock) -> None:
    die_with_parent()
    ours.close()
    try:
        sample = clock(entry, current)
        connection.send(("open", None))
        while True:
            tile, count = connection.recv()
            try:
                connection.send(("ms", sample(tile, count)))
            except Wrong as reason:
                connection.send(("wrong", str(reason)))
    except EOFError:
        pass  # the race is over
    except Exception as error:  # a kernel's or a card's, of any kind: after it, start anew
        message = " ".join(str(error).split())[:300]
        connection.send(("dead", f"{type(error).__name__}: {message}"))
