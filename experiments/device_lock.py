"""One timing job per device: an exclusive lock by flock, freed by the kernel however the job dies.

The lock sits on an open file that children inherit, so a device is free only
when the last process that may still use it is gone.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from experiments.machine import gpus
from experiments.private_folder import open_lock

# Of this process, or of the one that it was forked from.
_held: list[int] = []


@contextmanager
def hold(device: str, count: int = 1, tick: Callable[[], object] | None = None) -> Iterator[str]:
    """Wait for and hold `device` ("cpu", "cuda:INDEX", or "cuda" for any free one).

    Yields the device held and, for a GPU, sets CUDA_VISIBLE_DEVICES to it alone. count: how
    many cards to hold, from "cuda:INDEX" or the first on; where there are fewer, as many as
    there are. tick: called at least once per second while it waits. Under SLURM the scheduler has
    already given this job its cards.
    """
    if device == "cpu":
        candidates = ["cpu"]
    else:
        # Cards of one kind only: a machine's records must be of one device.
        cards = [gpu for gpu in gpus() if gpu.name == gpus()[0].name or device != "cuda"]
        names = [f"cuda:{gpu.index}" for gpu in cards]
        candidates = names if device == "cuda" else names[names.index(device) :]
        if count == 1 and device != "cuda":
            candidates = candidates[:1]
    # Of processors several jobs may have the same.
    if "SLURM_JOB_ID" in os.environ and device != "cpu":
        yield candidates[0]
        return
    # Several in the order of their index, so that no two jobs wait for each other.
    asked = [candidates] if count == 1 else [[name] for name in candidates[:count]]
    locks = [_wait(names, tick) for names in asked]
    _held.extend(descriptor for descriptor, _ in locks)
    held = locks[0][1]
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if held != "cpu":
        # By UUID: CUDA and nvidia-smi need not count the cards in the same order.
        uuids = {f"cuda:{gpu.index}": gpu.uuid for gpu in gpus()}
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids[name] for _, name in locks)
    try:
        yield held
    finally:
        for descriptor, _ in locks:
            _held.remove(descriptor)
            os.close(descriptor)
        if held != "cpu":
            if before is None:
                del os.environ["CUDA_VISIBLE_DEVICES"]
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def release_in_fork() -> None:
    """Release, in a fork that outlives a case, the locks of its parent.

    Such a process must leave the device idle between cases, and hold no memory there.
    """
    while _held:
        os.close(_held.pop())


def _wait(candidates: list[str], tick: Callable[[], object] | None) -> tuple[int, str]:
    is_announced = False
    while True:
        for device in candidates:
            descriptor = open_lock(f"{device.replace(':', '')}.lock")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor, device
            except BlockingIOError:
                os.close(descriptor)
        if not is_announced:
            print(f"waiting for {' or '.join(candidates)}: another job measures", file=sys.stderr)
            is_announced = True
        if tick is not None:
            tick()
        time.sleep(0.1)
