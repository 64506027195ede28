"""Which records a claim is judged by, and the least time of its work."""

import shlex

import pytest

from analysis.claims import CARD, DIFFERS, FAILS, HOLDS, NOT_MEASURED, UNDECIDED
from experiments import __main__ as experiments
from tests.analysis.claims_cases import (
    AT,
    HALF,
    SPEEDUP,
    TIME,
    dense,
    noisy,
    ring,
    row,
    sparse,
    times,
)


def test_speedup_without_records_names_the_missing_shape(judge):
    found = judge(SPEEDUP, 2.0, [row("dilated-gather"), row("dilated-sdpa", status="oom")])
    assert (found.verdict, found.measured, found.evidence) == (NOT_MEASURED, None, [])
    # What is recorded is not missing.
    assert found.reason == (
        "missing: dilated-sdpa at float32, batch 2, 1024 tokens (oom); "
        "no experiment of ours has that case"
    )
    alone = judge(SPEEDUP, 2.0, [row("dilated-sdpa", status="oom")])
    assert (
        "; dilated-gather at float32, batch 2, 1024 tokens; no experiment of ours" in alone.reason
    )
    assert (found.needs, found.command, found.stand_in) == ("a case", None, "")


SPARSE = {"kind": "speedup", "system": "tenth", "against": "base"}
WRITTEN = {"kind": "speedup", "system": "written", "against": "base"}
PUBLISHED = {"kind": "speedup", "system": "ring", "against": "written"}


@pytest.mark.parametrize(
    ("predicate", "side", "verdict", "needs"),
    [
        (SPARSE | {"at": {"batch": 1, "seq_len": 1024}}, "method", NOT_MEASURED, "a run"),
        # Batch 2 is planned as its stand-in, batch 1.
        (SPARSE | {"at": AT}, "method", NOT_MEASURED, "a run"),
        (WRITTEN | {"at": {"batch": 1, "seq_len": 4096}}, "method", NOT_MEASURED, "a run"),
        (WRITTEN | {"at": {"batch": 1, "seq_len": 16384}}, "method", CARD, "any CUDA device"),
        (SPARSE | {"at": {"batch": 1, "seq_len": 1000}}, "method", NOT_MEASURED, "a case"),
        # At the shape `half` is in no grid, and `base` in one: both are needed.
        (HALF, "method", NOT_MEASURED, "a case"),
        (PUBLISHED | {"at": {"batch": 2, "seq_len": 512}}, "as_published", NOT_MEASURED, "a run"),
        (SPARSE | {"at": AT}, "as_published", NOT_MEASURED, "a replica"),
        (TIME, "method", CARD, "Old Card"),
    ],
)
def test_what_would_decide_a_claim_without_records(judge, predicate, side, verdict, needs):
    found = judge(predicate, 10.0, (), side=side)
    assert (found.verdict, found.basis, found.needs) == (verdict, "none", needs)
    assert (found.evidence, found.measured, found.stand_in) == ([], None, "")
    if needs not in ("a run", "any CUDA device"):
        assert found.command is None
        return
    program, *arguments = shlex.split(found.command.removeprefix("python -m "))
    assert program == "experiments"
    options = experiments._parser().parse_args(arguments)
    assert options.tier == ("laptop" if needs == "a run" else "gpu")
    _, tasks = experiments._selected(options, "cpu" if needs == "a run" else "cuda")
    variant = {"tenth": "block-sparse", "written": "dense-eager", "ring": "published-dense-ring"}
    assert {(task.case.variant, task.case.seq_len) for task in tasks} == {
        (variant[predicate["system"]], predicate["at"]["seq_len"])
    }


def test_machines_that_oppose_each_other_differ_with_the_finding_of_each(judge):
    found = judge(SPEEDUP, 2.0, times(20, 10) + times(10, 20, machine="cuda-new"))
    assert (found.verdict, found.basis) == (DIFFERS, "records")
    assert found.reason == (
        "cuda-new (cuda): does not hold (0.5 [0.4998, 0.5002] times as fast, the opposite "
        "direction); cpu-1 (cpu): holds (2 [1.999, 2.001] times as fast)"
    )
    assert found.stand_in == "on New Card and on a CPU"
    assert found.measured["value"] == pytest.approx(0.5)  # of the preferred machine
    assert [e["machine"] for e in found.evidence] == ["cuda-new"] * 2 + ["cpu-1"] * 2


def test_a_cuda_machine_is_preferred_where_machines_agree(judge):
    found = judge(SPEEDUP, 2.0, times(20, 10) + times(22, 10, machine="cuda-new"))
    assert (found.verdict, found.stand_in) == (HOLDS, "on New Card")
    assert found.reason == "2.2 [2.199, 2.201] times as fast; on cuda-new (cuda)"
    assert [e["machine"] for e in found.evidence] == ["cuda-new"] * 2


