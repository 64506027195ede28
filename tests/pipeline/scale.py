"""What planning, resuming and analysing so many cases take: seconds, memory, and their growth.

    python -m tests.pipeline.scale [--counts 100 1000 10000] [--rounds 1] [--out FOLDER]

works in copies of the repository, with synthetic grids and records that pass the gate, and measures
nothing. Each command is a fresh process; memory is the largest sum of what it, its children and the
servers that they start hold (RSS; pages that they share count once for each). Writes `scale.json`
and draws `scale.svg` and `scale.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from analysis.across.overview import FIGURES
from analysis.rendering import style
from experiments import grid
from experiments.forked_process import adopting_orphans
from tests.pipeline import scale_cases
from tests.pipeline.conftest import fresh_copy
from tests.pipeline.scale_drawn import drawn

COUNTS = (100, 300, 1000, 3000, 10000)
# Of the cases, one in so many is left to be measured where a run is resumed.
_LEFT = 100
# Seconds between two looks at the memory; at which a command is given up.
_LOOK_S, _MOST_S = 0.05, 1800.0
_SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))
_LOCAL = ("--config", "tier=full", "device=cpu")
PUBLISHED = "results/published"


@dataclass(frozen=True)
class Step:
    """A command, and what it is part of."""

    stage: str
    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Taken:
    """What a step took for so many cases: seconds of wall time, seconds of processors, bytes."""

    cases: int
    rounds: int
    stage: str
    name: str
    wall_s: float
    processor_s: float
    peak_bytes: int
    status: int


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module."""
    return (sys.executable, "-m", module, *arguments)


def planning(stage: str, rounds: int) -> list[Step]:
    """What plans a round by both ways: of everything, or of what is left."""
    config = (*_LOCAL, f"rounds={rounds}")
    return [
        Step(stage, "plan", python("experiments", "plan", "--all", "--tier", "full")),
        Step(stage, "snakemake -n", (_SNAKEMAKE, "-n", *config)),
    ]


def resuming(rounds: int) -> list[Step]:
    """The same where one case in `_LEFT` is left; `run` stops before the first of them."""
    budget = ("--all", "--tier", "full", "--budget", "0.001")
    return [
        *planning("resume", rounds),
        Step("resume", "run", python("experiments", "run", *budget)),
    ]


def analysing() -> list[Step]:
    """Every command that reads all records, one after another, each for itself."""
    notebooks = {name: python("analysis.notebook", name, PUBLISHED) for name in grid.names()}
    figures = ("--out", "build/figures/overview.svg", "--figure", *FIGURES)
    claims = ("--claims", "paper/claims.yaml", "--out", "build/claims.json")
    numbers = [f"build/numbers/{name}.json" for name in (*grid.names(), "findings")]
    commands = {
        "validate": python("experiments", "validate", PUBLISHED),
        "claims": python("analysis.claims", PUBLISHED, *claims),
        "findings": python("analysis.findings", PUBLISHED),
        "figures": python("analysis.across.overview", PUBLISHED, *figures),
        **{f"notebook {name}": command for name, command in notebooks.items()},
        "results page": python("analysis.pages.results_page", PUBLISHED),
        "advice": python("analysis.advise.recommendations", PUBLISHED),
        "numbers": python("analysis.rendering.numbers", *numbers, "build/claims.json"),
        "provenance": python("analysis.across.provenance", PUBLISHED),
        "numbers page": python("analysis.pages.numbers_page"),
        "ledger": python("analysis.pages.ledger_page"),
    }  # fmt: skip
    return [Step("analysis", name, command) for name, command in commands.items()]


_BUILD = (_SNAKEMAKE, "-c2", "--config", "source=published")


def building() -> list[Step]:
    """The build up to its last number, verdict, figure and page of records, and then the rest."""
    pages = [f"{name}.html" for name in ("reproduction", "results", "compare", "ledger", "numbers")]
    made = [*pages, "tables/advice.csv", "figures/overview.svg"]
    made += [f"notebooks/{name}.ipynb" for name in grid.names()]
    targets = (f"build/{path}" for path in made)
    # Targets before the option, which takes several values.
    return [
        Step("build", "snakemake -c2, the analysis", (*_BUILD[:2], *targets, *_BUILD[2:])),
        Step("build", "snakemake -c2, its documents", _BUILD),
    ]


