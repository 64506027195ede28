"""Parts over disjoint, repeated or empty sets of keys join to attention over their union."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.merge import merge, merge_into
from models.oracle import reference
from models.patterns import DilatedBranches
from tests.models.helpers import Problem

cuts = st.lists(st.integers(0, 40), min_size=1, max_size=4).map(lambda c: [0, *sorted(c), 40])


def parts_of_keys(q, k, v, edges):
    """Attention to each slice of the keys; an empty slice holds no key for any row."""
    outs, lses = [], []
    for start, stop in zip(edges, edges[1:], strict=False):
        if start == stop:
            outs.append(torch.zeros_like(q))
            lses.append(q.new_full((q.shape[0], q.shape[2], q.shape[1]), -torch.inf))
        else:
            out, lse = reference(q, k[:, start:stop], v[:, start:stop])
            outs.append(out)
            lses.append(lse)
    return outs, lses


@settings(max_examples=30)
@given(edges=cuts)
def test_parts_of_the_keys_join_to_the_whole(edges):
    q, k, v, grad_out, grad_lse = Problem(2, 40, 4, 2, 8).tensors(torch.float64)
    want = reference(q, k, v)
    got = merge(*parts_of_keys(q, k, v, edges))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    cotangents = (grad_out, grad_lse.double())
    for a, b in zip(
        torch.autograd.grad(got, (q, k, v), cotangents),
        torch.autograd.grad(want, (q, k, v), cotangents),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_branches_join_to_the_multiset_of_their_keys():
    q, k, v, *_ = Problem(2, 30, 4, 4, 8).tensors(torch.float64)
    branches = ((8, 1), (8, 1), (30, 4))
    parts = [reference(q, k, v, pattern=DilatedBranches([w], [r])) for w, r in branches]
    out, lse = merge(*(list(x) for x in zip(*parts, strict=True)))
    want, want_lse = reference(q, k, v, pattern=DilatedBranches([8, 8, 30], [1, 1, 4]))
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(lse, want_lse, rtol=1e-12, atol=1e-13)


def test_one_part_is_returned_as_it_is():
    out, lse = torch.randn(1, 5, 2, 3), torch.randn(1, 2, 5)
    merged, merged_lse = merge([out], [lse])
    assert torch.equal(merged, out) and torch.equal(merged_lse, lse)


def test_rows_without_keys_give_zero_minus_infinity_and_finite_gradients():
    outs = [torch.randn(1, 3, 1, 2, requires_grad=True) for _ in range(2)]
    lses = [torch.tensor([[[-torch.inf, 0.5, -torch.inf]]]), torch.tensor([[[-torch.inf] * 3]])]
    lses = [x.requires_grad_() for x in lses]
    out, lse = merge(outs, lses)
    assert out[0, 0].abs().max() == 0 and lse.tolist() == [[[-torch.inf, 0.5, -torch.inf]]]
    assert torch.equal(out[0, 1], outs[0][0, 1])
    grads = torch.autograd.grad((out.sum(), lse[..., 1].sum()), (*outs, *lses))
    assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize("shift", (-1e4, 80.0, 1e4))
def test_large_lse_neither_overflow_nor_vanish(shift):
    outs = [torch.randn(1, 4, 1, 2) for _ in range(2)]
    lses = [torch.zeros(1, 1, 4), torch.full((1, 1, 4), 1.0)]
    want, want_lse = merge(outs, lses)
    out, lse = merge(outs, [x + shift for x in lses])
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse - shift, want_lse, rtol=0, atol=2e-3)


@settings(max_examples=30)
@given(edges=cuts)
def test_merging_in_place_is_merging(edges):
    q, k, v, *_ = (x.detach() for x in Problem(2, 40, 4, 2, 8).tensors(torch.float64))
    outs, lses = parts_of_keys(q, k, v, edges)
    want, want_lse = merge(outs, lses)
    # Strided on purpose: every second column of something larger.
    out = torch.zeros(2, 40, 4, 16, dtype=torch.float64)[..., ::2]
    lse = torch.full((2, 40, 8), -torch.inf, dtype=torch.float64)[..., ::2]
    for part_out, part_lse in zip(outs, lses, strict=True):
        merge_into(out, lse, part_out, part_lse.transpose(1, 2))
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(lse.transpose(1, 2), want_lse, rtol=1e-12, atol=1e-13)
