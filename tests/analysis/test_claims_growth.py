"""Predicates on growth with the length: exponents, work, crossovers, rising speed-ups."""

import pytest

from analysis.claims import FAILS, HOLDS, UNDECIDED
from tests.analysis.claims_cases import (
    GROWTH,
    HALF,
    RISING,
    SHAPES,
    WAITS,
    dense,
    entry,
    noisy,
    row,
    series,
    sparse,
)


@pytest.mark.parametrize(
    ("bound", "power", "verdict"),
    [
        ({"below": 2}, 1.5, HOLDS),
        ({"below": 2}, 2.0, FAILS),
        ({"at_most": 2}, 2.0, HOLDS),
        ({"at_most": 1}, 1.5, FAILS),
    ],
)
def test_growth_against_a_bound(judge, bound, power, verdict):
    found = judge(GROWTH | bound, None, series(power))
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured["value"] == pytest.approx(power, abs=0.02)
    assert judge(GROWTH | bound).verdict in WAITS
    assert judge(GROWTH | bound, None, series(power)[:2]).verdict in WAITS


def test_an_order_of_growth_holds_a_little_beyond_it_and_a_strict_bound_does_not(judge):
    for bound, power, verdict in [
        ({"at_most": 1}, 1.15, HOLDS),
        ({"at_most": 1}, 0.7, HOLDS),
        ({"at_most": 1}, 1.3, FAILS),
        ({"at_most": 1}, 1.25, UNDECIDED),  # its interval lies on both sides
        ({"at_least": 2}, 1.85, HOLDS),
        ({"at_least": 2}, 1.7, FAILS),
        ({"below": 1}, 1.15, FAILS),
    ]:
        assert judge(GROWTH | bound, None, series(power)).verdict == verdict, (bound, power)


def test_a_wide_interval_decides_only_a_bound_that_it_lies_beyond(judge):
    found = judge(GROWTH | {"at_most": 1}, None, noisy(series(1.5)))  # 0.22 to 6
    assert found.verdict == UNDECIDED
    assert found.reason.endswith(", too uncertain to judge by; on cpu-1 (cpu)")
    assert judge(GROWTH | {"at_most": 1}, None, noisy(series(3.5))).verdict == FAILS  # 2.2 to 6


def test_a_claim_without_lengths_is_not_short_of_them(judge):
    short = series(1.0)[:3]
    found = judge(GROWTH | {"at_most": 1}, None, short)
    assert found.verdict in WAITS
    assert "dilated-sdpa at float32, batch 2, rates [1, 2], 8192 tokens" in found.reason
    assert "so far it grows as n^1.00" in found.reason
    assert found.measured["value"] == pytest.approx(1.0, abs=0.01)
    assert judge(GROWTH | {"at_most": 1, "any_lengths": True}, None, short).verdict == HOLDS


@pytest.mark.parametrize(("power", "verdict"), [(2.0, HOLDS), (2.4, HOLDS), (1.0, FAILS)])
def test_growth_of_at_least(judge, power, verdict):
    found = judge(GROWTH | {"at_least": 2}, None, series(power))
    assert (found.verdict, found.basis) == (verdict, "records")


def test_growth_of_published_figures(judge):
    at = {"kind": "absolute_time", "system": "fast", "card": "old", "resolution": 0.1}
    others = [
        entry(at | {"at": {"batch": 2, "seq_len": n}}, 4.0 * (n / 1024) ** 1.5, f"t.{n}")
        for n in GROWTH["lengths"]
    ]
    predicate = GROWTH | {"figures": "w.t.*"}
    assert judge(predicate, None, series(1.5), others).published == 1.5
    assert judge(predicate, None, series(1.5), others).verdict == HOLDS
    assert judge(predicate, None, series(1.3), others).verdict == HOLDS
    assert judge(predicate, None, series(1.0), others).verdict == FAILS


def test_memory_below_linear_is_impossible_but_linear_is_not(judge):
    memory = GROWTH | {"quantity": "memory"}
    found = judge(memory | {"below": 1}, None, series(1.0))
    assert (found.verdict, found.basis) == (FAILS, "physics")
    assert found.measured["value"] == pytest.approx(1.0, abs=0.01)
    assert judge(memory | {"below": 1}).basis == "physics"
    assert judge(memory | {"at_most": 1}, None, series(1.0)).verdict == HOLDS
    assert judge(memory | {"at_most": 1}).verdict in WAITS


def test_memory_that_grows_at_least_linearly_needs_no_record(judge):
    grows = {"kind": "growth", "system": "ring", "quantity": "memory", "at": {}}
    grows |= {"lengths": [1024, 2048, 4096]}
    found = judge(grows | {"at_least": 1})
    assert (found.verdict, found.basis) == (HOLDS, "physics")
    assert judge(grows | {"at_least": 2}).verdict in WAITS


