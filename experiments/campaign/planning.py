"""What a campaign would do, minute by minute, without the device."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from experiments import cost, grid, runner
from experiments.campaign.clock import SHARES, share
from experiments.campaign.value import Selected
from experiments.campaign.work import Work

MINUTES = (5, 10, 20, 28)


def timed(work: Work, kind: str, name: str) -> Iterator[tuple[Selected, float]]:
    """The cases to measure in order, each with the seconds expected of one replicate.

    kind: "cpu" or "cuda"; name: of the device, as `cost.seconds` takes them.
    """
    for one in work.cases:
        limits = grid.load(one.experiment).tiers[work.tier].limits
        yield one, cost.seconds(one.case, limits, kind, name, replicates=1).total


def text(work: Work, kind: str, name: str, minutes: float) -> str:
    """The plan: the steps, then each case with when it begins, and the claims it would decide."""
    seconds = 60 * minutes
    lines = [f"{minutes:g} minutes on {name}; seconds of GPUs are predicted, not measured", ""]
    begin = 0.0
    for step in SHARES:
        lines.append(f"{_clock(begin)}  {step}: {share(step, seconds):.0f} s at most")
        begin += share(step, seconds)
    lines.append(f"{_clock(begin)}  measure: {seconds - begin:.0f} s, most valuable first")
    fitting, why, now = [], None, begin
    for one, expected in timed(work, kind, name):
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


def claims_text(work: Work, kind: str, name: str) -> str:
    """Claim by claim, by which minute of measuring it would have a verdict."""
    if importlib.util.find_spec("pandas") is None:
        return "which claims that decides: needs pandas, as `make reproduce` sets it up"
    from analysis import coverage

    cases = [(one.experiment, one.case, seconds) for one, seconds in timed(work, kind, name)]
    found = coverage.coverage(cases, minutes=MINUTES)
    return coverage.text(found, MINUTES)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60):2d}:{int(seconds % 60):02d}"
