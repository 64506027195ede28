"""Views of `ring`: families over ranks, pairs for scaling, peers, and formulas held against."""

import math

import pytest

from analysis.experiments.ring import views as ring_views
from analysis.records.units import KIB
from analysis.selection import views
from analysis.standard.quantities import Quantity
from tests.analysis import synthetic
from tests.analysis.synthetic_ranks import FIXED_BYTES, GAIN, SENT


@pytest.fixture(scope="module")
def rows(laptop):
    return ring_views.view(laptop).rows


def _pick(rows, **wanted):
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows


def _only(rows, **wanted):
    found = _pick(rows, **wanted)
    assert len(found) == 1
    return found.iloc[0]


def test_a_family_differs_in_length_and_ranks_alone(rows):
    found = ring_views.families(rows)
    assert sum(len(family.rows) for family in found) == rows["world_size"].notna().sum()
    assert [family.simulated for family in found] == sorted(f.simulated for f in found)
    for family in found:
        assert not family.rows.duplicated(["seq_len", "world_size"]).any()
        assert family.rows[ring_views.CASE].drop_duplicates().shape[0] == 1
        assert set(family.rows["simulated"]) == {family.simulated}
    simulated = next(f for f in found if f.simulated and f.variant == ring_views.OURS)
    assert simulated.world_sizes == [2, 4, 8, 16]
    assert simulated.lengths == [2048, 4096, 8192, 16384]
    assert simulated.row(4096, 8)["system"] == "ring-distributed/p8-simulated"
    assert simulated.row(4096, 3) is None


def test_the_memory_of_a_rank_grows_with_the_length_and_falls_with_the_ranks(rows):
    found = ring_views.families(rows)
    family = next(f for f in found if f.simulated and f.variant == ring_views.OURS)
    for fit in (family.memory_over_lengths(16), family.memory_over_ranks(16384)):
        assert fit.exponent.value == pytest.approx(1, abs=0.02)
    real = next(f for f in found if not f.simulated and f.variant == ring_views.OURS)
    assert real.memory_over_ranks(4096) is None  # two numbers of ranks are no growth


def test_a_peak_that_was_not_seen_to_grow_is_no_point_of_a_fit(rows):
    own = _pick(rows, variant=ring_views.OURS, simulated=True)
    unseen = own.assign(peak_memory_bytes=own["peak_memory_bytes"].where(own["world_size"] < 8, 0))
    (family,) = ring_views.families(unseen)
    assert family.memory_over_ranks(4096) is None
    assert family.memory_over_lengths(16) is None
    assert family.memory_over_lengths(2) is not None


def test_strong_scaling_is_against_one_rank_of_the_same_case(rows):
    pairs = ring_views.strong(rows)
    assert len(pairs) == 14
    for row, alone in pairs:
        assert (row["simulated"], row["world_size"]) == (False, 2)
        assert not ring_views.is_peer(row["variant"])
        if alone is None:
            # One causal rank is none of a ring that is not causal.
            assert (row["variant"], row["is_causal"]) == (ring_views.OURS, False)
            continue
        assert alone["world_size"] == 1
        assert all(row[column] == alone[column] for column in (*ring_views.CASE, "seq_len"))
        assert views.ratio(alone, row).value == pytest.approx(2**GAIN)
    assert sum(alone is None for _, alone in pairs) == 1


def test_weak_scaling_is_against_one_rank_of_as_many_tokens(rows):
    pairs = ring_views.weak(rows)
    assert {row["variant"] for row, _ in pairs} == {
        "ring-distributed", "ring-standard", "ring-striped",
    }  # fmt: skip
    for row, alone in pairs:
        assert (row["seq_len"], row["world_size"]) == (8192, 2)
        assert (alone["seq_len"], alone["world_size"]) == (4096, 1)


def test_peers_stand_beside_ours_of_the_same_case(rows):
    pairs = ring_views.peers(rows)
    assert len(pairs) == 11
    for row, ours in pairs:
        assert ring_views.is_peer(row["variant"])
        assert (ours["variant"], ours["simulated"]) == (ring_views.OURS, False)
        assert all(row[column] == ours[column] for column in (*ring_views.CASE, "world_size"))
    without = rows[~((rows["variant"] == ring_views.OURS) & ~rows["is_causal"])]
    lonely = [row for row, ours in ring_views.peers(without) if ours is None]
    assert len(lonely) == 3
    assert not any(row["is_causal"] for row in lonely)


