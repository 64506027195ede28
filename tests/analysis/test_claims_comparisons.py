"""Predicates that compare systems at a shape, each to each verdict on known numbers."""

import pytest

from analysis.claims import CARD, FAILS, HOLDS, NOT_MEASURED, UNDECIDED
from analysis.claims.criteria import more_measuring
from analysis.statistics.intervals import Interval
from tests.analysis.claims_cases import (
    AT,
    MIB,
    NO_BRANCHES,
    ORDER,
    SHAPES,
    SPEEDUP,
    WAITS,
    dense,
    entry,
    noisy,
    ring,
    row,
    sparse,
    times,
)


def replicas(core, fast, **case):
    """Of what was published under both names."""
    return [
        row("published-head-partition", core, **case),
        row("published-over-heads", fast, **case),
    ]


@pytest.mark.parametrize(
    ("published", "core", "fast", "verdict"),
    [
        (2.0, 20, 10, HOLDS),
        (2.0, 20, 8.2, HOLDS),  # 2.44 is within a factor 1.25
        (2.0, 20, 7.8, HOLDS),  # 2.56 is more than was claimed
        (2.0, 16, 10.4, FAILS),  # 1.54 is less
        (10.8, 20, 10, FAILS),
        (2.0, 10, 20, FAILS),
        (0.5, 20, 10, CARD),  # a loss may be due to the fixed costs of the device
        (0.5, 20, 40, HOLDS),
        (0.5, 20, 80, CARD),
        (1.02, 10, 12, HOLDS),  # claims no direction
        (1.02, 20, 10, CARD),  # what was no gain there may be one without its fixed costs
        (1.02, 10, 20, FAILS),
        (0.97, 10, 20, FAILS),
        (None, 20, 10, HOLDS),
        (None, 10, 20, FAILS),
        (None, 10, 10, UNDECIDED),
    ],
)
def test_speedup(judge, published, core, fast, verdict):
    found = judge(SPEEDUP, published, times(core, fast))
    assert (found.verdict, found.basis) == (verdict, "none" if verdict == CARD else "records")
    assert found.needs == ("Old Card" if verdict == CARD else None)
    assert found.stand_in == ("" if verdict == CARD else "on a CPU")
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
    found = judge(predicate, 2.5, times(25, 10), others, side="as_published")
    assert (found.verdict, found.basis) == (FAILS, "arithmetic")
    # What the method does is another matter than what was printed of it.
    assert judge(predicate, 2.5, times(25, 10), others).verdict == HOLDS
    own = judge(predicate, 3.02, replicas(30, 10), others, side="as_published")
    assert own.verdict == HOLDS  # 30.05 / 9.95


def test_a_replica_elsewhere_explains_a_figure_and_refutes_none(judge):
    def of(figure, rows, **more):
        return judge(SPEEDUP | more, figure, rows, side="as_published")

    found = of(2.0, replicas(20, 10))
    assert (found.verdict, found.basis, found.stand_in) == (HOLDS, "records", "on a CPU")
    for figure in (5.0, 1.2, 0.5):  # less, more, the other direction
        found = of(figure, replicas(20, 10))
        assert (found.verdict, found.basis, found.needs) == (CARD, "none", "Old Card")
        assert found.measured["value"] == pytest.approx(2)
    # In another setting than the published one an equal ratio is a coincidence.
    assert of(2.0, replicas(20, 10, batch=1)).verdict == CARD
    on_card = replicas(20, 10, machine="cuda-old")
    for figure, verdict in ((5.0, FAILS), (1.2, HOLDS), (0.5, FAILS)):
        found = of(figure, on_card)
        assert (found.verdict, found.basis, found.stand_in) == (verdict, "records", "")
    # Exact systems are not what was published.
    assert of(2.0, times(20, 10)).verdict == NOT_MEASURED
    found = judge(SPEEDUP | {"system": "wrap"}, 0.8, replicas(20, 10), side="as_published")
    assert (found.verdict, found.needs) == (NOT_MEASURED, "a replica")
    assert "no replica of Wrap" in found.reason


