"""The CPU's tests at sizes and on kernels of a CUDA device: fused ops cannot be had elsewhere."""

import pytest
import torch

from models import UnsupportedBackend, dense_attention, dilated_attention, dilated_op
from models.dense import BACKENDS
from models.dilated import resolve_backend
from models.fused_ops import CudaCudnn, CudaEfficient, CudaFlash, why_not_cudnn
from models.oracle import reference, reference_gradients
from models.patterns import DilatedBranches
from tests.models.helpers import DILATED_BACKENDS, relative_rms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LISTS = ([1024, 2048, 4096], [1, 2, 4])
# Relative rms of one kernel on its own; half precision rounds its results, float32 its sums.
TOLERANCE = {torch.float16: 2**-9, torch.bfloat16: 2**-6, torch.float32: 4e-6}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def full_float32():
    """No TF32 in plain matrix products, so that float32 means float32 in all backends."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def tensors(dtype, *, batch=1, n=4096, heads=4, kv_heads=4, dim=64, fused=False):
    """q, k, v and cotangents; `fused` makes q, k, v slices of one projection's output."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=generator, device="cuda").to(dtype)

    if fused:
        sizes = (heads, kv_heads, kv_heads)
        q, k, v = normal(batch, n, sum(sizes), dim).split(sizes, dim=2)
    else:
        q = normal(batch, n, heads, dim)
        k, v = (normal(batch, n, kv_heads, dim) for _ in range(2))
    grad_lse = torch.randn(batch, heads, n, generator=generator, device="cuda")
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    return q, k, v, normal(batch, n, heads, dim), grad_lse


def check(attention, pattern, q, k, v, grad_out, grad_lse, is_causal):
    """Forward within twice, gradients within thrice the error of dense attention in that dtype."""
    options = {"is_causal": is_causal}
    eps = torch.finfo(q.dtype).eps
    out, lse = attention(q, k, v, return_lse=True, **options)
    want, want_lse = reference(q, k, v, pattern=pattern, **options)
    dense, dense_lse = dense_attention(q, k, v, return_lse=True, **options)
    baseline = relative_rms(dense, reference(q, k, v, **options)[0])
    assert relative_rms(out, want) <= max(2 * baseline, eps)
    assert torch.equal(lse.isneginf(), want_lse.isneginf())
    held = want_lse.isfinite()
    assert (lse[held] - want_lse[held]).square().mean().sqrt() <= eps * want_lse[held].abs().max()
    cotangents = (grad_out, grad_lse)
    got = torch.autograd.grad((out, lse), (q, k, v), cotangents)
    want = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, pattern=pattern, **options)
    dense = torch.autograd.grad((dense, dense_lse), (q, k, v), cotangents)
    baseline = relative_rms(
        dense, reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    )
    assert relative_rms(got, want) <= max(3 * baseline, eps)


def dilated(backend, lists=LISTS):
    def attention(q, k, v, **options):
        return dilated_attention(q, k, v, *lists, backend=backend, **options)

    return attention


@every_dtype
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("dim", (64, 128))
@pytest.mark.parametrize("backend", DILATED_BACKENDS)
def test_dilated_attention_at_real_sizes(backend, dim, is_causal, dtype):
    check(dilated(backend), DilatedBranches(*LISTS), *tensors(dtype, dim=dim), is_causal)


@every_dtype
@pytest.mark.parametrize("n", (2048, 1999))
@pytest.mark.parametrize("dim", (64, 36, 256))
def test_strided_ragged_and_grouped(dim, n, dtype):
    lists = ([256, 1000, 3000], [1, 3, 4])
    inputs = tensors(dtype, batch=2, n=n, heads=6, kv_heads=2, dim=dim, fused=True)
    check(dilated("sdpa", lists), DilatedBranches(*lists), *inputs, True)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize(("n", "dim"), ((4096, 64), (1999, 64), (2048, 36), (4096, 128)))
def test_cudnn_on_strided_views(n, dim, is_causal, dtype):
    """Twice over, as plans of cuDNN's are kept: other strides of q must not get the first one's."""
    if reason := why_not_cudnn(torch.ones(1, 2, 1, dim, device="cuda", dtype=dtype)):
        pytest.skip(reason)
    lists = ([256, 1000, 3000], [1, 3, 4])
    options = {"pattern": DilatedBranches(*lists), "is_causal": is_causal}
    for fused in (False, True):
        inputs = tensors(dtype, batch=2, n=n, heads=6, kv_heads=2, dim=dim, fused=fused)
        q, k, v, grad_out, grad_lse = inputs
        if dim < 128:
            check(dilated("sdpa-cudnn", lists), options["pattern"], *inputs, is_causal)
            continue
        out = dilated("sdpa-cudnn", lists)(q, k, v, is_causal=is_causal)
        assert relative_rms(out, reference(q, k, v, **options)[0]) <= TOLERANCE[dtype]
        got = torch.autograd.grad(out, (q, k, v), grad_out)
        want = reference_gradients(q, k, v, grad_out, **options)
        assert relative_rms(got, want) <= 2 * TOLERANCE[dtype]


