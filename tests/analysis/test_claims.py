"""Predicates that compare systems or lengths, each to each verdict on known numbers."""

import pytest

from analysis.claims import NOT_REPRODUCED, NOT_TESTABLE, REFUTED, REPRODUCED
from tests.analysis.claims_cases import (
    AT,
    GROWTH,
    MIB,
    ORDER,
    SPEEDUP,
    entry,
    row,
    series,
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


def test_speedup_without_records_names_the_missing_shape(judge):
    found = judge(SPEEDUP, 2.0, [row("dilated-gather"), row("dilated-sdpa", status="oom")])
    assert (found.verdict, found.measured, found.evidence) == (NOT_TESTABLE, None, [])
    for part in ("dilated-sdpa at float32, batch 2, 1024 tokens (oom)",):
        assert part in found.reason
    found = judge(SPEEDUP | {"system": "later"}, 2.0, times(20, 10))
    assert "no record of this system yet (Later)" in found.reason


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


def test_cuda_speaks_before_cpu_and_disagreement_is_named(judge):
    rows = times(20, 10) + times(10, 20, machine="cuda-new")
    found = judge(SPEEDUP, 2.0, rows)
    assert found.verdict == REFUTED
    assert "on cuda-new (cuda); cpu-1 disagrees: reproduced" in found.reason
    assert [e["machine"] for e in found.evidence] == ["cuda-new"] * 2 + ["cpu-1"] * 2
    assert judge(SPEEDUP, 2.0, times(20, 10) + times(22, 10, machine="cuda-new")).reason.endswith(
        "on cuda-new (cuda)"
    )


def test_stand_in_shape_is_used_for_ratios_and_named(judge):
    found = judge(SPEEDUP, 2.0, times(20, 10, batch=1))
    assert found.verdict == REPRODUCED
    assert "at batch 1 for want of the published shape" in found.reason
    assert judge(SPEEDUP | {"card": "old"}, 2.0, times(20, 10)).verdict == NOT_TESTABLE
    assert judge(SPEEDUP | {"card": "old"}, 2.0, times(20, 10, machine="cuda-old")).verdict == (
        REPRODUCED
    )


def test_other_branches_heads_or_masking_are_another_shape(judge):
    for change in (
        {"segment_lengths": (1024, 1024)},
        {"dilation_rates": (1, 4)},
        {"is_causal": True},
        {"kv_heads": 2},
        {"pass": "forward_backward"},
        {"dtype": "float16"},
        {"experiment": "another"},
    ):
        assert judge(SPEEDUP, 2.0, times(20, 10, **change)).verdict == NOT_TESTABLE, change


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


@pytest.mark.parametrize(
    ("bound", "power", "verdict"),
    [
        ({"below": 2}, 1.5, REPRODUCED),
        ({"below": 2}, 2.0, REFUTED),
        ({"at_most": 2}, 2.0, REPRODUCED),
        ({"at_most": 1}, 1.5, REFUTED),
    ],
)
def test_growth_against_a_bound(judge, bound, power, verdict):
    found = judge(GROWTH | bound, None, series(power))
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured["value"] == pytest.approx(power, abs=0.02)
    assert judge(GROWTH | bound).verdict == NOT_TESTABLE
    assert judge(GROWTH | bound, None, series(power)[:2]).verdict == NOT_TESTABLE


def test_growth_of_published_figures(judge):
    at = {"kind": "absolute_time", "system": "fast", "card": "old", "resolution": 0.1}
    others = [
        entry(at | {"at": {"batch": 2, "seq_len": n}}, 4.0 * (n / 1024) ** 1.5, f"t.{n}")
        for n in GROWTH["lengths"]
    ]
    predicate = GROWTH | {"figures": "w.t.*"}
    assert judge(predicate, None, series(1.5), others).published == 1.5
    assert judge(predicate, None, series(1.5), others).verdict == REPRODUCED
    assert judge(predicate, None, series(1.3), others).verdict == REPRODUCED
    assert judge(predicate, None, series(1.0), others).verdict == NOT_REPRODUCED


def test_memory_below_linear_is_impossible_but_linear_is_not(judge):
    memory = GROWTH | {"quantity": "memory"}
    found = judge(memory | {"below": 1}, None, series(1.0))
    assert (found.verdict, found.basis) == (REFUTED, "physics")
    assert found.measured["value"] == pytest.approx(1.0, abs=0.01)
    assert judge(memory | {"below": 1}).basis == "physics"
    assert judge(memory | {"at_most": 1}, None, series(1.0)).verdict == REPRODUCED
    assert judge(memory | {"at_most": 1}).verdict == NOT_TESTABLE
