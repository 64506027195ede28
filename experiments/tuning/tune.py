"""Tunes entries one after another within a share of time, and keeps what it has at any moment."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from experiments.digest import modules_digest
from experiments.tuning.plan import Entry, call_of
from models.kernels import HAS_TRITON, MISSING

# Entries whose candidates are compiled at once: enough to keep all cores at work.
_WINDOW = 4
# Of the time that is left, what compiling a window may take.
_TO_COMPILE = 0.5


@dataclass(frozen=True)
class Tuned:
    """What was done for an entry: tiles as dictionaries, None where there was no race; ms."""

    entry: Entry
    was: dict | None
    now: dict | None
    ms_before: float | None
    ms_after: float | None
    note: str


def tune(
    entries: Sequence[Entry],
    *,
    folder: Path,
    seconds: float,
    clock: Callable,
    capability: int,
    processes: int | None = None,
    say: Callable[[str], None] = print,
) -> list[Tuned]:
    """Race the candidates of each entry and write the tables in `folder` as they improve.

    seconds: all that may be spent, inf for no limit. clock: of `experiments.tuning.clocks`.
    capability: the card's, 90 for Hopper. processes: to compile in, None for every core. Where
    Triton compiles, candidates are compiled ahead, and only those without a fault race; where it
    interprets, all do, by the clock. Entries already tuned into `folder` on this card, with this
    code, are passed over. Returns what was done; without Triton nothing, and says so.

    Forks: to be called where CUDA is not in use and torch has run no op on several threads.
    """
    if not HAS_TRITON:
        say(f"nothing to tune: {MISSING}")
        return []
    from experiments.tuning import tables
    from models.kernels import aot, tiles

    folder, deadline = Path(folder), time.monotonic() + seconds
    card = tiles.generation(capability)
    known = _identity(clock.name, capability)
    before = {_key(line) for line in tables.journal(folder) if line.get("made_by") == known}
    waiting = [entry for entry in entries if _key(entry.to_json()) not in before]
    if len(waiting) < len(entries):
        say(f"{len(entries) - len(waiting)} entries already tuned here")
    done = []
    for start in range(0, len(waiting), _WINDOW):
        if time.monotonic() >= deadline:
            break
        window = [
            (entry, tables.current(folder, entry, card)) for entry in waiting[start:][:_WINDOW]
        ]
        judged = _judged(window, capability, processes or os.cpu_count(), deadline)
        for (entry, current), (tiles_left, why_out) in zip(window, judged, strict=True):
            if time.monotonic() >= deadline:
                break
            made, finished = _one(entry, current, tiles_left, why_out, clock, deadline)
            # Another time may have the seconds to compile the rest.
            finished = finished and not {aot.BEFORE, aot.WHILE}.intersection(why_out.values())
            if made.now != made.was:
                source = made.note if finished else f"{made.note}; interrupted"
                tables.replace(folder, entry, card, tiles.Tile(**made.now), source)
                tiles.reread()
            if finished:
                tables.note(folder, {**entry.to_json(), **_told(made), "made_by": known})
            done.append(made)
            say(f"{entry}: {made.note}")
    if len(done) < len(waiting):
        say(f"the time is up: {len(waiting) - len(done)} entries left as they are")
    return done


def _one(entry, current, candidates, why_out, clock, deadline) -> tuple[Tuned, bool]:
    from experiments.tuning.race import CannotStart, race

    if current is None:
        return Tuned(entry, None, None, None, None, "its table has no tile: left out"), True
    was = asdict(current)
    try:
        result = race(entry, current, candidates, clock, deadline)
    except CannotStart as reason:
        return Tuned(entry, was, was, None, None, f"no race: {reason}"), True
    lost = len(why_out) + len(result.lost)
    if result.ms_before is None:
        return Tuned(entry, was, was, None, None, "no round before the time was up"), False
    note = (
        f"fastest of {result.raced} ({lost} out) on {clock.name}, {_versions()}: "
        f"{result.ms_after:.4g} ms, was {result.ms_before:.4g} ms"
    )
    made = Tuned(entry, was, asdict(result.best), result.ms_before, result.ms_after, note)
    return made, result.finished


def _judged(window, capability: int, processes: int, deadline: float) -> list[tuple[list, dict]]:
    """For each (entry, current): the candidates that can win, and why the others cannot."""
    from experiments.tuning.candidates import candidates
    from models.kernels import aot, tiles

    tried = [
        [tile for tile in candidates(entry) if tile != current] if current else []
        for entry, current in window
    ]
    if tiles.INTERPRETED:
        return [(found, {}) for found in tried]
    # The current one's whole call too: a race starts with it.
    calls = [call_of(entry, current) for entry, current in window if current]
    wholes = [_whole(entry) for entry, current in window if current]
    calls += [
        *wholes,
        *(call_of(e, t) for (e, _), found in zip(window, tried, strict=True) for t in found),
    ]
    now = time.monotonic()
    share = math.inf if math.isinf(deadline) else now + _TO_COMPILE * (deadline - now)
    # select() takes no more than some weeks.
    until = min(share, now + 7 * 24 * 3600)
    options = {"capability": capability, "processes": processes, "deadline": until}
    compiled = {one.call: one for one in aot.compile_ahead(list(dict.fromkeys(calls)), **options)}
    judged = []
    for (entry, current), found in zip(window, tried, strict=True):
        left, out, codes = [], {}, set()
        if current:
            codes.add(tuple(k.code for k in compiled[call_of(entry, current)].kernels))
        for tile in found:
            one = compiled[call_of(entry, tile)]
            code = tuple(kernel.code for kernel in one.kernels)
            reason = one.why_not_raced(capability) or (
                "the same code as another" if code in codes else None
            )
            codes.add(code)
            if reason:
                out[tile] = reason
            else:
                left.append(tile)
        judged.append((left, out))
    return judged


def _whole(entry: Entry):
    """The call that an entry's race times, with every kernel that it launches."""
    from dataclasses import replace

    call = call_of(entry)
    return call if entry.kernel.startswith("forward") else replace(call, kernel="backward")


def _identity(name: str, capability: int) -> dict:
    code = modules_digest(data=["models/kernels/*.py", "experiments/tuning/*.py"])
    return {"card": name, "capability": capability, "code": code, "versions": _versions()}


def _versions() -> str:
    return f"torch {metadata.version('torch')}, triton {metadata.version('triton')}"


def _key(line: dict) -> tuple:
    return tuple(line.get(name) for name in ("table", "kernel", "head_dim", "bits", "block_size"))


def _told(made: Tuned) -> dict:
    return {name: value for name, value in vars(made).items() if name != "entry"}
