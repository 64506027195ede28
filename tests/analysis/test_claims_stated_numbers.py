"""Predicates on single numbers, each to each verdict on known numbers."""

import os

import pytest
import torch

from analysis import claims
from analysis.claims import CARD, DIFFERS, FAILS, HOLDS, NOT_MEASURED, UNDECIDED
from experiments import workload
from models.errors import UnsupportedBackend
from tests.analysis.claims_cases import (
    AT,
    EMPTY,
    SPEEDUP,
    TIME,
    WAITS,
    data,
    entry,
    load,
    ring,
    row,
    times,
)

# Two segments of 512^2 pairs, and 512^2 pairs of the dilated one, for 8 heads and 2 sequences,
# 256 FLOPs each, on 1.25 TFLOP/s with the headroom.
FLOOR = 1000 * 256 * 2 * 8 * 3 * 512**2 / 1.25e12


def test_absolute_time_needs_the_card(judge):
    found = judge(TIME, 10.0, [row("dilated-gather", 10.0, machine="cuda-new")])
    assert (found.verdict, found.needs) == (CARD, "Old Card")
    assert f"times the card's floor of {FLOOR:.3g} ms" in found.reason
    on_card = [row("dilated-gather", 10.0, machine="cuda-old")]
    assert judge(TIME, 12.0, on_card).verdict == HOLDS
    assert judge(TIME, 13.0, on_card).verdict == FAILS
    assert judge(TIME, 13.0, on_card).measured["value"] == 10.0
    unnamed = judge(TIME | {"card": None}, 10.0, on_card)
    assert (unnamed.verdict, unnamed.reason) == (NOT_MEASURED, "the device is not named")
    std = judge(TIME | {"statistic": "std"}, 0.08, on_card)
    assert std.verdict == HOLDS and std.measured["value"] == pytest.approx(0.0821, abs=1e-4)


def test_no_method_takes_less_than_the_floor_but_published_code_may_do_less(judge):
    assert round(FLOOR, 3) == 2.577
    published = judge(TIME, FLOOR - 0.02, side="as_published")
    assert (published.verdict, published.reason) == (CARD, "no record on a Old Card")
    replica = [row("published-head-partition", FLOOR - 0.02, machine="cuda-old")]
    assert judge(TIME, FLOOR - 0.02, replica, side="as_published").verdict == HOLDS
    assert judge(TIME, FLOOR - 0.02).verdict == FAILS
    assert judge(TIME, FLOOR - 0.02).basis == "physics"
    assert judge(TIME, FLOOR + 0.02).verdict == CARD
    # Four projections of 512 x 512 add 2 x 2048 x 4 x 512^2 FLOPs.
    wrapped = FLOOR + 1000 * 2 * 2048 * 4 * 512**2 / 1.25e12
    assert judge(TIME | {"system": "wrap"}, wrapped - 0.02).verdict == FAILS
    assert judge(TIME | {"system": "wrap"}, wrapped + 0.02).verdict == CARD
    # Unstated branches leave the traffic: four tensors of 8 MiB at 125 GB/s.
    at = {"batch": 2, "seq_len": 2000}
    traffic = 1000 * 4 * 2 * 2000 * 512 * 4 / 1.25e11
    assert judge(TIME | {"at": at}, traffic - 0.02).verdict == FAILS
    assert judge(TIME | {"at": at}, traffic + 0.02).verdict == CARD


RATE = {"kind": "throughput", "system": "ring", "at": AT, "card": "old", "resolution": 1}


