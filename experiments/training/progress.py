"""How far a training is: a line that is rewritten on a terminal, else one every few seconds."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from experiments.runner import duration
from experiments.training.loop import StepReport

# Seconds between lines: of a file or pipe, and of a terminal.
_EVERY_S, _REWRITTEN_EVERY_S = 10.0, 0.1
# Steps over which speed is averaged.
_RECENT = 50
_ERASE_LINE = "\r\x1b[K"


class Progress:
    """Tells of a training's steps.

    Args:
        stream: where; a terminal's line is rewritten.
        steps: of the whole training.
        clock: seconds, from any beginning.
    """

    def __init__(self, stream: TextIO, steps: int, *, clock: Callable[[], float] = time.monotonic):
        self._stream, self._steps, self._clock = stream, steps, clock
        self._is_terminal = stream.isatty()
        self._recent: deque[tuple[float, StepReport]] = deque(maxlen=_RECENT)
        self._next = clock()
        self._is_open = False

    def add(self, report: StepReport) -> None:
        """A step is done: tell of it where it is time, and of its evaluation in any case."""
        now = self._clock()
        self._recent.append((now, report))
        is_last = report.step == self._steps
        if now >= self._next or is_last:
            every = _REWRITTEN_EVERY_S if self._is_terminal else _EVERY_S
            self._next = now + every
            self._write(self.text())
        if report.evaluation:
            found = report.evaluation
            self.say(
                f"step {report.step}: validation {found.loss:.4f} bits per token, "
                f"accuracy {found.accuracy:.1%} of {found.tokens:,} tokens"
            )

    def text(self) -> str:
        """Step, loss, speed and time left, as of the steps added last."""
        reports = [report for _, report in self._recent]
        (first, _), (now, last) = self._recent[0], self._recent[-1]
        seconds = 1e-3 * sum(one.ms for one in reports)
        speed = sum(one.tokens for one in reports) / seconds
        # By the clock, which counts evaluations and checkpoints too.
        one_s = (now - first) / (len(reports) - 1) if len(reports) > 1 else seconds
        left_s = (self._steps - last.step) * one_s
        loss = statistics.fmean(one.loss for one in reports)
        return (
            f"step {last.step}/{self._steps}  loss {loss:.4f} bits  {speed:,.0f} tokens/s  "
            f"{duration(left_s)} left"
        )

    def say(self, text: str) -> None:
        """A line that stays."""
        self.close()
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """End the line that is being rewritten, if one is."""
        if self._is_open:
            print(file=self._stream, flush=True)
            self._is_open = False

    def _write(self, text: str) -> None:
        if not self._is_terminal:
            self.say(text)
            return
        room = shutil.get_terminal_size().columns - 1
        print(f"{_ERASE_LINE}{text[:room]}", end="", file=self._stream, flush=True)
        self._is_open = True
