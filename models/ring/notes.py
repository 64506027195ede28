"""Who waited for whom: when a rank is lost, those that fail because others failed name it too.

A rank that gives up closes its connections, and the ranks that wait for it would blame it. So
it leaves a note in the store by which the group met, and follows the notes of others to the
ranks that left none. Nothing here runs while all goes well.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field

import torch.distributed as dist

# How often to look for notes, how long a rank may take from closing its connections to leaving
# its note, and how long to wait for a store that does not answer.
_EVERY_S, _NOTE_S, _STORE_S = 0.02, 0.5, 1.0


@dataclass
class Trace:
    """What is known of a failure.

    culprits: rank -> what is said of it, "did not answer within 5 s". told_by: the ranks whose
    notes led there, none where this rank met the culprits itself. is_store_gone: no notes
    could be left or read.
    """

    culprits: dict[int, str]
    told_by: list[int] = field(default_factory=list)
    is_store_gone: bool = False


def trace(group: dist.ProcessGroup, rank: int, lost: dict[int, str], patience: float) -> Trace:
    """Leave a note that `rank` lost these ranks, and follow the notes of the others.

    lost: rank of the group -> what is said of it. patience: seconds to wait for their notes.
    """
    notes: dict[int, dict[int, str]] = {}
    ended = threading.Event()
    # The store may be in a process that is stopped, whose answer no time limit cuts short.
    worker = threading.Thread(
        target=_exchange_notes, args=(group, rank, lost, patience, notes, ended), daemon=True
    )
    worker.start()
    worker.join(patience + _STORE_S)
    found = _follow(rank, lost, dict(notes))
    found.is_store_gone = not ended.is_set()
    return found


def _exchange_notes(group, rank, lost, patience, notes, ended) -> None:
    """Leave this rank's note, then gather the others' into `notes` until they explain all."""
    start = time.monotonic()
    others = set(range(dist.get_world_size(group))) - {rank}
    try:
        default = dist.distributed_c10d._get_default_store()
        store = dist.PrefixStore(f"ring/{group.group_name}", default)
        store.set(str(rank), json.dumps(lost))
        while True:
            for other in others - notes.keys():
                if store.check([str(other)]):
                    told = json.loads(store.get(str(other)))
                    notes[other] = {int(who): what for who, what in told.items()}
            culprits = _follow(rank, lost, notes).culprits.keys()
            passed = time.monotonic() - start
            # Where all but one have left one and lead to it, there is none to wait for.
            is_clear = len(culprits) == 1 and others - notes.keys() <= culprits
            if passed > (_NOTE_S if is_clear else patience):
                break
            time.sleep(_EVERY_S)
        ended.set()
    except (RuntimeError, ValueError):
        return


def _follow(rank, lost, notes) -> Trace:
    """From the lost ranks along the notes to ranks without one, or to this rank itself."""
    culprits, told_by, passed = {}, [], set()
    ahead = list(lost.items())
    while ahead:
        who, what = ahead.pop(0)
        if who in passed:
            continue
        passed.add(who)
        if who in notes and who != rank:
            told_by.append(who)
            ahead += notes[who].items()
        else:
            culprits[who] = what
    if len(culprits) > 1:
        # By a collective each rank loses all others, this one included.
        culprits.pop(rank, None)
    # Ranks that all wait for each other: no more is known than what this one saw.
    return Trace(culprits, told_by) if culprits else Trace(dict(lost))
