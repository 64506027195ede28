"""Cases of all experiments in order of value, one record each before any gets its second round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments import cost, grid, record, runner
from experiments.campaign import trust
from experiments.campaign.folder import Folder
from experiments.campaign.value import Selected
from experiments.digest import code_digest
from experiments.machine import Machine
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
    """

    folder: Folder
    machine: Machine
    tier: str
    workers: Workers
    marks: list[trust.Mark]
    tick: Callable[[], object]
    given_up: dict[str, str] = field(default_factory=dict)
    _ratios: list[float] = field(default_factory=list)
    # Read once: there are thousands of cases, and each asks for its grid.
    _grids: dict[str, grid.Grid] = field(
        default_factory=lambda: {name: grid.load(name) for name in grid.names()}
    )

    def run(self, cases: list[Selected], *, rounds: int, end: float) -> None:
        """Until `end`, by the monotonic clock, or until every case has `rounds` replicates."""
        digests = {}
        for one in cases:
            key = one.case.variant, self._procedure(one)
            digests[key] = digests.get(key) or code_digest(*key)
        for number in range(1, rounds + 1):
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
                digest = digests[one.case.variant, self._procedure(one)]
                self._measure(one, digest, expected, end)
                self.tick()

    def expected(self, one: Selected) -> float:
        """Seconds that a case with one replicate will take, by how the last ones turned out."""
        limits = self._limits(one)
        seconds = cost.seconds(
            one.case, limits, self.machine.device_kind, self.machine.device, replicates=1
        ).total
        return seconds * (statistics.median(self._ratios[-_LAST:]) if self._ratios else 1.0)

    def path(self, one: Selected) -> Path:
        """Where its record lies."""
        of_case = self._grids[one.experiment]
        return runner.path_of(self.folder.records, self.machine.id, of_case, one.case)

    def _procedure(self, one: Selected) -> str:
        return self._grids[one.experiment].procedure(one.case.variant)

    def _name(self, one: Selected) -> str:
        return f"{one.experiment}/{self.path(one).stem}"

    def _limits(self, one: Selected) -> grid.Limits:
        limits = self._grids[one.experiment].tiers[self.tier].limits
        return replace(limits, replicates=1)

    def _wants(self, one: Selected, number: int) -> bool:
        path = self.path(one)
        if self._name(one) in self.given_up:
            return False
        found = runner.current(path, one.case, self._procedure(one))
        if found is None:
            return True
        return found["status"] == "ok" and len(found["replicates"]) < number

    def _measure(self, one: Selected, digest: str, expected: float, end: float) -> None:
        path, case, limits = self.path(one), one.case, self._limits(one)
        reason = trust.why_failed(case, self.marks)
        names = (one.experiment, self.tier, case)
        if reason is not None:
            record.write(path, not_measured(*names, self.machine, digest, reason))
            self.folder.say(f"    failed: {reason}")
            return
        patience = max(_PATIENCE_S, _PATIENCE * expected)
        allowed = min(patience, end - time.monotonic())
        is_cut = allowed < limits.timeout_s
        earlier = runner.current(path, case, self._procedure(one))
        account, start = Account(), time.monotonic()
        found = supervise(
            *names,
            replace(limits, timeout_s=min(allowed, limits.timeout_s)),
            self.machine,
            digest,
            procedure=self._procedure(one),
            workers=self.workers,
            earlier=earlier,
            tick=self.tick,
            account=account,
        )
        spent = time.monotonic() - start
        if is_cut and account.is_cut and found["status"] != "ok":
            why = f"cut off after {spent:.0f} s by the end of the step"
            if allowed == patience:
                why = f"given up after {spent:.0f} s, expected {expected:.1f} s"
                self.given_up[self._name(one)] = why
            self.folder.say(f"    {why}: left for another run")
            return
        self._ratios.append(spent / (expected / self._ratio()))
        record.write(path, found)
        self.folder.say(f"    {runner.outcome(found)}")

    def _ratio(self) -> float:
        return statistics.median(self._ratios[-_LAST:]) if self._ratios else 1.0
