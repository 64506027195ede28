"""Predicates that compare systems at a shape, each to each verdict on known numbers."""

import pytest

from analysis.claims import NOT_REPRODUCED, NOT_TESTABLE, REFUTED, REPRODUCED
from tests.analysis.claims_cases import (
    AT,
    MIB,
    ORDER,
    SHAPES,
    SPEEDUP,
    dense,
    entry,
    noisy,
    ring,
    row,
    sparse,
    times,
)


@pytest.mark.parametrize(
    ("published", "core", "fast", "verdict"),
    [
        (2.0, 20, 10, REPRODUCED),
        (2.0, 20, 8.2, REPRODUCED),  # 2.44 is within a factor 1.25
        (2.0, 20, 7.8, NOT_REPRODUCED),  # 2.56 is not
        (10.8, 20, 10, NOT_REPRODUCED),
        (2.0, 10, 20, REFUTED),
        (0.5, 20, 10, REFUTED),
        (1.02, 10, 12, REPRODUCED),  # claims no direction
        (None, 20, 10, REPRODUCED),
        (None, 10, 20, REFUTED),
        (None, 10, 10, NOT_REPRODUCED),
    ],
)
def test_speedup(judge, published, core, fast, verdict):
    found = judge(SPEEDUP, published, times(core, fast))
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured["value"] == pytest.approx(core / fast)
    assert found.measured["low"] < core / fast < found.measured["high"]
    assert [e["machine"] for e in found.evidence] == ["cpu-1", "cpu-1"]
    assert {e["path"] for e in found.evidence} == {
        "results/cpu-1/dilated-gather-2-1024.json",
        "results/cpu-1/dilated-sdpa-2-1024.json",
    }


def test_speedup_that_the_published_times_contradict(judge):
    at = {"kind": "absolute_time", "at": AT, "card": "old", "resolution": 0.1}
    others = [entry(at | {"system": s}, t, f"t.{s}") for s, t in (("core", 30.0), ("fast", 10.0))]
    predicate = SPEEDUP | {"figures": "w.t.*", "resolution": 0.01}
    assert judge(predicate, 2.5, times(25, 10), others).basis == "arithmetic"
    assert judge(predicate, 2.5, times(25, 10), others).verdict == REFUTED
    assert judge(predicate, 3.02, times(30, 10), others).verdict == REPRODUCED  # 30.05 / 9.95


def test_a_wrapper_is_not_faster_than_its_core(judge):
    wrap = SPEEDUP | {"system": "wrap"}
    assert (judge(wrap, 1.4).verdict, judge(wrap, 1.4).basis) == (REFUTED, "construction")
    found = judge(wrap, 1.4, times(10, 12, "multihead-dilated-gather"))
    assert (found.verdict, found.basis) == (REFUTED, "construction")
    assert found.measured["value"] == pytest.approx(10 / 12)
    found = judge(wrap, 0.8, times(10, 12, "multihead-dilated-gather"))
    assert (found.verdict, found.basis) == (REPRODUCED, "records")
    assert judge(wrap, 0.8).verdict == NOT_TESTABLE


@pytest.mark.parametrize(
    ("fast", "core", "wrap", "verdict"),
    [
        (5, 10, 20, REPRODUCED),
        (10, 10, 20, NOT_REPRODUCED),
        (20, 10, 30, REFUTED),
        (5, 10, None, NOT_TESTABLE),
        (20, 10, None, REFUTED),  # one pair is enough against it
    ],
)
def test_ordering(judge, fast, core, wrap, verdict):
    rows = times(core, fast)
    rows += [row("multihead-dilated-gather", wrap)] if wrap else []
    found = judge(ORDER, None, rows)
    assert found.verdict == verdict
    assert found.measured["value"] == pytest.approx(core / fast)
    assert found.published == ["fast", "core", "wrap"]


def test_ordering_of_one_among_others(judge):
    fastest = {"kind": "ordering", "order": ["fast"], "among": ["core", "later"], "at": AT}
    found = judge(fastest, None, times(20, 10))
    assert found.verdict == NOT_TESTABLE and "(Later)" in found.reason
    assert judge(fastest, None, times(10, 20)).verdict == REFUTED
    assert judge(fastest | {"among": ["core"]}, None, times(20, 10)).verdict == REPRODUCED
    assert judge(fastest).verdict == NOT_TESTABLE


def test_ordering_decided_without_records(judge):
    wrapper_first = ORDER | {"order": ["wrap", "core"]}
    assert judge(wrapper_first).basis == "construction"
    at = {"kind": "absolute_time", "at": AT, "card": "old", "resolution": 0.1}
    own = [entry(at | {"system": s}, t, f"t.{s}") for s, t in (("core", 3.0), ("fast", 9.0))]
    found = judge(ORDER | {"order": ["fast", "core"], "figures": "w.t.*"}, None, (), own)
    assert (found.verdict, found.basis) == (REFUTED, "arithmetic")
    assert found.reason == "its own figures: fast 9.0, core 3.0"


@pytest.mark.parametrize(
    ("core", "fast", "verdict"), [(20, 10, REPRODUCED), (10, 10, NOT_REPRODUCED), (10, 20, REFUTED)]
)
def test_ordering_of_memory(judge, core, fast, verdict):
    rows = [row("dilated-gather", memory=core * MIB), row("dilated-sdpa", memory=fast * MIB)]
    found = judge(ORDER | {"order": ["fast", "core"], "quantity": "memory"}, None, rows)
    assert found.verdict == verdict
    assert found.measured == {"value": core / fast, "low": None, "high": None, "unit": "x"}


DISTINCT = {"kind": "distinct", "among": ["ring", "curve", "base"], "at": AT}


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ((10, 10, 10), REFUTED),
        ((10, 10.1, 10), REFUTED),
        ((10, 10.5, 10), NOT_REPRODUCED),  # an interval over the edge of 1.05
        ((10, 10, 12), REPRODUCED),
    ],
)
def test_distinct(judge, times, verdict):
    rows = [ring(times[0]), ring(times[1], "ring-hilbert"), dense(times[2])]
    found = judge(DISTINCT, None, rows)
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured["value"] == pytest.approx(max(times) / min(times))
    assert judge(DISTINCT, None, rows[:2]).verdict == NOT_TESTABLE


def test_distinct_of_noisy_times_and_of_memory(judge):
    rows = [ring(10), ring(10, "ring-hilbert"), dense(10)]
    found = judge(DISTINCT, None, noisy(rows))
    assert found.verdict == NOT_TESTABLE
    assert "too uncertain to judge by" in found.reason
    memory = DISTINCT | {"quantity": "memory", "among": ["ring", "curve"]}
    for share, verdict in ((1.0, REFUTED), (1.04, REFUTED), (1.8, REPRODUCED)):
        rows = [ring(memory=share * 64 * MIB), ring(10, "ring-hilbert")]
        assert judge(memory, None, rows).verdict == verdict
        assert judge(memory, None, rows).measured["value"] == pytest.approx(share)
    order = {"kind": "ordering", "quantity": "memory", "order": ["curve", "ring"], "at": AT}
    assert judge(order, None, rows).verdict == REPRODUCED
    for predicate in (memory, order):
        assert judge(predicate | {"device_kind": "cuda"}, None, rows).verdict == NOT_TESTABLE


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
