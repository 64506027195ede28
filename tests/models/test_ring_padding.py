"""Padded keys of a ring: never attended to, on any rank, whatever they hold."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from models.oracle import reference, reference_gradients
from models.patterns import HeadPartition
from models.patterns.orders import positions
from models.ring import (
    Grid,
    distributed_dilated_attention,
    ring_attention,
    shard,
    simulated_ring_attention,
    traffic,
    unshard,
)
from models.ring.simulated import OneRank
from tests.models.helpers import relative_rms
from tests.models.ring_problems import KINDS, RingProblem, ring_problems

JUNK = (torch.nan, torch.inf, -torch.inf, 6e4, 1e6)
BOUNDS = {torch.float64: 1e-11, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Padded:
    """A problem whose padding holds `junk`: a `share` of the tokens, and all of the last rank's."""

    problem: RingProblem
    share: float = 0.4
    junk: float = torch.nan
    backend: str = "auto"
    dtype: torch.dtype = torch.float64

    @property
    def mask(self):
        """(B, N) bool."""
        generator = torch.Generator().manual_seed(self.problem.seed)
        shape = (self.problem.batch, self.problem.n)
        mask = torch.rand(shape, generator=generator) < self.share
        size = self.problem.world_size
        mask[0, positions(self.problem.order, self.problem.n, size - 1, size)] = True
        return mask

    @property
    def pattern(self):
        problem = self.problem
        return HeadPartition(*problem.lists) if problem.kind == "partition" else problem.pattern

    def tensors(self):
        """q, k, v and both cotangents of the whole sequence; those of padding are 0."""
        *qkv, grad_out, grad_lse = self.problem.tensors(self.dtype)
        mask, junk = self.mask, torch.tensor(self.junk).to(self.dtype)
        qkv = [torch.where(mask[:, :, None, None], junk, x.detach()) for x in qkv]
        grad_out = grad_out.masked_fill(mask[:, :, None, None], 0.0)
        return *qkv, grad_out, grad_lse.masked_fill(mask[:, None], 0.0)

    def options(self):
        return {
            "order": self.problem.order,
            "pattern": self.pattern,
            "is_causal": self.problem.is_causal,
            "backend": self.backend,
            "return_lse": True,
        }

    def check(self, got):
        """out, LSE, dq, dk and dv of the whole sequence are the oracle's in all real rows."""
        q, k, v, grad_out, grad_lse = self.tensors()
        options = {"is_causal": self.problem.is_causal, "pattern": self.pattern}
        options["key_padding_mask"] = self.mask
        want = reference(q, k, v, **options)
        want += reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
        out, lse, *grads = got
        assert torch.equal(lse.isneginf(), want[1].isneginf())
        held = want[1].isfinite() & ~self.mask[:, None]
        for place, x in enumerate((out, *grads)):
            assert x.isfinite()[~self.mask].all(), place
        assert (out.transpose(1, 2)[want[1].isneginf()] == 0).all()
        for x in grads[1:]:
            assert (x[self.mask] == 0).all()
        if not held.any():
            return
        rows = ~self.mask
        bound = BOUNDS[self.dtype]
        assert relative_rms(out[rows], want[0][rows]) <= bound
        wanted = [x[rows] for x in want[2:]]
        if any(x.any() for x in wanted):
            assert relative_rms([x[rows] for x in grads], wanted) <= 3 * bound
        torch.testing.assert_close(
            lse[held].double(), want[1][held], rtol=1e-5, atol=4e-3 if bound > 1e-5 else 1e-5
        )