@pytest.mark.parametrize(
    ("system", "power", "verdict"),
    [("half", 1, FAILS), ("half", 2, HOLDS), ("tenth", 1, FAILS), ("base", 2, HOLDS)],
)
def test_work_grows_as_the_pairs_do(judge, system, power, verdict):
    found = judge({"kind": "work_growth", "system": system, "lengths": [1024, 4096]}, power)
    assert (found.verdict, found.basis) == (verdict, "arithmetic")
    if system == "half":  # 8 heads, 16 rows of 8 blocks, and 64 rows of 32
        assert f"{8 * 16 * 8 * 4096:,} and {8 * 64 * 32 * 4096:,} pairs" in found.reason
        assert "n^2.00" in found.reason


def test_as_published_work_grows_as_what_the_replica_keeps(judge):
    work = {"kind": "work_growth", "system": "ring", "lengths": [1024, 4096]}

    def kept(*shares):
        return [
            row("published-dense-ring", seq_len=n, batch=1) | {"realised_density": share}
            for n, share in zip((1024, 2048, 4096), shares, strict=False)
        ]

    found = judge(work, 1, kept(0.4, 0.2, 0.1), side="as_published")
    assert (found.verdict, found.basis) == (HOLDS, "construction")
    assert "n^1.00" in found.reason and len(found.evidence) == 2
    assert judge(work, 1, kept(0.4, 0.4, 0.4), side="as_published").verdict == FAILS
    assert judge(work, 1, kept(0.4), side="as_published").verdict in WAITS
    assert judge(work, 1, kept(0.4, 0.2, 0.1)).verdict == FAILS  # the method is dense


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
        (3072, 4.5, HOLDS, "as fast as each other at 3072"),
        (3700, 4.5, HOLDS, "as fast as each other at 3072"),  # within a factor 1.25
        (5000, 4.5, FAILS, "as fast as each other at 3072"),
        (3072, 0.1, FAILS, "not in range: half is the faster one over 1024 to 8192"),
        (3072, 99.0, FAILS, "base is still the faster one at 8192 tokens"),
        (16384, 99.0, UNDECIDED, "base is still the faster one at 8192 tokens"),
        (1024, 0.1, UNDECIDED, "not in range"),
    ],
)
def test_crossover(judge, published, fixed, verdict, text):
    found = judge(CROSS, published, crossing(fixed, 0.5))
    assert (found.verdict, found.basis) == (verdict, "records")
    assert text in found.reason
    assert found.measured["unit"] == "tokens"
    assert judge(CROSS, published).verdict in WAITS
    few = [r for r in crossing(fixed, 0.5) if r["variant"] == "dense" or r["seq_len"] < 3000]
    assert judge(CROSS, published, few).verdict in WAITS


def test_a_crossover_of_noisy_times_decides_nothing(judge):
    rows = list(crossing(4.5, 0.5))
    found = judge(CROSS, 3072, noisy(rows))
    assert found.verdict == UNDECIDED
    assert "too uncertain to judge by" in found.reason


def test_crossover_that_the_published_speed_ups_contradict(judge):
    others = [
        entry(HALF | {"at": {"batch": 2, "seq_len": n}, "resolution": 0.01}, figure, f"s.{n}")
        for n, figure in ((1024, 0.31), (2048, 5.8), (4096, 9.55))
    ]
    own = CROSS | {"figures": "w.s.*", "figure_lengths": [1024, 2048, 4096]}
    assert judge(own, 3072, crossing(4.5, 0.5), others).verdict == HOLDS
    found = judge(own, 3072, (), others, side="as_published")
    assert (found.verdict, found.basis) == (FAILS, "arithmetic")
    assert found.reason.startswith("its own speed-ups cross 1 between 1024 and 2048 tokens")
    assert judge(own, 1500, (), others, side="as_published").verdict in WAITS


@pytest.mark.parametrize(
    ("first", "last", "verdict"),
    [(20, 40, HOLDS), (40, 20, FAILS), (20, 20, UNDECIDED)],
)
def test_rising_speed_up(judge, first, last, verdict):
    rows = [
        dense(first), sparse(0.5, 10),
        dense(last, batch=1, seq_len=4096), sparse(0.5, 10, batch=1, seq_len=4096),
    ]  # fmt: skip
    found = judge(RISING, None, rows)
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured["value"] == pytest.approx(last / first)
    assert judge(RISING, None, rows[:3]).verdict in WAITS
    figures = [
        entry(HALF | {"at": at, "resolution": 0.01}, figure, f"s.{at['seq_len']}")
        for at, figure in zip(SHAPES, (6.62, 4.52), strict=True)
    ]
    assert judge(RISING | {"figures": "w.s.*"}, None, rows, figures).verdict == verdict
    fallen = judge(RISING | {"figures": "w.s.*"}, None, rows, figures, side="as_published")
    assert (fallen.verdict, fallen.basis) == (FAILS, "arithmetic")
    assert fallen.reason.startswith("its own speed-ups are 6.62, 4.52")
