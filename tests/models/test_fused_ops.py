"""PyTorch's fused ops as we call them: the CPU's against a float64 softmax, CUDA's arguments."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import UnsupportedBackend, fused_ops
from models.fused_ops import OPS
from tests.models.helpers import relative_rms, rounding_floor

CPU = OPS["cpu-flash"]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("heads_first", "tokens_first", "dilated", "slices")


@dataclass(frozen=True)
class Case:
    """One drawn call; half of the keys are left out where `masked`, up to the first `hidden`."""

    n_queries: int
    n_keys: int
    is_causal: bool = False
    masked: bool = False
    hidden: int = 0
    batch: int = 1
    heads: int = 1
    dim: int = 8
    layout: str = "heads_first"
    seed: int = 0

    def tensors(self, dtype):
        """q, k, v, grad_out (B, H, n, D) in `dtype`, bias (B, 1, 1, n_keys) or None."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(n):
            shape = {
                "heads_first": (self.batch, self.heads, n, self.dim),
                "tokens_first": (self.batch, n, self.heads, self.dim),
                "dilated": (self.batch, 3 * n, 2 * self.heads, self.dim),
                "slices": (n, self.batch, self.heads, 3 * self.dim),
            }[self.layout]
            x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            return {
                "heads_first": lambda: x,
                "tokens_first": lambda: x.transpose(1, 2),
                "dilated": lambda: x[:, 1::3, ::2].transpose(1, 2),
                "slices": lambda: x[..., self.dim : 2 * self.dim].permute(1, 2, 0, 3),
            }[self.layout]()

        lengths = (self.n_queries, self.n_keys, self.n_keys, self.n_queries)
        q, k, v, grad_out = (normal(n) for n in lengths)
        if not self.masked:
            return q, k, v, grad_out, None
        left_out = torch.rand(self.batch, self.n_keys, generator=generator) < 0.5
        left_out[:, : self.hidden] = True
        bias = q.new_zeros(left_out.shape).masked_fill(left_out, -torch.inf)
        return q, k, v, grad_out, bias[:, None, None]


@st.composite
def cases(draw, longest=1500):
    n_keys = draw(st.integers(1, longest))
    is_causal = draw(st.booleans())
    return Case(
        n_queries=n_keys if is_causal else draw(st.integers(1, longest)),
        n_keys=n_keys,
        is_causal=is_causal,
        masked=draw(st.booleans()),
        hidden=draw(st.integers(0, 3)),
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 2)),
        dim=draw(st.sampled_from((1, 5, 8, 16))),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**16)),
    )


