"""Numbers of any kind, empty batches, and what is refused by name."""

import numpy as np
import pytest
import torch

from models import (
    MultiheadDilatedAttention,
    block_sparse_attention,
    dense_attention,
    dilated_attention,
    head_partitioned_attention,
    ring_attention,
)
from models.patterns import BlockMask, DilatedBranches, HeadPartition, local_window
from models.ring.simulated import simulated_ring_attention
from tests.models.helpers import Problem

LISTS = ([8, 16], [1, 2])
MASK = BlockMask.from_dense(torch.ones(1, 3, 3).tril().bool(), 8)
SYSTEMS = {
    "dense": dense_attention,
    "dense eager": lambda *x, **o: dense_attention(*x, backend="eager", **o),
    "dense math": lambda *x, **o: dense_attention(*x, backend="sdpa-math", **o),
    "dilated": lambda *x, **o: dilated_attention(*x, *LISTS, **o),
    "gather": lambda *x, **o: dilated_attention(*x, *LISTS, backend="gather", **o),
    "partition": lambda *x, **o: head_partitioned_attention(*x, *LISTS, **o),
    "block-sparse": lambda *x, **o: block_sparse_attention(*x, MASK, **o),
    "ring": ring_attention,
    "ring dilated": lambda *x, **o: ring_attention(*x, pattern=DilatedBranches(*LISTS), **o),
    "simulated ring": lambda *x, **o: simulated_ring_attention(*x, world_size=2, **o),
}


def tensors(batch=2, n=20):
    return [x.detach() for x in Problem(batch or 1, n, 4, 2, 8).tensors(torch.float64)[:3]]


@pytest.mark.parametrize("name", SYSTEMS)
def test_numpy_numbers_are_numbers(name):
    attend, qkv = SYSTEMS[name], tensors()
    want = attend(*qkv, is_causal=True, scale=0.25)
    for number in (np.float64(0.25), np.float32(0.25), np.float16(0.25)):
        assert torch.equal(attend(*qkv, is_causal=np.bool_(True), scale=number), want)
    assert torch.equal(attend(*qkv, scale=np.int64(1)), attend(*qkv, scale=1.0))


@pytest.mark.parametrize("kind", (np.array, lambda x: np.array(x, np.int32), list, tuple))
def test_numpy_lists_are_lists(kind):
    qkv = tensors()
    lists = tuple(kind(x) for x in LISTS)
    assert torch.equal(dilated_attention(*qkv, *lists), dilated_attention(*qkv, *LISTS))
    of_numbers = tuple([np.int64(x) for x in values] for values in LISTS)
    for pattern in (DilatedBranches, HeadPartition):
        assert pattern(*lists) == pattern(*of_numbers) == pattern(*LISTS)
        assert hash(pattern(*lists)) == hash(pattern(*LISTS))


def test_numpy_sizes_of_masks_and_modules():
    want = local_window(20, sparsity=0.5, block_size=4, heads=2)
    options = {"block_size": np.int64(4), "heads": np.int32(2)}
    got = local_window(np.int64(20), sparsity=np.float32(0.5), **options)
    assert torch.equal(got.to_dense(), want.to_dense()) and got.block_size == 4
    torch.manual_seed(0)
    module = MultiheadDilatedAttention(np.int64(16), np.int64(4), *map(np.array, LISTS))
    torch.manual_seed(0)
    same = MultiheadDilatedAttention(16, 4, *LISTS, num_kv_heads=4)
    x = torch.randn(2, 20, 16)
    assert torch.equal(module(x, x, x)[0], same(x, x, x)[0])


@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("name", SYSTEMS)
def test_an_empty_batch_gives_empty_results(name, masked):
    q, k, v = (x[:0].requires_grad_() for x in tensors())
    takes_masks = not name.startswith(("ring", "simulated"))
    options = {"key_padding_mask": torch.zeros(0, 20, dtype=torch.bool)} if masked else {}
    if masked and takes_masks:
        options["document_ids"] = torch.zeros(0, 20, dtype=torch.long)
    if name == "dense math":
        out = SYSTEMS[name](q, k, v, **options)
    else:
        out, lse = SYSTEMS[name](q, k, v, return_lse=True, **options)
        assert lse.shape == (0, 4, 20) and lse.dtype == torch.float64
    assert out.shape == q.shape and out.dtype == q.dtype
    out.sum().backward()
    assert all(x.grad.shape == x.shape for x in (q, k, v))


@pytest.mark.parametrize("name", SYSTEMS)
def test_unbatched_inputs_are_refused_by_name(name):
    q, k, v = (x[0] for x in tensors())
    with pytest.raises(ValueError, match=r"q=\(20, 4, 8\): expected a tensor \(batch, tokens, "):
        SYSTEMS[name](q, k, v)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("value", (0, -1.0, np.float64("nan"), "1", True, np.bool_(True), 1j, [1]))
def test_what_is_no_scale_is_refused(name, value):
    with pytest.raises(ValueError, match="scale=.*expected a positive number or None"):
        SYSTEMS[name](*tensors(), scale=value)


@pytest.mark.parametrize("value", (8.0, np.float64(8), True, np.bool_(True), "8", None, 0, -8))
def test_what_is_no_length_is_refused(value):
    qkv = tensors()
    with pytest.raises(ValueError, match="segment_lengths=.*expected"):
        dilated_attention(*qkv, [value], [1])
    with pytest.raises(ValueError, match="block_size=.*expected an integer >= 1"):
        BlockMask(MASK.row_ptr, MASK.col_idx, value)
    with pytest.raises(ValueError, match="embed_dim=.*expected an integer >= 1"):
        MultiheadDilatedAttention(value, 4, *LISTS)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(
    "mask", (torch.zeros(2, 20), torch.zeros(2, 20, 1).bool(), torch.zeros(1, 20).bool(), [False])
)
def test_bad_padding_masks_are_refused(name, mask):
    with pytest.raises(ValueError, match="key_padding_mask="):
        SYSTEMS[name](*tensors(), key_padding_mask=mask)
