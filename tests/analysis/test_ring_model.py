"""The cost model: break-even shards, work that adds up, and what waits for what."""

import dataclasses

import pandas as pd
import pytest

from analysis.experiments.ring import cost_model
from analysis.experiments.ring.cost_model import INFINIBAND, LONGNET, NOMINAL, NVLINK, SYSTEMS, Hop

GROUPED = dataclasses.replace(NOMINAL, kv_heads=2)
RANKS = [2**power for power in range(13)]


@pytest.mark.parametrize(
    ("shape", "link", "density", "expected"),
    [
        (NOMINAL, NVLINK, 1.0, 1852),
        (GROUPED, NVLINK, 1.0, 463),
        (NOMINAL, INFINIBAND, 1.0, 10_000),
        (GROUPED, INFINIBAND, 1.0, 2_500),
        (NOMINAL, NVLINK, 0.02, 92_593),
    ],
)
def test_break_even_shards(shape, link, density, expected):
    assert cost_model.break_even(shape, link, density) == pytest.approx(expected, abs=0.5)


def test_the_break_even_shard_is_where_a_pass_begins_to_wait():
    link = dataclasses.replace(NVLINK, latency=0.0)
    shard = cost_model.break_even(NOMINAL, link)
    for factor, waits in ((1.001, False), (0.999, True)):
        cost = cost_model.cost(cost_model.dense(8 * factor * shard, 8), NOMINAL, link)
        assert (cost.waiting > 1e-12) == waits


def test_a_hop_costs_the_longer_of_compute_and_transfer():
    shape = dataclasses.replace(NOMINAL, heads=1, kv_heads=1, head_dim=1, rate=4.0)  # a pair a s
    link = cost_model.Link("wire", bandwidth=4.0, latency=0.5, source="none")  # a token a s
    hops = [Hop(3, 0), Hop(3, 1), Hop(3, 5)]
    cost = cost_model.cost(hops, shape, link)
    assert (cost.compute, cost.transfer) == (9, 2 + 6)
    assert cost.total == 3 + 6 + 3  # the last keys take 5 + 1 s and hide 3 s of compute
    assert cost.waiting == pytest.approx(3 / 12)


def test_the_ranks_share_the_work_and_dense_and_spread_rings_send_every_key():
    n = 2**20
    for ranks in (1, 8, 64):
        hops = cost_model.dense(n, ranks)
        assert sum(hop.pairs for hop in hops) == pytest.approx(n**2 / ranks)
        assert sum(hop.tokens for hop in hops) == n - n / ranks
        spread = cost_model.spread_blocks(n, ranks, 0.05)
        assert sum(hop.pairs for hop in spread) == pytest.approx(0.05 * n**2 / ranks)
        assert [hop.tokens for hop in spread] == [hop.tokens for hop in hops]


@pytest.mark.parametrize("ranks", [1, 2, 8, 512, 4096])
def test_a_window_receives_the_keys_in_reach_alone(ranks):
    n, density = 2**20, 0.02
    hops = cost_model.window_blocks(n, ranks, density)
    assert sum(hop.pairs for hop in hops) == pytest.approx(density * n**2 / ranks)
    sides = min(2, ranks - 1)
    assert sum(hop.tokens for hop in hops) == pytest.approx(sides * density * n / 2, rel=1e-9)
    assert all(hop.tokens <= n / ranks for hop in hops)


def test_dilated_segments_within_a_shard_need_nothing():
    n = 2**20
    pairs = sum(w / r**2 for w, r in LONGNET)
    assert pairs == pytest.approx(4266.7, abs=0.1)
    inside = cost_model.dilated(n, 32)  # shards as long as the longest segment
    assert inside == [Hop(pytest.approx(n / 32 * pairs), 0.0)]
    hops = cost_model.dilated(n, 64)
    assert sum(hop.pairs for hop in hops) == pytest.approx(n / 64 * pairs)
    # Segments of 32768 alone reach over two shards of 16384; a head keeps one key in twelve.
    assert [hop.tokens for hop in hops] == [0.0, pytest.approx(16384 / 12)]
    # What a rank receives does not grow with the sequence.
    longer = cost_model.dilated(4 * n, 256)
    assert [hop.tokens for hop in longer] == pytest.approx([hop.tokens for hop in hops])


def test_modelled_gains_stay_below_the_number_of_ranks():
    for link in cost_model.LINKS:
        for system in SYSTEMS:
            costs = [cost_model.cost(system.hops(2**20, p), NOMINAL, link) for p in RANKS]
            for ranks, cost in zip(RANKS, costs, strict=True):
                assert costs[0].total / cost.total <= ranks * (1 + 1e-9)
                assert 0 <= cost.waiting < 1


def test_sending_only_needed_keys_is_never_slower():
    needed = {s.name: s for s in SYSTEMS}
    for percent in (95, 98):
        pair = [needed[f"sparse {percent} %, {words} keys"] for words in ("all", "needed")]
        for ranks in (8, 64, 512, 4096):
            costs = [cost_model.cost(s.hops(2**20, ranks), NOMINAL, INFINIBAND).total for s in pair]
            assert costs[1] <= costs[0]


def test_the_rate_is_that_of_a_gpu_where_one_was_measured(laptop, both):
    of_ring = both[both["experiment"] == "ring"]
    assert cost_model.shape_on(laptop[laptop["experiment"] == "ring"]) == NOMINAL
    assert cost_model.shape_on(pd.DataFrame(of_ring.iloc[:0])) == NOMINAL
    shape = cost_model.shape_on(of_ring)
    assert not shape.nominal
    dense = of_ring[(of_ring["variant"] == "dense") & (of_ring["dtype"] == "float16")]
    dense = dense[(dense["pass"] == "forward") & (dense["status"] == "ok")]
    row = dense.sort_values("seq_len").iloc[-1]
    assert shape.rate == pytest.approx(1000 * row["useful_flops"] / row["median_ms"])


def test_every_constant_has_a_source_and_says_what_is_assumed():
    assert all("assumed" in link.source for link in cost_model.LINKS)