def test_a_wrapper_is_not_faster_than_its_core(judge):
    wrap = SPEEDUP | {"system": "wrap"}
    assert (judge(wrap, 1.4).verdict, judge(wrap, 1.4).basis) == (FAILS, "construction")
    found = judge(wrap, 1.4, times(10, 12, "multihead-dilated-gather"))
    assert (found.verdict, found.basis) == (FAILS, "construction")
    assert found.measured["value"] == pytest.approx(10 / 12)
    found = judge(wrap, 0.8, times(10, 12, "multihead-dilated-gather"))
    assert (found.verdict, found.basis) == (HOLDS, "records")
    assert judge(wrap, 0.8).verdict == NOT_MEASURED
    # Neither is what was published of the two, of which there is no replica.
    found = judge(wrap, 1.4, side="as_published")
    assert (found.verdict, found.basis) == (FAILS, "construction")


def test_a_loss_on_the_published_card_itself_decides(judge):
    on_card = times(20, 10, machine="cuda-old")
    found = judge(SPEEDUP, 0.5, on_card)
    assert (found.verdict, found.stand_in, found.needs) == (FAILS, "", None)
    assert "2 [1.999, 2.001] times as fast, the opposite direction" in found.reason


def test_a_draw_says_what_more_of_it_would_tell(judge):
    found = judge(SPEEDUP, None, times(10, 10))
    assert found.reason == (
        "1 [0.9995, 1] times as fast, too near 1: a repetition varies by more than that; "
        "on cpu-1 (cpu)"
    )


