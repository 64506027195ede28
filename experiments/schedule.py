"""Which device takes which case of a round, in which order, and what fits into a limit of time.

One device takes a round in random order, on which its rounds rely. Several share the shapes among
them: all systems of a shape go to one card, since a ratio pairs what was measured in one round on
one card. Left to whichever card is free, the systems of a shape would start together on as many
cards and never pair. The longest shape goes first, each to the card with least to do so far; from
round to round each moves on by a card, or nothing could tell a slow card from a slow shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments import rounds
from experiments.cards import name_of, pool
from experiments.case import Case
from experiments.grid import Task


@dataclass(frozen=True)
class Turn:
    """A case of a round: on which devices, by their place, and after how many seconds it starts."""

    task: Task
    devices: tuple[int, ...]
    starts_s: float
    ends_s: float


def devices(asked: str) -> tuple[str, ...]:
    """Those that take cases at the same time: all cards of one kind, or the device named."""
    found = pool(asked) if ":" not in asked else ()
    return tuple(name_of(asked, card) for card in found if card.name == found[0].name) or (asked,)


def cards_of(case: Case, count: int) -> int:
    """How many of `count` devices a case holds: a ring one for each rank, as far as there are."""
    return min(case.world_size, count) if case.is_spread else 1


def turns(
    tasks: Iterable[Task], seconds: Callable[[Task], float], count: int, seed: str, number: int
) -> list[Turn]:
    """The cases of a round in the order in which they start.

    seconds: expected of a task. count: of devices. seed: of the host and the round. number: the
    round's, from 1.
    """
    ordered = rounds.in_random_order(tasks, seed)
    if count == 1:
        return _one_after_another(ordered, seconds, (0,), 0.0)
    # They hold several devices: before these are busy.
    spread = [task for task in ordered if cards_of(task.case, count) > 1]
    spread.sort(key=seconds, reverse=True)
    single = [task for task in ordered if cards_of(task.case, count) == 1]
    found, free = [], [0.0] * count
    for task in spread:
        held = (*range(cards_of(task.case, count)),)
        found += _one_after_another([task], seconds, held, max(free[one] for one in held))
        for one in held:
            free[one] = found[-1].ends_s
    for shape in _longest_first(single, seconds):
        # Counted from another device in each round: so a shape moves on.
        device = min(range(count), key=lambda one: (free[one], (one - number) % count))
        found += _one_after_another(shape, seconds, (device,), free[device])
        free[device] = found[-1].ends_s
    return sorted(found, key=lambda one: (one.starts_s, one.devices))


def bundles(tasks: Iterable[Task], most: int) -> list[list[str]]:
    """The names of tasks in their order, in lists of whole shapes: of at most so many cases each.

    A shape that is larger by itself is one list.
    """
    found: list[list[str]] = []
    for of_shape in _shapes(tasks):
        names = [task.name for task in of_shape]
        if found and len(found[-1]) + len(names) <= most:
            found[-1] += names
        else:
            found.append(names)
    return found


def _shapes(tasks: Iterable[Task]) -> list[list[Task]]:
    """The tasks of each shape, in their order."""
    shapes: dict[tuple, list[Task]] = {}
    for task in tasks:
        shapes.setdefault(rounds.shape_of(task.case), []).append(task)
    return [*shapes.values()]


def _longest_first(tasks: Iterable[Task], seconds: Callable[[Task], float]) -> list[list[Task]]:
    """The tasks of each shape in their order, the shape that takes longest first."""

    def longest(of_shape: list[Task]) -> tuple[float, str]:
        return -sum(map(seconds, of_shape)), min(task.name for task in of_shape)

    return sorted(_shapes(tasks), key=longest)


def _one_after_another(
    tasks: Sequence[Task], seconds: Callable[[Task], float], held: tuple[int, ...], start: float
) -> list[Turn]:
    found = []
    for task in tasks:
        found.append(Turn(task, held, start, start + seconds(task)))
        start = found[-1].ends_s
    return found


def wall_s(found: Sequence[Turn]) -> float:
    """Seconds until the last case of a round ends."""
    return max((one.ends_s for one in found), default=0.0)


def fitting(
    asked: Mapping[str, Sequence[tuple[str, tuple[int, ...], float]]], limit: float
) -> list[str]:
    """The names, in order, that are all done after `limit` seconds; a smaller one where one is not.

    asked: of each name the rounds that it is measured in, and in each its devices, by their place,
    and for how many seconds it holds them. A round begins when the one before is complete.
    """
    found, spent = [], {}
    for name, parts in asked.items():
        then = {round_: dict(of_device) for round_, of_device in spent.items()}
        for round_, held, seconds in parts:
            of_device = then.setdefault(round_, {})
            for one in held:
                of_device[one] = of_device.get(one, 0.0) + seconds
        if math.fsum(max(of_device.values()) for of_device in then.values()) <= limit:
            found.append(name)
            spent = then
    return found