@every_dtype
def test_misaligned_inputs_are_not_read_past_their_alignment(dtype):
    q, k, v, grad_out, grad_lse = tensors(dtype, n=512, dim=72)
    q, k, v = (x[..., 1:65].detach().requires_grad_() for x in (q, k, v))
    lists = ([128, 512], [1, 2])
    inputs = (q, k, v, grad_out[..., :64], grad_lse)
    check(dilated("sdpa", lists), DilatedBranches(*lists), *inputs, False)


@pytest.mark.parametrize("op", (CudaFlash(), CudaEfficient(), CudaCudnn()), ids=lambda op: op.name)
@every_dtype
@pytest.mark.parametrize("n", (96, 100))
@pytest.mark.parametrize("lists", (([1000], [1]), ([32, 96], [1, 2])))
def test_each_fused_op_forward_and_backward(lists, n, dtype, op):
    """Lengths that are and are not multiples of the 32 rows to which one op pads its LSE."""
    if not isinstance(op, CudaEfficient) and dtype == torch.float32:
        pytest.skip(f"{op.name} takes no float32")
    pattern = DilatedBranches(*lists)
    q, k, v, grad_out, grad_lse = tensors(dtype, batch=2, n=n)
    if isinstance(op, CudaCudnn) and (reason := why_not_cudnn(q)):
        pytest.skip(reason)
    out, lse = dilated_op.dilated(q, k, v, None, None, *lists, "modulo", True, 0.125, op.name)
    options = {"pattern": pattern, "is_causal": True, "scale": 0.125}
    assert relative_rms(out, reference(q, k, v, **options)[0]) <= TOLERANCE[dtype]
    for cotangent in (None, grad_lse):
        outputs = (out,) if cotangent is None else (out, lse)
        cotangents = (grad_out,) if cotangent is None else (grad_out, cotangent)
        got = torch.autograd.grad(outputs, (q, k, v), cotangents, retain_graph=True)
        want = reference_gradients(q, k, v, grad_out, grad_lse=cotangent, **options)
        assert relative_rms(got, want) <= 2 * TOLERANCE[dtype]


@every_dtype
@pytest.mark.parametrize("return_lse", (False, True))
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("kv_heads", (4, 2))
@pytest.mark.parametrize("backend", BACKENDS)
def test_dense_backends(backend, kv_heads, is_causal, return_lse, dtype):
    q, k, v, grad_out, _ = tensors(dtype, n=1024, kv_heads=kv_heads)
    try:
        result = dense_attention(
            q, k, v, is_causal=is_causal, backend=backend, return_lse=return_lse
        )
    except UnsupportedBackend as reason:
        pytest.skip(str(reason))
    out, *lse = result if return_lse else (result,)
    want, want_lse = reference(q, k, v, is_causal=is_causal)
    assert relative_rms(out, want) <= TOLERANCE[dtype]
    assert all(relative_rms(x, want_lse) <= TOLERANCE[dtype] for x in lse)
    got = torch.autograd.grad(out, (q, k, v), grad_out)
    want = reference_gradients(q, k, v, grad_out, is_causal=is_causal)
    assert relative_rms(got, want) <= 2 * TOLERANCE[dtype]


@every_dtype
@pytest.mark.parametrize("backend", DILATED_BACKENDS)
def test_forward_repeats_bit_by_bit(backend, dtype):
    q, k, v, *_ = tensors(dtype)
    first = dilated(backend)(q, k, v, is_causal=True, return_lse=True)
    for _ in range(3):
        again = dilated(backend)(q, k, v, is_causal=True, return_lse=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@every_dtype
@pytest.mark.parametrize("backend", DILATED_BACKENDS)
def test_key_padding_mask(backend, dtype):
    q, k, v, grad_out, _ = tensors(dtype, batch=2, n=1000)
    padded = torch.arange(1000, device="cuda") >= torch.tensor([[1000], [600]], device="cuda")
    lists = ([256, 512], [1, 2])
    options = {"is_causal": True, "key_padding_mask": padded}
    out = dilated(backend, lists)(q, k, v, **options)
    pattern = DilatedBranches(*lists)
    assert relative_rms(out, reference(q, k, v, pattern=pattern, **options)[0]) <= TOLERANCE[dtype]
    got = torch.autograd.grad(out, (q, k, v), grad_out)
    want = reference_gradients(q, k, v, grad_out, pattern=pattern, **options)
    assert relative_rms(got, want) <= 2 * TOLERANCE[dtype]


def test_ops_chosen_by_dtype():
    q = torch.zeros(1, 8, 1, 64, device="cuda")
    assert resolve_backend(q, "auto") == "sdpa (cuda-efficient)"
    assert resolve_backend(q.double(), "auto") == "gather"
    with pytest.raises(UnsupportedBackend, match="float64"):
        resolve_backend(q.double(), "sdpa")
    if torch.cuda.get_device_capability() >= (8, 0):
        assert resolve_backend(q.half(), "auto") == "triton"
        assert resolve_backend(q.half(), "sdpa") == "sdpa (cuda-flash)"
