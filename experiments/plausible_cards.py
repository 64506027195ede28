"""Whether what a record says of its cards can be: how many they are, and their clocks."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.schema import Card, Record

# A card may run faster than the driver's highest clock where somebody raised it, by no more.
_OVER = 1.5


def faults(found: Record) -> Iterator[str]:
    """What cannot be: "field: reason"."""
    cards, nodes, case = found.machine.cards, found.machine.nodes, found.to_case()
    needed = case.world_size if case.is_spread else 1
    if needed % nodes:
        yield f"machine.nodes: expected 1 or a divisor of {needed}, which the case takes"
        return
    if cards is None:
        return
    if found.machine.device_kind == "cpu":
        yield "machine.cards: expected null on a CPU"
        return
    # Of each node they are counted anew.
    of_node = needed // nodes if nodes > 1 else len(cards)
    for name in ("index", "bus_id"):
        own = {
            (place // of_node, getattr(one, name), one.instance) for place, one in enumerate(cards)
        }
        if None not in {value for _, value, _ in own} and len(own) < len(cards):
            yield f"machine.cards: two have the same {name}"
    if len({(one.uuid, one.instance) for one in cards}) < len(cards):
        yield "machine.cards: two are the same card"
    if len(cards) > needed or (found.status == "ok" and len(cards) < needed):
        yield f"machine.cards: expected {needed}, which the case holds"
    for place, one in enumerate(cards):
        for fault in _of_one(one):
            yield f"machine.cards.{place}.{fault}"


def _of_one(card: Card) -> Iterator[str]:
    for part in ("sm", "memory"):
        most = getattr(card, f"max_{part}_mhz")
        for name in (f"{part}_mhz", f"application_{part}_mhz"):
            clock = getattr(card, name)
            if most is not None and clock is not None and clock > _OVER * most:
                yield f"{name}: is {clock}, and {most} is the highest"
    if card.instance is not None and card.mig is False:
        yield "instance: expected null, the card is not divided"
    if card.instance is not None and "/" in card.instance and card.uuid not in card.instance:
        yield "instance: is of another card"