def test_a_machine_that_leaves_it_open_opposes_none(judge):
    open_ = noisy(times(10, 20, machine="cuda-new"))
    assert judge(SPEEDUP, 2.0, open_).verdict == UNDECIDED
    found = judge(SPEEDUP, 2.0, times(20, 10) + open_)
    assert (found.verdict, found.stand_in) == (HOLDS, "on a CPU")
    assert [e["machine"] for e in found.evidence] == ["cpu-1"] * 2


def test_a_stand_in_shape_and_the_device_are_part_of_the_verdict(judge):
    found = judge(SPEEDUP, 2.0, times(20, 10, batch=1))
    assert (found.verdict, found.stand_in) == (HOLDS, "batch 1, on a CPU")
    assert judge(SPEEDUP, 2.0, times(20, 10)).stand_in == "on a CPU"
    assert judge(SPEEDUP, 2.0, times(20, 10, machine="cuda-old")).stand_in == ""
    # The published shape decides where it is there.
    both = times(20, 10, batch=1) + times(10, 20)
    assert judge(SPEEDUP, 2.0, both).verdict == FAILS


@pytest.mark.parametrize(
    "where", [{"predicate": SPEEDUP | {"card": "old"}}, {"predicate": SPEEDUP, "scope": "old"}]
)
def test_of_a_named_card_no_other_device_and_no_stand_in_decides(judge, where):
    for rows in (times(20, 10), times(20, 10, batch=1, machine="cuda-old")):
        found = judge(published=2.0, rows=rows, **where)
        assert (found.verdict, found.needs) == (CARD, "Old Card")
        assert (found.reason, found.evidence) == ("no record on a Old Card", [])
    on_card = times(20, 10, machine="cuda-old") + times(10, 20)
    assert judge(published=2.0, rows=on_card, **where).verdict == HOLDS


def test_superseded_code_judges_nothing(judge):
    before = times(10, 20, code_digest="before", started_at="2025-12-31", machine="cuda-new")
    assert judge(SPEEDUP, 2.0, before).verdict == FAILS
    found = judge(SPEEDUP, 2.0, before + times(20, 10))
    assert (found.verdict, found.stand_in) == (HOLDS, "on a CPU")
    # Also where what superseded it was measured at another shape.
    found = judge(SPEEDUP, 2.0, before + times(20, 10, seq_len=2048))
    assert (found.verdict, found.evidence) == (NOT_MEASURED, [])
    # Of each system by itself: the code of one says nothing of that of another.
    kept = [times(20, 10, code_digest="before", started_at="2025-12-31")[0], times(20, 10)[1]]
    assert judge(SPEEDUP, 2.0, kept).verdict == HOLDS


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


def test_dense_attention_is_the_same_in_every_experiment_and_a_replica_in_its_own(judge):
    elsewhere = [dense(20, experiment="another"), sparse(0.5, 10)]
    assert judge(HALF, 2.0, elsewhere).verdict == HOLDS
    replicas = [row("published-head-partition", 20), row("published-over-heads", 10)]
    assert judge(SPEEDUP, 2.0, replicas, side="as_published").verdict == HOLDS
    moved = [one | {"experiment": "exp"} for one in replicas]
    assert judge(SPEEDUP, 2.0, moved, side="as_published").verdict == NOT_MEASURED


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
    assert judge(time, floor + 0.02).verdict == CARD
    # 0.9 of 16 blocks leaves 1.6, so two.
    assert f"floor of {floor / 4:.3g} ms" in judge(TIME | {"system": "tenth"}, 10.0).reason


def test_what_is_possible_is_shown_by_one_machine_and_refuted_by_no_record(judge):
    seen, unseen = times(20, 10), times(10, 20, machine="cuda-new")
    found = judge(SPEEDUP, 2.0, unseen, strength="may")
    assert found.verdict == UNDECIDED
    assert found.reason.startswith("said to be possible only, and not seen here: ")
    found = judge(SPEEDUP, 2.0, seen + unseen, strength="may")
    assert found.verdict == HOLDS
    assert found.reason.startswith("said to be possible, and seen: ")
    # What physics rules out is not possible either.
    assert judge(TIME, 0.001, strength="may").verdict == FAILS


def test_a_device_that_may_not_contradict_is_told_beside_the_one_that_agrees(judge):
    loss = SPEEDUP
    found = judge(loss, 0.5, times(10, 20) + times(20, 10, machine="cuda-new"))
    assert (found.verdict, found.measured["value"]) == (HOLDS, pytest.approx(0.5))
    assert f"; cuda-new (cuda): {CARD} (2 " in found.reason
    assert {e["machine"] for e in found.evidence} == {"cpu-1", "cuda-new"}


def test_a_record_that_serves_twice_is_evidence_once(judge):
    written = {"kind": "speedup", "system": "half", "against": "written", "at": AT}
    rows = [row("dense-eager", 20, segment_lengths=None, dilation_rates=None), dense(15)]
    found = judge(written, 2.0, [*rows, sparse(0.5, 10)])
    paths = [e["path"] for e in found.evidence]
    assert found.beside is not None and len(paths) == len(set(paths)) == 3
