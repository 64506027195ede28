"""Blocks by masked scores: the same numbers as by lists, and what it has not is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import UnsupportedBackend, block_sparse_attention
from models.masked import masked_block_attention, token_mask
from models.patterns.block_mask import BlockMask


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 33),
    block_size=st.integers(1, 8),
    groups=st.sampled_from([(1, 1), (4, 2), (4, 4)]),
    lists=st.booleans(),
    is_causal=st.booleans(),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_equals_blocks_by_lists(n, block_size, groups, lists, is_causal, padded, seed):
    """Outputs and gradients in float64; rows without any key too, where both are 0."""
    heads, kv_heads = groups
    generator = torch.Generator().manual_seed(seed)

    def normal(count):
        x = torch.randn(2, n, count, 8, generator=generator, dtype=torch.float64)
        return x.requires_grad_()

    blocks = -(-n // block_size)
    kept = torch.rand(heads if lists else 1, blocks, blocks, generator=generator) < 0.4
    mask = BlockMask.from_dense(kept, block_size)
    inputs = [normal(heads), normal(kv_heads), normal(kv_heads)]
    options = {"is_causal": is_causal}
    if padded:
        options["key_padding_mask"] = torch.rand(2, n, generator=generator) < 0.3
    cotangent = torch.randn(2, n, heads, 8, generator=generator, dtype=torch.float64)
    found = masked_block_attention(*inputs, mask, **options)
    expected = block_sparse_attention(*inputs, mask, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for own, other in zip(
        torch.autograd.grad(found, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-11)


def test_padding_may_hold_anything():
    q, k, v = (torch.randn(1, 6, 1, 4) for _ in range(3))
    mask = BlockMask.from_dense(torch.ones(1, 3, 3, dtype=torch.bool), 2)
    padded = torch.tensor([[False, False, True, False, False, True]])
    clean = masked_block_attention(q, k, v, mask, key_padding_mask=padded)
    k, v = k.clone(), v.clone()
    k[0, 2], v[0, 5] = float("nan"), float("inf")
    assert torch.equal(clean, masked_block_attention(q, k, v, mask, key_padding_mask=padded))


def test_the_mask_of_tokens_by_hand():
    mask = BlockMask.from_dense(torch.tensor([[[True, False], [True, True]]]), 2)
    expected = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert token_mask(mask, 3, is_causal=True).int().tolist() == [expected]


def test_what_it_has_not_is_refused():
    q = torch.randn(1, 4, 1, 4)
    mask = BlockMask.from_dense(torch.ones(1, 2, 2, dtype=torch.bool), 2)
    with pytest.raises(UnsupportedBackend, match="no LSE"):
        masked_block_attention(q, q, q, mask, return_lse=True)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(UnsupportedBackend, match="no document_ids"):
        masked_block_attention(q, q, q, mask, document_ids=ids)
    with pytest.raises(ValueError, match="backend='triton': expected"):
        masked_block_attention(q, q, q, mask, backend="triton")
    with pytest.raises(ValueError, match="mask=Tensor: expected"):
        masked_block_attention(q, q, q, torch.ones(2, 2))
