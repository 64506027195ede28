"""Properties of ring attention: causality, one device's numbers, every bit, groups."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.distributed as dist

from models import block_sparse_attention, dense_attention, dilated_attention
from models.oracle import reference, reference_gradients
from models.patterns import BlockMask
from models.ring import distributed_dilated_attention, ring_attention, shard, unshard
from models.ring.exchange import HOPS_IN_FLIGHT, Exchange
from tests.models.helpers import relative_rms
from tests.models.ring_problems import (
    ALL_ORDERS,
    KINDS,
    RingProblem,
    attend,
    joined,
    ring,
    shards_of,
)

PROBLEM = RingProblem(2, 60, 4, 2, 8, ((16, 1), (24, 2), (60, 3)), is_causal=True, kept=0.7)
every_kind = pytest.mark.parametrize("kind", KINDS)


def with_changed_future(problem, dtype, cuts):
    """On a rank: out and LSE after all tokens from each cut on change."""
    rank, size = dist.get_rank(), dist.get_world_size()
    q, k, v, *_ = problem.tensors(dtype)
    found = []
    for cut in cuts:
        changed = [x.detach().clone() for x in (q, k, v)]
        for x in changed:
            x[:, cut:] = 3 * x[:, cut:] + 1
        parts = [shard(x, rank, size, problem.order) for x in changed]
        found.append(ring(problem, *parts, return_lse=True))
    return found


@pytest.mark.parametrize("order", ("contiguous", "zigzag", "striped", "hilbert"))
@every_kind
def test_causal_outputs_do_not_see_the_future(kind, order, rings):
    """Not a bit of earlier rows changes, in any order of the tokens."""
    dtype = (
        torch.bfloat16 if (kind == "dilated") == (order in ("zigzag", "hilbert")) else torch.float32
    )
    problem = replace(PROBLEM, kind=kind, order=order)
    cuts = (1, 17, 40, 59)
    of_ranks = rings.run(3, with_changed_future, problem, dtype, (problem.n, *cuts))
    (out, lse), *changed = (
        [unshard([x[place] for x in of_cut], order, dim=1 + place) for place in range(2)]
        for of_cut in zip(*of_ranks, strict=True)
    )
    for cut, (out_after, lse_after) in zip(cuts, changed, strict=True):
        assert torch.equal(out[:, :cut], out_after[:, :cut])
        assert torch.equal(lse[:, :, :cut], lse_after[:, :, :cut])
        assert not torch.equal(out[:, cut:], out_after[:, cut:])


def on_one_device(problem, q, k, v):
    """out and LSE by the functional API."""
    options = {"is_causal": problem.is_causal, "return_lse": True}
    if problem.kind == "dense":
        return dense_attention(q, k, v, **options)
    if problem.kind == "dilated":
        return dilated_attention(q, k, v, *problem.lists, **options)
    return block_sparse_attention(q, k, v, problem.pattern, **options)


@pytest.mark.parametrize("is_causal", (False, True))
@every_kind
def test_a_ring_of_any_size_is_one_device(kind, is_causal, rings):
    """Of one rank too, with a group and without; values and gradients."""
    problem = replace(PROBLEM, kind=kind, is_causal=is_causal)
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float64)

    def all_of(outputs):
        return [*outputs, *torch.autograd.grad(outputs, (q, k, v), (grad_out, grad_lse))]

    want = all_of(on_one_device(problem, q, k, v))
    alone = replace(problem, order="contiguous")
    found = {"no group": all_of(ring(alone, q, k, v, return_lse=True))}
    for size in (1, 3, 8) if is_causal else (2, 4):
        found[size] = joined(problem, rings.run(size, attend, problem, torch.float64))
    for name, got in found.items():
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12, msg=f"ring of {name}")


@pytest.mark.parametrize("is_causal", (False, True))
def test_one_branch_of_everything_and_the_full_mask_are_dense(is_causal, rings):
    dense = replace(PROBLEM, is_causal=is_causal)
    want = joined(dense, rings.run(4, attend, dense, torch.float64))
    for problem in (
        replace(dense, kind="dilated", branches=((60, 1),)),
        replace(dense, kind="blocks", kept=1.0),
    ):
        got = joined(problem, rings.run(4, attend, problem, torch.float64))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def with_mask(mask, order):
    """On a rank: out, LSE and gradients of ones, where keys that no row keeps are NaN."""
    rank, size = dist.get_rank(), dist.get_world_size()
    tensors = RingProblem(1, 40, 2, 2, 8).tensors(torch.float32)[:3]
    q, k, v = (x.detach().clone() for x in tensors)
    k[:, 8:16], v[:, 8:16] = torch.nan, torch.inf
    q, k, v = (shard(x, rank, size, order).requires_grad_() for x in (q, k, v))
    out, lse = ring_attention(q, k, v, pattern=mask, order=order, return_lse=True)
    grads = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse)))
    return [x.detach() for x in (out, lse, *grads)]


@pytest.mark.parametrize("order", ALL_ORDERS, ids=str)
def test_rows_without_keys_and_keys_without_rows(order, rings):
    """0, -inf and no gradient; keys that are not attended to may hold anything."""
    table = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(3)) < 0.6
    table[:, 3], table[:, :, 1] = False, False
    problem = RingProblem(1, 40, 2, 2, 8, order=order)
    mask = BlockMask.from_dense(table, 8)
    out, lse, dq, dk, dv = joined(problem, rings.run(3, with_mask, mask, order))
    assert (out[:, 24:32] == 0).all() and lse[:, :, 24:32].isneginf().all()
    assert (dq[:, 24:32] == 0).all()
    assert (dk[:, 8:16] == 0).all() and (dv[:, 8:16] == 0).all()
    q, k, v, *_ = problem.tensors(torch.float32)
    want_out, want_lse = reference(q, k, v, pattern=mask)
    ones = torch.ones_like(out), torch.ones_like(lse)
    want = reference_gradients(q, k, v, ones[0], grad_lse=ones[1], pattern=mask)
    assert relative_rms(out, want_out) < 4e-7 and relative_rms((dq, dk, dv), want) < 1e-6
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-6, atol=1e-6)


@every_kind
def test_every_bit_repeats(kind, rings):
    problem = replace(PROBLEM, kind=kind, n=201)
    first = rings.run(4, attend, problem, torch.float32)
    for _ in range(3):
        again = rings.run(4, attend, problem, torch.float32)
        for a, b in zip(first, again, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@every_kind
def test_a_given_length_changes_no_bit(kind, rings):
    problem = replace(PROBLEM, kind=kind)
    want = rings.run(4, attend, problem, torch.float32)
    got = rings.run(4, attend, problem, torch.float32, seq_len=60)
    for a, b in zip(got, want, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("backend", ("eager", "sdpa"))
@every_kind
def test_backends_give_the_same(kind, backend, rings):
    problem = replace(PROBLEM, kind=kind)
    want = joined(problem, rings.run(2, attend, problem, torch.float64))
    got = joined(problem, rings.run(2, attend, problem, torch.float64, backend=backend))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scale", (1, 0.03, 2.5))
def test_scale_multiplies_the_scores(scale, rings):
    q, k, v, grad_out, grad_lse = PROBLEM.tensors(torch.float64)
    options = {"is_causal": True, "scale": scale}
    want = [
        *reference(q, k, v, **options),
        *reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options),
    ]
    got = joined(PROBLEM, rings.run(3, attend, PROBLEM, torch.float64, scale=scale))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def gathered(problem):
    """On a rank: its part of out, LSE, dq, dk and dv by LongNet's all-gather."""
    q, k, v, grad_out, grad_lse = shards_of(problem, torch.float64)
    options = {"order": problem.order, "pattern": problem.pattern, "is_causal": problem.is_causal}
    out, lse = distributed_dilated_attention(q, k, v, return_lse=True, **options)
    grads = torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))
    return [x.detach() for x in (out, lse, *grads)]


