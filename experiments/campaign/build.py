"""Compile what the checks will launch, ahead of them and off the device, on all cores.

    python -m experiments.campaign.build CAPABILITY PROCESSES SECONDS < checks.json > reasons.json

A process of its own, since one whose kernels are interpreted compiles none.
"""

from __future__ import annotations

import json
import sys
import time

from experiments.campaign.trust import Check
from experiments.case import Case
from experiments.die_with_parent import die_with_parent


def to_json(checks: list[Check]) -> list[dict]:
    """Checks as JSON; `of_json` reads them."""
    return [
        {"table": one.table, "case": {"variant": one.case.variant, **one.case.to_json()}}
        for one in checks
    ]


def of_json(found: list[dict]) -> list[Check]:
    """What `to_json` made."""
    return [Check(one["table"], Case.from_mapping(one["case"])) for one in found]


def call_of(one: Check):
    """The call of our kernels that a check makes, as `models.kernels.calls.Call`."""
    from models.kernels.calls import Call

    case = one.case
    options = {}
    if one.table in ("dilated", "gluon"):
        lists = (case.segment_lengths, case.dilation_rates)
        options = dict(zip(("segment_lengths", "dilation_rates"), lists, strict=True))
    elif one.table == "block_sparse":
        # Larger blocks are split into blocks of 64.
        size = min(64, case.block_size)
        options = {"builder": case.pattern, "sparsity": case.sparsity, "block_size": size}
    return Call(
        one.table,
        one.direction,
        case.dtype,
        case.head_dim,
        case.seq_len // (case.world_size or 1),
        case.heads,
        case.kv_heads,
        case.batch,
        case.is_causal,
        **options,
    )


def reasons(checks: list[Check], capability: int, processes: int, seconds: float) -> list:
    """For each check why its kernels do not compile for a card of `capability`, or None.

    What `seconds` cut off is no reason: it is compiled when it is launched.
    """
    from models.kernels import aot

    made = aot.compile_ahead(
        [call_of(one) for one in checks],
        capability=capability,
        processes=processes,
        deadline=time.monotonic() + seconds,
    )
    cut = (aot.BEFORE, aot.WHILE)
    return [None if one.reason in cut else one.reason for one in made]


if __name__ == "__main__":
    # Else it would go on beside the campaign that takes up one that was killed.
    die_with_parent()
    numbers = (int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    found = reasons(of_json(json.load(sys.stdin)), *numbers)
    json.dump(found, sys.stdout)
