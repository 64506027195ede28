"""All orders in which the parts of a Gluon program can go through their barriers and buffers.

`gluon_stand_in` records what each part of the real kernel does, which depends on no other part:
waits, arrivals, copies, products. `explore` then walks every interleaving of these and of the
moments at which copies land, and raises `Fault` where a buffer is read before its tile is there,
or overwritten while or before it is read, where nobody can go on, or where a barrier ends in the
middle of a phase. Barriers are those of the PTX ISA (mbarrier): a phase is complete when all have
arrived and all expected bytes have come; who waits knows its parity alone.
"""

from collections import deque
from dataclasses import dataclass

from tests.models.gluon_programs import PARTS

PRODUCER = len(PARTS) - 1


class Fault(Exception):
    """What goes wrong in some interleaving."""


@dataclass(frozen=True)
class Read:
    """A product of a consumer: of each buffer, the tile that it must find there."""

    tiles: tuple[tuple[tuple, int], ...]


def steps_of(events):
    """The events of a part, cut where another part may come between.

    A wait and what follows it at once are one step, as nothing that comes between could make it
    right or wrong that does not come before or after; so are the end of products and an arrival
    after it.
    """
    steps = []
    for event in events:
        kind, before = event[0], steps[-1][-1][0] if steps else None
        if kind == "fence":
            continue
        joins = {
            "issue": ("wait", "issue"),
            "write": ("wait", "write", "copy", "expect"),
            "expect": ("wait", "copy", "expect"),
            "copy": ("expect", "copy"),
            "arrive": ("drain",),
        }
        if before in joins.get(kind, ()):
            steps[-1].append(event)
        else:
            steps.append([event])
    return [tuple(step) for step in steps]


def tiles_named(events, barrier_of_queries, queries):
    """The same events of a consumer with a `Read` for each product's buffers.

    The n-th product with an allocation of keys or values reads the n-th tile copied to it.
    Queries stay for many products: which they are follows from the waits for them.
    """
    seen, tile, named = {}, -1, []
    for event in events:
        if event[0] == "wait" and event[1] == barrier_of_queries:
            tile += 1
        if event[0] == "issue":
            found = []
            for place in event[1]:
                if place[0] == queries:
                    found.append((place, tile))
                else:
                    found.append((place, seen.setdefault(place[0], 0)))
                    seen[place[0]] += 1
            event = ("issue", Read(tuple(found)))
        named.append(event)
    return named


def copies_numbered(events, queries):
    """The same events of the producer with the number of the tile that each copy brings."""
    seen, numbered = {}, []
    for event in events:
        if event[0] == "copy":
            # Each half of the queries has a buffer of its own.
            key = event[2] if event[2][0] == queries else event[2][0]
            number = seen.setdefault(key, 0)
            seen[key] += 1
            event = (*event, number)
        numbered.append(event)
    return numbered


