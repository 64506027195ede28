"""Measures a case in processes of its own, and always returns a record.

torch is imported here once and never used, so each process is a fork, without the seconds of an
import. Whatever happens to one (out of memory, kill -9, over its time) becomes the record's status.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from experiments import cost, load, provenance, record
from experiments.case import Case
from experiments.children import Outcome
from experiments.forked_process import adopting_orphans
from experiments.grid import Limits
from experiments.machine import Machine
from experiments.nodes.allocation import Nodes, end_steps
from experiments.private_folder import temporary
from experiments.procedures import PROCEDURES, Procedure
from experiments.references import NOT_KEPT, References
from experiments.shown import shown
from experiments.workers import Workers
from models.registry import VARIANTS

GIB = 2**30


class _Stop(Exception):
    """A case ends without (further) samples: the status, reason and cause of its record."""

    def __init__(self, status: str, reason: str, cause: str = "case"):
        super().__init__(reason)
        self.status, self.reason, self.cause = status, reason, cause


@dataclass
class Account:
    """What a case's time was spent on.

    seconds: in the reference; in samples; in the rest, all else that a replicate's process did at
    its job, checks and trainings; and in processes, waiting for them to start and to end. is_cut:
    whether its limit of time ended it, be it in the reference, where that is no time-out of the
    variant's.
    """

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("reference", "processes", "rest", "samples"), 0.0)
    )
    is_cut: bool = False

    def add(self, elapsed: float, outcome: Outcome, times: Sequence[str]) -> None:
        """Book a replicate whose outcome came after `elapsed` s; times: its fields in ms."""
        samples = sum(sum((outcome.value or {}).get(key, ())) for key in times) / 1e3
        self.seconds["processes"] += elapsed - outcome.seconds
        self.seconds["rest"] += max(0.0, outcome.seconds - samples)
        self.seconds["samples"] += samples

    def __str__(self) -> str:
        return ", ".join(f"{stage} {spent:.2f}" for stage, spent in self.seconds.items()) + " s"


def supervise(
    tier: str,
    case: Case,
    limits: Limits,
    machine: Machine,
    digest: str,
    *,
    procedure: str,
    workers: Workers | None = None,
    tick: Callable[[], object] | None = None,
    account: Account | None = None,
    references: References = NOT_KEPT,
    ceilings: dict | None = None,
    cards: list[dict] | None = None,
    nodes: Nodes | None = None,
) -> dict:
    """Measure `case` in child processes on the device held: always comes to a record.

    To be called where torch has not yet run an op on several threads: a fork would
    inherit a thread pool without its threads, and hang.

    procedure: how it is measured: the name of one of `experiments.procedures`.
    workers: the processes of a run of several cases; None for the case's own. tick: called at
    least once per second. account: is filled in. references: those kept of earlier cases.
    ceilings: the record's, as just found; measured where None. cards: those held, likewise
    (`experiments.card`); None on a CPU. nodes: those over which its ranks are spread; None where
    all are here.
    """
    account = Account() if account is None else account
    started, start = datetime.now(UTC), load.Start.now()
    device = machine.torch_device
    known, replicates, error, status, reason, cause = {}, [], None, "ok", None, None
    with contextlib.ExitStack() as stack:
        # What ranks took is then known when they are gone.
        stack.enter_context(adopting_orphans())
        workers = workers or stack.enter_context(Workers.of(device))
        stack.callback(workers.end_case)
        folder = stack.enter_context(temporary("case"))
        what = (case, PROCEDURES[procedure], machine, folder / "reference.pt", limits, nodes)
        watch = _Watch(*what, references, start, workers, tick, account)
        if nodes:
            end_steps(nodes)
            stack.callback(end_steps, nodes)
        try:
            watch.check_inputs()
            known = watch.reference()
            unsupported = known.pop("unsupported", None)
            if unsupported is not None:
                raise _Stop("unsupported", unsupported)
            known["ceilings"] = ceilings or watch.ceilings()
            for left in reversed(range(limits.replicates)):
                result = watch.replicate(is_last=left == 0)
                error, cards = result.pop("error"), result.pop("cards", cards)
                replicates.append(result)
        except _Stop as stop:
            # Replicates already there are good: only when there are none is it a time-out.
            if stop.status != "timeout" or not replicates:
                status, reason, cause = stop.status, stop.reason, stop.cause
    wall_s = time.monotonic() - start.clock
    if status == "ok":
        known |= {"replicates": replicates, "error": error}
    known |= {"status": status, "reason": reason, "cause": cause, "wall_s": round(wall_s, 3)}
    return _record(tier, case, machine, digest, started, cards, nodes, **known)


def not_measured(tier: str, case: Case, machine: Machine, digest: str, reason: str) -> dict:
    """The record of a case that was not begun, since what it runs is known to fail."""
    known = {"status": "failed", "reason": reason, "cause": "case", "wall_s": 0.0}
    return _record(tier, case, machine, digest, datetime.now(UTC), None, None, **known)


def _record(
    tier: str,
    case: Case,
    machine: Machine,
    digest: str,
    started: datetime,
    cards: list[dict] | None,
    nodes: Nodes | None,
    **known,
) -> dict:
    """A record with what it says of its case and of where it was made; known: its other fields."""
    if known.get("reason") is not None:
        # It may be an error's text, in which a library writes what it likes.
        known["reason"] = shown(known["reason"])
    return record.compose(
        tier=tier,
        variant=case.variant,
        case=case.to_json(),
        machine={**machine.to_json(), "cards": cards, "nodes": nodes.count if nodes else 1},
        software=provenance.software(digest),
        started_at=started.isoformat(timespec="seconds"),
        command=provenance.command(tier, case),
        **known,
    )


@dataclass
class _Watch:
    """One case on the device held, from its start: its reference and its replicates, or _Stop."""

    case: Case
    procedure: Procedure
    machine: Machine
    path: Path
    limits: Limits
    nodes: Nodes | None
    references: References
    start: load.Start
    workers: Workers
    tick: Callable[[], object] | None
    account: Account

    @property
    def device(self) -> str:
        return self.machine.torch_device

    def check_inputs(self) -> None:
        """_Stop where the inputs alone are larger than the memory that there is."""
        needed, known = cost.input_bytes(self.case), self.machine.device_memory_bytes
        there = min(known, self.start.free_bytes) if self.device == "cpu" else known
        # Cards that share the host's memory report none of their own.
        if known and needed > there:
            what = (
                f"its inputs alone take {needed / GIB:,.3g} GiB, and {there / GIB:,.3g} are there"
            )
            raise self._stop("oom", what, "case")

    def reference(self) -> dict:
        """Have the oracle's rows written to `path`; returns what `make_reference` does."""
        self._import()
        begin = time.monotonic()
        # The oracle may take what the machine has: the limit is the variant's.
        outcome = self.workers.reference(
            f"{self._module}.make_reference",
            (self.case, self.device, self.path, self.references.get),
            memory_gib=math.inf if self.device == "cpu" else None,
            ahead=not self.case.is_spread,
            **self._waiting,
        )
        self.account.seconds["reference"] += time.monotonic() - begin
        try:
            return self._value(outcome)
        except _Stop as stop:
            # What the oracle cannot do is no result of the variant's.
            if stop.status in ("oom", "timeout"):
                reason = f"no reference to check against: {stop.reason}"
                raise _Stop("failed", reason, stop.cause) from None
            raise

    def ceilings(self) -> dict:
        """What the device does at best now, in the dtype of the case."""
        begin = time.monotonic()
        asked = ("ceilings.measure", (self.case.dtype, self.device))
        outcome = self.workers.reference(*asked, ahead=False, **self._waiting)
        self.account.seconds["reference"] += time.monotonic() - begin
        return self._value(outcome)

    def replicate(self, *, is_last: bool) -> dict:
        """What the procedure's `replicate` returns, in a fresh process."""
        memory_gib = None
        if self.device == "cpu":
            memory_gib = math.inf if self.limits.memory_gib is None else self.limits.memory_gib
        begin = time.monotonic()
        with self._own_temporary_files():
            outcome = self._replicate(memory_gib, is_last)
        self.account.add(time.monotonic() - begin, outcome, self.procedure.times)
        return self._value(outcome)

    @property
    def _module(self) -> str:
        """What makes the reference and the replicates, under `experiments`."""
        return "nodes.spread" if self.nodes else f"procedures.{self.procedure.name}"

    def _replicate(self, memory_gib: float | None, is_last: bool) -> Outcome:
        over = (self.nodes,) if self.nodes else ()
        return self.workers.replicate(
            f"{self._module}.replicate",
            (self.case, self.device, self.path, asdict(self.limits), *over),
            memory_gib=memory_gib,
            forks=self.case.is_spread,
            ahead=not is_last and not self.case.is_spread,
            **self._waiting,
        )

    @contextlib.contextmanager
    def _own_temporary_files(self) -> Iterator[None]:
        """Ranks meet in a temporary folder: have it go with the case's, however they end."""
        before = tempfile.tempdir
        if self.case.is_spread:
            tempfile.tempdir = str(self.path.parent)
        try:
            yield
        finally:
            tempfile.tempdir = before

    @property
    def _waiting(self) -> dict:
        return {"deadline": self.start.clock + self.limits.timeout_s, "tick": self.tick}

    def _import(self) -> None:
        """What the processes need is imported before they are forked, so that they need not."""
        for module in (*VARIANTS[self.case.variant].modules, f"experiments.{self._module}"):
            importlib.import_module(module)
        if self.case.pass_ == "forward_backward":
            # What torch.autograd.grad imports when it is given cotangents, 0.4 s a process.
            import torch.fx.experimental.symbolic_shapes  # noqa: F401

    def _value(self, outcome: Outcome) -> dict:
        if outcome.status in ("timeout", "not run"):
            self.account.is_cut = True
            raise self._stop("timeout", f"over its limit of {self.limits.timeout_s:g} s", "case")
        if outcome.status != "ok":
            raise self._stop(outcome.status, outcome.reason, outcome.cause)
        return outcome.value

    def _stop(self, status: str, reason: str, cause: str) -> _Stop:
        """What ended the case; the day is the cause where the machine was not the case's own."""
        # A card's time is not the processors'.
        if status == "timeout" and self.device == "cpu" and self.start.was_busy():
            return _Stop(status, f"{reason}, while others used the processors", "day")
        if status == "oom" and self.device == "cpu" and self.limits.memory_gib is None:
            whole, free = (x / GIB for x in (self.machine.memory_bytes, self.start.free_bytes))
            if self.start.was_short(self.machine.memory_bytes):
                why = f"{reason}; only {free:.1f} of {whole:.1f} GiB could be taken"
                return _Stop(status, why, "day")
        return _Stop(status, reason, cause)
