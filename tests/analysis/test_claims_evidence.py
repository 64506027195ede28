"""Which records a claim is judged by, and the least time of its work."""

import pytest

from analysis.claims import FAILS, HOLDS, NOT_MEASURED
from tests.analysis.claims_cases import AT, HALF, SPEEDUP, TIME, dense, ring, row, sparse, times


def test_speedup_without_records_names_the_missing_shape(judge):
    found = judge(SPEEDUP, 2.0, [row("dilated-gather"), row("dilated-sdpa", status="oom")])
    assert (found.verdict, found.measured, found.evidence) == (NOT_MEASURED, None, [])
    for part in ("dilated-sdpa at float32, batch 2, 1024 tokens (oom)",):
        assert part in found.reason
    found = judge(SPEEDUP | {"system": "later"}, 2.0, times(20, 10))
    assert "no record of this system yet (Later)" in found.reason


def test_a_cuda_machine_is_preferred_and_disagreement_named(judge):
    rows = times(20, 10) + times(10, 20, machine="cuda-new")
    found = judge(SPEEDUP, 2.0, rows)
    assert found.verdict == FAILS
    assert "on cuda-new (cuda); cpu-1 disagrees: reproduced" in found.reason
    assert [e["machine"] for e in found.evidence] == ["cuda-new"] * 2 + ["cpu-1"] * 2
    assert judge(SPEEDUP, 2.0, times(20, 10) + times(22, 10, machine="cuda-new")).reason.endswith(
        "on cuda-new (cuda)"
    )


def test_stand_in_shape_is_used_for_ratios_and_named(judge):
    found = judge(SPEEDUP, 2.0, times(20, 10, batch=1))
    assert found.verdict == HOLDS
    assert "at batch 1, since the published shape has no record" in found.reason
    assert judge(SPEEDUP | {"card": "old"}, 2.0, times(20, 10)).verdict == NOT_MEASURED
    assert judge(SPEEDUP | {"card": "old"}, 2.0, times(20, 10, machine="cuda-old")).verdict == (
        HOLDS
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
        assert judge(SPEEDUP, 2.0, times(20, 10, **change)).verdict == NOT_MEASURED, change


def test_a_system_is_found_by_its_sparsity_and_the_write_ups_blocks(judge):
    assert judge(HALF, 2.0, [dense(20), sparse(0.5, 10)]).verdict == HOLDS
    for change in ({"sparsity": 0.9}, {"pattern": "random"}, {"block_size": 128}):
        found = judge(HALF, 2.0, [dense(20), sparse(0.5, 10) | change])
        assert found.verdict == NOT_MEASURED, change
        assert "block-sparse at float32, 0.5 sparse, batch 2, 1024 tokens" in found.reason
    other = HALF | {"at": AT | {"pattern": "random"}}
    assert judge(other, 2.0, [dense(20), sparse(0.5, 10, pattern="random")]).verdict == HOLDS
    rows = [dense(20), sparse(0.5, 10), sparse(0.9, 4)]
    order = {"kind": "ordering", "order": ["tenth", "half", "base"], "at": AT}
    assert judge(order, None, rows).verdict == HOLDS


FASTER = {"kind": "speedup", "system": "ring", "against": "base", "at": AT | {"world_size": 1}}


def test_ranks_are_compared_only_where_a_system_has_some(judge):
    assert judge(FASTER, 2.0, [dense(20), ring(10)]).verdict == HOLDS
    found = judge(FASTER, 2.0, [dense(20), ring(10, world_size=2.0)])
    assert found.verdict == NOT_MEASURED
    assert "ring-standard at float32, batch 2, 1024 tokens, 1 rank" in found.reason
    two = FASTER | {"at": AT | {"world_size": 2, "simulated": True}}
    rows = [dense(20), ring(10, world_size=2.0), ring(5, world_size=2.0, simulated=True)]
    assert judge(two, 4.0, rows).measured["value"] == pytest.approx(4)
    assert "2 ranks, virtual ranks" in judge(two, 4.0, rows).predicate


def test_null_is_any_value(judge):
    anything = {"kind": "support", "system": "ring", "expect": "runs"}
    rows = [ring(dtype="float16", is_causal=True, world_size=2.0)]
    assert judge(anything, None, rows).verdict == NOT_MEASURED
    at = {"dtype": None, "is_causal": None, "min_world_size": 2}
    assert judge(anything | {"at": at}, None, rows).verdict == HOLDS
    assert judge(anything | {"at": at | {"min_world_size": 3}}, None, rows).verdict == NOT_MEASURED
    assert judge(anything | {"at": at}, None, [ring(), dense()]).verdict == NOT_MEASURED
    assert "2 ranks or more" in judge(anything | {"at": at}, None, rows).predicate


def test_the_floor_of_a_block_mask_is_that_of_its_pairs(judge):
    # 16 blocks of 64 a side: 8 of them a row are kept at 0.5.
    floor = 1000 * 256 * 2 * 8 * 16 * 8 * 64**2 / 1.25e12
    time = TIME | {"system": "half"}
    assert judge(time, floor - 0.02).verdict == FAILS
    assert judge(time, floor - 0.02).basis == "physics"
    assert judge(time, floor + 0.02).verdict == NOT_MEASURED
    # 0.9 of 16 blocks leaves 1.6, so two.
    assert f"floor of {floor / 4:.3g} ms" in judge(TIME | {"system": "tenth"}, 10.0).reason
