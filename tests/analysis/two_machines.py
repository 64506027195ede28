"""Synthetic records of two machines that differ as a test says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from experiments.machine import Machine
from tests.analysis import synthetic

LAPTOP = synthetic.MACHINES[0]
# The same but for its processor.
OTHER = replace(LAPTOP, cpu="Another CPU", device="Another CPU")


def slower(record: dict, factor: float) -> None:
    """Multiply what a record took by `factor`."""
    for one in record["replicates"]:
        one["samples_ms"] = [factor * ms for ms in one["samples_ms"]]
    record["wall_s"] *= max(1.0, factor)


def copied(
    source: Path, target: Path, machine: Machine, change: Callable[[dict], None] = lambda _: None
) -> Path:
    """The records of the machine folder `source` as if of `machine`, each after `change`."""
    folder = target / machine.id
    for path in source.rglob("*.json"):
        record = json.loads(path.read_text())
        record["machine"] = machine.to_json()
        change(record)
        out = folder / path.parent.name / path.name
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record))
    return folder
