"""A comparison as text: what differs on top, then ratios system by system, then what has none."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from analysis.comparison import pairs
from analysis.comparison.differences import Difference
from analysis.comparison.pairs import Comparison, Pair
from analysis.comparison.sides import Side, side
from analysis.records.files import RecordsError
from analysis.records.systems import ordered
from analysis.rendering.text import interval
from analysis.standard import in_words
from analysis.statistics.intervals import Interval
from experiments.case import Case
from experiments.shown import shown

WIDTH = 100
READING = (
    "time in A / time in B, above 1: B is faster; 95 % intervals; * the interval is without 1, as "
    "some 5 of 100 are by chance"
)
NO_INTERVAL = "No interval where either side has one round: that says nothing of how rounds differ."


def compare(a: Path, b: Path) -> Comparison:
    """The comparison of two folders of records or ids of machines.

    RecordsError where they cannot be read, have a record in common, or no case.
    """
    sides = (side(a), side(b))
    paths = [
        {one.file.resolve(): one.path for own in side.files.values() for one in own}
        for side in sides
    ]
    if both := paths[0].keys() & paths[1].keys():
        raise RecordsError(
            f"{shown(a)} and {shown(b)}: have {len(both)} records in common, "
            f"as {shown(paths[0][min(both)])}; expected two sets of records"
        )
    found = pairs.compare(*sides)
    if not found.common:
        raise RecordsError(f"{shown(a)} and {shown(b)}: no case in common")
    return found


def text(found: Comparison) -> str:
    """The comparison for a terminal, every line printable."""
    return "\n".join(map(shown, _lines(found)))


def counts(found: Comparison) -> list[str]:
    """How many cases both have and each alone, and what became of those that both have."""
    said = [
        f"{len(found.common)} in both, {len(found.only('a'))} only in A, "
        f"{len(found.only('b'))} only in B",
        f"timed on both sides in one configuration: {len(found.timed)}",
    ]
    if found.of_other_backends:
        count = len(found.of_other_backends)
        said.append(f"of these by another backend, and in no mean: {count}")
    if found.left_out:
        said.append(f"left out, as what was measured differs: {len(found.left_out)}")
    if found.of_one_side:
        said.append(f"timed on one side only: {len(found.of_one_side)}")
    if found.untimed:
        said.append(f"timed on neither: {len(found.untimed)}")
    return said


def described(one: Side) -> str:
    """A side in words: how it was called, the machine, and how much of it there is."""
    machine = one.machine if one.machine in one.name else f"{one.name}, {one.machine}"
    called = machine if one.asked == one.machine else f"{one.asked} ({machine})"
    rounds = one.rounds
    span = rounds[0] if len(rounds) == 1 else f"{len(rounds)} rounds, {rounds[0]} to {rounds[-1]}"
    return f"{called}: {len(one.rows)} cases, {span}"


def outcomes(pair: Pair) -> str:
    """What became of a case on the two sides; with the tiers where their limits differ."""
    tiers = [row["tier"] for row in (pair.a, pair.b)]
    of_tier = [f" ({tier})" if tiers[0] != tiers[1] else "" for tier in tiers]
    rows = (pair.a, pair.b)
    words = ("timed" if row["status"] == "ok" else in_words.outcome(row) for row in rows)
    return " / ".join(f"{word}{tier}" for word, tier in zip(words, of_tier, strict=True))


def by_system(cases: Iterable[Case]) -> str:
    """How many cases each variant has, in words."""
    found = Counter(case.variant for case in cases)
    return ", ".join(f"{name} {found[name]}" for name in ordered(found))


def named(some: Iterable[Difference]) -> str:
    """Values that are the same on both sides, in words."""
    return "; ".join(f"{one.name} {one.a}" for one in some)


def ratio_text(ratio: Interval) -> str:
    """A ratio with its interval, and a star where that is without 1."""
    mark = " *" if ratio.low > 1 or ratio.high < 1 else ""
    return interval(ratio.value, ratio.low, ratio.high) + mark


def _lines(found: Comparison) -> Iterator[str]:
    yield f"A: {described(found.a)}"
    yield f"B: {described(found.b)}"
    yield ""
    yield from _of_differences(found)
    yield ""
    yield from _folded(f"code: {found.code_in_words()}")
    yield ""
    yield "cases: " + counts(found)[0]
    yield from (f"  {one}" for one in counts(found)[1:])
    for name in "ab":
        if only := found.only(name):
            yield from _folded(f"  only in {name.upper()}: {by_system(only)}")
    yield ""
    yield from _folded(READING)
    if any(math.isnan(one.ratio.low) for one in found.timed):
        yield NO_INTERVAL
    for mean in found.means:
        if not mean.system:
            yield ""
            told = f"geometric mean of {len(mean.pairs)}: {ratio_text(mean.ratio)}"
            yield f"{pairs.HEADINGS[mean.code]}; {told}"
            continue
        yield f"{mean.system}, geometric mean of {len(mean.pairs)}: {ratio_text(mean.ratio)}"
        yield from (f"  {one.label}: {ratio_text(one.ratio)}" for one in mean.pairs)
    for title, some, tell in (
        ("another backend, in no mean (A / B):", found.of_other_backends, _of_backends),
        ("timed on one side only (A / B):", found.of_one_side, outcomes),
        ("left out, as what was measured differs (A / B):", found.left_out, lambda p: p.setting),
    ):
        if some:
            yield ""
            yield title
        yield from (f"  {one.system}, {one.label}: {tell(one)}" for one in some)


def _folded(words: str) -> list[str]:
    """A long line in lines of the width of a terminal, further ones indented."""
    return textwrap.wrap(words, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def _of_backends(pair: Pair) -> str:
    return f"{ratio_text(pair.ratio)} ({pair.backends}; {pair.code})"


def _of_differences(found: Comparison) -> Iterator[str]:
    rows = found.differences.differing
    if not rows:
        yield "Nothing that records tell of differs."
    else:
        names = max(len(one.name) for one in rows) + 4
        values = max(len(one.a) for one in rows) + 2
        yield f"{'what differs':{names}}{'A':{values}}B"
    for kind in dict.fromkeys(one.kind for one in rows):
        yield kind
        yield from (
            f"  {one.name:{names - 2}}{one.a:{values}}{one.b}" for one in found.differences.of(kind)
        )
    if same := found.differences.same:
        yield from _folded(f"the same: {named(same)}")
    if unknown := found.differences.unknown:
        words = (f"{one.name} ({one.a} / {one.b})" for one in unknown)
        yield from _folded(f"not recorded everywhere: {'; '.join(words)}")
