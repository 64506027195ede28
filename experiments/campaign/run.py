"""The steps in order, each within its share of the time and on disk before the next begins."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from experiments import children, machine, source_tree
from experiments.archive import ArchiveError
from experiments.campaign import build, device_facts, summary, trust
from experiments.campaign.clock import Clock
from experiments.campaign.folder import FORMAT, CampaignError, Folder
from experiments.campaign.measuring import Measuring
from experiments.campaign.work import Work
from experiments.device_lock import hold
from experiments.digest import ROOT
from experiments.private_folder import temporary
from experiments.references import References
from experiments.workers import Workers
from models.kernels.tile_tables import VARIABLE

# Capability that is compiled for where there is no card: Hopper's.
_REFERENCE_CAPABILITY = 90
# Seconds after which a device that has not answered does not work.
_LOOK_S = 60.0
# Seconds that the tuner has, beyond its share, to end the race at hand.
_TUNER_ENDS_S = 10.0


def manifest(here: machine.Machine, *, is_rehearsal: bool) -> dict:
    """What `campaign.json` says of a campaign that begins now."""
    return {
        "format": FORMAT,
        "rehearsal": is_rehearsal,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": here.id,
        "trees": source_tree.of_sources(),
    }


def run(folder: Folder, work: Work, clock: Clock) -> None:
    """All steps that are not done yet; CampaignError where the device does not work at all."""
    with hold(work.device) as held:
        # Tuned tables take the place of the committed ones, here and in every child.
        os.environ[VARIABLE] = str(folder.tiles.resolve())
        _Steps(folder, work, clock, machine.describe(held)).run()


class _Steps:
    def __init__(self, folder: Folder, work: Work, clock: Clock, here: machine.Machine):
        self.folder, self.work, self.clock, self.here = folder, work, clock, here
        self.device = here.torch_device
        self.memory_gib = math.inf if self.device == "cpu" else None
        self.is_rehearsal = folder.manifest["rehearsal"]

    def run(self) -> None:
        self.say(f"{self.clock.seconds / 60:.1f} minutes on {self.here.id}")
        self.pack()
        for step in (self.look, self.build, self.trust, self.first, self.tune, self.measure):
            step()
            self.pack()
        self.say(f"done in {self.clock.elapsed() / 60:.1f} minutes: {self.folder.archive}")
        self.pack()

    def say(self, text: str) -> None:
        self.folder.say(text)

    def pack(self) -> None:
        """Make the archive anew. A campaign outlives an archive that cannot be made."""
        summary.write(self.folder)
        try:
            self.folder.pack()
        except (ArchiveError, OSError) as error:
            self.say(f"the archive could not be made, the one before stays: {error}")

    def tick(self) -> None:
        """Make it anew where it is nearly a minute old."""
        if not self.folder.packed_recently():
            self.pack()

    def look(self) -> None:
        if self.folder.found("look"):
            return
        # Beyond its share: a device that is slow to wake is no broken one.
        deadline = time.monotonic() + min(_LOOK_S, self.clock.left())
        limits = {"deadline": deadline, "memory_gib": self.memory_gib}
        outcome = children.run(device_facts.device_facts, (self.device,), tick=self.tick, **limits)
        if outcome.status != "ok":
            raise CampaignError(f"the device does not work: {outcome.status}: {outcome.reason}")
        found = {"machine": self.here.to_json(), "packages": device_facts.packages()}
        self.folder.save("look", {**found, "facts": outcome.value})
        for dtype, ceiling in outcome.value["ceilings"].items():
            matmul, copy = ceiling["matmul_flops_per_s"], ceiling["copy_bytes_per_s"]
            self.say(f"  {dtype}: {matmul / 1e12:.4g} TFLOP/s, copies {copy / 1e9:.4g} GB/s")

    @property
    def capability(self) -> int:
        """The card's, 90 for Hopper."""
        found = self.folder.found("look")["facts"].get("capability")
        return 10 * found[0] + found[1] if found else _REFERENCE_CAPABILITY

    def build(self) -> None:
        """What the checks launch, compiled ahead; what does not compile need not be run."""
        if self.folder.found("build"):
            return
        reason = trust.why_no_kernels(self.work.device) if self.work.compiled else "none to compile"
        seconds = self.clock.share("build")
        found: dict = {"reason": reason, "faults": []}
        if reason is None:
            self.say(f"compiling {len(self.work.compiled)} calls ahead, {seconds:.0f} s at most")
            made = self._compile(seconds)
            pairs = zip(self.work.compiled, made, strict=True)
            faults = [(one, why) for one, why in pairs if why]
            for one, why in faults:
                self.say(f"  does not compile: {one}: {why}")
            of_checks = build.to_json([one for one, _ in faults])
            reasons = [why for _, why in faults]
            found["faults"] = [
                {**one, "reason": why} for one, why in zip(of_checks, reasons, strict=True)
            ]
        else:
            self.say(f"nothing is compiled ahead: {reason}")
        self.folder.save("build", found)

    def _compile(self, seconds: float) -> list[str | None]:
        numbers = map(str, (self.capability, self.work.processes, seconds))
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        log = self.folder.path / "logs" / "build.log"
        asked = self.folder.path / "steps" / "checks.json"
        answered = self.folder.path / "steps" / "compiled.json"
        self.folder.save("checks", build.to_json(self.work.compiled))
        with (
            open(log, "ab") as errors,
            open(asked, encoding="utf-8") as given,
            open(answered, "w", encoding="utf-8") as taken,
        ):
            compiler = subprocess.Popen(
                [sys.executable, "-m", "experiments.campaign.build", *numbers],
                stdin=given,
                stdout=taken,
                stderr=errors,
                env=environment,
                cwd=ROOT,
            )
            give_up = time.monotonic() + seconds + 15
            try:
                while compiler.poll() is None and time.monotonic() < give_up:
                    self.tick()
                    time.sleep(0.2)
            finally:
                compiler.kill()
                compiler.wait()
        if compiler.returncode == 0:
            return json.loads(answered.read_text(encoding="utf-8"))
        self.say("compiling ahead came to no end: kernels are compiled when they are launched")
        answered.write_text("[]", encoding="utf-8")
        return [None] * len(self.work.compiled)

    def trust(self) -> None:
        """Each kernel against the oracle; what fails is withdrawn from "auto"."""
        found = self.folder.found("trust")
        if found is None:
            why = "there are none on a CPU"
            reason = trust.why_no_kernels(self.work.device) if self.work.checks else why
            marks = [] if reason else self._examined()
            found = {"reason": reason, "marks": trust.to_json(marks)}
            self.folder.save("trust", found)
            if reason:
                self.say(f"kernels are not checked: {reason}")
        self.marks = trust.of_json(found["marks"])
        trust.withdraw(self.marks)
        for mark in self.marks:
            if mark.is_bad:
                self.say(f"  {trust.str_of(mark)}")

    def _examined(self) -> list[trust.Mark]:
        deadline = time.monotonic() + self.clock.share("trust")
        self.say(f"{len(self.work.checks)} checks against float64")
        # A kernel that does not compile as on a card is not tried where it is interpreted either.
        faults = self.folder.found("build")["faults"]
        broken = {
            (one["table"], trust.DIRECTION[one["case"]["pass"]]): one["reason"] for one in faults
        }
        same = {one: why for one, why in zip(build.of_json(faults), faults, strict=True)}
        known = {}
        for one in self.work.checks:
            if one in same:
                known[one] = f"does not compile: {same[one]['reason']}"
            elif self.is_rehearsal and (one.table, one.direction) in broken:
                known[one] = f"does not compile: {broken[one.table, one.direction]}"

        def run_all(checks):
            return children.run_all(
                [(trust.examine, (one.case, self.device)) for one in checks],
                processes=self.work.processes,
                deadline=deadline,
                each_s=self.work.check_s,
                memory_gib=self.memory_gib,
                tick=self.tick,
            )

        marks = trust.examine_all(self.work.checks, run_all, known, self.work.check_s)
        right = sum(mark.status == "ok" for mark in marks)
        self.say(f"  {right} of {len(marks)} passed")
        return marks

    def first(self) -> None:
        """Every kernel beside its baselines, before any tuning: worth publishing by itself."""
        if self.work.first and not self.folder.found("first"):
            end = time.monotonic() + self.clock.share("first")
            with self._measuring() as measuring:
                measuring.run(self.work.first, most=1, end=end)
            self.folder.save("first", {"ended": datetime.now(UTC).isoformat(timespec="seconds")})
            self.say(summary.records_table(summary.records(self.folder.records)))

    def tune(self) -> None:
        """Tiles raced on the device, those of kernels that passed their checks."""
        reason = trust.why_no_kernels(self.work.device) if self.work.tables else "no tiles to tune"
        if reason:
            self.say(f"nothing is tuned: {reason}")
            return
        from models.kernels import tiles

        # In a process of its own, so that the archive stays young meanwhile.
        seconds = self.clock.share("tune")
        deadline = time.monotonic() + seconds + _TUNER_ENDS_S
        outcome = children.run(self._tuned, (seconds,), deadline=deadline, tick=self.tick)
        tiles.reread()
        if outcome.status != "ok":
            self.say(f"tuning came to no end: {outcome.reason}; what it wrote is kept")
        before = self.folder.found("tune") or {"done": []}
        self.folder.save("tune", {"done": [*before["done"], *(outcome.value or [])]})

    def _tuned(self, seconds: float) -> list[dict]:
        """Tune into the folder; what was done for each entry."""
        from experiments.tuning import clocks
        from experiments.tuning.plan import plan
        from experiments.tuning.tune import tune
        from models.kernels import withdrawn

        def passed(entry) -> bool:
            dtypes = {16: ("float16", "bfloat16"), 32: ("float32",)}[entry.bits]
            places = ((entry.table, dtype, entry.head_dim) for dtype in dtypes)
            return not any(withdrawn.why_withdrawn(*place) for place in places)

        done = tune(
            [entry for entry in plan(self.work.tables) if passed(entry)],
            folder=self.folder.tiles,
            seconds=seconds,
            clock=clocks.StandIn() if self.is_rehearsal else clocks.OnCard(self.here.device),
            capability=self.capability,
            processes=self.work.processes,
            say=lambda text: self.say(f"  {text}"),
        )
        return [{**asdict(one), "entry": str(one.entry)} for one in done]

    def measure(self) -> None:
        """The most valuable cases of all experiments, a round of all, then further ones."""
        given_up = self.folder.found("measure") or {}
        with self._measuring(given_up) as measuring:
            most = 1 if self.is_rehearsal else 3
            measuring.run(self.work.cases, most=most, end=self.clock.end)
        self.folder.save("measure", measuring.given_up)

    @contextmanager
    def _measuring(self, given_up: dict | None = None) -> Iterator[Measuring]:
        with Workers.of(self.device) as workers, temporary("references") as kept:
            common = (self.folder, self.here, self.work.tier, workers, self.marks, self.tick)
            yield Measuring(*common, References(kept), dict(given_up or {}))


def begin(out: Path, work: Work, *, is_rehearsal: bool, resume: bool) -> Folder:
    """The folder of a campaign that begins, or goes on; CampaignError before any work."""
    said = manifest(machine.describe(work.device), is_rehearsal=is_rehearsal)
    return Folder.resume(out, said) if resume else Folder.begin(out, said)
