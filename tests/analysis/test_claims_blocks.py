"""Predicate kinds on block masks, crossovers, rising speed-ups and what fits a card."""

import pytest

from analysis.claims import NOT_REPRODUCED, NOT_TESTABLE, REFUTED, REPRODUCED
from tests.analysis.claims_cases import AT, GROWTH, MIB, RISING, SHAPES, TIME, entry, row, series


def sparse(sparsity, ms=10.0, **case):
    blocks = {"sparsity": sparsity, "pattern": "dilated", "block_size": 64}
    none = {"segment_lengths": None, "dilation_rates": None}
    return row("block-sparse", ms, **(blocks | none | case))


def dense(ms=10.0, **case):
    return row("dense", ms, segment_lengths=None, dilation_rates=None, **case)


HALF = {"kind": "speedup", "system": "half", "against": "base", "at": AT}


def test_a_system_is_found_by_its_sparsity_and_the_write_ups_blocks(judge):
    assert judge(HALF, 2.0, [dense(20), sparse(0.5, 10)]).verdict == REPRODUCED
    for change in ({"sparsity": 0.9}, {"pattern": "random"}, {"block_size": 128}):
        found = judge(HALF, 2.0, [dense(20), sparse(0.5, 10) | change])
        assert found.verdict == NOT_TESTABLE, change
        assert "block-sparse at float32, 0.5 sparse, batch 2, 1024 tokens" in found.reason
    other = HALF | {"at": AT | {"pattern": "random"}}
    assert judge(other, 2.0, [dense(20), sparse(0.5, 10, pattern="random")]).verdict == REPRODUCED
    rows = [dense(20), sparse(0.5, 10), sparse(0.9, 4)]
    order = {"kind": "ordering", "order": ["tenth", "half", "base"], "at": AT}
    assert judge(order, None, rows).verdict == REPRODUCED


def test_the_floor_of_a_block_mask_is_that_of_its_pairs(judge):
    # 16 blocks of 64 a side: 8 of them a row are kept at 0.5.
    floor = 1000 * 256 * 2 * 8 * 16 * 8 * 64**2 / 1.25e12
    time = TIME | {"system": "half"}
    assert judge(time, floor - 0.02).verdict == REFUTED
    assert judge(time, floor - 0.02).basis == "physics"
    assert judge(time, floor + 0.02).verdict == NOT_TESTABLE
    # 0.9 of 16 blocks leaves 1.6, so two.
    assert f"floor of {floor / 4:.3g} ms" in judge(TIME | {"system": "tenth"}, 10.0).reason


@pytest.mark.parametrize(
    ("system", "power", "verdict"),
    [("half", 1, REFUTED), ("half", 2, REPRODUCED), ("tenth", 1, REFUTED), ("base", 2, REPRODUCED)],
)
def test_work_grows_as_the_pairs_do(judge, system, power, verdict):
    found = judge({"kind": "work_growth", "system": system, "lengths": [1024, 4096]}, power)
    assert (found.verdict, found.basis) == (verdict, "arithmetic")
    if system == "half":  # 8 heads, 16 rows of 8 blocks, and 64 rows of 32
        assert f"{8 * 16 * 8 * 4096:,} and {8 * 64 * 32 * 4096:,} pairs" in found.reason
        assert "n^2.00" in found.reason


LENGTHS = [1024, 2048, 4096, 8192]
CROSS = {
    "kind": "crossover",
    "system": "half",
    "against": "base",
    "at": {"batch": 2},
    "lengths": LENGTHS,
}


def crossing(fixed, share):
    """Dense attention of k^2 ms at k thousand tokens; block-sparse of a share and a fixed cost."""
    for n in LENGTHS:
        k = n / 1024
        yield dense(k**2, seq_len=n)
        yield sparse(0.5, fixed + share * k**2, seq_len=n)


@pytest.mark.parametrize(
    ("published", "fixed", "verdict", "text"),
    [
        (3072, 4.5, REPRODUCED, "as fast as each other at 3072"),
        (3700, 4.5, REPRODUCED, "as fast as each other at 3072"),  # within a factor 1.25
        (5000, 4.5, NOT_REPRODUCED, "as fast as each other at 3072"),
        (3072, 0.1, NOT_REPRODUCED, "not in range: half is the faster one over 1024 to 8192"),
        (3072, 99.0, REFUTED, "base is still the faster one at 8192 tokens"),
        (16384, 99.0, NOT_TESTABLE, "base is still the faster one at 8192 tokens"),
        (1024, 0.1, NOT_TESTABLE, "not in range"),
    ],
)
def test_crossover(judge, published, fixed, verdict, text):
    found = judge(CROSS, published, crossing(fixed, 0.5))
    assert (found.verdict, found.basis) == (verdict, "records")
    assert text in found.reason
    assert found.measured["unit"] == "tokens"
    assert judge(CROSS, published).verdict == NOT_TESTABLE
    few = [r for r in crossing(fixed, 0.5) if r["variant"] == "dense" or r["seq_len"] < 3000]
    assert judge(CROSS, published, few).verdict == NOT_TESTABLE


def test_a_crossover_of_noisy_times_decides_nothing(judge):
    rows = list(crossing(4.5, 0.5))
    for noisy in rows:  # the three processes differ by a factor two
        noisy["samples"] = [
            [ms * factor for ms in one]
            for one, factor in zip(noisy["samples"], (0.5, 1, 2), strict=True)
        ]
    found = judge(CROSS, 3072, rows)
    assert found.verdict == NOT_TESTABLE
    assert "too uncertain to judge by" in found.reason


