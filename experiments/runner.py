"""Runs the cases of an experiment one after another: resumable, with progress and a budget."""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from experiments import record
from experiments.case import Case
from experiments.device_lock import hold
from experiments.digest import ROOT, code_digest
from experiments.grid import Grid, Tier
from experiments.machine import describe
from experiments.workers import Workers

LOCAL = ROOT / "results" / "local"
# Statuses that stand until the code changes; a failed case is tried again.
_FINAL = ("ok", "oom", "timeout", "unsupported")


def parse_only(texts: list[str], grid: Grid) -> dict[str, str]:
    """`k=v` filters by column of the grid; ValueError names one that is none."""
    only = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if key in only:
            raise ValueError(f"--only {text}: {key} is given twice")
        if not separator or key not in grid.columns:
            raise ValueError(f"--only {text}: expected k=v with k one of {', '.join(grid.columns)}")
        only[key] = value.strip("[]").replace(" ", "").replace(",", "+")
    return only


def select(tier: Tier, only: dict[str, str]) -> list[Case]:
    """The tier's cases that match every filter, most valuable first."""
    return [
        case
        for case in tier.cases
        if all(case.params()[key] == value for key, value in only.items())
    ]


def path_of(out: Path, machine_id: str, grid: Grid, case: Case) -> Path:
    """Where the record of `case` lies."""
    return out / machine_id / grid.name / f"{grid.file_name(case)}.json"


def current(path: Path, case: Case, procedure: str | None = None) -> dict | None:
    """The record at `path` if it is readable, of today's schema and made by today's code.

    procedure: how the case is measured, as `code_digest` takes it.
    """
    found = record.read(path) or {}
    software = found.get("software")
    made_by = software.get("code_digest") if isinstance(software, dict) else None
    of_today = found.get("schema_version") == record.SCHEMA_VERSION
    return found if of_today and made_by == code_digest(case.variant, procedure) else None


def is_done(path: Path, case: Case, procedure: str | None = None) -> bool:
    """Whether the record there stands: current, and not of a case that failed."""
    return (current(path, case, procedure) or {}).get("status") in _FINAL


def set_aside_outdated(path: Path, case: Case, procedure: str | None = None) -> None:
    """Move a record that is not current to `*.json.outdated`, and back when its code is.

    Snakemake knows only of records that it made itself; for it, a record of other
    code, or one cut short, must not be there. Nothing is lost.
    """
    aside = path.with_name(f"{path.name}.outdated")
    if path.exists() and current(path, case, procedure) is None:
        path.replace(aside)
    elif aside.exists() and not path.exists() and current(aside, case, procedure):
        aside.replace(path)


def check_writable(out: Path) -> None:
    """RecordError, before any work, unless records can be written under `out`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise record.RecordError(f"{out}: cannot write there: {error.strerror}") from error


def run(
    grid: Grid,
    tier: Tier,
    cases: list[Case],
    *,
    device: str,
    out: Path = LOCAL,
    budget_s: float | None = None,
    workers: Workers | None = None,
    tick: Callable[[], object] | None = None,
) -> list[Path]:
    """Measure `cases` and write a record each; returns their paths.

    Records by the same code are kept. With a budget (seconds) the most valuable
    cases come first and none starts that would likely overrun; without one the
    order is random, so that a drift of the machine does not line up with a
    variant or a length. workers: of several runs; None for this run's own. tick: called
    after each case, and at least once per second while one is measured.
    """
    machine_id = describe(device).id
    check_writable(out / machine_id / grid.name)
    paths = {case: path_of(out, machine_id, grid, case) for case in cases}
    procedures = {case.variant: grid.procedure(case.variant) for case in cases}
    waiting = [case for case in cases if not is_done(paths[case], case, procedures[case.variant])]
    if budget_s is None:
        random.Random(0).shuffle(waiting)
    # Taken before the code is imported: an edit during a long run must not stamp its
    # digest on numbers of the old code.
    digests = {v: code_digest(v, procedures[v]) for v in {case.variant for case in waiting}}
    kept = len(cases) - len(waiting)
    _say(f"{grid.name} ({tier.name}) on {machine_id}: {len(waiting)} cases to measure, {kept} kept")
    start, walls = time.monotonic(), []
    with contextlib.nullcontext(workers) if workers else Workers.of(device) as workers:
        for number, case in enumerate(waiting, start=1):
            elapsed = time.monotonic() - start
            left = len(waiting) - number + 1
            typical = statistics.mean(walls) if walls else 0.0
            if budget_s is not None and elapsed + typical > budget_s:
                _say(f"budget of {budget_s:g} s: {left} cases left for another run")
                break
            eta = f", about {duration(typical * left)} left" if walls else ""
            _say(f"[{number}/{len(waiting)}{eta}] {label(case)}")
            before = time.monotonic()
            with hold(device, case.world_size if case.is_spread else 1) as held:
                from experiments.supervise import Account, supervise

                account, digest = Account(), digests[case.variant]
                what = (grid.name, tier.name, case, tier.limits, describe(held), digest)
                procedure = procedures[case.variant]
                result = supervise(
                    *what, procedure=procedure, workers=workers, tick=tick, account=account
                )
            record.write(paths[case], result)
            walls.append(time.monotonic() - before)
            _say(f"    {outcome(result)} ({account})")
            if tick is not None:
                tick()
    return list(paths.values())


def label(case: Case) -> str:
    """A case in a few words."""
    causal = " causal" if case.is_causal else ""
    passes = "" if case.pass_ == "forward" else " forward+backward"
    shape = f"batch {case.batch}, {case.seq_len} tokens, {case.heads}x{case.head_dim}"
    mask = f", {case.pattern} at {100 * case.sparsity:g} % sparsity" if case.pattern else ""
    ranks = ""
    if case.world_size is not None:
        ranks = f", {case.world_size} {'simulated ' if case.simulated else ''}ranks"
    return f"{case.variant}: {shape}{mask}{ranks}, {case.dtype}{causal}{passes}"


def outcome(result: dict) -> str:
    """A record in a line."""
    if result["status"] != "ok":
        return f"{result['status']}: {result['reason']}"
    samples = [ms for r in result["replicates"] for ms in r.get("samples_ms", ())]
    if not samples:
        return f"{len(result['replicates'])} processes, {result['wall_s']:.1f} s"
    median = statistics.median(samples)
    rate = result["useful_flops"] / median / 1e6
    output = result["error"]["output"]
    return (
        f"{median:.3g} ms (median of {len(samples)} in {len(result['replicates'])} processes), "
        f"{rate:.3g} useful GFLOP/s, error {output['relative_rms']:.1e} "
        f"(dense {output['baseline_relative_rms']:.1e}), {result['wall_s']:.1f} s"
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
