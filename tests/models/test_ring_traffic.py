"""What a ring sends: the messages and bytes of formulas, and only keys that are needed.

Counted twice: by `models.ring.traffic`, and from the operations handed to torch.distributed.
"""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from models.patterns import DilatedBranches, block_builders
from models.patterns.orders import positions
from models.ring import traffic
from models.ring.exchange import ARGUMENTS
from models.ring.plan import RingPlan
from tests.models.ring_problems import (
    ALL_ORDERS,
    KINDS,
    RingProblem,
    attend,
    ring,
    ring_problems,
    shards_of,
)

PASSES = ("forward", "both")
RANKS = 4
DENSE = RingProblem(2, 64, 4, 2, 8, ((4, 1), (16, 2)), order="contiguous")


class Posted:
    """Counts what goes to `torch.distributed.batch_isend_irecv`, but for the agreement."""

    def __init__(self):
        self.messages = self.bytes = self.agreement = 0
        self._post = dist.batch_isend_irecv

    def __call__(self, operations):
        for operation in operations:
            size = operation.tensor.numel() * operation.tensor.element_size()
            if operation.op is dist.isend and operation.tag == ARGUMENTS:
                self.agreement += size
            elif operation.op is dist.isend:
                self.messages += 1
                self.bytes += size
        return self._post(operations)


def counts(problem, dtype, passes, **options):
    """On a rank: (messages, bytes, bytes of the agreement), by both counts."""
    posted = Posted()
    with patch.object(dist, "batch_isend_irecv", posted), traffic() as counted:
        if passes == "both":
            attend(problem, dtype, **options)
        else:
            ring(problem, *shards_of(problem, dtype)[:3], **options)
    ours = (counted.messages_sent, counted.bytes_sent, counted.agreement_bytes)
    return ours, (posted.messages, posted.bytes, posted.agreement)


def sent(rings, problem, dtype=torch.float32, passes="forward", **options):
    """(messages, bytes) of every rank, on which both counts agree."""
    found = rings.run(problem.world_size, counts, problem, dtype, passes, **options)
    assert all(ours == posted for ours, posted in found)
    return [ours[:2] for ours, _ in found]


@pytest.mark.parametrize("world_size", (1, 2, 3, 4, 8))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
def test_dense_sends_its_keys_and_values_to_each_other_rank(dtype, world_size, rings):
    """Backward: the same again, and the gradients of others' keys, in float32 at least."""
    problem = replace(DENSE, n=48, world_size=world_size)
    others = world_size - 1
    numbers = others * problem.batch * 48 // world_size * problem.kv_heads * problem.dim * 2
    size = torch.finfo(dtype).bits // 8
    forward = (2 * others, numbers * size)
    both = (6 * others, numbers * (2 * size + max(size, 4)))
    assert sent(rings, problem, dtype, "forward") == [forward] * world_size
    assert sent(rings, problem, dtype, "both") == [both] * world_size


def test_causal_contiguous_sends_to_later_ranks_only(rings):
    problem = replace(DENSE, is_causal=True)
    parcel = 2 * 16 * 2 * 8 * 2 * 4
    expected = [(2 * (3 - rank), (3 - rank) * parcel) for rank in range(4)]
    assert sent(rings, problem) == expected


