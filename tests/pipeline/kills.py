"""Runs that are killed at random moments, and what becomes of their records.

    python -m tests.pipeline.kills [--count 50] [--seed N]

measures the smoke tier in a copy of the repository. Each time a run is begun, by Snakemake or
without it, a signal is sent at a random moment to one of its processes, and then it is looked
whether a record was lost, doubled or half-written, a lock is held, a process goes on measuring or a
temporary folder is left. In the end one plain command goes on to the end. Prints a table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from experiments.private_folder import SHARED, private
from experiments.stop import STOPS
from tests.pipeline.conftest import fresh_copy

# Set in the environment of all that is begun here, by which it is known.
_MARK = "ATTENTION_KILLS"
_RUN = [sys.executable, "-m", "experiments", "run", "--tier", "smoke", "--round"]
_PIPELINE = [str(Path(sys.executable).with_name("snakemake")), "experiments"]
_PIPELINE += ["--config", "tier=smoke", "device=cpu"]
# Seconds within which a process that is meant should come.
_THERE_S = 15.0
VICTIMS = ("scheduler", "group", "parent", "child", "rank")
# Seconds after a kill by which all that is told by it has ended.
_END_S = 25.0


@dataclass
class Found:
    """What went wrong, in words, and how often each kind of kill was tried."""

    tried: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Torture:
    """Kills in one copy of the repository; its locks and temporary files are those of anybody."""

    def __init__(self, folder: Path, seed: int, only: str | None):
        self.copy = fresh_copy(folder / "copy")
        for path in (self.copy / "experiments").glob("*.yaml"):
            if only not in (None, path.stem):
                path.unlink()
        self.draw, self.found = random.Random(seed), Found()
        temporary = folder / "temporary"
        temporary.mkdir()
        self.environment = {
            **os.environ, _MARK: str(folder), "TMPDIR": str(temporary), "PYTHONPATH": "",
        }  # fmt: skip
        self.temporary = private(temporary) / "temporary"
        self.known: dict[str, str] = {}

    def kill(self, command: list[str], victim: str, number: int) -> None:
        """Begin `command`, send the signal to one of its processes, and look."""
        name = f"{signal.Signals(number).name} to {victim}, {Path(command[0]).name}"
        run = subprocess.Popen(
            command, cwd=self.copy, env=self.environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(self.draw.uniform(0.5, 9))
        target, end = self._target(run, victim), time.monotonic() + _THERE_S
        while target is None and run.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
            target = self._target(run, victim)
        if target is None or run.poll() is not None:
            name = f"{name} (was not there)"
            self._stop(run)
        elif victim == "group":
            os.killpg(target, number)
        else:
            with suppress(ProcessLookupError):
                os.kill(target, number)
        self.found.tried[name] += 1
        if victim in ("parent", "child", "rank"):
            # The run goes on, or says that its case failed.
            time.sleep(self.draw.uniform(0, 3))
            self._stop(run)
        try:
            run.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._wrong(name, "did not end")
            run.kill()
        self.look(name)

    def go_on(self, command: list[str]) -> int:
        """One plain command, to its end; its exit status."""
        done = subprocess.run(
            command, cwd=self.copy, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            told = f"{done.stdout[-1000:]}{done.stderr[-1000:]}"
            self._wrong("the run to the end", f"exit status {done.returncode}: {told}")
        self.look("the run to the end")
        left = [*self.temporary.iterdir()] if self.temporary.is_dir() else []
        if left:
            self._wrong("the run to the end", f"temporary folders are left: {left}")
        return done.returncode

    def records(self) -> dict[str, dict]:
        """Every record there is, by its path from the results."""
        found = {}
        for path in sorted((self.copy / "results/local").rglob("*.json")):
            try:
                found[str(path.relative_to(self.copy))] = json.loads(path.read_text("utf-8"))
            except ValueError:
                self._wrong(path.name, "is half-written")
        return found

    def failed(self) -> list[str]:
        """Those that failed, by path."""
        return [key for key, one in self.records().items() if one["status"] == "failed"]

    def look(self, name: str) -> None:
        """Note what is wrong now."""
        end = time.monotonic() + _END_S
        while (working := self._working()) and time.monotonic() < end:
            time.sleep(0.1)
        if working:
            self._wrong(name, f"goes on: {working}")
        # The lock is everybody's on this machine: another run may hold it.
        if holders := [one.pid for one in self._own() if _holds_lock(one)]:
            self._wrong(name, f"the lock of the device is held by {holders}")
        found = self.records()
        stood = {key: _digest(one) for key, one in found.items() if one["status"] != "failed"}
        for key in self.known.keys() - found.keys():
            self._wrong(name, f"lost {key}")
        for key in self.known.keys() & stood.keys():
            if self.known[key] != stood[key]:
                self._wrong(name, f"measured again: {key}")
        # Nothing was edited: no record is of other code.
        doubled = [key for key in found if "/outdated/" in key]
        if doubled:
            self._wrong(name, f"doubled: {doubled}")
        self.known |= stood

    def _stop(self, run: subprocess.Popen) -> None:
        with suppress(ProcessLookupError):
            run.terminate()

    def _own(self) -> list[psutil.Process]:
        """The processes that were begun here and still are."""
        found = []
        for one in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                is_ours = one.environ().get(_MARK) == self.environment[_MARK]
                if is_ours and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
        return found

    def _working(self) -> list[str]:
        """Those of them that are more than a server that waits for calls."""
        found = []
        for one in self._own():
            with suppress(psutil.Error, OSError):
                line = one.cmdline()
                if "--serve" not in line or (one.ppid() != 1 and _is_server_fork(one)):
                    found.append(f"{one.pid} {' '.join(line)[-100:]}")
        return found

    def _target(self, run: subprocess.Popen, victim: str) -> int | None:
        """The process of a run that is meant; None where there is none at the moment."""
        if victim in ("scheduler", "group"):
            return run.pid
        # A process that measures leads a group of its own; ranks are in it.
        own = self._own()
        cases = [one for one in own if _adjusted(one) == 1000 and os.getpgid(one.pid) == one.pid]
        ranks = [one for one in own if _adjusted(one) == 1000 and os.getpgid(one.pid) != one.pid]
        found = {"child": cases, "rank": ranks, "parent": [one.parent() for one in cases]}[victim]
        return found[0].pid if found else None

    def _wrong(self, name: str, what: str) -> None:
        self.found.wrong.append(f"{name}: {what}")


def _holds_lock(one: psutil.Process) -> bool:
    path = str(private(SHARED) / "cpu.lock")
    with suppress(OSError):
        return any(os.readlink(fd) == path for fd in Path(f"/proc/{one.pid}/fd").iterdir())
    return False


def _is_server_fork(one: psutil.Process) -> bool:
    """Whether a process is a fork of the warm server, at work for a caller."""
    return "--serve" in one.parent().cmdline()


def _adjusted(one: psutil.Process) -> int:
    """By which the kernel prefers a process when memory is short: 1000 for those that measure."""
    with suppress(OSError):
        return int(Path(f"/proc/{one.pid}/oom_score_adj").read_text("ascii"))
    return 0


def _digest(one: dict) -> str:
    return hashlib.sha256(json.dumps(one).encode()).hexdigest()


def torture(folder: Path, *, count: int, seed: int, only: str | None = None) -> Found:
    """`count` kills and then a run to the end; what was found. only: of one experiment's cases."""
    work = Torture(folder, seed, only)
    commands = [*_RUN, "1", "--all"], _PIPELINE
    victims = VICTIMS if only is None else VICTIMS[:-1]
    for number in range(1, count + 1):
        victim = work.draw.choice(victims)
        sent = signal.SIGKILL if number % 2 else work.draw.choice(STOPS)
        # Few cases have ranks, and only these are spread over processes.
        command = work.draw.choice(commands)
        if victim == "rank":
            command = [*_RUN, str(number + 1), "ring"]
        work.kill(command, victim, sent)
        print(f"{number}/{count}: {len(work.known)} records, {len(work.found.wrong)} wrong",
              file=sys.stderr, flush=True)  # fmt: skip
    for command in commands:
        work.go_on(command)
    # Rounds in which ranks were killed are others than those of the commands.
    for key in work.failed():
        work.go_on([*_RUN, Path(key).parent.name.removeprefix("round-"), "--case", Path(key).stem])
    work.found.wrong += [f"left failed: {key}" for key in work.failed()]
    return work.found


def main() -> int:
    """Kill so many times, and print what was tried and what went wrong."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    print(f"seed {given.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        found = torture(Path(folder), count=given.count, seed=given.seed)
    for name, times in sorted(found.tried.items()):
        print(f"{times:4}  {name}")
    print(f"{sum(found.tried.values())} kills, {len(found.wrong)} wrong")
    for line in found.wrong:
        print(f"wrong: {line}")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