def test_throughput(judge):
    # 2048 tokens in 10 ms; 4 * 64 * 2 * 8 * 1024^2 FLOPs at 1.25e12 per second.
    ceiling = 2048 * 1.25e12 / (4 * 64 * 2 * 8 * 1024**2)
    above = judge(RATE, round(ceiling) + 2)
    assert (above.verdict, above.basis) == (FAILS, "physics")
    assert judge(RATE, round(ceiling) - 2).verdict == CARD
    assert judge(RATE, round(ceiling) + 2, side="as_published").verdict == CARD
    on_card = [ring(10.0, machine="cuda-old")]
    found = judge(RATE, 204800, on_card)
    assert (found.verdict, found.measured["unit"]) == (HOLDS, "tokens/s")
    assert found.measured["value"] == pytest.approx(204800)
    assert found.measured["low"] < 204800 < found.measured["high"]
    assert judge(RATE, 100000, on_card).verdict == FAILS
    elsewhere = judge(RATE, 204800, [ring(10.0)])
    assert elsewhere.verdict == CARD
    assert elsewhere.reason.startswith("no record on a Old Card")


def test_a_file_with_no_such_card_is_refused(tmp_path):
    with pytest.raises(claims.ClaimsError, match=r"w\.it: predicate\.card"):
        load(tmp_path, data(entry(RATE | {"card": "new"}, 1)))


@pytest.mark.parametrize(
    ("published", "relation", "verdict"),
    [
        (8.333, "equal", HOLDS),
        (8.337, "equal", HOLDS),  # 1000 / 119.95 rounds to it
        (8.35, "equal", FAILS),
        (9.0, "equal", FAILS),
        (9.0, "at_least", HOLDS),
        (9.0, "at_most", FAILS),
        (8.0, "at_most", HOLDS),
        (8.0, "at_least", FAILS),
    ],
)
def test_arithmetic(judge, published, relation, verdict):
    time = [entry(TIME | {"resolution": 0.1}, 120.0, "t")]
    predicate = {
        "kind": "arithmetic",
        "relation": relation,
        "right": "1000 * scale / t",
        "names": {"t": "w.t", "scale": 1},
        "resolution": 0.001,
    }
    found = judge(predicate, published, (), time)
    assert (found.verdict, found.basis) == (verdict, "arithmetic")


def test_support(judge):
    runs = {"kind": "support", "system": "fast", "expect": "runs"}
    fails = {"kind": "support", "system": "fast", "expect": "fails"}
    ok, failed = row("dilated-sdpa"), row("dilated-sdpa", seq_len=2048, status="failed")
    oom = row("dilated-sdpa", seq_len=4096, status="oom")
    for rows, run, fail in [
        ([ok], HOLDS, FAILS),
        ([ok, oom], HOLDS, FAILS),
        ([ok, failed], UNDECIDED, FAILS),
        ([failed], FAILS, HOLDS),
        ([oom], NOT_MEASURED, NOT_MEASURED),
        ([], NOT_MEASURED, NOT_MEASURED),
    ]:
        assert judge(runs, None, rows).verdict == run, rows
        assert judge(fails, None, rows).verdict == fail, rows
    beyond = fails | {"at": {"min_seq_len": 2048}}
    assert judge(beyond, None, [ok]).verdict == NOT_MEASURED
    assert judge(beyond, None, [row("dilated-sdpa", seq_len=2048)]).verdict == FAILS


def test_support_at_every_one_of_several_shapes(judge):
    shapes = [{"batch": 2, "seq_len": n} for n in (1024, 2048)]
    runs = {"kind": "support", "system": "fast", "expect": "runs", "shapes": shapes}
    first, second = (row("dilated-sdpa", seq_len=n) for n in (1024, 2048))
    found = judge(runs, None, [first, second])
    assert (found.verdict, found.reason) == (HOLDS, "it ran at all 2 shapes")
    assert len(found.evidence) == 2
    found = judge(runs, None, [first])
    assert found.verdict == NOT_MEASURED
    assert found.reason.startswith(
        "at 1 of 2 shapes: missing: dilated-sdpa at float32, batch 2, 2048"
    )
    lost = row("dilated-sdpa", seq_len=2048, status="failed")
    found = judge(runs, None, [first, lost])
    assert (found.verdict, found.reason) == (FAILS, "at 1 of 2 shapes: 1 failed; on cpu-1 (cpu)")
    # Failing comes before what is missing.
    assert judge(runs, None, [lost]).verdict == FAILS