def softmax(case, q, k, v, grad_out, bias, scale):
    """out, LSE, (dq, dk, dv) in float64, and the rows (B, 1, N) without keys."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    scores = scale * q @ k.mT
    if bias is not None:
        scores = scores + bias.double()
    if case.is_causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    empty = scores.isneginf().all(dim=-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)
    out = weights @ v
    grads = torch.autograd.grad(out, (q, k, v), grad_out.double())
    return out.detach(), scores.detach().logsumexp(dim=-1), grads, empty[..., 0]


def check(case, dtype, rounding):
    """`rounding`: relative rms that out, LSE and gradients may be off by."""
    scale = 0.4
    q, k, v, grad_out, bias = tensors = case.tensors(dtype)
    before = [x.clone() for x in tensors if x is not None]
    out, lse = CPU.forward(q, k, v, case.is_causal, scale, bias)
    assert (out.dtype, lse.dtype) == (dtype, torch.promote_types(dtype, torch.float32))
    want, want_lse, want_grads, empty = softmax(case, *tensors, scale)
    empty = empty.expand(lse.shape)
    assert (out[empty] == 0).all()
    if not empty.all():
        assert relative_rms(out, want) <= rounding
        held = ~empty
        error = (lse[held] - want_lse[held]).abs().max()
        assert error <= rounding * max(1, want_lse[held].abs().max())
    # As callers do: any finite LSE where a row has no key.
    lse = lse.masked_fill(empty, 0.0)
    got = CPU.backward(grad_out, q, k, v, out, lse, case.is_causal, scale, bias)
    assert all(x.isfinite().all() for x in got)
    if want_grads[2].any():
        assert relative_rms(got, want_grads) <= 3 * rounding
    if bias is not None:
        left_out = bias[:, 0, 0].isneginf()
        assert all((x.transpose(1, 2)[left_out] == 0).all() for x in got[1:])
    after = [x for x in tensors if x is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@settings(max_examples=30, deadline=None)
@given(case=cases())
@example(case=Case(1, 1, is_causal=True))
@example(case=Case(191, 191, is_causal=True, layout="dilated"))
@example(case=Case(192, 192, is_causal=True, masked=True, hidden=3))
@example(case=Case(513, 513, is_causal=True, batch=2, heads=2, layout="slices"))
@example(case=Case(1025, 1025, is_causal=True, masked=True, hidden=600))
@example(case=Case(770, 1025, masked=True, hidden=1025))
def test_the_cpu_op_is_the_softmax_in_float32(case):
    check(case, torch.float32, 2e-6)


@settings(max_examples=12, deadline=None)
@given(case=cases(longest=700), dtype=st.sampled_from(DTYPES))
def test_the_cpu_op_in_every_dtype(case, dtype):
    check(case, dtype, 4 * rounding_floor(dtype))


def test_a_position_of_a_batch_does_not_change_its_bits():
    """Segments in one call, or in several: a stream is the sequence in one piece."""
    for n in (200, 777):
        q, k, v, grad_out, _ = Case(n, n, batch=3, heads=2, dim=16).tensors(torch.float32)
        for is_causal in (False, True):
            out, lse = CPU.forward(q, k, v, is_causal, 0.3)
            alone, alone_lse = CPU.forward(*(x[1:2] for x in (q, k, v)), is_causal, 0.3)
            assert torch.equal(alone, out[1:2]) and torch.equal(alone_lse, lse[1:2])


class Recorder:
    """In the place of `torch.ops.aten`: keeps the arguments of each call, by their names."""

    def __init__(self):
        self.calls = {}

    def __getattr__(self, name):
        schema = getattr(torch.ops.aten, name).default._schema

        def call(*args, **options):
            given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | options
            self.calls.setdefault(name, []).append(given)
            q = given.get("query")
            results = {"log_sumexp": q.sum(-1), "logsumexp": q.sum(-1), "output": q}
            return tuple(results.get(x.name) for x in schema.returns)

        return call


@pytest.mark.parametrize("n_keys", (16, 21, 32))
def test_the_efficient_op_is_given_aligned_rows_of_bias(monkeypatch, n_keys):
    aten = Recorder()
    monkeypatch.setattr(fused_ops, "_aten", aten)
    q, k, v, grad_out, bias = Case(5, n_keys, masked=True, batch=2, heads=3).tensors(torch.float16)
    op = OPS["cuda-efficient"]
    op.forward(q, k, v, False, 0.3, bias)
    op.backward(grad_out, q, k, v, q, q.sum(-1), False, 0.3, bias)
    ahead, _ = aten.calls["_scaled_dot_product_efficient_attention"]
    (back,) = aten.calls["_scaled_dot_product_efficient_attention_backward"]
    for call in (ahead, back):
        rows = call["attn_bias"]
        assert torch.equal(rows, bias.expand(2, 3, 5, n_keys))
        assert all(stride % 16 == 0 for stride in rows.stride()[:3]) and rows.stride(3) == 1


@pytest.mark.parametrize("name", ("cuda-flash", "cuda-efficient", "cuda-cudnn"))
def test_state_is_that_of_a_call_on_two_tokens_at_most(monkeypatch, name):
    aten = Recorder()
    monkeypatch.setattr(fused_ops, "_aten", aten)
    q, k, *_ = Case(50, 70, batch=2, heads=3).tensors(torch.float16)
    state = OPS[name].state(q, k)
    ((call,),) = aten.calls.values()
    assert all(call[x].shape[:2] == (1, 1) for x in ("query", "key", "value"))
    assert call["query"].shape[2] <= 2 and call["query"].shape[3] == q.shape[3]
    assert name == "cuda-efficient" or state[2:4] == (50, 70)


@pytest.mark.parametrize("name", ("cuda-flash", "cuda-cudnn"))
def test_ops_without_a_key_mask_refuse_one(name):
    q, k, v, grad_out, bias = Case(5, 5, masked=True).tensors(torch.float16)
    op = OPS[name]
    for attempt in (
        lambda: op.forward(q, k, v, False, 0.3, bias),
        lambda: op.backward(grad_out, q, k, v, q, q.sum(-1), False, 0.3, bias),
    ):
        with pytest.raises(UnsupportedBackend, match=f"^{name}: takes no key mask$"):
            attempt()
