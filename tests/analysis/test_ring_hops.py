"""Hops of the cost model: small rings computed by hand, and sums that every pattern keeps to."""

from dataclasses import replace

import pytest

from analysis.experiments.ring import cost_model
from analysis.experiments.ring.cost_model import (
    INFINIBAND,
    NOMINAL,
    Hop,
    Link,
    Shape,
    break_even,
    cost,
    dense,
    dilated,
    spread_blocks,
    window_blocks,
)

# A pair takes a second, and so does a token of keys and values.
UNIT = Shape(heads=1, kv_heads=1, head_dim=1, itemsize=1, rate=4.0)
FAST = Link("fast", bandwidth=2.0, latency=0.0, source="none")
SLOW = replace(FAST, bandwidth=0.25)  # eight seconds a token
WHOLE = {  # pairs a head of n tokens, of all ranks
    "dense": lambda n: n**2,
    "dilated": lambda n: sum(n * min(w, n) / r**2 for w, r in cost_model.LONGNET),
    "sparse 95 %": lambda n: 0.05 * n**2,
    "sparse 98 %": lambda n: 0.02 * n**2,
}


def test_the_cost_of_small_rings_by_hand():
    one = cost(dense(8, 1), UNIT, SLOW)
    assert (one.compute, one.transfer, one.total, one.waiting) == (64, 0, 64, 0)
    # Two ranks of 4 tokens: 16 pairs with the own keys, then 16 with the other's.
    assert dense(8, 2) == [Hop(16, 0), Hop(16, 4)]
    hidden = cost(dense(8, 2), UNIT, FAST)
    assert (hidden.compute, hidden.transfer, hidden.total, hidden.waiting) == (32, 4, 32, 0)
    # 4 tokens come in 32 seconds while 16 are computed, then 16 more.
    shown = cost(dense(8, 2), UNIT, SLOW)
    assert (shown.compute, shown.transfer, shown.total) == (32, 32, 48)
    assert shown.waiting == pytest.approx(1 / 3)
    # Keys and values are a message each.
    late = cost(dense(8, 2), UNIT, replace(SLOW, latency=0.5))
    assert (late.transfer, late.total) == (33, 49)
    # Four ranks of 2 tokens: three transfers of 16 seconds, of which 4 are computed in.
    four = cost(dense(8, 4), UNIT, SLOW)
    assert (four.compute, four.transfer, four.total) == (16, 48, 52)
    assert four.waiting == pytest.approx(36 / 52)


@pytest.mark.parametrize("link", cost_model.LINKS, ids=lambda link: link.name)
def test_at_half_the_break_even_shard_transfers_take_twice_as_long(link):
    free = replace(link, latency=0.0)
    half = cost(dense(4 * break_even(NOMINAL, free), 8), NOMINAL, free)
    # Seven of eight hops, of which half is waiting.
    assert half.waiting == pytest.approx(7 / 15)
    sparse = break_even(NOMINAL, link, density=1 - 0.98) / break_even(NOMINAL, link)
    assert sparse == pytest.approx(50)


def test_segments_within_a_shard_receive_nothing():
    branches = ((2, 1), (4, 2))
    assert dilated(8, 2, branches) == [Hop(4 * 2 + 4 * 4 / 4, 0.0)]
    assert cost(dilated(8, 2, branches), UNIT, SLOW).transfer == 0
    # Cut finer, the longer segment covers two shards: half its pairs, and of 2 keys every second.
    assert dilated(8, 4, branches) == [Hop(4 + 1, 0.0), Hop(1, 1)]
    # A segment and a half: of the next shard half the keys.
    assert dilated(12, 3, ((6, 1),)) == [Hop(16, 0.0), Hop(8, 2)]
    # Longer than the text is as long as the text.
    assert dilated(8, 2, ((64, 1),)) == dense(8, 2)


@pytest.mark.parametrize("rates", [(1, 2, 4), (2, 4, 8), (2, 4, 6), (1, 4, 6), (3, 3, 3)])
@pytest.mark.parametrize("head", [0, 1])
def test_a_key_that_several_branches_keep_travels_once(rates, head):
    """The first of 16 ranks with 24 tokens each: the keys that any branch keeps, one by one."""
    branches, shard = tuple(zip((96, 192, 384), rates, strict=True)), 24
    found = dilated(384, 16, branches)
    assert len(found) == 16
    for number, hop in enumerate(found[1:], start=1):
        places = range(number * shard, (number + 1) * shard)
        reaching = [(w, r) for w, r in branches if places[0] < w]
        kept = sum(any(p % r == head % r for _, r in reaching) for p in places)
        assert kept <= hop.tokens <= shard
        # Where the rates are multiples of the least of them, no key is counted too many.
        if all(r % min(r for _, r in reaching) == 0 for _, r in reaching):
            assert hop.tokens == kept


def test_blocks_that_are_spread_send_every_key_and_windows_those_in_reach():
    assert spread_blocks(8, 2, 0.5) == [Hop(8, 0), Hop(8, 4)]
    # Of 16 tokens 2 on either side: of 16 pairs of a shard 12 with its own keys.
    assert window_blocks(16, 4, 0.25) == [Hop(12, 0), Hop(2, 2), Hop(2, 2)]
    # A reach of a shard and a half: two neighbours whole, and what is left of the last.
    assert [hop.tokens for hop in window_blocks(16, 4, 0.75)] == [0, 4, 4, 4]
    assert window_blocks(16, 1, 0.25) == [Hop(64, 0)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 64])
def test_a_window_of_everything_is_a_dense_ring(ranks):
    found, whole = window_blocks(960, ranks, 1.0), dense(960, ranks)
    assert [hop.tokens for hop in found] == pytest.approx([hop.tokens for hop in whole])
    assert [hop.pairs for hop in found] == pytest.approx([hop.pairs for hop in whole])


@pytest.mark.parametrize("system", cost_model.SYSTEMS, ids=lambda system: system.name)
@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64, 1024, cost_model.MAX_RANKS])
def test_hops_add_up_to_the_pattern_and_receive_what_others_hold(system, ranks):
    n = 2.0**20
    hops = system.hops(n, ranks)
    whole = WHOLE[system.name.partition(",")[0]](n)
    assert ranks * sum(hop.pairs for hop in hops) == pytest.approx(whole)
    assert hops[0].tokens == 0  # its own
    assert all(0 < hop.tokens <= n / ranks * (1 + 1e-9) for hop in hops[1:])
    assert len(hops) <= ranks
    found = cost(hops, NOMINAL, INFINIBAND)
    assert max(found.compute, found.transfer) <= found.total * (1 + 1e-9)
    assert found.total <= (found.compute + found.transfer) * (1 + 1e-9)
