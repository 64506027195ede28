"""Which rank is at fault: ranks that fail because another failed find the one that began it.

A rank that gives up closes its connections, and the ranks that wait for it would blame it. So
each failing rank writes a report to the store by which the group met, and follows the reports of
others to the ranks that wrote none. Nothing here runs while no rank fails.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field

import torch.distributed as dist

_POLL_S = 0.02
# The longest time between closing a rank's connections and its report.
_REPORT_S = 0.5
# How long to wait for a store that does not answer.
_STORE_S = 1.0


@dataclass
class FaultTrace:
    """What is known of a failure.

    Args:
        culprits: rank -> what happened to it, "did not answer within 5 s".
        reported_by: ranks whose reports led there; none where this rank saw the culprits itself.
        is_store_gone: whether reports could not be written or read.
    """

    culprits: dict[int, str]
    reported_by: list[int] = field(default_factory=list)
    is_store_gone: bool = False


def trace_fault(
    group: dist.ProcessGroup, rank: int, lost: dict[int, str], patience: float
) -> FaultTrace:
    """Report that `rank` lost some ranks, and follow the reports of the others.

    Args:
        group: the group of all of them.
        rank: this rank.
        lost: rank -> what happened to it, as this rank saw it.
        patience: seconds to wait for the others' reports.
    """
    reports: dict[int, dict[int, str]] = {}
    ended = threading.Event()
    # The store may be in a process that is stopped: no time limit ends a request to it.
    worker = threading.Thread(
        target=_exchange_reports, args=(group, rank, lost, patience, reports, ended), daemon=True
    )
    worker.start()
    worker.join(patience + _STORE_S)
    found = _follow(rank, lost, dict(reports))
    found.is_store_gone = not ended.is_set()
    return found


def _exchange_reports(group, rank, lost, patience, reports, ended) -> None:
    """Write this rank's report, then collect the others' until they explain the failure."""
    start = time.monotonic()
    others = set(range(dist.get_world_size(group))) - {rank}
    try:
        default = dist.distributed_c10d._get_default_store()
        store = dist.PrefixStore(f"ring/{group.group_name}", default)
        store.set(str(rank), json.dumps(lost))
        while True:
            for other in others - reports.keys():
                if store.check([str(other)]):
                    found = json.loads(store.get(str(other)))
                    reports[other] = {int(who): what for who, what in found.items()}
            culprits = _follow(rank, lost, reports).culprits.keys()
            passed = time.monotonic() - start
            # All others have reported, and their reports lead to the one that has not.
            is_clear = len(culprits) == 1 and others - reports.keys() <= culprits
            if passed > (_REPORT_S if is_clear else patience):
                break
            time.sleep(_POLL_S)
        ended.set()
    except (RuntimeError, ValueError):
        return


def _follow(rank, lost, reports) -> FaultTrace:
    """From the lost ranks along the reports to ranks without one, or to this rank itself."""
    culprits, reported_by, passed = {}, [], set()
    ahead = list(lost.items())
    while ahead:
        who, what = ahead.pop(0)
        if who in passed:
            continue
        passed.add(who)
        if who in reports and who != rank:
            reported_by.append(who)
            ahead += reports[who].items()
        else:
            culprits[who] = what
    if len(culprits) > 1:
        # In a collective each rank loses all others, this one included.
        culprits.pop(rank, None)
    # Where all ranks wait for each other, no more is known than what this one saw.
    return FaultTrace(culprits, reported_by) if culprits else FaultTrace(dict(lost))