def explore(counts, events, limit=2_000_000) -> int:
    """Walk all interleavings; how many states there are. Raises `Fault`.

    counts: arrivals a phase of each barrier; events: of each part, as `Launcher.recorded` has them.
    """
    order = list(counts)
    number_of = {place: i for i, place in enumerate(order)}
    # A consumer that has tiles waits for queries, and multiplies these, first of all.
    kinds = [(e[0], e[1]) for e in events[PARTS[0]]]
    asked = next((place for kind, place in kinds if kind == "wait"), None)
    queries = next((places[0][0] for kind, places in kinds if kind == "issue"), None)
    programs = [steps_of(tiles_named(events[part], asked, queries)) for part in PARTS[:PRODUCER]]
    programs.append(steps_of(copies_numbered(events[PARTS[PRODUCER]], queries)))
    # Which parts are to read a tile in a buffer, by (buffer, tile).
    wanted_by = {}
    for part, program in enumerate(programs[:PRODUCER]):
        for event in (event for step in program for event in step if event[0] == "issue"):
            for tile in event[1].tiles:
                wanted_by.setdefault(tile, set()).add(part)
    places = sorted({place for place, _ in wanted_by})
    buffer_of = {place: i for i, place in enumerate(places)}

    def turn(barriers, place, arrivals, change):
        i = number_of[place]
        left, missing, phase = barriers[i]
        left, missing = left - arrivals, missing + change
        if left < 0:
            raise Fault(f"barrier {place}: more arrivals than a phase has")
        if left == 0 and missing == 0:
            left, phase = counts[place], phase + 1
        return (*barriers[:i], (left, missing, phase), *barriers[i + 1 :])

    def put(values, i, value):
        return (*values[:i], value, *values[i + 1 :])

    def perform(part, event, state):
        """The state after one event, None where it must wait."""
        at, barriers, flying, held, reading, had = state
        kind = event[0]
        if kind == "wait":
            if barriers[number_of[event[1]]][2] % 2 == event[2]:
                return None
        elif kind == "arrive":
            barriers = turn(barriers, event[1], 1, 0)
        elif kind == "expect":
            barriers = turn(barriers, event[1], 1, event[2])
        elif kind == "copy":
            _, bar, place, size, tile = event
            free(place, flying, held, reading, had)
            i = buffer_of[place]
            held = put(held, i, None)
            had = put(had, i, frozenset())
            flying = flying | {(bar, place, size, tile)}
        elif kind == "write" and event[1] in buffer_of:
            i = buffer_of[event[1]]
            if held[i] is None:
                raise Fault(f"{event[1]} is written before its tile is there")
            if had[i]:
                raise Fault(f"{event[1]} is written after its tile was read")
        elif kind == "issue":
            for place, tile in event[1].tiles:
                i = buffer_of[place]
                if held[i] != tile:
                    raise Fault(f"{PARTS[part]} reads {held[i]} in {place}, wants {tile}")
                had = put(had, i, had[i] | {part})
            reading = put(reading, part, (*reading[part], event[1]))
        elif kind == "drain":
            kept = reading[part][len(reading[part]) - event[1] :] if event[1] else ()
            reading = put(reading, part, kept)
        return at, barriers, flying, held, reading, had

    def is_read(place, reading):
        return any(place == p for reads in reading for read in reads for p, _ in read.tiles)

    def free(place, flying, held, reading, had):
        i = buffer_of[place]
        if any(place == other for _, other, *_ in flying):
            raise Fault(f"two copies to {place} at once")
        if is_read(place, reading):
            raise Fault(f"{place} is overwritten while it is read")
        if held[i] is not None and had[i] != wanted_by[place, held[i]]:
            raise Fault(f"{place} is overwritten before all have read tile {held[i]}")

    def next_states(state):
        at, barriers, flying, held, reading, had = state
        for part, program in enumerate(programs):
            if at[part] == len(program):
                continue
            after = state
            for event in program[at[part]]:
                after = perform(part, event, after)
                if after is None:
                    break
            if after is not None:
                yield (put(at, part, at[part] + 1), *after[1:])
        for copy in flying:
            bar, place, size, tile = copy
            landed = put(held, buffer_of[place], tile)
            yield at, turn(barriers, bar, 0, -size), flying - {copy}, landed, reading, had

    start = (
        (0,) * len(PARTS),
        tuple((counts[place], 0, 0) for place in order),
        frozenset(),
        (None,) * len(places),
        ((),) * PRODUCER,
        (frozenset(),) * len(places),
    )
    seen, waiting = {start}, deque([start])
    while waiting:
        state = waiting.pop()
        followers = list(next_states(state))
        if not followers:
            at, barriers, *_ = state
            for part, program in enumerate(programs):
                if at[part] < len(program):
                    raise Fault(f"{PARTS[part]} waits for ever: {program[at[part]][0]}")
            for place, (left, missing, _) in zip(order, barriers, strict=True):
                if left != counts[place] or missing:
                    raise Fault(f"barrier {place} ends in the middle of a phase")
        for follower in followers:
            if follower not in seen:
                seen.add(follower)
                waiting.append(follower)
        if len(seen) > limit:
            raise AssertionError(f"more than {limit} states")
    return len(seen)
