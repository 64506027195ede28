"""The simulated ring against the oracle, and one rank of it against its part of the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.oracle import attend_rows
from models.patterns import DilatedBranches, local_window
from models.ring import shard, simulated_ring_attention, traffic
from models.ring.simulated import OneRank
from tests.models.helpers import relative_rms, rounding_floor
from tests.models.ring_problems import KINDS, ring_problems


def ring(problem, *tensors, **options):
    given = {"order": problem.order, "pattern": problem.pattern, "is_causal": problem.is_causal}
    return simulated_ring_attention(*tensors, world_size=problem.world_size, **given, **options)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(data=st.data())
def test_it_is_the_oracle_in_value_and_gradient(kind, data):
    problem = data.draw(ring_problems(kind))
    dtype = data.draw(st.sampled_from((torch.float64, torch.float32, torch.bfloat16)))
    q, k, v, grad_out, grad_lse = problem.tensors(dtype)
    rows = torch.arange(problem.n)

    def oracle(dtype):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        out, lse = attend_rows(*inputs, rows, pattern=problem.pattern, is_causal=problem.is_causal)
        cotangents = (grad_out.to(dtype), grad_lse.to(lse.dtype))
        return out, lse, torch.autograd.grad((out, lse), inputs, cotangents)

    out, lse, grads = oracle(torch.float64)
    eager, eager_grads = out, grads
    if dtype != torch.float64:
        eager, _, eager_grads = oracle(dtype)
    got, got_lse = ring(problem, q, k, v, return_lse=True)
    got_grads = torch.autograd.grad((got, got_lse), (q, k, v), (grad_out, grad_lse))
    assert got.dtype == dtype
    # In float64 the reference itself rounds.
    floor = 1e-14 if dtype == torch.float64 else rounding_floor(dtype)
    if out.any():
        limit = max(2 * relative_rms(eager, out), floor)
        assert relative_rms(got, out) <= limit
        limit = max(3 * relative_rms(eager_grads, grads), floor)
        assert relative_rms(got_grads, grads) <= limit
    else:
        assert not got.any() and not any(x.any() for x in got_grads)
    assert torch.equal(got_lse.isneginf(), lse.isneginf())
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(got_lse.double(), lse, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(data=st.data())
def test_one_rank_alone_does_its_part_to_the_bit(kind, data):
    problem = data.draw(ring_problems(kind))
    q, k, v, grad_out, _ = problem.tensors(torch.float32)
    out = ring(problem, q, k, v)
    (dq,) = torch.autograd.grad(out, q, grad_out)
    rank = data.draw(st.integers(0, problem.world_size - 1))
    options = {"order": problem.order, "pattern": problem.pattern, "is_causal": problem.is_causal}
    tensors = (x.detach() for x in (q, k, v))
    one = OneRank(*tensors, world_size=problem.world_size, rank=rank, **options)

    def part(x):
        return shard(x, rank, problem.world_size, problem.order)

    assert torch.equal(one.forward()[0], part(out))
    assert torch.equal(one.forward_backward(part(grad_out)), part(dq))


def test_the_rank_with_most_pairs_is_taken():
    q = torch.randn(1, 64, 2, 8)
    one = OneRank(q, q, q, world_size=4, is_causal=True, order="contiguous")
    # The last rank's 16 queries see 48 keys each besides their own triangle.
    assert one.rank == 3 and one.pairs() == 2 * (16 * 48 + 16 * 17 // 2)
    even = OneRank(q, q, q, world_size=4, is_causal=True, order="zigzag")
    assert even.pairs() == 2 * 64 * 65 // 2 / 4


def test_virtual_ranks_send_what_real_ones_would():
    q = torch.randn(1, 64, 2, 8, requires_grad=True)
    with traffic() as counted:
        out = simulated_ring_attention(q, q, q, world_size=4)
    # Four ranks, three hops, keys and values of 16 tokens each.
    assert counted.messages_sent == 4 * 3 * 2
    assert counted.bytes_sent == 4 * 3 * 2 * 16 * 2 * 8 * 4
    with traffic() as counted:
        out.sum().backward()
    assert counted.bytes_sent == 2 * 4 * 3 * 2 * 16 * 2 * 8 * 4
    with traffic() as counted:
        pattern = DilatedBranches((8, 16), (1, 2))
        simulated_ring_attention(q, q, q, world_size=4, pattern=pattern, order="contiguous")
    assert counted.bytes_sent == 0


def test_bad_arguments_are_named():
    q = torch.randn(1, 64, 2, 8)
    with pytest.raises(ValueError, match=r"world_size=0: expected an integer >= 1"):
        simulated_ring_attention(q, q, q, world_size=0)
    with pytest.raises(ValueError, match=r"mask has 2 blocks of 16 tokens"):
        pattern = local_window(32, sparsity=0.5, block_size=16)
        simulated_ring_attention(q, q, q, world_size=2, pattern=pattern)