def test_no_ring_is_no_pair(rows):
    for few in (rows[rows["variant"] == "dense"], rows.iloc[:0]):
        for found in (ring_views.families, ring_views.strong, ring_views.weak, ring_views.peers):
            assert found(few) == []


def test_one_device_speaks_as_published(both):
    row = ring_views.single(both, synthetic.CPU, "ring-standard", 2048)
    assert (row["batch"], row["dtype"], row["is_causal"]) == (2, "float32", False)
    assert row["median_ms"] == pytest.approx(0.3 + 12.5 * 4 * 2)
    assert ring_views.single(both, synthetic.CPU, "ring-standard", 3000) is None
    on_gpu = ring_views.single(both, synthetic.GPU, "dense", 2048)
    assert (on_gpu["batch"], on_gpu["dtype"]) == (2, "float16")


def test_memory_a_token_is_of_the_whole_sequence(rows):
    row = _only(rows, variant=ring_views.OURS, simulated=True, seq_len=4096, world_size=4)
    peak = int((4096 * 8 * 64 * 4 * 2 // 4 + FIXED_BYTES) * 1.004)
    assert ring_views.per_token(row) == Quantity(pytest.approx(peak / 4096 / KIB), "KiB")
    two = _only(rows, system="ring-standard", batch=2, seq_len=512)
    assert ring_views.per_token(two).value == pytest.approx(two["peak_memory_bytes"] / 1024 / KIB)
    assert ring_views.per_token(None).value is None
    lost = row.copy()
    lost["peak_memory_bytes"] = math.nan
    assert ring_views.per_token(lost).value is None


def test_the_dense_formula_by_hand(rows, both):
    causal = {"is_causal": True, "simulated": False, "world_size": 2}
    at = {"variant": ring_views.OURS, **causal}
    # One hop of keys and values of 4096 tokens, 8 heads of 64, four bytes.
    row = _only(rows, **at, seq_len=8192)
    assert ring_views.dense_bytes(row) == 2 * 4096 * 8 * 64 * 4 == 16 * 2**20
    # And backward once more, with the gradients of both.
    training = _only(rows, **at, **{"pass": "forward_backward"})
    assert ring_views.dense_bytes(training) == 3 * 8 * 2**20
    # Seven hops of an eighth in two bytes; gradients travel in four.
    gpu = ring_views.view(both, synthetic.GPU).rows
    eight = _pick(gpu, variant=ring_views.OURS, simulated=False, world_size=8, seq_len=131072)
    forward = _only(eight, **{"pass": "forward"})
    assert ring_views.dense_bytes(forward) == 7 * 2 * 16384 * 8 * 64 * 2
    backward = _only(eight, **{"pass": "forward_backward"})
    assert ring_views.dense_bytes(backward) == 7 * 2 * 16384 * 8 * 64 * (2 + 2 + 4)


def test_the_share_of_the_dense_formula_is_of_counted_bytes(rows):
    two = _pick(rows, world_size=2, simulated=False)
    shares = {
        row["variant"]: ring_views.sent_share(row)
        for _, row in two.iterrows()
        if row["pass"] == "forward"
    }
    assert shares["ring-distributed"] == 1
    assert shares["ring-dilated"] == SENT["branches"]
    assert shares["ring-block-sparse-dilated"] == SENT["blocks"]
    assert shares["ring-attention-pytorch"] is None  # nobody counted
    known = _only(rows, variant="ring-striped", world_size=2, seq_len=8192).copy()
    known["bytes_sent"] = 4.0 * 2**20
    assert ring_views.sent_share(known) == pytest.approx(4 / 16)
    alone = _only(rows, variant="ring-striped", world_size=1, seq_len=8192)
    assert ring_views.sent_share(alone) is None


def test_ranks_and_orders_in_words(rows):
    real = _only(rows, variant="ring-striped", world_size=2, seq_len=8192)
    assert ring_views.ranks_in_words(real) == "2"
    own = _pick(rows, variant=ring_views.OURS, simulated=True, world_size=4)
    assert ring_views.ranks_in_words(own.iloc[0]) == "4, simulated"
    assert ring_views.ranks_in_words(_pick(rows, variant="dense").iloc[0]) == "1"
    orders = {v: ring_views.order(v) for v in ("dense", *ring_views.GRID_ORDERS, ring_views.OURS)}
    assert list(orders.values()) == [
        "whole", "contiguous", "snake", "morton", "hilbert", "zigzag",
    ]  # fmt: skip
