"""One rule of dtypes, that of F.scaled_dot_product_attention; no overflow in half precision."""

import pytest
import torch
import torch.nn.functional as F

from models import (
    MultiheadDilatedAttention,
    block_sparse_attention,
    dense_attention,
    dilated_attention,
    head_partitioned_attention,
)
from models.oracle import reference
from models.patterns import BlockMask, DilatedBranches, HeadPartition
from tests.models.helpers import Problem, relative_rms

LISTS = ([8, 24], [1, 3])
BLOCKS = BlockMask.from_dense(torch.ones(1, 5, 5).tril().bool(), 8)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PADDED = torch.arange(40) >= torch.tensor([[40], [29]])
IDS = (torch.arange(40) // 13).expand(2, 40)


def dense(backend):
    return lambda *x, **o: dense_attention(*x, backend=backend, **o), None


def dilated(backend):
    return lambda *x, **o: dilated_attention(*x, *LISTS, backend=backend, **o), DilatedBranches(
        *LISTS
    )


def partition(backend):
    attend = head_partitioned_attention
    return lambda *x, **o: attend(*x, *LISTS, backend=backend, **o), HeadPartition(*LISTS)


def block_sparse(backend):
    return lambda *x, **o: block_sparse_attention(*x, BLOCKS, backend=backend, **o), BLOCKS


SYSTEMS = {
    "dense": dense("auto"),
    "dense eager": dense("eager"),
    "dense math": dense("sdpa-math"),
    "dilated": dilated("auto"),
    "dilated gather": dilated("gather"),
    "partition": partition("auto"),
    "partition gather": partition("gather"),
    "block-sparse": block_sparse("auto"),
}


def autocast(dtype):
    return torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)


@pytest.mark.parametrize("masks", ({}, {"key_padding_mask": PADDED}, {"document_ids": IDS}))
@pytest.mark.parametrize("cast_to", (None, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_dtype_of_results_and_their_accuracy(name, dtype, cast_to, masks):
    """Half results are as near to the exact ones of the cast inputs as PyTorch's are."""
    attend, pattern = SYSTEMS[name]
    qkv = [x.detach() for x in Problem(2, 40, 4, 4, 8).tensors(dtype)[:3]]
    with autocast(cast_to):
        theirs = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv))
        out = attend(*qkv, **masks)
        lse = None if name == "dense math" else attend(*qkv, return_lse=True, **masks)[1]
    assert out.dtype == theirs.dtype
    cast = [x.to(theirs.dtype) for x in qkv]
    want, want_lse = reference(*cast, pattern=pattern, **masks)
    assert relative_rms(out, want) < 4 * torch.finfo(theirs.dtype).eps
    if lse is not None:
        accumulator = torch.promote_types(theirs.dtype, torch.float32)
        assert lse.dtype == accumulator
        # PyTorch's op sums rounded weights; an LSE of 3 in half precision is off by 0.001.
        atol = {torch.float64: 1e-12, torch.float32: 1e-5}.get(theirs.dtype, 2e-4)
        torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=atol)


@pytest.mark.parametrize("cast_to", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_under_autocast_are_those_of_cast_inputs(name, cast_to):
    attend, _ = SYSTEMS[name]
    qkv = Problem(2, 40, 4, 4, 8).tensors(torch.float32)[:3]
    cast = [x.detach().to(cast_to).requires_grad_() for x in qkv]
    with autocast(cast_to):
        out = attend(*qkv, is_causal=True)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(cast_to)
    got = torch.autograd.grad((out * weights).sum(), qkv)
    want = torch.autograd.grad((attend(*cast, is_causal=True) * weights).sum(), cast)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b.float(), rtol=0, atol=0)


def test_inputs_of_several_dtypes_under_autocast():
    """As after a norm that stays in float32, or a cache kept in half precision."""
    q, k, v = (x.detach() for x in Problem(2, 40, 4, 4, 8).tensors(torch.float32)[:3])
    for name, (attend, _) in SYSTEMS.items():
        with autocast(torch.bfloat16):
            out = attend(q, k.bfloat16(), v.half())
        want = attend(q.bfloat16(), k.bfloat16(), v.half().bfloat16())
        assert out.dtype == torch.bfloat16 and torch.equal(out, want), name
        with pytest.raises(ValueError, match="as q is"):
            attend(q, k.bfloat16(), v)


@pytest.mark.parametrize("cast_to", (torch.bfloat16, torch.float16))
def test_a_module_under_autocast(cast_to):
    torch.manual_seed(0)
    module = MultiheadDilatedAttention(16, 4, *LISTS)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    x = torch.randn(2, 40, 16)
    exact = module(x, x, x, key_padding_mask=PADDED)[0]
    with autocast(cast_to):
        out = module(x, x, x, key_padding_mask=PADDED)[0]
        assert out.dtype == theirs(x, x, x, need_weights=False)[0].dtype
    assert relative_rms(out, exact) < 8 * torch.finfo(cast_to).eps
    out.float().square().sum().backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters()
    )


@pytest.mark.parametrize("size", (1e2, 1e4, 6e4))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("name", SYSTEMS)
def test_large_activations_do_not_overflow(name, dtype, size):
    """Scores of size**2 pass fp16's 65504 by far; the fused ops hold them in float32."""
    attend, pattern = SYSTEMS[name]
    q, k, v = (x.detach() for x in Problem(2, 40, 4, 4, 8).tensors(torch.float64)[:3])
    q, k, v = ((size * x.clamp(-1, 1)).to(dtype).requires_grad_() for x in (q, k, v))
    out = attend(q, k, v, is_causal=True)
    want, _ = reference(q, k, v, pattern=pattern, is_causal=True)
    # Such a softmax takes the largest score: float32 tells apart all but near ties.
    wrong = (out.double() - want).abs() > 0.05 * size
    assert out.isfinite().all() and wrong.double().mean() < 0.1
    if size == 1e2:
        # Beyond, PyTorch's backward op overflows: exp(S - LSE) with an S that is off by 100.
        grads = torch.autograd.grad(out.float().mean(), (q, k, v))
        assert all(x.isfinite().all() for x in grads)