def take(step: Step, copy: Path, cases: int, rounds: int) -> Taken:
    """Run a step in a copy of the repository, its output beside it in `scale-logs/`."""
    log = copy / "scale-logs" / f"{step.stage} {step.name}.log".replace(" ", "-")
    log.parent.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": ""}
    began, before, peak = time.monotonic(), _processor_s(), 0
    with open(log, "wb") as told, adopting_orphans():
        run = psutil.Popen(
            step.command, cwd=copy, env=environment, stdin=subprocess.DEVNULL,
            stdout=told, stderr=told,
        )  # fmt: skip
        while run.poll() is None:
            held = 0
            for one in _started():
                with suppress(psutil.Error):
                    held += one.memory_info().rss
            peak = max(peak, held)
            if time.monotonic() - began > _MOST_S:
                for one in _started():
                    one.kill()
            time.sleep(_LOOK_S)
        wall = time.monotonic() - began
        # Servers, which would wait for more.
        for one in psutil.Process().children():
            one.terminate()
            one.wait()
    spent = _processor_s() - before
    made = Taken(cases, rounds, step.stage, step.name, wall, spent, peak, run.returncode)
    ended = f"  status {run.returncode}: {log}" if run.returncode else ""
    name = f"{step.stage:9} {step.name:28}"
    _say(f"{cases:6} {name} {wall:7.1f} s {spent:7.1f} s {peak / 2**20:7.0f} MiB{ended}")
    return made


def _processor_s() -> float:
    """Of all children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _started() -> list[psutil.Process]:
    """All that this process has started, and what that has."""
    with suppress(psutil.Error):
        return psutil.Process().children(recursive=True)
    return []


def measured(folder: Path, cases: int, rounds: int, stages: set[str]) -> Iterator[Taken]:
    """What each step takes in a copy at `folder`, which has so many cases."""
    copy, chosen = fresh_copy(folder), scale_cases.tasks(cases)
    shutil.rmtree(copy / "results")
    scale_cases.write_grids(copy, chosen)
    if "plan" in stages:
        for step in planning("plan", rounds):
            yield take(step, copy, cases, rounds)
    if "resume" in stages:
        done = chosen[: -max(1, cases // _LEFT)]
        for number in range(1, rounds + 1):
            scale_cases.write_records(copy / "results/local", done, number)
        for step in resuming(rounds):
            yield take(step, copy, cases, rounds)
        shutil.rmtree(copy / "results/local")
    if {"analysis", "build"} & stages:
        for number in range(1, rounds + 1):
            scale_cases.write_records(copy / PUBLISHED, chosen, number, is_published=True)
    if "analysis" in stages:
        for name in ("figures", "tables", "numbers", "notebooks"):
            (copy / "build" / name).mkdir(parents=True, exist_ok=True)
        for step in analysing():
            yield take(step, copy, cases, rounds)
        shutil.rmtree(copy / "build")
    if "build" in stages:
        for step in building():
            yield take(step, copy, cases, rounds)


def table(found: list[Taken]) -> str:
    """Seconds of wall time, of processors in brackets, and MiB of each step by how many cases."""
    counts = sorted({one.cases for one in found})
    by = {(one.stage, one.name, one.cases): one for one in found}
    lines = ["| | " + " | ".join(f"{count:,}" for count in counts) + " |"]
    lines.append("|---|" + "---:|" * len(counts))
    for stage, name in dict.fromkeys((one.stage, one.name) for one in found):
        cells = [_cell(by.get((stage, name, count))) for count in counts]
        lines.append(f"| {stage}: {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(one: Taken | None) -> str:
    if one is None:
        return ""
    ended = "" if one.status == 0 else f" (status {one.status})"
    return f"{one.wall_s:.1f} s ({one.processor_s:.1f}), {one.peak_bytes / 2**20:.0f} MiB{ended}"


def main() -> int:
    """Measure, print a table, and draw; 1 where a command failed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    stages = ("plan", "resume", "analysis", "build")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, metavar="N")
    parser.add_argument("--rounds", type=int, default=1, help="of records of every case")
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages)
    parser.add_argument("--out", type=Path, default=Path("build/scale"), metavar="FOLDER")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found: list[Taken] = []
    for count in given.counts:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            for one in measured(Path(folder) / "copy", count, given.rounds, {*given.stages}):
                found.append(one)
                text = json.dumps([asdict(each) for each in found], indent=1) + "\n"
                (given.out / "scale.json").write_text(text, encoding="utf-8")
    style.save(drawn(found), given.out / "scale.svg")
    print(table(found))
    return 1 if any(one.status for one in found) else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