def test_more_ranks_than_devices_is_not_failing(judge):
    cores = len(os.sched_getaffinity(0)) + 1
    with pytest.raises(UnsupportedBackend) as error:
        workload._check_room(cores, torch.device("cpu"))
    short = ring(status="unsupported", world_size=float(cores)) | {"reason": str(error.value)}
    other = short | {"reason": "flash-attn-2: no such package"}
    over = {"kind": "support", "system": "ring", "expect": "runs", "at": {"min_world_size": 2}}
    found = judge(over, None, [ring(world_size=2.0), short])
    assert found.verdict == HOLDS
    assert found.reason.startswith("1 ok, 1 short of devices")
    assert judge(over, None, [ring(world_size=2.0), other]).verdict == UNDECIDED
    assert judge(over, None, [short]).verdict in WAITS
    assert judge(over, None, [other]).verdict == FAILS


def test_support_contradicted_by_a_published_time(judge):
    fails = {"kind": "support", "system": "core", "expect": "fails", "contradicted_by": ["w.t"]}
    own = [entry(TIME, 10.0, "t")]
    found = judge(fails, None, (), own, side="as_published")
    assert (found.verdict, found.basis) == (FAILS, "arithmetic")
    assert judge(fails, None, (), own).verdict in WAITS
    other = judge(fails | {"at": {"dtype": "float16"}}, None, (), own, side="as_published")
    assert other.verdict in WAITS


def test_a_restatement_has_the_verdicts_of_the_figure_and_agrees_with_it_or_not(judge):
    original = [entry(SPEEDUP | {"resolution": 0.01}, 2.04, "s")]
    again = {"kind": "restates", "of": "w.s", "resolution": 0.1}
    assert judge(again, 2.0, times(20, 10), original).verdict == HOLDS
    assert judge(again, 2.0, times(10, 20), original).verdict == FAILS
    assert judge(again, 2.0, (), original).verdict in WAITS
    for figure, verdict in ((2.0, HOLDS), (2.2, FAILS)):
        found = judge(again, figure, times(20, 10), original, side="consistency")
        assert (found.verdict, found.basis) == (verdict, "arithmetic")
        assert found.reason == "w.s has 2.04"


def test_context_has_no_verdict_and_published_code_one(tmp_path):
    content = data(
        entry({"kind": "context", "reason": "advice"}, None, "a"),
        entry({"kind": "about_code"}, None, "b")
        | {"history": {"verdict": HOLDS, "reason": "it is"}},
        entry({"kind": "about_code"}, None, "c"),
    )
    context, known, unknown = claims.evaluate(load(tmp_path, content), EMPTY)
    assert (context.as_published, context.method, context.consistency) == (None, None, None)
    assert (context.sort, context.note) == ("context", "advice")
    assert (known.as_published.verdict, known.as_published.basis) == (HOLDS, "public history")
    assert known.method is None
    assert (unknown.as_published.verdict, unknown.as_published.needs) == (NOT_MEASURED, "a replica")


def test_machines_that_differ_at_one_shape_differ_over_all(judge):
    runs = {"kind": "support", "system": "fast", "expect": "runs"}
    runs |= {"shapes": [{"batch": 2, "seq_len": n} for n in (1024, 2048)]}
    rows = [row("dilated-sdpa"), row("dilated-sdpa", seq_len=2048)]
    lost = row("dilated-sdpa", seq_len=2048, machine="cuda-new", status="failed")
    found = judge(runs, None, [*rows, lost])
    assert found.verdict == DIFFERS
    assert found.reason.startswith("at 1 of 2 shapes: ")
    fails = [one | {"status": "failed"} for one in rows]
    found = judge(runs | {"expect": "fails"}, None, fails)
    assert (found.verdict, found.reason) == (HOLDS, "it failed at all 2 shapes")