def gradients(function, q, k, v, grad_out, grad_lse):
    """out, LSE, dq, dk and dv of `function(q, k, v)`."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    outputs = function(*inputs)
    grads = torch.autograd.grad(outputs, inputs, (grad_out, grad_lse))
    return [x.detach() for x in (*outputs, *grads)]


@pytest.mark.parametrize("kind", (*KINDS, "partition"))
@settings(max_examples=12)
@given(data=st.data())
def test_padding_is_never_attended_to(kind, data):
    """Ranks without tokens, or whose tokens are all padding, among them."""
    case = Padded(
        replace(data.draw(ring_problems("dilated")), kind=kind),
        share=data.draw(st.sampled_from((0.0, 0.2, 0.9, 1.0))),
        junk=data.draw(st.sampled_from(JUNK)),
        backend=data.draw(st.sampled_from(("sdpa", "eager"))),
        dtype=data.draw(st.sampled_from(tuple(BOUNDS))),
    )
    options = case.options() | {
        "world_size": case.problem.world_size,
        "key_padding_mask": case.mask,
    }
    case.check(gradients(lambda *x: simulated_ring_attention(*x, **options), *case.tensors()))


def on_rank(cases, is_gathered):
    """On a rank: its part of out, LSE, dq, dk and dv of one case after another."""
    attention = distributed_dilated_attention if is_gathered else ring_attention
    rank, size, found = dist.get_rank(), dist.get_world_size(), []
    for case in cases:
        order = case.problem.order
        *tensors, grad_lse = case.tensors()
        parts = [shard(x, rank, size, order) for x in tensors]
        options = case.options() | {"key_padding_mask": shard(case.mask, rank, size, order)}
        found.append(
            gradients(
                lambda *x, options=options: attention(*x, **options),
                *parts,
                shard(grad_lse, rank, size, order, dim=2),
            )
        )
    return found


PROBLEM = RingProblem(2, 45, 4, 2, 8, ((16, 1), (24, 2), (45, 3)), kept=0.6, is_causal=True)


@pytest.mark.parametrize("world_size", (2, 3))
@pytest.mark.parametrize("is_gathered", (False, True))
def test_padding_of_real_ranks(is_gathered, world_size, rings):
    kinds = ("dilated",) if is_gathered else KINDS
    cases = [
        Padded(
            replace(PROBLEM, kind=kind, order=order, n=n, world_size=world_size, is_causal=causal),
            junk=junk,
            backend=backend,
            dtype=dtype,
        )
        for kind in kinds
        for order, n, causal, junk, backend, dtype in (
            ("zigzag", 45, True, torch.nan, "sdpa", torch.float64),
            ("striped", 45, False, 1e6, "eager", torch.float32),
            (Grid("hilbert", 7), 45, True, torch.inf, "sdpa", torch.bfloat16),
            ("contiguous", 45, True, 6e4, "sdpa", torch.float16),
            ("contiguous", 2, False, torch.nan, "sdpa", torch.float32),
        )
    ]
    of_ranks = rings.run(world_size, on_rank, cases, is_gathered)
    for case, parts in zip(cases, zip(*of_ranks, strict=True), strict=True):
        case.check(
            [
                unshard([x[place] for x in parts], case.problem.order, dim=2 if place == 1 else 1)
                for place in range(5)
            ]
        )


@pytest.mark.parametrize("backend", ("sdpa", "eager"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_real_keys_of_very_negative_scores_count(dtype, backend):
    """Scores of -1e5 each, beside padding: the mean of the real values, and a finite LSE."""
    q = torch.full((1, 12, 1, 4), 316.2278, dtype=dtype)
    v = torch.randn(1, 12, 1, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.arange(12)[None] % 3 == 0
    options = {"key_padding_mask": mask, "backend": backend, "return_lse": True, "scale": 0.25}
    out, lse = simulated_ring_attention(q, -q, v, world_size=3, **options)
    want = v[~mask].float().mean(dim=0)
    torch.testing.assert_close(out.float(), want.expand(out.shape), rtol=1e-2, atol=1e-2)
    assert lse.isfinite().all() and (lse < -9.9e4).all()


def test_a_loss_of_minus_infinity_has_zero_gradients():
    """Of rows without keys; through their LSE the cotangent is infinite."""
    q, k, v = (torch.randn(1, 8, 2, 4, requires_grad=True) for _ in range(3))
    mask = torch.arange(8)[None] < 4
    options = {"is_causal": True, "key_padding_mask": mask, "return_lse": True}
    out, lse = simulated_ring_attention(q, k, v, world_size=2, **options)
    cotangent = torch.where(lse.isneginf(), torch.inf, 1.0)
    for x in torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), cotangent)):
        assert x.isfinite().all() and (x[:, :4] == 0).all() and x[:, 4:].any()


def test_flags_are_a_column_of_the_keys():
    q = torch.randn(1, 64, 2, 8, requires_grad=True)
    with traffic() as counted:
        out = simulated_ring_attention(
            q, q, q, world_size=4, key_padding_mask=torch.zeros(1, 64, dtype=torch.bool)
        )
    assert counted.bytes_sent == 4 * 3 * 16 * 2 * (9 + 8) * 4
    with traffic() as counted:
        out.sum().backward()
    assert counted.bytes_sent == 4 * 3 * 16 * 2 * (9 + 8 + 2 * 8) * 4


def test_one_rank_alone_is_told_of_padding():
    case = Padded(replace(PROBLEM, order="zigzag", world_size=3), dtype=torch.float32)
    q, k, v, grad_out, _ = case.tensors()
    options = {"is_causal": True, "world_size": 3, "key_padding_mask": case.mask}
    one = OneRank(q, k, v, rank=1, **options)
    q.requires_grad_()
    out = simulated_ring_attention(q, k, v, **options)
    (dq,) = torch.autograd.grad(out, q, grad_out)
    assert torch.equal(one.forward()[0], shard(out, 1, 3))
    assert torch.equal(one.forward_backward(shard(grad_out, 1, 3)), shard(dq, 1, 3))