def test_causal_zigzag_sends_half_parcels_to_later_ranks(rings):
    """Of its chunks r and 7 - r, rank r sends both to ranks before it, and the early one on."""
    problem = replace(DENSE, is_causal=True, order="zigzag")
    parcel = 2 * 16 * 2 * 8 * 2 * 4
    expected = [(6, rank * parcel + (3 - rank) * parcel // 2) for rank in range(4)]
    assert sent(rings, problem) == expected


def test_causal_striped_keeps_the_last_token_from_earlier_ranks(rings):
    problem = replace(DENSE, is_causal=True, order="striped")
    token = 2 * 2 * 8 * 2 * 4
    expected = [(6, (rank * 15 + (3 - rank) * 16) * token) for rank in range(4)]
    assert sent(rings, problem) == expected


@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("passes", PASSES)
def test_segments_within_shards_send_nothing(passes, is_causal, rings):
    problem = replace(DENSE, kind="dilated", is_causal=is_causal)
    assert sent(rings, problem, passes=passes) == [(0, 0)] * 4


@pytest.mark.parametrize("passes", PASSES)
def test_a_block_diagonal_mask_sends_nothing(passes, rings):
    """No message at all, not even an empty one."""
    problem = replace(DENSE, kind="blocks", block_size=16, kept=0.0)
    assert sent(rings, problem, passes=passes) == [(0, 0)] * 4


def test_the_agreement_is_a_small_message_to_each_rank(rings):
    """13 integers to each rank, and none where the length is given."""
    for options in ({}, {"seq_len": 64}):
        found = rings.run(4, counts, DENSE, torch.float32, "forward", **options)
        assert {ours[2] for ours, _ in found} == {0 if options else 3 * 13 * 8}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(data=st.data())
def test_what_is_sent_is_what_the_receivers_need(kind, data, rings):
    """Bytes of both passes, from the pattern's own counts; head_dim as given."""
    problem = data.draw(ring_problems(kind))
    needs = needed(problem)
    size = problem.world_size
    expected = []
    for rank in range(size):
        given = sum(int(needs[to, rank].sum()) for to in range(size) if to != rank)
        taken = sum(int(needs[rank, source].sum()) for source in range(size) if source != rank)
        # Keys and values twice, and the gradients of those that came, all float32.
        expected.append((2 * given + taken) * 2 * problem.batch * problem.dim * 4)
    assert [x for _, x in sent(rings, problem, passes="both")] == expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(data=st.data())
def test_each_key_that_is_needed_is_sent_and_no_other(kind, data):
    """Per key head and token; and the pieces hold each pair of the pattern once."""
    problem = data.draw(ring_problems(kind))
    needs, plan = needed(problem), plan_of(problem)
    pairs = 0
    for (to, source), wanted in needs.items():
        hop = plan.local(to) if to == source else plan.hop(to, source)
        pairs += hop.pairs() if hop else 0
        if to == source:
            continue
        found = torch.zeros_like(wanted)
        for subset in hop.message.subsets if hop else ():
            tokens = slice(None) if subset.tokens is None else torch.from_numpy(subset.tokens)
            found[subset.heads, tokens] = True
        assert torch.equal(found, wanted)
        assert (hop.message.rows if hop else 0) == int(wanted.sum())
    rows = torch.arange(problem.n)
    assert pairs == sum(int(seen(problem, head, rows).sum()) for head in range(problem.heads))


def seen(problem, head, rows):
    """C[i, j]: how many times query `rows[i]` attends to key j, causality included."""
    if problem.pattern is None:
        table = torch.ones(len(rows), problem.n, dtype=torch.int64)
    else:
        table = problem.pattern.counts(head, problem.heads, rows, problem.n).long()
    future = torch.arange(problem.n)[None, :] > rows[:, None]
    return table.masked_fill(future, 0) if problem.is_causal else table


def needed(problem) -> dict[tuple[int, int], torch.Tensor]:
    """(to, source) -> (Hkv, n) bool: the source's keys that some query of `to` attends to."""
    size, group = problem.world_size, problem.heads // problem.kv_heads
    held = [positions(problem.order, problem.n, rank, size) for rank in range(size)]
    found = {}
    for to in range(size):
        of_head = [(seen(problem, head, held[to]) > 0).any(0) for head in range(problem.heads)]
        of_key_head = torch.stack(of_head).view(problem.kv_heads, group, -1).any(1)
        for source in range(size):
            found[to, source] = of_key_head[:, held[source]]
    return found


def plan_of(problem, pattern=None):
    pattern = problem.pattern if pattern is None else pattern
    return RingPlan(
        pattern, problem.order, problem.n, problem.world_size,
        problem.heads, problem.kv_heads, problem.is_causal,
    )  # fmt: skip


def rows_sent(plan) -> int:
    """Rows of head_dim numbers that all ranks send for keys."""
    hops = [
        plan.hop(to, source)
        for to in range(plan.world_size)
        for source in range(plan.world_size)
        if to != source
    ]
    return sum(hop.message.rows for hop in hops if hop)


@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("order", ("contiguous", "zigzag"))
def test_longnets_branches_send_a_fifth_of_dense(order, is_causal):
    """65536 tokens, 12 heads, segments 2048 ... 32768 at rates 1 2 4 6 12, on four ranks."""
    problem = RingProblem(
        n=65536, heads=12, kv_heads=12, order=order, is_causal=is_causal, world_size=RANKS
    )
    branches = DilatedBranches((2048, 4096, 8192, 16384, 32768), (1, 2, 4, 6, 12))
    dense = 3 * 65536 * 12
    assert 0 < rows_sent(plan_of(problem, branches)) <= dense / 5


@pytest.mark.parametrize("is_causal", (False, True))
def test_a_window_sends_a_quarter_of_dense(is_causal):
    """95 % sparse, 65536 tokens, blocks of 64, on four ranks."""
    problem = RingProblem(
        n=65536, heads=12, kv_heads=12, order="contiguous", is_causal=is_causal, world_size=RANKS
    )
    mask = block_builders.local_window(65536, sparsity=0.95, is_causal=is_causal)
    assert 0 < rows_sent(plan_of(problem, mask)) <= 3 * 65536 * 12 / 4


@pytest.mark.parametrize("order", ALL_ORDERS, ids=str)
def test_every_order_computes_each_pair_once(order):
    """Dense and causal, 1000 tokens on 8 ranks: the triangle, whoever holds it."""
    plan = plan_of(replace(DENSE, n=1000, order=order, is_causal=True, world_size=8))
    hops = [plan.hop(to, source) for to in range(8) for source in range(8) if to != source]
    hops += [plan.local(rank) for rank in range(8)]
    assert sum(hop.pairs() for hop in hops if hop) == 4 * 1000 * 1001 // 2
