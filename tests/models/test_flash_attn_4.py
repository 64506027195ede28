"""FlashAttention-4 without the package: what is handed to it, read by a stand-in."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from models import UnsupportedBackend, dense_attention, flash_attn_4
from models.oracle import reference
from models.patterns import BlockMask
from tests.models.helpers import Problem, relative_rms


class BlockSparseTensors(NamedTuple):
    """The fields of flash_attn.cute.block_sparsity.BlockSparseTensorsTorch in 4.0.0b36."""

    mask_block_cnt: torch.Tensor
    mask_block_idx: torch.Tensor
    full_block_cnt: torch.Tensor | None = None
    full_block_idx: torch.Tensor | None = None
    cu_total_m_blocks: torch.Tensor | None = None
    cu_block_idx_offsets: torch.Tensor | None = None
    block_size: tuple[int, int] | None = None
    dq_write_order: torch.Tensor | None = None
    dq_write_order_full: torch.Tensor | None = None
    spt: bool | None = None


def blocks_kept(tensors, seq_len):
    """(G, M, M) bool, with the checks of the package's `normalize_block_sparse_config`."""
    size, _ = tensors.block_size
    blocks = -(-seq_len // size)
    counts = (tensors.mask_block_cnt, tensors.full_block_cnt)
    indices = (tensors.mask_block_idx, tensors.full_block_idx)
    kept = torch.zeros(counts[0].shape[1], blocks, blocks, dtype=torch.bool)
    for count, index in zip(counts, indices, strict=True):
        assert count.dtype == index.dtype == torch.int32
        assert count.shape == index.shape[:3] == (1, kept.shape[0], blocks)
        assert index.shape[3] <= blocks and index.stride(3) == 1
        for head in range(kept.shape[0]):
            for row in range(blocks):
                listed = index[0, head, row, : count[0, head, row]].long()
                assert not kept[head, row, listed].any()
                kept[head, row, listed] = True
    return kept


def flash_attn_func(
    q, k, v, *, softmax_scale, causal, return_lse,
    block_sparse_tensors=None, block_sparse_tensors_bwd=None,
):  # fmt: skip
    """Attention over the blocks of both lists, cut at the diagonal by `causal`."""
    pattern = None
    if block_sparse_tensors is not None:
        kept = blocks_kept(block_sparse_tensors, q.shape[1])
        assert torch.equal(kept, blocks_kept(block_sparse_tensors_bwd, q.shape[1]).mT)
        pattern = BlockMask.from_dense(kept, block_sparse_tensors.block_size[0])
    out, lse = reference(q, k, v, pattern=pattern, is_causal=causal, scale=softmax_scale)
    return out, lse if return_lse else None


@pytest.fixture
def package(monkeypatch):
    """flash_attn.cute, as far as it is used."""
    contents = {
        "flash_attn": {},
        "flash_attn.cute": {"flash_attn_func": flash_attn_func},
        "flash_attn.cute.block_sparsity": {"BlockSparseTensorsTorch": BlockSparseTensors},
    }
    for name, attributes in contents.items():
        module = ModuleType(name)
        module.__dict__.update(attributes, __spec__=ModuleSpec(name, None), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("n", (24, 29))
@pytest.mark.parametrize("heads", (1, 4))
def test_the_lists_handed_over(heads, n, is_causal, package, monkeypatch):
    monkeypatch.setattr(flash_attn_4, "why_not_block_sparse", lambda q, mask: None)
    generator = torch.Generator().manual_seed(heads)
    dense = torch.rand(heads, -(-n // 8), -(-n // 8), generator=generator) < 0.5
    dense[:, 1] = False
    mask = BlockMask.from_dense(dense, 8)
    q, k, v, *_ = Problem(2, n, 4, 2, 8).tensors(torch.float64)
    out, lse = flash_attn_4.block_sparse(q, k, v, mask, is_causal, 0.3, True)
    want, want_lse = reference(q, k, v, pattern=mask, is_causal=is_causal, scale=0.3)
    assert relative_rms(out, want) < 1e-14
    assert torch.equal(lse, want_lse) and lse[:, :, 8:16].isneginf().all()
    assert flash_attn_4.block_sparse(q, k, v, mask, is_causal, 0.3, False)[1] is None


def test_dense_calls_the_package(package):
    q, k, v, *_ = Problem(1, 20).tensors(torch.float64)
    out, lse = flash_attn_4.dense(q, k, v, True, 0.3, True)
    want, want_lse = reference(q, k, v, is_causal=True, scale=0.3)
    assert torch.equal(out, want) and torch.equal(lse, want_lse)


def on_cuda(head_dim=64, dtype=torch.bfloat16, requires_grad=False):
    return SimpleNamespace(
        device=SimpleNamespace(type="cuda"),
        dtype=dtype,
        shape=(1, 256, 2, head_dim),
        requires_grad=requires_grad,
    )


def capability(monkeypatch, major):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))


@pytest.mark.parametrize(
    "major, head_dim, reason",
    (
        (8, 64, "needs compute capability 9.0 or later"),
        (9, 64, None),
        (9, 256, None),
        (9, 68, "head_dim=68: takes multiples of 8 up to 256"),
        (9, 264, "head_dim=264: takes multiples of 8 up to 256"),
        (10, 128, None),
        (10, 192, "head_dim=192: takes multiples of 8 up to 128"),
        (10, 256, None),
        (12, 256, "head_dim=256: takes multiples of 8 up to 128"),
    ),
)
def test_head_dims_by_card(major, head_dim, reason, package, monkeypatch):
    capability(monkeypatch, major)
    assert flash_attn_4.why_not(on_cuda(head_dim)) == reason


# From `_tile_size_fwd_sm90`, `_fit_sm90_fwd_tile_to_block_sparsity`, `_tile_size_bwd_sm90` and
# `normalize_block_sparse_config*` of 4.0.0b36.
BLOCK_SIZES = {
    (9, 64, False): (64, 128),
    (9, 128, False): (64, 128),
    (9, 256, False): (64,),
    (9, 64, True): (128,),
    (9, 128, True): (128,),
    (9, 192, True): (),
    (9, 256, True): (64,),
    (10, 64, True): (256,),
    (10, 256, False): (),
    (12, 64, False): (),
}


@pytest.mark.parametrize("major, head_dim, backward", BLOCK_SIZES)
def test_block_sizes_by_card(major, head_dim, backward, package, monkeypatch):
    capability(monkeypatch, major)
    q = on_cuda(head_dim, requires_grad=backward)
    for size in (16, 32, 64, 96, 128, 256):
        mask = BlockMask.from_dense(torch.ones(1, 1, 1, dtype=torch.bool), size)
        reason = flash_attn_4.why_not_block_sparse(q, mask)
        if size in BLOCK_SIZES[major, head_dim, backward]:
            assert reason is None
        else:
            assert reason.startswith(f"block_size={size}: takes ")
            assert reason.endswith(", with gradients") == backward
    with torch.no_grad():
        reason = flash_attn_4.why_not_block_sparse(q, mask)
    assert reason is None or "with gradients" not in reason


def test_other_dtypes_are_refused(package, monkeypatch):
    capability(monkeypatch, 9)
    reason = flash_attn_4.why_not(on_cuda(dtype=torch.float32))
    assert reason == "takes float16 and bfloat16, not torch.float32"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(flash_attn_4.importlib.util, "find_spec", lambda name: None)
    reason = "the package flash-attn-4 is not installed (envs/cuda.txt)"
    assert flash_attn_4.why_not(on_cuda()) == reason


def test_it_does_not_run_here():
    q = torch.zeros(1, 8, 2, 16, dtype=torch.float16)
    mask = BlockMask.from_dense(torch.ones(1, 1, 1, dtype=torch.bool), 8)
    with pytest.raises(UnsupportedBackend, match="^flash-attn-4: needs a CUDA device"):
        dense_attention(q, q, q, backend="flash-attn-4")
    with pytest.raises(UnsupportedBackend, match="^flash-attn-4: needs a CUDA device"):
        flash_attn_4.block_sparse(q, q, q, mask, False, 1.0, True)
    with pytest.raises(ValueError, match="expected 2 blocks for 9 tokens"):
        flash_attn_4.block_sparse(*(torch.zeros(1, 9, 2, 16),) * 3, mask, False, 1.0, True)
