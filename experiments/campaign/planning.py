"""What a campaign would do, minute by minute, without the device."""

from __future__ import annotations

from collections.abc import Iterator

from experiments import cost, runner
from experiments.campaign.clock import SHARES, STEPS, share
from experiments.campaign.value import Selected
from experiments.campaign.work import Work


def timed(cases: list[Selected], kind: str, name: str) -> Iterator[tuple[Selected, float]]:
    """Cases in order, each with the seconds expected of it in a round.

    kind: "cpu" or "cuda"; name: of the device, as `cost.seconds` takes them.
    """
    for one in cases:
        yield one, cost.seconds(one.case, one.task.limits, kind, name, replicates=1).total


def text(work: Work, kind: str, name: str, minutes: float) -> str:
    """The plan: the steps, then each case with when it begins."""
    seconds = 60 * minutes
    lines = [f"{minutes:g} minutes on {name}; seconds of GPUs are predicted, not measured", ""]
    begin = 0.0
    for step in SHARES:
        lines.append(f"{_clock(begin)}  {step}: {share(step, seconds):.0f} s at most")
        begin += share(step, seconds)
    lines.append(f"{_clock(begin)}  measure: {seconds - begin:.0f} s, most valuable first")
    fitting, why, now = [], None, begin
    for one, expected in timed(work.cases, kind, name):
        if now + expected > seconds:
            continue
        if one.why != why:
            why = one.why
            lines.append(f"       {why}")
        lines.append(
            f"{_clock(now)}  {expected:5.1f} s  {one.experiment}: {runner.label(one.case)}"
        )
        fitting.append((one, expected))
        now += expected
    left = len(work.cases) - len(fitting)
    lines.append(f"{_clock(now)}  {len(fitting)} cases; {left} are left for another campaign")
    return "\n".join(lines)


def by_the_clock(work: Work, kind: str, name: str, minutes: float) -> list[tuple]:
    """(experiment, case, seconds) of all that is measured, in order; seconds add up to the clock.

    What goes before is in the seconds of the case that it holds up: the checks before the first
    one of all, and the tuning before the first that is measured after it.
    """
    begins, now = {}, 0.0
    for step in STEPS:
        begins[step] = now
        now += share(step, 60 * minutes)
    found, now = [], 0.0
    for step, cases in (("first", work.first), ("measure", work.cases)):
        end = begins[step] + share(step, 60 * minutes)
        at = begins[step]
        for one, expected in timed(cases, kind, name):
            if at + expected <= end:
                at += expected
                found.append((one.experiment, one.case, at - now))
                now = at
    return found


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60):2d}:{int(seconds % 60):02d}"
