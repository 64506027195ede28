"""Measures the cases of a round one after another: resumable, with progress and a budget."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from statistics import median

from experiments import card, cost, record, references, rounds, schedule
from experiments.atomic_write import in_words
from experiments.case import Case
from experiments.device_lock import hold
from experiments.digest import ROOT, code_digest
from experiments.grid import Task
from experiments.machine import Machine, describe
from experiments.nodes.allocation import Nodes, job, nodes_of
from experiments.private_folder import sweep
from experiments.procedures import columns
from experiments.slurm import SlurmError
from experiments.training.case import TrainingCase
from experiments.workers import Workers

LOCAL = ROOT / "results" / "local"
# Further passes over the cases beside which a gauge was off.
_PASSES = 2
# Of a gauge, on a device that answers.
_GAUGE_S = 60.0
# What must be there for a file, in bytes.
_BLOCK = 4096
# Seconds for which the gauge after a case is that before the next.
_NEIGHBOUR_S = 5.0


def parse_only(texts: list[str]) -> dict[str, str]:
    """`k=v` filters by field of a case; ValueError names one that is none."""
    only = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if key in only:
            raise ValueError(f"--only {text}: {key} is given twice")
        if not separator or key not in columns():
            raise ValueError(f"--only {text}: expected k=v with k one of {', '.join(columns())}")
        only[key] = value.strip("[]").replace(" ", "").replace(",", "+")
    return only


def select(tasks: Iterable[Task], only: dict[str, str]) -> list[Task]:
    """Those whose case matches every filter, in their order."""
    return [
        task
        for task in tasks
        if all(task.case.params().get(key) == value for key, value in only.items())
    ]


def check_writable(out: Path) -> None:
    """RecordError, before any work, unless records and temporary files can be written."""
    where = out
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Where TMPDIR cannot be written to, Python would take another folder without a word.
        for folder in (out, Path(os.environ.get("TMPDIR") or tempfile.gettempdir())):
            where = folder
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(_BLOCK))
    except OSError as error:
        raise record.RecordError(f"{where}: cannot write there: {in_words(error)}") from error


def run(
    tasks: list[Task],
    tier: str,
    *,
    device: str,
    out: Path = LOCAL,
    round_: str | None = None,
    rounds_after: int = 0,
    budget_s: float | None = None,
    workers: Workers | None = None,
    tick: Callable[[], object] | None = None,
) -> list[Path]:
    """Measure a round of `tasks` and write a record each; returns their paths.

    Records by the same code are kept. The order is that of `rounds.in_random_order`; with a
    budget (seconds) it is the given one, and no case starts that would likely overrun. Cases
    beside which a gauge is off are measured again, by that alone. round_: the folder, None for
    `rounds.first_open`. rounds_after: further ones that the time left is to count. workers: of
    several runs; None for this run's own. tick: called after each case, and at least once per
    second while one is measured.
    """
    machine = describe(device)
    check_writable(out / machine.id)
    sweep()
    if round_ is None:
        round_ = rounds.name_of(rounds.first_open(out, machine, tasks))
    ordered = tasks
    if budget_s is None:
        ordered = rounds.in_random_order(tasks, f"{machine.host.id} {round_}")
    digest = cache(code_digest)
    rounds.set_all_aside(out / machine.id / round_, tasks, digest)
    waiting = [task for task in ordered if not is_done(out, machine, round_, task, digest)]
    kept = len(tasks) - len(waiting)
    _say(f"{round_} ({tier}) on {machine.id}: {len(waiting)} cases to measure, {kept} kept")
    with (
        contextlib.nullcontext(workers) if workers else Workers.of(machine.torch_device) as workers
    ):
        one = _Pass(tier, machine, device, out, round_, workers, tick)
        one.run(waiting, budget_s, rounds_after * math.fsum(map(one.expected, tasks)))
        for _ in range(_PASSES):
            again = one.disturbed(ordered) if waiting and budget_s is None else []
            if again:
                _say(f"{len(again)} cases were measured while the machine drifted: again")
                one.run(again, None, again=True)
    return [_path(out, machine, round_, task) for task in tasks]


def is_done(
    out: Path,
    machine: Machine,
    round_: str,
    task: Task,
    digest: rounds.Digest = code_digest,
) -> bool:
    """Whether the record of a task in a round stands; digest: as `rounds.current` takes it."""
    return rounds.is_done(_path(out, machine, round_, task), task.case, task.procedure, digest)


def _path(out: Path, machine: Machine, round_: str, task: Task) -> Path:
    return rounds.path_of(out, machine.id, round_, task.case)


class _Pass:
    """Measures tasks of one round, one after another, a gauge between them."""

    def __init__(self, tier, machine, device, out, round_, workers, tick):
        self.tier, self.machine, self.device = tier, machine, device
        self.out, self.round_, self.workers, self.tick = out, round_, workers, tick
        self.count = len(schedule.devices(device))
        self._job = cache(job)
        self.references = references.of(out, machine)
        self.ratios: list[float] = []
        # On which card, and what it was.
        self.last_gauge: tuple[str, dict | None] | None = None

    def run(
        self,
        tasks: list[Task],
        budget_s: float | None,
        later_s: float = 0.0,
        *,
        again: bool = False,
    ) -> None:
        """Measure those that are not done; again: all of them."""
        # Taken before the code is imported: an edit during a long run must not stamp its
        # digest on numbers of the old code.
        digests = {key: code_digest(*key) for key in {_behind(task) for task in tasks}}
        expected = [self.expected(task) for task in tasks]
        start, self.last_gauge = time.monotonic(), None
        for number, task in enumerate(tasks, start=1):
            factor = median(self.ratios) if self.ratios else 1.0
            ends = time.monotonic() - start + factor * expected[number - 1]
            if budget_s is not None and ends > budget_s:
                left = len(tasks) - number + 1
                _say(f"budget of {budget_s:g} s: {left} cases left for another run")
                break
            left = duration(factor * (math.fsum(expected[number - 1 :]) + later_s))
            place = f"{self.round_}, {number}/{len(tasks)}"
            _say(f"[{place}, about {left} left] {label(task.case)}")
            began = time.monotonic()
            try:
                nodes = self.nodes(task)
            except SlurmError as error:
                _say(f"    not measured: {error}")
                continue
            count = task.case.world_size if task.case.is_spread else 1
            count = nodes.ranks_of_each if nodes else count
            with hold(self.device, count, self.tick) as held:
                # Another run may have measured it while this one waited.
                is_there = not again and self.is_done(task)
                if not is_there:
                    cards = card.held(held, count)
                    if held != "cpu":
                        _say(f"    on {os.environ['CUDA_VISIBLE_DEVICES']}")
                    here = describe(held)
                    self.measure(task, digests[_behind(task)], here, cards, nodes, again)
            if is_there:
                self.last_gauge = None
                _say("    measured by another run meanwhile")
            else:
                self.ratios.append((time.monotonic() - began) / expected[number - 1])
            if self.tick is not None:
                self.tick()

    def measure(
        self,
        task: Task,
        digest: str,
        machine: Machine,
        cards: list[dict] | None,
        nodes: Nodes | None = None,
        again: bool = False,
    ) -> None:
        """Measure one and write its record. again: what is there stands, whatever fails."""
        from experiments.gauge import ceilings_beside
        from experiments.supervise import Account, supervise

        path = _path(self.out, self.machine, self.round_, task)
        here = card.identity(cards)
        before, account = self.gauge_before(here), Account()
        result = supervise(
            *(self.tier, task.case, task.limits, machine, digest),
            procedure=task.procedure,
            workers=self.workers,
            tick=self.tick,
            account=account,
            references=self.references,
            ceilings=ceilings_beside(before, task.case.dtype, self.machine.torch_device),
            cards=cards,
            nodes=nodes,
        )
        after = self.gauge()
        self.last_gauge = here, after
        is_worse = again and result["status"] != "ok" and self.is_done(task)
        if not is_worse:
            record.write(path, with_gauges(result, before, after))
        _say(f"    {outcome(result)} ({account})" + ("; the one before stays" if is_worse else ""))

    def is_done(self, task: Task) -> bool:
        """Whether its record stands."""
        return is_done(self.out, self.machine, self.round_, task)

    def gauge(self) -> dict | None:
        deadline = time.monotonic() + _GAUGE_S
        return read_gauge(self.tier, self.machine, self.workers, deadline, self.tick)

    def gauge_before(self, here: str) -> dict | None:
        """That after the case before, on the same card (`card.identity`), or else one read now."""
        known = self.last_gauge if self.last_gauge and self.last_gauge[0] == here else None
        return (known and known[1]) or self.neighbours_gauge(here) or self.gauge()

    def neighbours_gauge(self, here: str) -> dict | None:
        """The gauge after the case before this one, where another process has just read it."""
        files = rounds.record_files(self.out / self.machine.id / self.round_)
        newest = max(files, key=lambda path: path.lstat().st_mtime, default=None)
        if newest is None or abs(time.time() - newest.lstat().st_mtime) > _NEIGHBOUR_S:
            return None
        found = record.read(newest) or {}
        if card.identity((found.get("machine") or {}).get("cards")) != here:
            return None
        return (found.get("gauges") or {}).get("after")

    def disturbed(self, tasks: list[Task]) -> list[Task]:
        """Those of `tasks` beside which a gauge was off, by all gauges of the round."""
        if self.tier == "smoke":
            return []
        from experiments import gauge

        files = rounds.record_files(self.out / self.machine.id / self.round_)
        off = gauge.disturbed({path.stem: record.read(path) or {} for path in files})
        return [task for task in tasks if task.name in off]

    def nodes(self, task: Task) -> Nodes | None:
        """Those over which a case is spread: where it has more ranks than there are cards here."""
        # To look for a job takes commands, and most cases are of one card.
        is_larger = task.case.is_spread and task.case.world_size > self.count
        if not is_larger or self.device not in ("cuda", "stand-in") or self._job() is None:
            return None
        count = nodes_of(task.case, self.count, self._job().nodes)
        ranks = task.case.world_size // count
        here = (ranks, self.device, self.machine.id)
        return Nodes(self._job(), count, *here) if count > 1 else None

    def expected(self, task: Task) -> float:
        """Seconds, by the rates of `experiments.cost`."""
        kind, name = self.machine.device_kind, self.machine.device
        cards = self.count
        # Where SLURM does not answer, the case is told when it comes.
        with contextlib.suppress(SlurmError):
            cards = task.case.world_size if self.nodes(task) else cards
        return cost.seconds(task.case, task.limits, kind, name, cards=cards).total


def read_gauge(
    tier: str,
    machine: Machine,
    workers: Workers,
    deadline: float,
    tick: Callable[[], object] | None,
) -> dict | None:
    """The gauge now; None in the smoke tier, whose times say nothing, and where none came.

    deadline: by the monotonic clock. tick: called at least once per second.
    """
    if tier == "smoke":
        return None
    import experiments.gauge  # noqa: F401  before the fork

    limits = {"deadline": deadline, "ahead": False, "tick": tick}
    return workers.reference("gauge.read", (machine.torch_device,), **limits).value


def with_gauges(result: dict, before: dict | None, after: dict | None) -> dict:
    """A record with the gauges beside it, where both are there."""
    gauges = {"before": before, "after": after} if before and after else None
    return {**result, "gauges": gauges}


def _behind(task: Task) -> tuple[str, str]:
    return task.case.variant, task.procedure


def label(case: Case) -> str:
    """A case in a few words."""
    causal = " causal" if case.is_causal else ""
    passes = "" if case.pass_ == "forward" else " forward+backward"
    shape = f"batch {case.batch}, {case.seq_len} tokens, {case.heads}x{case.head_dim}"
    mask = f", {case.pattern} at {100 * case.sparsity:g} % sparsity" if case.pattern else ""
    ranks = ""
    if case.world_size is not None:
        ranks = f", {case.world_size} {'simulated ' if case.simulated else ''}ranks"
    if isinstance(case, TrainingCase):
        passes = f", trained by {case.recipe}"
    return f"{case.variant}: {shape}{mask}{ranks}, {case.dtype}{causal}{passes}"


def outcome(result: dict) -> str:
    """A record in a line."""
    if result["status"] != "ok":
        return f"{result['status']}: {result['reason']}"
    samples = [ms for r in result["replicates"] for ms in r.get("samples_ms", ())]
    if not samples:
        return f"{result['wall_s']:.1f} s"
    ms = median(samples)
    output = result["error"]["output"]
    return (
        f"{ms:.3g} ms (median of {len(samples)}), "
        f"{result['useful_flops'] / ms / 1e6:.3g} useful GFLOP/s, "
        f"error {output['relative_rms']:.1e} (dense {output['baseline_relative_rms']:.1e}), "
        f"{result['wall_s']:.1f} s"
    )


def failures(tasks: Iterable[Task], paths: Iterable[Path]) -> list[str]:
    """A line for each task whose record, at its path, the next run measures again."""
    found, digest = [], cache(code_digest)
    for task, path in zip(tasks, paths, strict=True):
        if path.exists() and not rounds.is_done(path, task.case, task.procedure, digest):
            one = rounds.current(path, task.case, task.procedure, digest)
            told = outcome(one) if one else "not measured: its record is of other code"
            found.append(f"{path.parent.name}, {task.name}: {told}")
    return found


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
