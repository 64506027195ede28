"""Ranks in the frame: systems by number of ranks, what was sent, who waited; old records."""

import json
import math

import pytest

from analysis.experiments.ring import views as ring_views
from analysis.records import frame as records
from analysis.records import systems
from analysis.selection import published
from tests.analysis import synthetic, synthetic_ranks


@pytest.fixture(scope="module")
def ring(laptop):
    return records.of_experiment(laptop, "ring")


def _one(frame, system, n, **same):
    rows = frame[(frame["system"] == system) & (frame["seq_len"] == n)]
    for column, value in same.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_system_is_a_variant_over_so_many_ranks():
    assert systems.key("ring-standard", None, 1.0, False) == "ring-standard"
    assert systems.key("ring-standard", math.nan, math.nan, None) == "ring-standard"
    assert systems.key("ring-standard", None, 2.0, False) == "ring-standard/p2"
    assert systems.key("ring-standard", None, 16, True) == "ring-standard/p16-simulated"
    assert systems.key("ring-block-sparse", 0.95, 2.0, False) == "ring-block-sparse@95/p2"
    assert systems.parts("ring-block-sparse@95/p4-simulated") == ("ring-block-sparse", 0.95)
    assert systems.on_one_rank("ring-block-sparse@95/p4-simulated") == "ring-block-sparse@95"
    assert systems.ranks("ring-standard/p16-simulated") == (16, True)
    assert systems.ranks("ring-standard/p2") == (2, False)
    assert systems.ranks("dense") == (1, False)


def test_more_ranks_stand_after_fewer_and_real_ones_before_simulated():
    shuffled = [
        "ring-distributed", "ring-standard/p16-simulated", "ring-standard/p2-simulated",
        "ring-standard/p2", "dense", "ring-standard",
    ]  # fmt: skip
    assert systems.ordered(shuffled) == [
        "dense", "ring-standard", "ring-standard/p2", "ring-standard/p2-simulated",
        "ring-standard/p16-simulated", "ring-distributed",
    ]  # fmt: skip


def test_simulated_is_said_wherever_a_system_is_named():
    assert published.name("ring-standard/p2") == "StandardRingAttention (2 ranks)"
    name = published.name("ring-block-sparse@95/p4-simulated")
    assert name == "BlockSparseRingAttention (95 %, 4 simulated ranks)"
    for system in systems.of_experiment("ring"):
        count, simulated = systems.ranks(system)
        assert ("simulated" in published.name(system)) == simulated
        assert f"{count}" in published.name(system) or count == 1


def test_a_row_has_the_ranks_of_every_replicate(ring):
    row = _one(ring, "ring-standard/p2", 8192)
    assert (row["world_size"], row["simulated"]) == (2.0, False)
    assert [(r["replicate"], r["rank"]) for r in row["ranks"]] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    # One hop of 4096 keys and values, 8 heads of 64 in float32.
    assert row["bytes_sent"] == 2 * 4096 * 8 * 64 * 4
    assert row["messages_sent"] == 2
    assert math.isnan(row["measured_rank"])


def test_the_slowest_rank_says_what_was_waited(ring):
    row = _one(ring, "ring-standard/p2", 8192)
    assert row["wait_share"] == pytest.approx(synthetic_ranks.WAITING)
    assert row["compute_ms"] + row["wait_ms"] == pytest.approx(row["median_ms"])
    alone = _one(ring, "ring-standard", 8192)
    assert alone["wait_share"] == 0


def test_simulated_ranks_wait_for_nobody(ring):
    row = _one(ring, "ring-distributed/p8-simulated", 16384)
    assert (row["simulated"], row["measured_rank"]) == (True, 7)
    assert math.isnan(row["wait_share"])
    assert row["bytes_sent"] == 7 * 2 * 2048 * 8 * 64 * 4
    assert [r["peak_memory_bytes"] is None for r in row["ranks"][:8]] == [True] * 7 + [False]
    assert ring_views.ranks_in_words(row) == "8, simulated"


def test_what_another_s_ring_sends_is_not_known_and_not_zero(ring):
    row = _one(
        ring, "torch-context-parallel-alltoall/p2", 4096, **{"pass": "forward", "is_causal": True}
    )
    assert row["status"] == "ok" and len(row["ranks"]) == 6
    assert math.isnan(row["bytes_sent"]) and math.isnan(row["messages_sent"])
    assert math.isnan(row["wait_share"])


def test_on_a_gpu_the_host_sees_no_waiting(both):
    rows = both[(both["machine"] == synthetic.GPU) & (both["experiment"] == "ring")]
    assert rows["bytes_sent"].notna().any()
    assert rows["wait_share"].isna().all()


def test_without_ranks_every_column_is_empty(laptop, nothing):
    for rows in (laptop[laptop["experiment"] == "dilated"], nothing):
        assert rows["ranks"].isna().all()
        for column in ("bytes_sent", "messages_sent", "wait_share", "compute_ms", "measured_rank"):
            assert rows[column].isna().all()
    assert laptop[laptop["experiment"] == "dilated"]["world_size"].isna().all()


def test_records_older_than_ranks_are_read(laptop_root, tmp_path):
    old = next(p for p in sorted(laptop_root.rglob("dense_*.json")))
    data = json.loads(old.read_text())
    for key in ("world_size", "simulated"):
        del data["case"][key]
    for replicate in data["replicates"]:
        del replicate["ranks"]
    path = synthetic.place(tmp_path, data)
    path.write_text(json.dumps(data))
    row = records.load(path).iloc[0]
    assert math.isnan(row["world_size"]) and row["simulated"] is None and row["ranks"] is None


def test_the_dense_formula_counts_every_hop_and_the_way_home(ring):
    row = _one(ring, "ring-distributed/p2", 4096, **{"pass": "forward_backward"})
    keys_and_values = 2 * 2048 * 8 * 64 * 4
    assert ring_views.dense_bytes(row) == 3 * keys_and_values
    half = row.copy()
    half["dtype"] = "float16"  # gradients go home in float32 all the same
    assert ring_views.dense_bytes(half) == 2 * keys_and_values
    half["world_size"] = 8.0
    half["pass"] = "forward"
    assert ring_views.dense_bytes(half) == 7 * keys_and_values / 2 / 4
    sparse = _one(ring, "ring-block-sparse@95/p2", 16384)
    assert ring_views.sent_share(sparse) == synthetic_ranks.SENT["blocks"]
    assert ring_views.sent_share(_one(ring, "ring-standard", 8192)) is None