@pytest.mark.parametrize(
    ("fast", "core", "wrap", "verdict"),
    [
        (5, 10, 20, HOLDS),
        (10, 10, 20, FAILS),
        (20, 10, 30, FAILS),
        (5, 10, None, NOT_MEASURED),
        (20, 10, None, FAILS),  # one pair is enough against it
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
    fastest = {"kind": "ordering", "order": ["fast"], "among": ["core", "twin"], "at": AT}
    found = judge(fastest, None, times(20, 10))
    assert found.verdict in WAITS and "ring-dilated at float32" in found.reason
    assert judge(fastest, None, times(10, 20)).verdict == FAILS
    assert judge(fastest | {"among": ["core"]}, None, times(20, 10)).verdict == HOLDS
    assert judge(fastest).verdict in WAITS


def test_of_advice_a_draw_will_do_and_of_a_ranking_not(judge):
    order = ORDER | {"order": ["fast", "core"]}
    assert judge(order, None, times(10, 10)).verdict == FAILS
    assert judge(order | {"advice": True}, None, times(10, 10)).verdict == HOLDS
    noisy_draw = noisy(times(10, 10))
    assert judge(order, None, noisy_draw).verdict == UNDECIDED
    assert judge(order | {"advice": True}, None, noisy_draw).verdict == UNDECIDED
    assert judge(order | {"advice": True}, None, times(10, 20)).verdict == FAILS


def test_as_published_two_names_of_one_code_have_no_order(judge):
    order = {"kind": "ordering", "order": ["curve", "ring"], "at": AT}
    found = judge(order, None, (), side="as_published")
    assert (found.verdict, found.basis) == (FAILS, "construction")
    assert found.reason == "curve and ring were one computation, bit by bit"
    advice = judge(order | {"advice": True}, None, (), side="as_published")
    assert (advice.verdict, advice.basis) == (HOLDS, "construction")
    assert advice.reason.endswith("bit by bit: nothing is lost by the advice, nor gained")
    assert advice.predicate.startswith("time rises in the order")
    # Of one code with one of several, advice is judged by the others.
    among = {"order": ["curve"], "among": ["ring", "core"], "advice": True}
    several = judge(order | among, None, (), side="as_published")
    assert several.verdict in WAITS
    assert several.predicate.startswith("none of ring, core has less time than curve")
    assert judge(order, None, (), side="method").verdict in WAITS
    # One replica for two systems that were not one code tells nothing of their order.
    order = {"kind": "ordering", "order": ["fast", "twin"], "at": AT}
    both = judge(order, None, replicas(20, 10), side="as_published")
    assert (both.verdict, both.reason) == (NOT_MEASURED, "one replica stands for both")
    assert (both.needs, both.evidence) == ("a replica of each", [])


def test_replicas_elsewhere_decide_for_an_order_only(judge):
    order = ORDER | {"order": ["fast", "core"]}
    assert judge(order, None, replicas(20, 10), side="as_published").verdict == HOLDS
    found = judge(order, None, replicas(10, 20), side="as_published")
    assert (found.verdict, found.needs) == (CARD, "Old Card")


def test_ordering_decided_without_records(judge):
    wrapper_first = ORDER | {"order": ["wrap", "core"]}
    assert judge(wrapper_first).basis == "construction"
    at = {"kind": "absolute_time", "at": AT, "card": "old", "resolution": 0.1}
    own = [entry(at | {"system": s}, t, f"t.{s}") for s, t in (("core", 3.0), ("fast", 9.0))]
    core_first = judge(ORDER | {"order": ["core", "wrap"]})
    assert (core_first.verdict, core_first.basis) == (HOLDS, "construction")
    order = ORDER | {"order": ["fast", "core"], "figures": "w.t.*"}
    assert judge(order, None, (), own).verdict in WAITS
    found = judge(order, None, (), own, side="as_published")
    assert (found.verdict, found.basis) == (FAILS, "arithmetic")
    assert found.reason == "its own figures: fast 9.0, core 3.0"


@pytest.mark.parametrize(
    ("core", "fast", "verdict"), [(20, 10, HOLDS), (10, 10, FAILS), (10, 20, FAILS)]
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
        ((10, 10, 10), FAILS),
        ((10, 10.1, 10), FAILS),
        ((10, 10.5, 10), UNDECIDED),  # an interval over the edge of 1.05
        ((10, 10, 12), HOLDS),
    ],
)
def test_distinct(judge, times, verdict):
    rows = [ring(times[0]), ring(times[1], "ring-hilbert"), dense(times[2])]
    found = judge(DISTINCT, None, rows)
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured["value"] == pytest.approx(max(times) / min(times))
    assert judge(DISTINCT, None, rows[:2]).verdict in WAITS


def test_distinct_of_noisy_times_and_of_memory(judge):
    rows = [ring(10), ring(10, "ring-hilbert"), dense(10)]
    found = judge(DISTINCT, None, noisy(rows))
    assert found.verdict == UNDECIDED
    assert "too uncertain to judge by" in found.reason
    memory = DISTINCT | {"quantity": "memory", "among": ["ring", "curve"]}
    for share, verdict in ((1.0, FAILS), (1.04, FAILS), (1.8, HOLDS)):
        rows = [ring(memory=share * 64 * MIB), ring(10, "ring-hilbert")]
        assert judge(memory, None, rows).verdict == verdict
        assert judge(memory, None, rows).measured["value"] == pytest.approx(share)
    order = {"kind": "ordering", "quantity": "memory", "order": ["curve", "ring"], "at": AT}
    assert judge(order, None, rows).verdict == HOLDS
    for predicate in (memory, order):
        found = judge(predicate | {"device_kind": "cuda"}, None, rows)
        assert (found.verdict, found.needs) == (CARD, "any CUDA device")


VARIES = {"kind": "fastest_varies", "among": ["half", "tenth"], "shapes": SHAPES}


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ((5, 10, 5, 10), FAILS),  # half is the faster one at both
        ((5, 10, 10, 5), HOLDS),
        ((5, 10, 10, 10), UNDECIDED),
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
    assert judge(VARIES, None, rows[:3]).verdict in WAITS
    at = {"kind": "absolute_time", "card": "old", "resolution": 0.1}
    own = [
        entry(at | {"system": s, "at": shape}, figure, f"t.{s}.{shape['seq_len']}")
        for s, figure in (("half", 9.0), ("tenth", 7.0))
        for shape in SHAPES
    ]
    assert judge(VARIES | {"figures": "w.t.*.*"}, None, rows, own).verdict == verdict
    same = judge(VARIES | {"figures": "w.t.*.*"}, None, rows, own, side="as_published")
    assert (same.verdict, same.basis) == (FAILS, "arithmetic")
    assert same.reason.startswith("by its own times tenth is fastest everywhere")


def test_of_one_code_under_several_names_none_is_fastest_or_differs(judge):
    for predicate in (
        DISTINCT | {"among": ["ring", "curve"]},
        VARIES | {"among": ["ring", "curve"]},
        {"kind": "speedup", "system": "curve", "against": "ring", "at": AT},
    ):
        found = judge(predicate, side="as_published")
        assert (found.verdict, found.basis) == (FAILS, "construction")
        assert "were one computation, bit by bit" in found.reason
        assert judge(predicate).verdict in WAITS


def test_over_the_published_baseline_and_beside_it_over_a_fused_one(judge):
    predicate = {"kind": "speedup", "system": "half", "against": "written", "at": AT}
    rows = [row("dense-eager", 200, **NO_BRANCHES), dense(30), sparse(0.5, 10)]
    found = judge(predicate, 10.0, rows)
    assert (found.verdict, found.measured["value"]) == (HOLDS, pytest.approx(20))
    assert found.beside["over"] == "Base"
    assert found.beside["verdict"] == FAILS
    assert found.beside["measured"]["value"] == pytest.approx(3)
    assert "over Base: does not hold (3 [" in found.reason
    assert {e["path"].split("/")[-1][:5] for e in found.evidence} == {"dense", "block"}
    assert judge(predicate, 10.0, [rows[0], rows[2]]).beside is None


def test_what_is_said_to_be_possible_is_not_refuted_by_not_seeing_it(judge):
    assert judge(SPEEDUP, None, times(10, 20)).verdict == FAILS
    found = judge(SPEEDUP, None, times(10, 20), strength="may")
    assert found.verdict == UNDECIDED
    assert found.reason.startswith("said to be possible only, and not seen here: 0.5 [")
    assert judge(SPEEDUP, None, times(20, 10), strength="may").verdict == HOLDS


def test_what_the_public_history_shows_decides_as_published(judge):
    history = {"verdict": FAILS, "reason": "it was never run"}
    found = judge(SPEEDUP, 2.0, replicas(20, 10), side="as_published", history=history)
    assert (found.verdict, found.basis) == (FAILS, "public history")
    assert (found.reason, found.stand_in, found.evidence) == ("it was never run", "", [])
    assert judge(SPEEDUP, 2.0, times(20, 10), history=history).verdict == HOLDS


@pytest.mark.parametrize(
    ("value", "low", "high", "occasions", "text"),
    [
        # Two occasions have 1/2 + 1 of the variance of one.
        (1.17, 0.97, 1.41, 2, "; some 18 occasions would tell it from 1"),
        (1.19, 0.99, 1.43, 2, "; some 3 occasions would tell it from 1"),
        (1.05, 0.9, 1.225, 2, ", too near 1: a repetition varies by more than that"),
        (2.0, float("nan"), float("nan"), 1, ""),
    ],
)
def test_what_is_undecided_says_how_much_more_would_decide_it(value, low, high, occasions, text):
    confidence = 0.95 if low == low else 0.0
    assert more_measuring(Interval(value, low, high, confidence), 1, occasions) == text


def test_names_of_one_published_code_have_the_ratio_one(judge):
    names = {"kind": "speedup", "system": "curve", "against": "ring", "at": AT}
    for figure, verdict in [(1.0, HOLDS), (1.04, HOLDS), (1.2, FAILS), (None, FAILS)]:
        found = judge(names, figure, side="as_published")
        assert (found.verdict, found.basis) == (verdict, "construction"), figure


def test_one_replica_of_two_systems_tells_nothing_of_their_ratio(judge):
    rows = [row("published-over-heads", 10, machine="cuda-old")]
    names = {"kind": "speedup", "system": "fast", "against": "twin", "at": AT}
    found = judge(names, 1.1, rows, side="as_published")
    assert (found.verdict, found.needs) == (NOT_MEASURED, "a replica of each")
    assert found.evidence == []


def test_a_replica_elsewhere_does_not_refute_a_gain_without_a_figure(judge):
    rows = [row("published-over-heads", 20), row("published-head-partition", 10)]
    found = judge(SPEEDUP, None, rows, side="as_published")
    assert (found.verdict, found.needs) == (CARD, "Old Card")
    on_card = [one | {"machine": "cuda-old", "device": "Old Card"} for one in rows]
    assert judge(SPEEDUP, None, on_card, side="as_published").verdict == FAILS
