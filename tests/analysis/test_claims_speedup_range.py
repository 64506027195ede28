"""Either end of a published range of speed-ups, to each verdict on known numbers."""

import pytest

from analysis.claims import CARD, FAILS, HOLDS, NOT_MEASURED, UNDECIDED
from analysis.claims.wording import UNCERTAIN
from tests.analysis.claims_cases import MIB, WAITS, noisy, row

SHAPES = [{"batch": 2, "seq_len": n} for n in (1024, 2048)]
RANGE = {"kind": "speedup_range", "systems": ["half", "tenth"], "against": "base", "shapes": SHAPES}
BLOCKS = {"pattern": "dilated", "block_size": 64}


def rows(quantity, base, *gains):
    """Of `half` and `tenth` at both lengths; those of None are left out."""

    def one(variant, value, **case):
        amount = {"ms": value} if quantity == "time" else {"memory": value * MIB}
        return row(variant, **amount, **case)

    made = [one("dense", base, seq_len=n) for n in (1024, 2048)]
    places = [(sparsity, n) for n in (1024, 2048) for sparsity in (0.5, 0.9)]
    for (sparsity, n), gain in zip(places, gains, strict=True):
        if gain is not None:
            made.append(one("block-sparse", base / gain, seq_len=n, sparsity=sparsity, **BLOCKS))
    return made


@pytest.mark.parametrize(
    ("end", "published", "gains", "verdict", "value"),
    [
        ("least", 2, (3, 4, 5, 6), HOLDS, 3),
        ("least", 3.1, (3, 4, 5, 6), FAILS, 3),  # a bound is a bound
        ("least", 4, (3, 4, 5, 6), FAILS, 3),
        ("least", 4, (None, 3, 5, 6), FAILS, 3),  # one is enough
        ("least", 2, (None, 3, 5, 6), NOT_MEASURED, 3),
        ("largest", 6, (3, 4, 5, 6), HOLDS, 6),
        ("largest", 4, (3, 4, 5, 6), HOLDS, 6),  # more does not contradict it
        ("largest", 6.2, (3, 4, 5, 6), FAILS, 6),
        ("largest", 50, (3, 4, 5, 6), FAILS, 6),
        ("largest", 50, (0.3, 0.4, 0.5, 0.6), FAILS, 0.6),
        ("largest", 6, (None, 4, 5, 6), HOLDS, 6),  # one is enough
        ("largest", 50, (None, 4, 5, 6), NOT_MEASURED, 6),
    ],
)
def test_speedups(judge, end, published, gains, verdict, value):
    found = judge(RANGE | {"end": end}, published, rows("time", 100, *gains))
    waits = verdict == NOT_MEASURED
    assert found.verdict in WAITS if waits else found.verdict == verdict
    assert found.basis == ("none" if waits else "records")
    more = end == "largest" and published == 4
    assert found.reason.endswith(", more than was claimed; on cpu-1 (cpu)") == more
    assert found.measured["value"] == pytest.approx(value)
    assert found.measured["unit"] == "x"
    assert (len(found.evidence) == 6) == (None not in gains)


@pytest.mark.parametrize(
    ("end", "published", "gains", "verdict", "saved"),
    [
        ("least", 75, (5, 8, 10, 20), HOLDS, 80),
        ("least", 75, (2, 8, 10, 20), FAILS, 50),
        ("least", 75, (3.9, 8, 10, 20), FAILS, 100 * (1 - 1 / 3.9)),
        ("largest", 90, (5, 8, 10, 20), HOLDS, 95),
        ("largest", 95, (5, 8, 10, 20.1), HOLDS, 100 * (1 - 1 / 20.1)),
        ("largest", 95, (5, 8, 10, 10), FAILS, 90),
        ("largest", 95, (0.5, 0.5, 0.4, 0.5), FAILS, -100),
    ],
)
def test_memory_saved(judge, end, published, gains, verdict, saved):
    predicate = RANGE | {"end": end, "quantity": "memory"}
    found = judge(predicate, published, rows("memory", 800, *gains))
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured == {"value": pytest.approx(saved), "low": None, "high": None, "unit": "%"}


def test_what_stays_below_a_range_that_is_said_without_conditions_keeps_it(judge):
    top = RANGE | {"end": "largest", "of_range": True}
    found = judge(top, 50, rows("time", 100, 3, 4, 5, 6))
    assert found.verdict == HOLDS and "which stays in the range" in found.reason
    assert judge(top, 50, rows("time", 100, 0.3, 0.4, 0.5, 0.6)).verdict == FAILS


def test_an_interval_about_the_least_leaves_it_open(judge):
    least = RANGE | {"end": "least"}
    assert judge(least, 3, rows("time", 100, 3, 4, 5, 6)).verdict == UNDECIDED
    assert judge(least, 2, noisy(rows("time", 100, 3, 4, 5, 6))).verdict == UNDECIDED


def test_replicas_elsewhere_decide_nothing_of_a_range(judge):
    predicate = RANGE | {"systems": ["fast"], "against": "core", "shapes": SHAPES[:1]}
    both = [row("published-over-heads", 5), row("published-head-partition", 20)]
    found = judge(predicate | {"end": "least"}, 2, both, side="as_published")
    assert (found.verdict, found.needs) == (CARD, "Old Card")
    both = [one | {"machine": "cuda-old", "device": "Old Card"} for one in both]
    assert judge(predicate | {"end": "least"}, 2, both, side="as_published").verdict == HOLDS


def test_without_records_the_shapes_are_named(judge):
    found = judge(RANGE | {"end": "least"}, 2)
    assert found.verdict in WAITS and found.basis == "none"
    assert "dense at float32, batch 2, 1024 tokens / float32, batch 2, 2048 tokens" in found.reason
    assert found.predicate == "half, tenth: at least 2 times as fast as base at 1024, 2048 tokens"


def test_a_wide_interval_around_the_largest_decides_nothing(judge):
    wide = noisy(rows("time", 20, 6, 2, 2, 2))
    found = judge(RANGE | {"end": "largest"}, 6, wide)
    assert found.measured["low"] < 3 and found.measured["high"] > 12
    assert (found.verdict, UNCERTAIN in found.reason) == (UNDECIDED, True)
    assert judge(RANGE | {"end": "largest"}, 6, rows("time", 20, 6, 2, 2, 2)).verdict == HOLDS
