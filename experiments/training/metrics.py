"""JSON lines, one per step, that a training which goes on cuts back to its checkpoint. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from experiments.atomic_write import atomic_write


class JsonLines:
    """A file of JSON objects, one per line, each with its "step"."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._opened = None

    def append(self, line: dict) -> None:
        """Write a line at the end. OSError where it cannot be written."""
        if self._opened is None:
            self._opened = self.path.open("a", encoding="utf-8")
        self._opened.write(json.dumps(line, allow_nan=False) + "\n")
        self._opened.flush()

    def sync(self) -> None:
        """Have the disk hold all lines: a checkpoint that says they are there comes next."""
        if self._opened is not None:
            os.fsync(self._opened.fileno())

    def close(self) -> None:
        """Close the file; a further line opens it again."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def cut(self, step: int) -> None:
        """Leave out all lines after a step, and what a killed process left of a line."""
        kept = [line for line in read(self.path) if line["step"] <= step]
        self.close()
        with atomic_write(self.path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")


def read(path: Path) -> Iterator[dict]:
    """The whole lines of a file, in their order; none of one that is not there.

    A last line that does not end is that of a process that was killed.

    Raises:
        ValueError: another line is no JSON object with a step.
    """
    if not Path(path).exists():
        return
    *lines, _ = Path(path).read_text(encoding="utf-8").split("\n")
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            line["step"] + 0  # a number
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}, line {number}: expected a JSON object with a step") from None
        yield line
