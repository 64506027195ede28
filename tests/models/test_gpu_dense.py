"""FlexAttention and FlashAttention-4 on a CUDA device: block masks, LSE and its gradient."""

import pytest
import torch

from models import UnsupportedBackend, dense_attention, flash_attn_4, flex
from models.oracle import reference, reference_gradients
from models.patterns import BlockMask
from tests.models.helpers import relative_rms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# Relative rms of one kernel on its own; half precision rounds its results, float32 its sums.
TOLERANCE = {torch.float16: 2**-9, torch.bfloat16: 2**-6, torch.float32: 4e-6}


@pytest.fixture(autouse=True)
def full_float32():
    """No TF32 in plain matrix products, so that float32 means float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def tensors(dtype, n, heads=4, kv_heads=2, dim=64):
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=generator, device="cuda").to(dtype)

    q = normal(2, n, heads, dim).requires_grad_()
    k, v = (normal(2, n, kv_heads, dim).requires_grad_() for _ in range(2))
    grad_lse = torch.randn(2, heads, n, generator=generator, device="cuda")
    return q, k, v, normal(2, n, heads, dim), grad_lse


def random_mask(n, block_size, heads):
    """A random mask; of more than two blocks, without the second query and first key block."""
    blocks = -(-n // block_size)
    generator = torch.Generator("cuda").manual_seed(1)
    dense = torch.rand(heads, blocks, blocks, generator=generator, device="cuda") < 0.3
    if blocks > 2:
        dense[:, 1] = dense[:, :, 0] = False
    else:
        dense[:] = True
    return BlockMask.from_dense(dense, block_size)


def check(out, lse, inputs, cotangents, **options):
    """Forward, LSE and gradients against float64; the gradients of rows without keys, too."""
    dtype = inputs[0].dtype
    grad_out, grad_lse = cotangents
    want, want_lse = reference(*inputs, **options)
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert relative_rms(out, want) <= TOLERANCE[dtype]
    empty = want_lse.isneginf()
    assert torch.equal(lse.isneginf(), empty) and not out.transpose(1, 2)[empty].any()
    assert relative_rms(lse[~empty], want_lse[~empty]) <= TOLERANCE[dtype]
    grad_lse = grad_lse.masked_fill(empty, 0)
    got = torch.autograd.grad((out, lse), inputs, (grad_out, grad_lse))
    want = reference_gradients(*inputs, grad_out, grad_lse=grad_lse, **options)
    assert relative_rms(got, want) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize(
    "n, block_size, dim, dtype, heads, is_causal",
    (
        (1024, 64, 64, torch.bfloat16, 1, True),
        (1000, 64, 64, torch.float16, 4, False),
        (96, 64, 64, torch.float16, 1, True),
        (1000, 64, 128, torch.bfloat16, 1, True),
        (1024, 64, 256, torch.bfloat16, 1, False),
        (1000, 64, 72, torch.float16, 1, True),
        (1000, 64, 64, torch.float32, 1, True),
        (1024, 64, 128, torch.float32, 4, False),
        (1000, 64, 256, torch.float32, 1, True),
        (1000, 32, 64, torch.bfloat16, 1, True),
        (1024, 16, 64, torch.bfloat16, 4, True),
        (1000, 128, 64, torch.bfloat16, 1, True),
        (96, 128, 64, torch.bfloat16, 1, False),
    ),
)
def test_flex_block_sparse(n, block_size, dim, dtype, heads, is_causal):
    """Every row of the table of tiles; whole, ragged and short sequences."""
    q, k, v, *cotangents = tensors(dtype, n, dim=dim)
    mask = random_mask(n, block_size, heads)
    out, lse = flex.block_sparse(q, k, v, mask, is_causal, 0.1, True)
    check(out, lse, (q, k, v), cotangents, pattern=mask, is_causal=is_causal, scale=0.1)


def test_flex_block_sparse_without_lse():
    q, k, v, grad_out, _ = tensors(torch.bfloat16, 1000)
    mask = random_mask(1000, 64, 1)
    options = {"pattern": mask, "is_causal": True, "scale": 0.1}
    out, lse = flex.block_sparse(q, k, v, mask, True, 0.1, False)
    assert lse is None
    assert relative_rms(out, reference(q, k, v, **options)[0]) <= TOLERANCE[q.dtype]
    got = torch.autograd.grad(out, (q, k, v), grad_out)
    assert relative_rms(got, reference_gradients(q, k, v, grad_out, **options)) <= 2**-5


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("backend", ("flex", "flash-attn-4"))
def test_dense_lse_and_its_gradient(backend, is_causal, dtype):
    q, k, v, *cotangents = tensors(dtype, 1000)
    try:
        out, lse = dense_attention(q, k, v, is_causal=is_causal, backend=backend, return_lse=True)
    except UnsupportedBackend as reason:
        pytest.skip(str(reason))
    check(out, lse, (q, k, v), cotangents, is_causal=is_causal)


@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("dim", (64, 128))
@pytest.mark.parametrize("block_size", (64, 128, 256))
@pytest.mark.parametrize("heads", (1, 4))
def test_flash_attn_4_block_sparse(heads, block_size, dim, is_causal):
    n = 1500
    q, k, v, *cotangents = tensors(torch.bfloat16, n, dim=dim)
    mask = random_mask(n, block_size, heads)
    options = {"pattern": mask, "is_causal": is_causal, "scale": 0.1}
    try:
        with torch.no_grad():
            out, _ = flash_attn_4.block_sparse(q, k, v, mask, is_causal, 0.1, True)
    except UnsupportedBackend as reason:
        pytest.skip(str(reason))
    assert relative_rms(out, reference(q, k, v, **options)[0]) <= TOLERANCE[torch.bfloat16]
    if flash_attn_4.why_not_block_sparse(q, mask) is None:
        out, lse = flash_attn_4.block_sparse(q, k, v, mask, is_causal, 0.1, True)
        check(out, lse, (q, k, v), cotangents, **options)


@pytest.mark.parametrize("block_size", (64, 128))
def test_flex_gradients_repeat_bit_by_bit(block_size):
    q, k, v, *cotangents = tensors(torch.bfloat16, 2048)
    mask = random_mask(2048, block_size, 1)

    def gradients():
        outputs = flex.block_sparse(q, k, v, mask, True, 0.1, True)
        empty = outputs[1].isneginf()
        grad_lse = cotangents[1].masked_fill(empty, 0)
        return torch.autograd.grad(outputs, (q, k, v), (cotangents[0], grad_lse))

    first = gradients()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))
