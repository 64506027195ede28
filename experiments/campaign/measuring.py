"""Cases of all experiments in order of value, all in one round before any in the next."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments import card, cost, grid, record, rounds, runner
from experiments.campaign import trust
from experiments.campaign.folder import Folder
from experiments.campaign.value import Selected
from experiments.digest import code_digest
from experiments.machine import Machine
from experiments.references import References
from experiments.supervise import Account, not_measured, supervise
from experiments.workers import Workers

# A case that takes this many times what was expected of it, and this long, is given up: it is not
# "over its limit", which would be a result, but left for a run that has more time.
_PATIENCE, _PATIENCE_S = 8.0, 20.0
_LAST = 12  # cases whose expected and measured seconds are compared


@dataclass
class Measuring:
    """Measures cases into `folder.records`, each within what time is left.

    A case that names a kernel with a bad mark becomes a failed record, with the reason, unmeasured.
    references: those of the cases measured so far. given_up: by name of a case, why it is not
    tried again.
    """

    folder: Folder
    machine: Machine
    tier: str
    workers: Workers
    marks: list[trust.Mark]
    tick: Callable[[], object]
    references: References
    given_up: dict[str, str] = field(default_factory=dict)
    _ratios: list[float] = field(default_factory=list)
    # That after the last case, which is that before the next.
    _gauge: dict | None = None

    def run(self, cases: list[Selected], *, most: int, end: float) -> None:
        """Until `end`, by the monotonic clock, or until `most` rounds are measured."""
        digests = {}
        for one in cases:
            key = one.case.variant, one.task.procedure
            digests[key] = digests.get(key) or code_digest(*key)
        for number in range(1, most + 1):
            waiting = [one for one in cases if self._wants(one, number)]
            if not waiting:
                continue
            self.folder.say(f"round {number}: {len(waiting)} of {len(cases)} cases to measure")
            for position, one in enumerate(waiting, start=1):
                left = end - time.monotonic()
                expected = self.expected(one)
                if expected > left:
                    # A shorter one further down may still fit.
                    continue
                self.folder.say(
                    f"[round {number}, {position}/{len(waiting)}, {left / 60:.1f} min left] "
                    f"{one.experiment}: {runner.label(one.case)}"
                )
                digest = digests[one.case.variant, one.task.procedure]
                self._measure(one, number, digest, expected, end)
                self.tick()

    def expected(self, one: Selected) -> float:
        """Seconds that a case will take in a round, by how the last ones turned out."""
        limits = self._limits(one)
        seconds = cost.seconds(
            one.case, limits, self.machine.device_kind, self.machine.device, replicates=1
        ).total
        return seconds * self._ratio()

    def path(self, one: Selected, number: int) -> Path:
        """Where its record of a round lies; the first is 1."""
        round_ = rounds.name_of(number)
        return rounds.path_of(self.folder.records, self.machine.id, round_, one.case)

    def _limits(self, one: Selected) -> grid.Limits:
        return replace(one.task.limits, replicates=1)

    def _current(self, one: Selected, number: int) -> dict | None:
        found = rounds.current(self.path(one, number), one.case, one.task.procedure) or {}
        # A failure of the day is tried again.
        return None if found.get("cause") == "day" else found or None

    def _wants(self, one: Selected, number: int) -> bool:
        if one.case.name in self.given_up or self._current(one, number):
            return False
        return number == 1 or (self._current(one, 1) or {}).get("status") == "ok"

    def _write(self, one: Selected, number: int, found: dict) -> None:
        path = self.path(one, number)
        # The one that was made before tiles were tuned.
        rounds.set_aside_outdated(path, one.case, one.task.procedure)
        record.write(path, found)
        self.folder.say(f"    {runner.outcome(found)}")

    def _measure(
        self, one: Selected, number: int, digest: str, expected: float, end: float
    ) -> None:
        from experiments.gauge import ceilings_beside

        limits = self._limits(one)
        reason = trust.why_failed(one.case, self.marks)
        if reason is not None:
            found = not_measured(self.tier, one.case, self.machine, digest, reason)
            self._write(one, number, found)
            return
        patience = max(_PATIENCE_S, _PATIENCE * expected)
        allowed = min(patience, end - time.monotonic())
        is_cut = allowed < limits.timeout_s
        before = self._gauge or self._read_gauge(end)
        # It holds one card all along.
        cards = card.held(self.machine.torch_device, 1)
        account, start = Account(), time.monotonic()
        found = supervise(
            self.tier,
            one.case,
            replace(limits, timeout_s=min(allowed, limits.timeout_s)),
            self.machine,
            digest,
            procedure=one.task.procedure,
            workers=self.workers,
            tick=self.tick,
            account=account,
            references=self.references,
            ceilings=ceilings_beside(before, one.case.dtype, self.machine.torch_device),
            cards=cards,
        )
        spent = time.monotonic() - start
        self._gauge = self._read_gauge(end)
        if is_cut and account.is_cut and found["status"] != "ok":
            why = f"cut off after {spent:.0f} s by the end of the step"
            if allowed == patience:
                why = f"given up after {spent:.0f} s, expected {expected:.1f} s"
                self.given_up[one.case.name] = why
            self.folder.say(f"    {why}: left for another run")
            return
        self._ratios.append(spent / (expected / self._ratio()))
        self._write(one, number, runner.with_gauges(found, before, self._gauge))

    def _read_gauge(self, end: float) -> dict | None:
        return runner.read_gauge(self.tier, self.machine, self.workers, end, self.tick)

    def _ratio(self) -> float:
        return statistics.median(self._ratios[-_LAST:]) if self._ratios else 1.0
