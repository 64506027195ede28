"""Predicate kinds on rings: ranks, rates, systems that may be one, and what is only counted."""

import os

import pytest
import torch

from analysis import claims
from analysis.claims import NOT_REPRODUCED, NOT_TESTABLE, REFUTED, REPRODUCED
from experiments import workload
from models.errors import UnsupportedBackend
from tests.analysis.claims_cases import AT, MIB, data, entry, load, row

ONE = {"world_size": 1.0, "simulated": False}
NONE = {"segment_lengths": None, "dilation_rates": None}


def ring(ms=10.0, variant="ring-standard", **case):
    return row(variant, ms, **(NONE | ONE | case))


def dense(ms=10.0, **case):
    return row("dense", ms, **(NONE | case))


# --- Which records speak -----------------------------------------------------------------------

FASTER = {"kind": "speedup", "system": "ring", "against": "base", "at": AT | {"world_size": 1}}


def test_ranks_are_compared_only_where_a_system_has_some(judge):
    assert judge(FASTER, 2.0, [dense(20), ring(10)]).verdict == REPRODUCED
    found = judge(FASTER, 2.0, [dense(20), ring(10, world_size=2.0)])
    assert found.verdict == NOT_TESTABLE
    assert "ring-standard at float32, batch 2, 1024 tokens, 1 rank" in found.reason
    two = FASTER | {"at": AT | {"world_size": 2, "simulated": True}}
    rows = [dense(20), ring(10, world_size=2.0), ring(5, world_size=2.0, simulated=True)]
    assert judge(two, 4.0, rows).measured["value"] == pytest.approx(4)
    assert "2 ranks, virtual ranks" in judge(two, 4.0, rows).predicate


def test_null_is_any_value(judge):
    anything = {"kind": "support", "system": "ring", "expect": "runs"}
    rows = [ring(dtype="float16", is_causal=True, world_size=2.0)]
    assert judge(anything, None, rows).verdict == NOT_TESTABLE
    at = {"dtype": None, "is_causal": None, "min_world_size": 2}
    assert judge(anything | {"at": at}, None, rows).verdict == REPRODUCED
    assert judge(anything | {"at": at | {"min_world_size": 3}}, None, rows).verdict == NOT_TESTABLE
    assert judge(anything | {"at": at}, None, [ring(), dense()]).verdict == NOT_TESTABLE
    assert "2 ranks or more" in judge(anything | {"at": at}, None, rows).predicate


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


# --- Over ranks --------------------------------------------------------------------------------

RANKS = {
    "kind": "rank_memory",
    "system": "ring",
    "at": {"batch": 1},
    "lengths": [8192, 4096],
    "world_sizes": [2, 4, 8, 16],
}


def spread(power, fixed=0.0, simulated=True, seq_len=4096, ranks=(2, 4, 8, 16)):
    """A rank's memory beyond its inputs, so that with them it grows as (n / P)^power."""
    tensor = seq_len * 512 * 4
    for p in ranks:
        whole = 8 * tensor * (1 / p) ** power + fixed
        case = {"batch": 1, "seq_len": seq_len, "world_size": float(p), "simulated": simulated}
        yield ring(memory=whole - 3 * tensor / p, **case)


@pytest.mark.parametrize(
    ("power", "verdict"),
    [(1.0, REPRODUCED), (0.8, REPRODUCED), (0.7, NOT_REPRODUCED), (0.4, REFUTED)],
)
def test_memory_of_a_rank_is_its_share(judge, power, verdict):
    found = judge(RANKS, None, spread(power))
    assert (found.verdict, found.basis) == (verdict, "records")
    assert found.measured["value"] == pytest.approx(power)
    assert f"16 virtual ranks at 4096 tokens, as (n/P)^{power:.2f}" in found.reason


def test_what_no_rank_gets_rid_of_counts_against_it(judge):
    assert judge(RANKS, None, spread(1.0, fixed=64 * MIB)).verdict == REFUTED
    assert judge(RANKS, None, spread(1.0, ranks=(2, 4))).verdict == NOT_TESTABLE
    # Real ranks speak before virtual ones, and the first length that has enough of them.
    rows = [*spread(1.0), *spread(0.4, simulated=False)]
    assert judge(RANKS, None, rows).verdict == REFUTED
    found = judge(RANKS, None, [*rows, *spread(1.0, seq_len=8192)])
    assert found.verdict == REPRODUCED
    assert "8192 tokens" in found.reason
    assert judge(RANKS).verdict == NOT_TESTABLE
    assert "missing: ring-standard over three of 2, 4, 8, 16 ranks" in judge(RANKS).reason


