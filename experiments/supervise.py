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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from experiments import provenance, record
from experiments.case import Case
from experiments.children import Outcome
from experiments.grid import Limits
from experiments.machine import Machine
from experiments.procedures import PROCEDURES, Procedure
from experiments.references import NOT_KEPT, References
from experiments.shown import shown
from experiments.workers import Workers
from models.registry import VARIANTS


class _Stop(Exception):
    """A case ends without (further) samples: the status and reason of its record."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass
class Account:
    """What a case's time was spent on.

    seconds: in the reference; in samples; in the checks, all else that a replicate's process did
    at its job; and in processes, waiting for them to start and to end. is_cut: whether its limit
    of time ended it, be it in the reference, where that is no time-out of the variant's.
    """

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("reference", "processes", "checks", "samples"), 0.0)
    )
    is_cut: bool = False

    def add(self, elapsed: float, outcome: Outcome, times: Sequence[str]) -> None:
        """Book a replicate whose outcome came after `elapsed` s; times: its fields in ms."""
        samples = sum(sum((outcome.value or {}).get(key, ())) for key in times) / 1e3
        self.seconds["processes"] += elapsed - outcome.seconds
        self.seconds["checks"] += max(0.0, outcome.seconds - samples)
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
) -> dict:
    """Measure `case` in child processes on the device held: always comes to a record.

    To be called where torch has not yet run an op on several threads: a fork would
    inherit a thread pool without its threads, and hang.

    procedure: how it is measured: the name of one of `experiments.procedures`.
    workers: the processes of a run of several cases; None for the case's own. tick: called at
    least once per second. account: is filled in. references: those kept of earlier cases.
    ceilings: the record's, as just found; measured where None.
    """
    account = Account() if account is None else account
    started, start = datetime.now(UTC), time.monotonic()
    device = machine.torch_device
    known, replicates, error, status, reason = {}, [], None, "ok", None
    with contextlib.ExitStack() as stack:
        workers = workers or stack.enter_context(Workers.of(device))
        stack.callback(workers.end_case)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attention-case-")))
        what = (case, PROCEDURES[procedure], device, folder / "reference.pt", limits)
        watch = _Watch(*what, references, start, workers, tick, account)
        try:
            known = watch.reference()
            unsupported = known.pop("unsupported", None)
            if unsupported is not None:
                raise _Stop("unsupported", unsupported)
            known["ceilings"] = ceilings or watch.ceilings()
            for left in reversed(range(limits.replicates)):
                result = watch.replicate(is_last=left == 0)
                error = result.pop("error")
                replicates.append(result)
        except _Stop as stop:
            # Replicates already there are good: only when there are none is it a time-out.
            if stop.status != "timeout" or not replicates:
                status, reason = stop.status, stop.reason
    wall_s = time.monotonic() - start
    if status == "ok":
        known |= {"replicates": replicates, "error": error}
    known |= {"status": status, "reason": reason, "wall_s": round(wall_s, 3)}
    return _record(tier, case, machine, digest, started, **known)


def not_measured(tier: str, case: Case, machine: Machine, digest: str, reason: str) -> dict:
    """The record of a case that was not begun, since what it runs is known to fail."""
    known = {"status": "failed", "reason": reason, "wall_s": 0.0}
    return _record(tier, case, machine, digest, datetime.now(UTC), **known)


def _record(
    tier: str,
    case: Case,
    machine: Machine,
    digest: str,
    started: datetime,
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
        machine=machine.to_json(),
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
    device: str
    path: Path
    limits: Limits
    references: References
    start: float
    workers: Workers
    tick: Callable[[], object] | None
    account: Account

    def reference(self) -> dict:
        """Have the oracle's rows written to `path`; returns what `make_reference` does."""
        self._import()
        begin = time.monotonic()
        # The oracle may take what the machine has: the limit is the variant's.
        outcome = self.workers.reference(
            f"procedures.{self.procedure.name}.make_reference",
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
                raise _Stop("failed", reason) from None
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
        outcome = self.workers.replicate(
            f"procedures.{self.procedure.name}.replicate",
            (self.case, self.device, self.path, asdict(self.limits)),
            memory_gib=memory_gib,
            forks=self.case.is_spread,
            ahead=not is_last and not self.case.is_spread,
            **self._waiting,
        )
        self.account.add(time.monotonic() - begin, outcome, self.procedure.times)
        return self._value(outcome)

    @property
    def _waiting(self) -> dict:
        return {"deadline": self.start + self.limits.timeout_s, "tick": self.tick}

    def _import(self) -> None:
        """What the processes need is imported before they are forked, so that they need not."""
        for module in (*VARIANTS[self.case.variant].modules, self.procedure.module):
            importlib.import_module(module)
        if self.case.pass_ == "forward_backward":
            # What torch.autograd.grad imports when it is given cotangents, 0.4 s a process.
            import torch.fx.experimental.symbolic_shapes  # noqa: F401

    def _value(self, outcome: Outcome) -> dict:
        if outcome.status in ("timeout", "not run"):
            self.account.is_cut = True
            raise _Stop("timeout", f"over its limit of {self.limits.timeout_s:g} s")
        if outcome.status != "ok":
            raise _Stop(outcome.status, outcome.reason)
        return outcome.value
