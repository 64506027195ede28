"""Device-hours: what cases are expected to cost, and what they did; a ring counts each card."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from experiments import cost, record, rounds
from experiments.grid import Task
from experiments.schedule import cards_of


def expected_s(task: Task, kind: str, name: str, count: int = 1) -> float:
    """Device-seconds of a case in one round, where there are `count` devices."""
    seconds = cost.seconds(task.case, task.limits, kind, name, cards=count).total
    return seconds * cards_of(task.case, count)


def measured(paths: Iterable[Path], since: datetime) -> dict[Path, float]:
    """Device-seconds of each record at these paths that was begun since then: others were kept."""
    # A record says when to the second.
    since = rounds.in_utc(since).replace(microsecond=0)
    found = {}
    for path in paths:
        one = record.read(path) or {}
        try:
            began = rounds.in_utc(datetime.fromisoformat(one["started_at"]))
            spent = float(one["wall_s"])
        except (KeyError, TypeError, ValueError):
            continue
        if began >= since and math.isfinite(spent):
            found[path] = spent * len((one.get("machine") or {}).get("cards") or (None,))
    return found


def in_words(seconds: float) -> str:
    """Device-seconds as device-hours."""
    hours = seconds / 3600
    return f"{hours:.3g} device-hours" if hours >= 1e-3 else f"{hours:.6f} device-hours"


def comparison(spent: Iterable[float], expected: Iterable[float]) -> str:
    """What a run measured, and what was expected of that, in a line."""
    spent = [*spent]
    if not spent:
        return "measured nothing: all records were there"
    told = f"measured {len(spent)} cases in {in_words(math.fsum(spent))}"
    return f"{told}, expected {in_words(math.fsum(expected))}"