# --- Rates and memory a token ------------------------------------------------------------------

RATE = {"kind": "throughput", "system": "ring", "at": AT, "card": "old", "resolution": 1}


def test_throughput(judge):
    # 2048 tokens in 10 ms; 4 * 64 * 2 * 8 * 1024^2 FLOPs at 1.25e12 a second.
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


def test_memory_a_token(judge):
    """Four tensors of 2 KiB a token are the least."""
    per_token = {"kind": "memory_bytes", "system": "ring", "at": AT, "counts": "total"}
    per_token |= {"per_token": True, "resolution": 0.1}
    below = judge(per_token, 7.9)
    assert (below.verdict, below.basis) == (REFUTED, "physics")
    assert "8 KiB/token" in below.reason
    rows = [ring(memory=4 * 1024 * 2048, machine="cuda-new")]
    found = judge(per_token, 10.0, rows)
    assert (found.verdict, found.measured["unit"]) == (REPRODUCED, "KiB/token")
    assert found.measured["value"] == 10.0
    assert judge(per_token, 13.0, rows).verdict == NOT_REPRODUCED


def test_memory_that_grows_at_least_linearly_needs_no_record(judge):
    grows = {"kind": "growth", "system": "ring", "quantity": "memory", "at": {}}
    grows |= {"lengths": [1024, 2048, 4096]}
    found = judge(grows | {"at_least": 1})
    assert (found.verdict, found.basis) == (REPRODUCED, "physics")
    assert judge(grows | {"at_least": 2}).verdict == NOT_TESTABLE


def test_fits_a_published_amount(judge, tmp_path):
    """A tensor has 4 MiB here, so the inputs 12."""
    fits = {"kind": "fits", "system": "ring", "at": AT, "expect": "exceeds"}
    assert judge(fits, 64, [ring(memory=50 * MIB)]).verdict == REFUTED
    assert judge(fits, 60, [ring(memory=50 * MIB)]).verdict == REPRODUCED
    assert (judge(fits, 15).verdict, judge(fits, 15).basis) == (REPRODUCED, "physics")
    with pytest.raises(claims.ClaimsError, match=r"predicate\.card: missing"):
        load(tmp_path, data(entry(fits)))


# --- Several names for one computation ---------------------------------------------------------

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
    for noisy in rows:  # the three processes differ by a factor two
        noisy["samples"] = [
            [ms * factor for ms in one]
            for one, factor in zip(noisy["samples"], (0.5, 1, 2), strict=True)
        ]
    found = judge(DISTINCT, None, rows)
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


# --- Counted, not run --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "seq_len", "share", "verdict"),
    [
        ("base", 1024, 0, REPRODUCED),
        ("base", 1024, 1, REFUTED),
        ("half", 1024, 50, REPRODUCED),
        ("tenth", 1024, 90, REPRODUCED),  # 87.5: a block of 16 is 6.25
        ("tenth", 8192, 87.5, REFUTED),  # and one of 128 is 0.8
        ("tenth", 1024, 10, REFUTED),
    ],
)
def test_share_of_the_pairs_that_is_left_out(judge, system, seq_len, share, verdict):
    found = judge({"kind": "sparsity", "system": system, "at": {"seq_len": seq_len}}, share)
    assert (found.verdict, found.basis) == (verdict, "construction")
    if system == "half":  # 8 of 16 blocks in each of 16 rows, 8 heads
        assert found.reason.startswith(f"{8 * 16 * 8 * 4096:,} of {8 * 1024**2:,} pairs")


@pytest.mark.parametrize(
    ("curve", "width", "verdict"),
    [("hilbert", None, REFUTED), ("hilbert", 64, REPRODUCED), ("snake", 64, REFUTED)],
)
def test_locality(judge, curve, width, verdict):
    order = {"kind": "locality", "curve": curve, "seq_len": 4096, "radius": 4, "block_size": 64}
    found = judge(order | {"width": width})
    assert (found.verdict, found.basis) == (verdict, "construction")
    if curve == "hilbert" and width == 64:  # squares of 8 x 8, fewer at the border
        assert f"meets {(22 / 8) ** 2:.3g} along the curve" in found.reason


def test_a_file_with_no_such_curve_or_card_is_refused(tmp_path):
    order = {"kind": "locality", "curve": "peano", "seq_len": 64, "radius": 4, "block_size": 8}
    with pytest.raises(claims.ClaimsError, match=r"w\.it: predicate\.curve"):
        load(tmp_path, data(entry(order)))
    with pytest.raises(claims.ClaimsError, match=r"w\.it: predicate\.card"):
        load(tmp_path, data(entry(RATE | {"card": "new"}, 1)))
