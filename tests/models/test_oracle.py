"""The oracle against a double loop in numpy, and against what softmax must satisfy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from models.oracle import attend_rows, reference, reference_gradients
from models.patterns import DilatedBranches, HeadPartition
from tests.models.helpers import Problem, problems


def double_loop(q, k, v, branches, offset_of, is_causal, scale):
    """Dilated attention by the words of the definition, one query and one key at a time."""
    q, k, v = (x.detach().double().numpy() for x in (q, k, v))
    batch, n, heads, _ = q.shape
    group = heads // k.shape[2]
    out, lse = np.zeros_like(q), np.full((batch, heads, n), -np.inf)
    for b, h, i in np.ndindex(batch, heads, n):
        weights, values = [], []
        for w, r in branches:
            o = offset_of(h, r)
            for j in range(n):
                together = i // w == j // w and (i % w) % r == o == (j % w) % r
                if together and not (is_causal and j > i):
                    weights.append(math.exp(scale * q[b, i, h] @ k[b, j, h // group]))
                    values.append(v[b, j, h // group])
        if weights:
            out[b, i, h] = np.average(values, axis=0, weights=weights)
            lse[b, h, i] = math.log(sum(weights))
    return torch.from_numpy(out), torch.from_numpy(lse)


@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("head_offset", ("modulo", "block"))
@pytest.mark.parametrize("branches", (((13, 1),), ((5, 2),), ((4, 3), (6, 4), (99, 5))))
def test_oracle_is_the_definition(branches, head_offset, is_causal):
    problem = Problem(2, 13, 6, 3, 4, branches, head_offset, is_causal)
    q, k, v, *_ = problem.tensors(torch.float64)

    def offset_of(head, r):
        return head % r if head_offset == "modulo" else head // math.ceil(6 / r)

    want_out, want_lse = double_loop(q, k, v, branches, offset_of, is_causal, 0.3)
    out, lse = reference(q, k, v, pattern=problem.pattern, is_causal=is_causal, scale=0.3)
    torch.testing.assert_close(out, want_out, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(lse, want_lse, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("is_causal", (False, True))
def test_dense_oracle_is_plain_softmax(is_causal):
    q, k, v, *_ = Problem(2, 17, 4, 2, 8).tensors(torch.float64)
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(2, 2)) / math.sqrt(8)
    if is_causal:
        scores = scores.masked_fill(torch.ones(17, 17).triu(1).bool(), -torch.inf)
    out, lse = reference(q, k, v, is_causal=is_causal)
    want = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v.repeat_interleave(2, 2))
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=1e-12, atol=1e-13)


@settings(max_examples=30)
@given(problems())
def test_weights_sum_to_one_and_uncovered_rows_are_empty(problem):
    q, k, v, *_ = problem.tensors(torch.float64)
    options = {"pattern": problem.pattern, "is_causal": problem.is_causal}
    out, lse = reference(q, k, torch.ones_like(v), **options)
    rows = torch.arange(problem.n)
    covered = torch.stack(
        [
            problem.pattern.counts(h, problem.heads, rows, problem.n).diagonal() > 0
            for h in range(problem.heads)
        ]
    ).expand(problem.batch, -1, -1)
    want = covered.transpose(1, 2)[..., None].expand_as(out).double()
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    assert torch.equal(lse.isneginf(), ~covered)


def test_some_rows_are_the_same_rows_of_all():
    problem = Problem(2, 30, 4, 2, 8, ((10, 3), (7, 1)))
    q, k, v, *_ = problem.tensors(torch.float32)
    rows = torch.tensor([3, 29, 0, 11])
    options = {"pattern": problem.pattern, "is_causal": True}
    whole, whole_lse = reference(q, k, v, **options)
    out, lse = reference(q, k, v, rows=rows, **options)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, whole[:, rows], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(lse, whole_lse[:, :, rows], rtol=1e-13, atol=1e-14)


def test_gradients_of_some_rows_equal_all_rows_with_zero_cotangents_elsewhere():
    problem = Problem(2, 30, 4, 2, 8, ((10, 3), (7, 1)), is_causal=True)
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float64)
    rows = torch.tensor([3, 28, 0, 11])
    elsewhere = torch.ones(30, dtype=torch.bool).index_fill(0, rows, False)
    options = {"pattern": problem.pattern, "is_causal": True}
    some = reference_gradients(
        q, k, v, grad_out[:, rows], grad_lse=grad_lse[:, :, rows], rows=rows, **options
    )
    full = reference_gradients(
        q,
        k,
        v,
        grad_out.masked_fill(elsewhere[:, None, None], 0),
        grad_lse=grad_lse.masked_fill(elsewhere, 0),
        **options,
    )
    for a, b in zip(some, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    assert some[0][:, elsewhere].abs().max() == 0


@pytest.mark.parametrize("pattern", (DilatedBranches([4], [2]), HeadPartition([4, 4], [2, 3])))
def test_gradients_stay_finite_where_rows_have_no_keys(pattern):
    q, k, v, grad_out, grad_lse = Problem(1, 9, 2, 2, 4).tensors(torch.float64)
    padded = torch.tensor([[True] * 4 + [False] * 5])
    options = {"pattern": pattern, "key_padding_mask": padded}
    out, lse = reference(q, k, v, **options)
    assert out[:, :4].abs().max() == 0 and lse[:, :, :4].isneginf().all()
    gradients = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    assert all(x.isfinite().all() for x in gradients)
    assert all(x[:, :4].abs().max() == 0 for x in gradients)


def test_half_precision_rows_keep_their_softmax_in_float32():
    q, k, v, *_ = Problem(1, 64, 2, 2, 16).tensors(torch.bfloat16)
    out, lse = attend_rows(q, k, v, torch.arange(64))
    want, want_lse = reference(q, k, v)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    # Rounding the LSE to bfloat16 would cost 0.008 to 0.016 here.
    assert (lse - want_lse).abs().max() < 0.004
    assert (out - want).square().mean().sqrt() < 2**-8 * want.square().mean().sqrt()
