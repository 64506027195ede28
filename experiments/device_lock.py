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

from experiments.cards import name_of, pool
from experiments.private_folder import open_lock

# Of this process, or of the one that it was forked from.
_held: list[int] = []


@contextmanager
def hold(device: str, count: int = 1, tick: Callable[[], object] | None = None) -> Iterator[str]:
    """Wait for and hold `device`: "cpu", or a card by kind ("cuda") or by name ("cuda:INDEX").

    Yields the device held and, for a card, sets CUDA_VISIBLE_DEVICES to it alone. count: how
    many cards of a kind to hold; where there are fewer, as many as there are. tick: called at least
    once per second while it waits. A card that a scheduler has given to this job is locked as well:
    another job may not have asked that scheduler.
    """
    if device == "cpu":
        with _locked([["cpu"]], tick):
            yield device
        return
    cards = list(pool(device))
    if ":" in device:
        cards = [card for card in cards if name_of(device, card) == device]
    else:
        # Cards of one kind only: a machine's records must be of one device.
        cards = [card for card in cards if card.name == cards[0].name]
    # Locks are by UUID: to a job in a container or a cgroup the first card has the index 0,
    # whichever that is. Several are taken in one order, so that no two jobs wait for each other.
    by_lock = {card.uuid: card for card in cards}
    asked = [list(by_lock)] if count == 1 else [[lock] for lock in sorted(list(by_lock)[:count])]
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    with _locked(asked, tick) as held:
        # By UUID too: CUDA and nvidia-smi need not count the cards in the same order.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(lock for lock in by_lock if lock in held)
        try:
            yield name_of(device, next(by_lock[lock] for lock in by_lock if lock in held))
        finally:
            if before is None:
                del os.environ["CUDA_VISIBLE_DEVICES"]
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


@contextmanager
def _locked(asked: list[list[str]], tick: Callable[[], object] | None) -> Iterator[list[str]]:
    """Hold one lock of each list; yields their names."""
    locks = []
    try:
        for names in asked:
            locks.append(_wait(names, tick))
            _held.append(locks[-1][0])
        yield [name for _, name in locks]
    finally:
        for descriptor, _ in locks:
            _held.remove(descriptor)
            os.close(descriptor)


def release_in_fork() -> None:
    """Release, in a fork that outlives a case, the locks of its parent.

    Such a process must leave the device idle between cases, and hold no memory there.
    """
    while _held:
        os.close(_held.pop())


def _wait(names: list[str], tick: Callable[[], object] | None) -> tuple[int, str]:
    is_announced = False
    while True:
        for name in names:
            descriptor = open_lock(f"{name.replace('/', '-')}.lock")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor, name
            except BlockingIOError:
                os.close(descriptor)
        if not is_announced:
            what = names[0] if len(names) == 1 else f"one of {len(names)} cards"
            print(f"waiting for {what}: another job measures", file=sys.stderr)
            is_announced = True
        if tick is not None:
            tick()
        time.sleep(0.1)
