"""Dilated attention with detached mixing weights: exact values, torchscale's gradients."""

import torch
from hypothesis import given

from models import dilated_attention
from models.detached_mixing import detached_dilated_attention
from models.oracle import attend_rows, reference
from models.patterns import DilatedBranches
from tests.models.helpers import Problem, problems, relative_rms


def by_formula(q, k, v, problem):
    """`sum_b sg(a_b) O_b`, each branch by the oracle, float64."""
    rows = torch.arange(q.shape[1])
    outs, lses = zip(
        *(
            attend_rows(
                q, k, v, rows,
                pattern=DilatedBranches((w,), (r,), problem.head_offset),
                is_causal=problem.is_causal,
            )
            for w, r in problem.branches
        ),
        strict=True,
    )  # fmt: skip
    lses = torch.stack(lses).detach()
    empty = lses.isneginf().all(dim=0)
    weights = lses.masked_fill(empty, 0.0).softmax(dim=0).masked_fill(empty, 0.0)
    return (weights.mT[..., None] * torch.stack(outs)).sum(dim=0)


@given(problem=problems())
def test_values_are_exact_and_gradients_those_of_the_formula(problem):
    q, k, v, grad_out, _ = problem.tensors(torch.float64)
    options = {"is_causal": problem.is_causal, "head_offset": problem.head_offset}
    out, lse = detached_dilated_attention(q, k, v, *problem.lists, return_lse=True, **options)
    want, want_lse = reference(q, k, v, pattern=problem.pattern, is_causal=problem.is_causal)
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lse, want_lse, rtol=1e-9, atol=1e-9)
    assert not lse.requires_grad
    got = torch.autograd.grad(out, (q, k, v), grad_out)
    expected = torch.autograd.grad(by_formula(q, k, v, problem), (q, k, v), grad_out)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_its_gradients_are_not_the_exact_ones():
    q, k, v, grad_out, _ = Problem(2, 40, branches=((8, 1), (32, 3))).tensors(torch.float64)
    lists = ((8, 32), (1, 3))
    detached, exact = (
        torch.autograd.grad(attend(q, k, v, *lists), (q, k, v), grad_out)
        for attend in (detached_dilated_attention, dilated_attention)
    )
    assert relative_rms(detached[0], exact[0]) > 0.1
    assert relative_rms(detached[1], exact[1]) > 0.1
    # Values are mixed by the same weights.
    torch.testing.assert_close(detached[2], exact[2])


def test_masks_are_obeyed():
    q, k, v, _, _ = Problem(2, 40).tensors(torch.float64)
    padded = torch.arange(40) >= torch.tensor([[40], [29]])
    ids = (torch.arange(40) // 13).expand(2, 40)
    options = {"key_padding_mask": padded, "document_ids": ids, "is_causal": True}
    got = detached_dilated_attention(q, k, v, (8, 32), (1, 3), **options)
    want, _ = reference(q, k, v, pattern=DilatedBranches((8, 32), (1, 3)), **options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