@pytest.mark.parametrize(
    ("order", "world_size"),
    (*product(("contiguous", "zigzag", "striped"), (1, 2, 3)), ("zigzag", 8)),
)
def test_the_all_gather_of_dilated_attention_is_the_ring(order, world_size, rings):
    for is_causal in (False, True):
        problem = replace(PROBLEM, kind="dilated", n=61, order=order, is_causal=is_causal)
        want = joined(problem, rings.run(world_size, attend, problem, torch.float64))
        got = joined(problem, rings.run(world_size, gathered, problem))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def of_one_input(problem, name):
    """On a rank: the gradient of one of q, k, v where that alone requires one, and of all."""
    q, k, v, grad_out, _ = shards_of(problem, torch.float64)
    inputs = {"q": q, "k": k, "v": v}
    want = torch.autograd.grad(ring(problem, q, k, v), inputs[name], grad_out)[0]
    alone = {x: t.detach().requires_grad_(x == name) for x, t in inputs.items()}
    ring(problem, **alone).backward(grad_out)
    assert all(alone[x].grad is None for x in inputs if x != name)
    return alone[name].grad, want


@pytest.mark.parametrize("name", ("q", "k", "v"))
def test_one_input_may_require_gradients(name, rings):
    for got, want in rings.run(3, of_one_input, PROBLEM, name):
        assert torch.equal(got, want) and want.abs().max() > 0