def test_crossover_that_the_published_speed_ups_contradict(judge):
    others = [
        entry(HALF | {"at": {"batch": 2, "seq_len": n}, "resolution": 0.01}, figure, f"s.{n}")
        for n, figure in ((1024, 0.31), (2048, 5.8), (4096, 9.55))
    ]
    own = CROSS | {"figures": "w.s.*", "figure_lengths": [1024, 2048, 4096]}
    found = judge(own, 3072, crossing(4.5, 0.5), others)
    assert (found.verdict, found.basis) == (REFUTED, "arithmetic")
    assert found.reason.startswith("its own speed-ups cross 1 between 1024 and 2048 tokens")
    assert judge(own, 1500, (), others).verdict == NOT_TESTABLE


@pytest.mark.parametrize(
    ("first", "last", "verdict"),
    [(20, 40, REPRODUCED), (40, 20, REFUTED), (20, 20, NOT_REPRODUCED)],
)
def test_rising_speed_up(judge, first, last, verdict):
    rows = [
        dense(first), sparse(0.5, 10),
        dense(last, batch=1, seq_len=4096), sparse(0.5, 10, batch=1, seq_len=4096),
    ]  # fmt: skip
    found = judge(RISING, None, rows)
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured["value"] == pytest.approx(last / first)
    assert judge(RISING, None, rows[:3]).verdict == NOT_TESTABLE
    figures = [
        entry(HALF | {"at": at, "resolution": 0.01}, figure, f"s.{at['seq_len']}")
        for at, figure in zip(SHAPES, (6.62, 4.52), strict=True)
    ]
    fallen = judge(RISING | {"figures": "w.s.*"}, None, rows, figures)
    assert (fallen.verdict, fallen.basis) == (REFUTED, "arithmetic")
    assert fallen.reason.startswith("its own speed-ups are 6.62, 4.52")


VARIES = {"kind": "fastest_varies", "among": ["half", "tenth"], "shapes": SHAPES}


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ((5, 10, 5, 10), REFUTED),  # half is the faster one at both
        ((5, 10, 10, 5), REPRODUCED),
        ((5, 10, 10, 10), NOT_REPRODUCED),
    ],
)
def test_fastest_varies(judge, times, verdict):
    first, last = SHAPES
    rows = [
        sparse(0.5, times[0], **first), sparse(0.9, times[1], **first),
        sparse(0.5, times[2], **last), sparse(0.9, times[3], **last),
    ]  # fmt: skip
    found = judge(VARIES, None, rows)
    assert (found.verdict, found.basis) == (verdict, "records")
    assert judge(VARIES, None, rows[:3]).verdict == NOT_TESTABLE
    at = {"kind": "absolute_time", "card": "old", "resolution": 0.1}
    own = [
        entry(at | {"system": s, "at": shape}, figure, f"t.{s}.{shape['seq_len']}")
        for s, figure in (("half", 9.0), ("tenth", 7.0))
        for shape in SHAPES
    ]
    same = judge(VARIES | {"figures": "w.t.*.*"}, None, rows, own)
    assert (same.verdict, same.basis) == (REFUTED, "arithmetic")
    assert same.reason.startswith("by its own times tenth is fastest everywhere")


FITS = {"kind": "fits", "system": "base", "at": AT, "card": "old"}


def test_fits(judge):
    """The card has 64 MiB; a tensor has 4, so the inputs 12."""
    fits, exceeds = FITS | {"expect": "fits"}, FITS | {"expect": "exceeds"}
    small, large = [dense(memory=50 * MIB)], [dense(memory=53 * MIB)]
    assert judge(fits, None, small).verdict == REPRODUCED
    assert judge(exceeds, None, small).verdict == REFUTED
    assert judge(fits, None, large).verdict == REFUTED
    assert judge(exceeds, None, large).verdict == REPRODUCED
    assert judge(exceeds, None, large).measured["value"] == 65.0
    assert judge(fits).verdict == NOT_TESTABLE
    # A stand-in of batch 1 that fits says nothing of batch 2; one that does not, does.
    assert judge(fits, None, [dense(memory=50 * MIB, batch=1)]).verdict == NOT_TESTABLE
    assert judge(fits, None, [dense(memory=63 * MIB, batch=1)]).verdict == REFUTED
    # Four tensors of 20 MiB.
    long = {"at": {"batch": 2, "seq_len": 5120}}
    assert judge(exceeds | long).basis == "physics"
    assert (judge(exceeds | long).verdict, judge(fits | long).verdict) == (REPRODUCED, REFUTED)
    lost = [dense(status="oom")]
    assert judge(exceeds, None, lost).verdict == REPRODUCED
    assert judge(fits, None, lost).verdict == REFUTED
    lost[0]["device_memory_bytes"] = 32 * MIB
    assert judge(exceeds, None, lost).verdict == NOT_TESTABLE


@pytest.mark.parametrize(
    ("power", "verdict"), [(2.0, REPRODUCED), (2.4, REPRODUCED), (1.0, REFUTED)]
)
def test_growth_of_at_least(judge, power, verdict):
    found = judge(GROWTH | {"at_least": 2}, None, series(power))
    assert (found.verdict, found.basis) == (verdict, "records")
