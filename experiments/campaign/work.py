"""What a campaign does: at real sizes on a device, or rehearsed in tiny ones on a CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from experiments import grid
from experiments.campaign import trust, value
from experiments.campaign.value import Selected
from experiments.case import Case
from experiments.plain_yaml import loads

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Work:
    """The work of each step on `device`, "cpu" or "cuda[:INDEX]".

    checks, first, cases: for the steps trust, first and measure. compiled: the checks whose
    kernels are compiled ahead. tables: whose tiles are tuned. check_s: of one check at most.
    """

    device: str
    tier: str
    checks: list[trust.Check]
    compiled: list[trust.Check]
    tables: tuple[str, ...]
    first: list[Selected]
    cases: list[Selected]
    processes: int
    check_s: float


def on_device(device: str, tier: str) -> Work:
    """The real one. On a CPU there are no kernels to check and no tiles to tune."""
    is_card = device != "cpu"
    checks = trust.checks_at_real_sizes() if is_card else []
    return Work(
        device=device,
        tier=tier,
        checks=checks,
        compiled=checks,
        tables=("dilated", "block_sparse", "hop") if is_card else (),
        first=_blocks("first.yaml", tier) if is_card else [],
        cases=value.ordered(tier),
        processes=max(1, len(os.sched_getaffinity(0)) - 1) if is_card else 1,
        check_s=40.0,
    )


def rehearsal() -> Work:
    """Every step on a CPU: kernels interpreted, and a few compiled, tiles raced by a stand-in."""
    first = _blocks("rehearsal.yaml", "smoke")
    compiled = [one for one in trust.checks_at_real_sizes() if _is_usual(one)]
    return Work(
        device="cpu",
        tier="smoke",
        checks=trust.checks_interpreted(),
        compiled=compiled,
        tables=("dilated", "block_sparse"),
        first=first,
        cases=[*first, *value.ordered("smoke")],
        processes=len(os.sched_getaffinity(0)),
        check_s=15.0,
    )


def _is_usual(one: trust.Check) -> bool:
    shape = (one.case.dtype, one.case.head_dim, one.case.block_size or 64)
    return shape == ("float16", 64, 64)


def _blocks(name: str, tier: str) -> list[Selected]:
    """The cases of a file of blocks, as in a grid; each block names its experiment.

    A case that the tier has is measured as there, another one as others of its experiment are.
    """
    of_tier = {task.case: task for task in grid.tasks(tier)}
    found: dict[Case, Selected] = {}
    for block in loads((_HERE / name).read_text(encoding="utf-8")):
        fields = {key: of for key, of in block.items() if key != "experiment"}
        asked_by = grid.load(block["experiment"])
        for case in grid.expand(name, fields, asked_by.procedures):
            how = (asked_by.procedure(case.variant), asked_by.check_tier(tier).limits)
            task = of_tier.get(case) or grid.Task(case, (asked_by.name,), *how)
            found.setdefault(case, Selected(asked_by.name, task, "before tuning", len(found)))
    return [*found.values()]