def without_tokens():
    """On a rank: a sequence of no tokens at all."""
    q = torch.zeros(2, 0, 4, 8, requires_grad=True)
    out, lse = ring_attention(q, q, q, return_lse=True)
    grad = torch.autograd.grad(out, q, torch.zeros_like(out))[0]
    return out.shape, lse.shape, grad.shape


def test_a_sequence_without_tokens(rings):
    expected = ((2, 0, 4, 8), (2, 4, 0), (2, 0, 4, 8))
    assert rings.run(2, without_tokens) == [expected] * 2


def on_mesh(problem, dimension):
    """On one of 2 x 2 ranks: a ring along one dimension, each with the data of its place in the
    other; and the message of a ring over both."""
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))
    other = {"data": "sequence", "sequence": "data"}[dimension]
    own = replace(problem, seed=mesh.get_local_rank(other))
    q, k, v, grad_out, grad_lse = own.tensors(torch.float64)
    rank = mesh.get_local_rank(dimension)
    parts = [shard(x, rank, 2, problem.order) for x in (q, k, v, grad_out)]
    out, lse = ring(problem, *parts[:3], group=mesh[dimension], return_lse=True)
    grad_lse = shard(grad_lse, rank, 2, problem.order, dim=2)
    grads = torch.autograd.grad((out, lse), (q, k, v), (parts[3], grad_lse))
    for x in grads:
        dist.all_reduce(x, group=mesh.get_group(dimension))
    with pytest.raises(ValueError, match="expected a mesh of one dimension"):
        ring(problem, *parts[:3], group=mesh)
    seed, rank = mesh.get_local_rank(other), mesh.get_local_rank(dimension)
    return seed, rank, [out.detach(), lse.detach(), *grads]


@pytest.mark.parametrize("dimension", ("data", "sequence"))
def test_a_ring_along_one_dimension_of_a_mesh(dimension, rings):
    found = {}
    for seed, rank, values in rings.run(4, on_mesh, PROBLEM, dimension):
        found[seed, rank] = values
    assert sorted(found) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for seed in (0, 1):
        problem = replace(PROBLEM, seed=seed)
        q, k, v, grad_out, grad_lse = problem.tensors(torch.float64)
        want = reference(q, k, v, is_causal=True)
        want += reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, is_causal=True)
        parts = [found[seed, rank] for rank in (0, 1)]
        got = [unshard([x[place] for x in parts], dim=1 + place) for place in (0, 1)]
        for a, b in zip([*got, *parts[0][2:]], want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def most_in_flight(order):
    """On a rank: the most messages at any time that it had sent and not waited for."""
    counted = []
    post = Exchange.post

    def watched(self, sends, receives):
        pending = post(self, sends, receives)
        counted.append(self.in_flight)
        return pending

    Exchange.post = watched
    try:
        q = torch.randn(1, 8, 2, 8, requires_grad=True)
        ring_attention(q, q, q, order=order, seq_len=64).sum().backward()
    finally:
        Exchange.post = post
    return max(counted)


@pytest.mark.parametrize("order", ("contiguous", "zigzag"))
def test_memory_of_what_is_sent_is_freed_hop_by_hop(order, rings):
    """Of 7 hops, keys and values of two and gradients of two are held."""
    assert rings.run(8, most_in_flight, order) == [2 * HOPS_IN_FLIGHT * 2] * 8


def bad_groups():
    """On a rank: messages about groups."""
    q = torch.zeros(1, 4, 2, 8)
    found = []
    for group in ("world", 3):
        with pytest.raises(ValueError) as error:
            ring_attention(q, q, q, group=group)
        found.append(str(error.value))
    return found


def test_bad_groups_are_named(rings, monkeypatch):
    said = "expected a ProcessGroup, a DeviceMesh or None"
    expected = [f"group='world': {said}", f"group=3: {said}"]
    assert rings.run(2, bad_groups) == [expected] * 2
    monkeypatch.setenv("WORLD_SIZE", "4")
    q = torch.zeros(1, 4, 2, 8)
    with pytest.raises(ValueError, match="WORLD_SIZE=4, but torch.distributed is not initialised"):
        ring_attention(q, q, q)
