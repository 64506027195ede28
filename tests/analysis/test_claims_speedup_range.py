"""Either end of a published range of speed-ups, to each verdict on known numbers."""

import pytest

from analysis.claims import NOT_REPRODUCED, NOT_TESTABLE, REFUTED, REPRODUCED
from tests.analysis.claims_cases import MIB, row

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
        ("least", 2, (3, 4, 5, 6), REPRODUCED, 3),
        ("least", 3.7, (3, 4, 5, 6), REPRODUCED, 3),  # within a factor of 1.25
        ("least", 4, (3, 4, 5, 6), REFUTED, 3),
        ("least", 4, (None, 3, 5, 6), REFUTED, 3),  # one is enough
        ("least", 2, (None, 3, 5, 6), NOT_TESTABLE, 3),
        ("largest", 6, (3, 4, 5, 6), REPRODUCED, 6),
        ("largest", 5, (3, 4, 5, 6), REPRODUCED, 6),  # within a factor of 1.25
        ("largest", 4, (3, 4, 5, 6), NOT_REPRODUCED, 6),  # more is another figure
        ("largest", 50, (3, 4, 5, 6), NOT_REPRODUCED, 6),
        ("largest", 50, (0.3, 0.4, 0.5, 0.6), REFUTED, 0.6),
        ("largest", 6, (None, 4, 5, 6), REPRODUCED, 6),  # one is enough
        ("largest", 50, (None, 4, 5, 6), NOT_TESTABLE, 6),
    ],
)
def test_speedups(judge, end, published, gains, verdict, value):
    found = judge(RANGE | {"end": end}, published, rows("time", 100, *gains))
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured["value"] == pytest.approx(value)
    assert found.measured["unit"] == "x"
    assert (len(found.evidence) == 6) == (None not in gains)


@pytest.mark.parametrize(
    ("end", "published", "gains", "verdict", "saved"),
    [
        ("least", 75, (5, 8, 10, 20), REPRODUCED, 80),
        ("least", 75, (2, 8, 10, 20), REFUTED, 50),
        ("least", 75, (3.3, 8, 10, 20), REPRODUCED, 100 * (1 - 1 / 3.3)),  # within a factor of 1.25
        ("least", 75, (3.1, 8, 10, 20), REFUTED, 100 * (1 - 1 / 3.1)),
        ("largest", 95, (5, 8, 10, 20), REPRODUCED, 95),
        ("largest", 95, (5, 8, 10, 10), NOT_REPRODUCED, 90),
        ("largest", 95, (0.5, 0.5, 0.4, 0.5), REFUTED, -100),
    ],
)
def test_memory_saved(judge, end, published, gains, verdict, saved):
    predicate = RANGE | {"end": end, "quantity": "memory"}
    found = judge(predicate, published, rows("memory", 800, *gains))
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured == {"value": pytest.approx(saved), "low": None, "high": None, "unit": "%"}


def test_without_records_the_shapes_are_named(judge):
    found = judge(RANGE | {"end": "least"}, 2)
    assert (found.verdict, found.basis) == (NOT_TESTABLE, "none")
    assert "dense at float32, batch 2, 1024 tokens / float32, batch 2, 2048 tokens" in found.reason
    assert found.predicate == "half, tenth: at least 2 times as fast as base at 1024, 2048 tokens"
