"""Predicates on single numbers, each to each verdict on known numbers."""

import os

import pytest
import torch

from analysis import claims
from analysis.claims import NOT_REPRODUCED, NOT_TESTABLE, REFUTED, REPRODUCED
from experiments import workload
from models.errors import UnsupportedBackend
from tests.analysis.claims_cases import AT, SPEEDUP, TIME, data, entry, load, ring, row, times

# Two segments of 512^2 pairs, and 512^2 pairs of the dilated one, for 8 heads and 2 sequences,
# 256 FLOPs each, on 1.25 TFLOP/s with the headroom.
FLOOR = 1000 * 256 * 2 * 8 * 3 * 512**2 / 1.25e12


def test_absolute_time_needs_the_card(judge):
    found = judge(TIME, 10.0, [row("dilated-gather", 10.0, machine="cuda-new")])
    assert found.verdict == NOT_TESTABLE
    assert f"times the card's floor of {FLOOR:.3g} ms" in found.reason
    on_card = [row("dilated-gather", 10.0, machine="cuda-old")]
    assert judge(TIME, 12.0, on_card).verdict == REPRODUCED
    assert judge(TIME, 13.0, on_card).verdict == NOT_REPRODUCED
    assert judge(TIME, 13.0, on_card).measured["value"] == 10.0
    assert judge(TIME | {"card": None}, 10.0, on_card).reason == "the device is not named"
    std = judge(TIME | {"statistic": "std"}, 0.08, on_card)
    assert std.verdict == REPRODUCED and std.measured["value"] == pytest.approx(0.0821, abs=1e-4)


def test_absolute_time_below_the_floor_is_refuted(judge):
    assert round(FLOOR, 3) == 2.577
    assert judge(TIME, FLOOR - 0.02).verdict == REFUTED
    assert judge(TIME, FLOOR - 0.02).basis == "physics"
    assert judge(TIME, FLOOR + 0.02).verdict == NOT_TESTABLE
    # Four projections of 512 x 512 add 2 x 2048 x 4 x 512^2 FLOPs.
    wrapped = FLOOR + 1000 * 2 * 2048 * 4 * 512**2 / 1.25e12
    assert judge(TIME | {"system": "wrap"}, wrapped - 0.02).verdict == REFUTED
    assert judge(TIME | {"system": "wrap"}, wrapped + 0.02).verdict == NOT_TESTABLE
    # Unstated branches leave the traffic: four tensors of 8 MiB at 125 GB/s.
    at = {"batch": 2, "seq_len": 2000}
    traffic = 1000 * 4 * 2 * 2000 * 512 * 4 / 1.25e11
    assert judge(TIME | {"at": at}, traffic - 0.02).verdict == REFUTED
    assert judge(TIME | {"at": at}, traffic + 0.02).verdict == NOT_TESTABLE


RATE = {"kind": "throughput", "system": "ring", "at": AT, "card": "old", "resolution": 1}


def test_throughput(judge):
    # 2048 tokens in 10 ms; 4 * 64 * 2 * 8 * 1024^2 FLOPs at 1.25e12 per second.
    ceiling = 2048 * 1.25e12 / (4 * 64 * 2 * 8 * 1024**2)
    above = judge(RATE, round(ceiling) + 2)
    assert (above.verdict, above.basis) == (REFUTED, "physics")
    assert judge(RATE, round(ceiling) - 2).verdict == NOT_TESTABLE
    on_card = [ring(10.0, machine="cuda-old")]
    found = judge(RATE, 204800, on_card)
    assert (found.verdict, found.measured["unit"]) == (REPRODUCED, "tokens/s")
    assert found.measured["value"] == pytest.approx(204800)
    assert found.measured["low"] < 204800 < found.measured["high"]
    assert judge(RATE, 100000, on_card).verdict == NOT_REPRODUCED
    elsewhere = judge(RATE, 204800, [ring(10.0)])
    assert elsewhere.verdict == NOT_TESTABLE
    assert elsewhere.reason.startswith("no record on a Old Card")


def test_a_file_with_no_such_card_is_refused(tmp_path):
    with pytest.raises(claims.ClaimsError, match=r"w\.it: predicate\.card"):
        load(tmp_path, data(entry(RATE | {"card": "new"}, 1)))


@pytest.mark.parametrize(
    ("published", "relation", "verdict"),
    [
        (8.333, "equal", REPRODUCED),
        (8.337, "equal", REPRODUCED),  # 1000 / 119.95 rounds to it
        (8.35, "equal", NOT_REPRODUCED),
        (9.0, "equal", REFUTED),
        (9.0, "at_least", REPRODUCED),
        (9.0, "at_most", REFUTED),
        (8.0, "at_most", REPRODUCED),
        (8.0, "at_least", REFUTED),
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
        ([ok], REPRODUCED, REFUTED),
        ([ok, oom], REPRODUCED, REFUTED),
        ([ok, failed], NOT_REPRODUCED, REFUTED),
        ([failed], REFUTED, REPRODUCED),
        ([oom], NOT_TESTABLE, NOT_TESTABLE),
        ([], NOT_TESTABLE, NOT_TESTABLE),
    ]:
        assert judge(runs, None, rows).verdict == run, rows
        assert judge(fails, None, rows).verdict == fail, rows
    beyond = fails | {"at": {"min_seq_len": 2048}}
    assert judge(beyond, None, [ok]).verdict == NOT_TESTABLE
    assert judge(beyond, None, [row("dilated-sdpa", seq_len=2048)]).verdict == REFUTED


def test_more_ranks_than_devices_is_not_failing(judge):
    cores = len(os.sched_getaffinity(0)) + 1
    with pytest.raises(UnsupportedBackend) as error:
        workload._check_room(cores, torch.device("cpu"))
    short = ring(status="unsupported", world_size=float(cores)) | {"reason": str(error.value)}
    other = short | {"reason": "flash-attn-2: no such package"}
    over = {"kind": "support", "system": "ring", "expect": "runs", "at": {"min_world_size": 2}}
    found = judge(over, None, [ring(world_size=2.0), short])
    assert found.verdict == REPRODUCED
    assert found.reason.startswith("1 ok, 1 short of devices")
    assert judge(over, None, [ring(world_size=2.0), other]).verdict == NOT_REPRODUCED
    assert judge(over, None, [short]).verdict == NOT_TESTABLE
    assert judge(over, None, [other]).verdict == REFUTED


def test_support_contradicted_by_a_published_time(judge):
    fails = {"kind": "support", "system": "core", "expect": "fails", "contradicted_by": ["w.t"]}
    own = [entry(TIME, 10.0, "t")]
    assert judge(fails, None, (), own).basis == "arithmetic"
    assert judge(fails | {"at": {"dtype": "float16"}}, None, (), own).verdict == NOT_TESTABLE


def test_restates_and_not_measurable(judge):
    original = [entry(SPEEDUP | {"resolution": 0.01}, 2.04, "s")]
    again = {"kind": "restates", "of": "w.s", "resolution": 0.1}
    assert judge(again, 2.0, times(20, 10), original).verdict == REPRODUCED
    assert judge(again, 2.0, times(10, 20), original).verdict == REFUTED
    assert judge(again, 2.2, times(20, 10), original).basis == "arithmetic"
    assert judge(again, 2.0, (), original).verdict == NOT_TESTABLE
    found = judge({"kind": "not_measurable", "reason": "advice"})
    assert (found.verdict, found.basis, found.reason) == (NOT_TESTABLE, "none", "advice")
