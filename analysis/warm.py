"""`python -m analysis.warm [ROOT ...] -- [NAME ...]`: as `python -m analysis.NAME ...`, warm.

A server has imported what the commands need and has read the records at the roots, through the gate
as any command does, and forks for each call (see `experiments.warm`). A command of these same roots
finds them read, and their frame made. They live in memory alone; before each call the server looks
at all of them and at who vouches for them, and reads anew where a file is another than it was.
"""

from __future__ import annotations

import gc
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from experiments import warm

FOLDERS = ("analysis", "experiments", "models", "paper")
# Of what commands import, what takes long; the names of others are theirs.
_IMPORTED = (
    *("analysis.advise.recommendations", "analysis.claims.__main__", "analysis.findings.__main__"),
    *("analysis.across.overview", "analysis.across.provenance", "analysis.documents.paper"),
    *("analysis.documents.writeups", "analysis.pages.comparison_page", "analysis.notebook"),
    *("analysis.pages.index_page", "analysis.pages.ledger_page", "analysis.pages.notebook_page"),
    *("analysis.pages.numbers_page", "analysis.pages.results_page"),
    *("ipykernel.kernelapp", "papermill.execute"),
)
# Seconds in which a file may change again and show no other time.
_TICK_S = 1.0
# Of a file or folder: which it is, its size, and when its content and it itself changed.
State = dict[str, tuple[int, ...]]


class Records:
    """Those at some roots, kept for forks: see `files.kept` and `frame.kept`."""

    def __init__(self, roots: Sequence[Path]):
        self.roots = roots
        self._state: State | None = None

    def look(self) -> None:
        """Read them where they are not read as they are now."""
        from analysis.records import files, frame
        from experiments import gate

        if not self.roots:
            return
        try:
            state = _settled(self.roots)
        except OSError:
            state = None
        if state is not None and state == self._state:
            return
        files.kept.clear()
        frame.kept = self._state = None
        # Whatever goes wrong: a command meets it itself, and says it to whoever called it.
        with gate.uncollected():
            with suppress(Exception):
                found = files.sifted(*self.roots) if state else ([], [])
                made = frame.of_files(found[0])
                if state == _state(self.roots):
                    files.kept[files.asked(self.roots)] = found
                    frame.kept, self._state = (found[0], made), state
            # No search for garbage goes through them, here or in forks, which would also copy them.
            gc.freeze()


def _settled(roots: Sequence[Path]) -> State | None:
    """The state of what lies there, once nothing has changed for a moment; None if that goes on."""
    for _ in range(3):
        state = _state(roots)
        newest = max((times[-1] for times in state.values()), default=0) / 1e9
        left = newest + _TICK_S - time.time()
        if left <= 0:
            return state
        # A clock that is ahead says nothing of when that was.
        if left > _TICK_S:
            return None
        time.sleep(left)
    return None


def _state(roots: Sequence[Path]) -> State:
    return dict(one for root in roots for one in _states(os.fspath(_watched(root))))


def _watched(root: Path) -> Path:
    """A root, or where it lies in `published` that: who vouches for its rounds is said there."""
    root = root.resolve()
    return next((one for one in root.parents if one.name == "published"), root)


def _states(path: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of what lies at and under `path`; no link is followed."""
    found = os.lstat(path)
    told = (found.st_dev, found.st_ino, found.st_mode, found.st_size)
    yield path, (*told, found.st_mtime_ns, found.st_ctime_ns)
    if stat.S_ISDIR(found.st_mode):
        for name in os.listdir(path):
            yield from _states(os.path.join(path, name))


def _run(arguments: list[str]) -> int:
    name, *given = arguments
    package = find_spec(f"analysis.{name}").submodule_search_locations
    module = import_module(f"analysis.{name}{'.__main__' * (package is not None)}")
    # A slip is told under the name of the command.
    sys.argv = [module.__file__, *given]
    return module.main(given)


def _kind(roots: Sequence[str]) -> warm.Kind:
    """The servers that have read the records at these roots."""
    records = Records([Path(root) for root in roots])

    def warm_up() -> None:
        from analysis import catalogue
        from analysis.selection import published

        for name in _IMPORTED:
            import_module(name)
        for experiment in published.EXPERIMENTS:
            catalogue.figures(experiment)
            # Of the claims file, which takes long to read; what is wrong there commands tell.
            with suppress(ValueError, OSError):
                published.setting(experiment)
        records.look()

    return warm.Kind("analysis.warm", FOLDERS, warm_up, _run, records.look, (*roots,))


def main(arguments: list[str]) -> int:
    """Have a server of the roots run the command; its exit status.

    Without a command it begins to read, for those to come, and nothing is waited for.
    """
    if "--" not in arguments:
        print("analysis.warm: expected [ROOT ...] -- [NAME ...]", file=sys.stderr)
        return 2
    place = arguments.index("--")
    kind, command = _kind(arguments[:place]), arguments[place + 1 :]
    if command:
        return warm.call(kind, command)
    warm.ahead(kind)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        warm.serve(_kind(sys.argv[4:]), Path(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main(sys.argv[1:]))
