"""Dilated attention by masked scores equals that by branches; what it has not is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import UnsupportedBackend, dense_attention, dilated_attention
from models.masked_dilated import masked_dilated_attention, pair_counts
from models.oracle import attend_rows
from models.patterns.branches import DilatedBranches

BRANCHES = [(4, 8, 16), (1, 2, 3)]


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 33),
    branches=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=4),
    groups=st.sampled_from([(1, 1), (4, 2), (5, 5)]),
    head_offset=st.sampled_from(["modulo", "block"]),
    is_causal=st.booleans(),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_equals_dilated_attention(n, branches, groups, head_offset, is_causal, padded, seed):
    """Outputs and gradients in float64; rows without any key too, where both are 0."""
    heads, kv_heads = groups
    inputs = [
        normal(2, n, count, 8, seed=seed + i).requires_grad_()
        for i, count in enumerate((heads, kv_heads, kv_heads))
    ]
    options = {"is_causal": is_causal, "head_offset": head_offset}
    if padded:
        options["key_padding_mask"] = normal(2, n, seed=seed) < -0.5
    lists = list(zip(*branches, strict=True))
    found = masked_dilated_attention(*inputs, *lists, **options)
    expected = dilated_attention(*inputs, *lists, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    cotangent = normal(2, n, heads, 8, seed=seed + 3)
    for own, other in zip(
        torch.autograd.grad(found, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-11)


@given(
    n=st.integers(1, 50),
    branches=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=4),
    heads=st.integers(1, 5),
    head_offset=st.sampled_from(["modulo", "block"]),
)
def test_counts_are_those_of_the_pattern(n, branches, heads, head_offset):
    pattern = DilatedBranches(*zip(*branches, strict=True), head_offset)
    found = pair_counts(pattern, n, heads, torch.device("cpu"))
    rows = torch.arange(n)
    for head in range(heads):
        assert torch.equal(found[head].long(), pattern.counts(head, heads, rows, n))


def test_one_branch_of_all_tokens_is_dense_attention():
    q, k, v = (normal(2, 13, 3, 8, seed=i) for i in range(3))
    found = masked_dilated_attention(q, k, v, [13], [1], is_causal=True)
    expected = dense_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_later_tokens_change_nothing():
    q, k, v = (normal(1, 16, 2, 8, seed=i) for i in range(3))
    before = masked_dilated_attention(q, k, v, *BRANCHES, is_causal=True)
    for x in (q, k, v):
        x[:, 9:] += 1.0
    after = masked_dilated_attention(q, k, v, *BRANCHES, is_causal=True)
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] - after[:, 9:]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_rounded_once(dtype, autocast):
    """Scores and their counts are of float32: what is left is the rounding of inputs and output."""
    inputs = [normal(1, 40, 2, 16, seed=i).to(dtype) for i in range(3)]
    given_ = [x.float() for x in inputs] if autocast else inputs
    with torch.autocast("cpu", dtype, enabled=autocast):
        found = masked_dilated_attention(*given_, *BRANCHES, is_causal=True)
    pattern = DilatedBranches(*BRANCHES)
    wide = [x.double() for x in inputs]
    expected, _ = attend_rows(*wide, torch.arange(40), pattern=pattern, is_causal=True)
    assert found.dtype == dtype
    largest = torch.finfo(dtype).eps / 2 * expected.abs() + 1e-5
    assert ((found.double() - expected).abs() <= largest * 1.01).all()


def test_padding_may_hold_anything():
    q, k, v = (normal(1, 6, 1, 4, dtype=torch.float32, seed=i) for i in range(3))
    padded = torch.tensor([[False, False, True, False, False, True]])
    options = {"key_padding_mask": padded, "is_causal": True}
    clean = masked_dilated_attention(q, k, v, *BRANCHES, **options)
    k[0, 2], v[0, 5] = float("nan"), float("inf")
    assert torch.equal(clean, masked_dilated_attention(q, k, v, *BRANCHES, **options))


def test_it_compiles_whole():
    q, k, v = (normal(1, 24, 2, 8, dtype=torch.float32, seed=i) for i in range(3))
    found = torch.compile(masked_dilated_attention, fullgraph=True, backend="aot_eager")
    expected = dilated_attention(q, k, v, *BRANCHES, is_causal=True)
    torch.testing.assert_close(found(q, k, v, *BRANCHES, is_causal=True), expected)


def test_what_it_has_not_is_refused():
    q = torch.randn(1, 4, 1, 4)
    with pytest.raises(UnsupportedBackend, match="no LSE"):
        masked_dilated_attention(q, q, q, [4], [1], return_lse=True)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(UnsupportedBackend, match="no document_ids"):
        masked_dilated_attention(q, q, q, [4], [1], document_ids=ids)
    with pytest.raises(ValueError, match="backend='triton': expected"):
        masked_dilated_attention(q, q, q, [4], [1], backend="triton")
    with pytest.raises(ValueError, match="dilation_rates=.*: expected 1"):
        masked_dilated_attention(q, q, q, [4], [1, 2])
