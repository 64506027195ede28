"""Gradients through the output and through the LSE, against the oracle's and finite differences."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import (
    dense_attention,
    dilated_attention,
    fused_ops,
    head_partitioned_attention,
)
from models.oracle import reference_gradients
from models.patterns import HeadPartition
from tests.models.helpers import (
    DILATED_BACKENDS,
    LAYOUTS,
    Problem,
    problems,
    relative_rms,
    rounding_floor,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STRIDED = Problem(batch=2, n=32, branches=((8, 1), (16, 2)), grad_layout="heads_first")
LONG = Problem(batch=2, n=90, kv_heads=2, branches=((7, 3), (90, 4), (200, 1)))
both_backends = pytest.mark.parametrize("backend", DILATED_BACKENDS)


def gradients(attention, q, k, v, grad_out, grad_lse):
    """dq, dk, dv of `sum(out * grad_out)`, plus `sum(lse * grad_lse)` where that is given."""
    if grad_lse is None:
        return torch.autograd.grad(attention(q, k, v), (q, k, v), grad_out)
    out, lse = attention(q, k, v, return_lse=True)
    return torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))


def dilated(problem, backend):
    def attention(q, k, v, **options):
        return dilated_attention(
            q,
            k,
            v,
            *problem.lists,
            is_causal=problem.is_causal,
            head_offset=problem.head_offset,
            backend=backend,
            **options,
        )

    return attention


def dense(problem, backend="sdpa-flash"):
    def attention(q, k, v, **options):
        return dense_attention(q, k, v, is_causal=problem.is_causal, backend=backend, **options)

    return attention


def in_each_dtype(test):
    """Examples: both problems in every dtype, and each with and without a gradient of the LSE."""
    for place, dtype in enumerate(DTYPES):
        for problem in (STRIDED, LONG):
            with_lse = (place + (problem is LONG)) % 2 == 0
            test = example(problem=problem, dtype=dtype, through_lse=with_lse)(test)
    return test


@both_backends
@settings(max_examples=40)
@given(problem=problems(), dtype=st.sampled_from(DTYPES), through_lse=st.booleans())
@in_each_dtype
def test_error_is_within_thrice_dense_attentions_own(problem, dtype, through_lse, backend):
    """Errors of the three gradients as one vector; `rounding_floor` is the least bound."""
    q, k, v, grad_out, grad_lse = problem.tensors(dtype)
    grad_lse = grad_lse if through_lse else None
    options = {"is_causal": problem.is_causal, "grad_lse": grad_lse}
    got = gradients(dilated(problem, backend), q, k, v, grad_out, grad_lse)
    want = reference_gradients(q, k, v, grad_out, pattern=problem.pattern, **options)
    baseline = relative_rms(
        gradients(dense(problem), q, k, v, grad_out, grad_lse),
        reference_gradients(q, k, v, grad_out, **options),
    )
    assert all(x.dtype == dtype for x in got)
    assert relative_rms(got, want) <= max(3 * baseline, rounding_floor(dtype))


@both_backends
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("branches", (((4, 1), (7, 3)), ((5, 2),)))
def test_finite_differences_agree(branches, is_causal, backend):
    problem = Problem(1, 8, 2, 1, 2, branches, "block", is_causal)
    q, k, v, *_ = problem.tensors(torch.float64)

    def both_outputs(q, k, v):
        out, lse = dilated(problem, backend)(q, k, v, return_lse=True)
        return out, lse.masked_fill(lse.isneginf(), 0)

    assert torch.autograd.gradcheck(both_outputs, (q, k, v), atol=1e-7, rtol=1e-6)


def test_finite_differences_agree_for_dense_attention_with_its_lse():
    q, k, v, *_ = Problem(1, 6, 4, 2, 2).tensors(torch.float64)
    for backend in ("sdpa-flash", "eager"):
        attention = dense(Problem(is_causal=True), backend)
        assert torch.autograd.gradcheck(
            lambda *args, attention=attention: attention(*args, return_lse=True), (q, k, v)
        )


@both_backends
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("n", (32, 30))
def test_any_memory_layout_of_the_cotangent(n, grad_layout, backend):
    """Autograd hands over cotangents as transposed or expanded views; none may be misread."""
    problem = Problem(2, n, 4, 2, 8, ((8, 1), (16, 2)), grad_layout=grad_layout)
    q, k, v, grad_out, _ = problem.tensors(torch.float64)
    for cotangent in (grad_out, grad_out[:1].expand(2, -1, -1, -1), torch.ones(()).expand(q.shape)):
        got = gradients(dilated(problem, backend), q, k, v, cotangent.double(), None)
        want = reference_gradients(q, k, v, cotangent, pattern=problem.pattern)
        assert relative_rms(got, want) < 1e-14


@both_backends
def test_gradient_of_a_transposed_reader(backend):
    """(B, H, N, D) readers, the usual neighbours of attention, send back a strided gradient."""
    problem = Problem(2, 32, 4, 4, 8, ((8, 1), (16, 2)))
    q, k, v, grad_out, _ = problem.tensors(torch.float64)
    out = dilated(problem, backend)(q, k, v)
    weight = grad_out.transpose(1, 2).contiguous()
    (out.transpose(1, 2) * weight).sum().backward()
    want = reference_gradients(q, k, v, grad_out, pattern=problem.pattern)
    assert relative_rms([q.grad, k.grad, v.grad], want) < 1e-14


@both_backends
def test_lse_alone_has_a_gradient(backend):
    problem = Problem(2, 30, 4, 2, 8, ((8, 1), (13, 2)))
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float64)
    _, lse = dilated(problem, backend)(q, k, v, return_lse=True)
    got = torch.autograd.grad(lse, (q, k, v), grad_lse, materialize_grads=True)
    want = reference_gradients(
        q, k, v, torch.zeros_like(grad_out), grad_lse=grad_lse, pattern=problem.pattern
    )
    assert relative_rms(got, want) < 1e-14
    assert got[2].abs().max() == 0


@both_backends
@settings(max_examples=25)
@given(problem=problems())
def test_padded_keys_get_no_gradient_and_nothing_becomes_nan(problem, backend):
    q, k, v, grad_out, _ = problem.tensors(torch.float64)
    generator = torch.Generator().manual_seed(2)
    padded = torch.rand(problem.batch, problem.n, generator=generator) < 0.5
    padded[0] = True
    attention = dilated(problem, backend)
    out = attention(q, k, v, key_padding_mask=padded)
    got = torch.autograd.grad(out, (q, k, v), grad_out)
    want = reference_gradients(
        q,
        k,
        v,
        grad_out,
        pattern=problem.pattern,
        is_causal=problem.is_causal,
        key_padding_mask=padded,
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert (got[1][padded] == 0).all() and (got[2][padded] == 0).all()


@both_backends
@settings(max_examples=15)
@given(problem=problems())
def test_head_partitioned(problem, backend):
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float64)

    def attention(q, k, v, **options):
        return head_partitioned_attention(
            q, k, v, *problem.lists, is_causal=problem.is_causal, backend=backend, **options
        )

    got = gradients(attention, q, k, v, grad_out, grad_lse)
    want = reference_gradients(
        q,
        k,
        v,
        grad_out,
        grad_lse=grad_lse,
        pattern=HeadPartition(*problem.lists),
        is_causal=problem.is_causal,
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("n", (64, 70))
def test_the_efficient_op_is_given_packed_rows(n, monkeypatch):
    """Its kernel takes no row stride of `out` or LSE, and reads the LSE up to a multiple of 32."""
    given = {}

    class Watched:
        def _scaled_dot_product_efficient_attention(self, q, k, v, *rest, scale):
            return q, None, None, None

        def _scaled_dot_product_efficient_attention_backward(
            self, grad_out, q, k, v, bias, out, lse, *rest, scale
        ):
            given.update(out=out, lse=lse)
            return q, k, v, None

    monkeypatch.setattr(fused_ops, "_aten", Watched())
    out = torch.randn(2, n, 8, 16)[:, :, ::2].transpose(1, 2)
    lse = torch.randn(2, n, 4).transpose(1, 2)
    op = fused_ops.CudaEfficient()
    op.backward(out, out, out, out, out, lse, False, 0.25)
    assert given["out"].transpose(1, 2).is_contiguous() and torch.equal(given["out"], out)
    assert given["lse"].is_contiguous() and torch.equal(given["lse"][..., :n], lse)
    assert given["lse"].shape[-1] % 32 == 0 and given["lse"][..., n:].isposinf().all()
