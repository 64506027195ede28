"""Padding is never attended to, whatever it holds; rows count as without keys only if they are."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from models import MultiheadDilatedAttention, dense_attention, dilated_attention
from models import head_partitioned_attention as head_partitioned
from models.oracle import reference, reference_gradients
from models.patterns import HeadPartition
from tests.models.helpers import Problem, problems, relative_rms

HARMFUL = (0.0, 6e4, -6e4, 1e6, torch.inf, -torch.inf, torch.nan)
SYSTEMS = (
    *("dilated gather", "dilated sdpa", "partition gather", "partition sdpa"),
    *("dense eager", "dense sdpa-flash", "dense sdpa-math"),
)


def attend(system, problem, q, k, v, *, return_lse=True, **options):
    """out, LSE or None, and the pattern for the oracle."""
    name, backend = system.split()
    options |= {"is_causal": problem.is_causal, "backend": backend}
    if name == "dense":
        has_lse = return_lse and backend != "sdpa-math"
        result = dense_attention(q, k, v, return_lse=has_lse, **options)
        return (*result, None) if has_lse else (result, None, None)
    if name == "partition":
        pattern = HeadPartition(*problem.lists)
        return *head_partitioned(q, k, v, *problem.lists, return_lse=True, **options), pattern
    options |= {"head_offset": problem.head_offset, "return_lse": True}
    return *dilated_attention(q, k, v, *problem.lists, **options), problem.pattern


@st.composite
def masks(draw, batch, n):
    """Padding at the start, at the end, anywhere or everywhere: (B, N) bool."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    kind = draw(st.sampled_from(("start", "end", "anywhere", "one row", "everywhere")))
    length = torch.randint(0, n + 1, (batch, 1), generator=generator)
    position = torch.arange(n)[None]
    if kind in ("start", "end"):
        return (position < length) if kind == "start" else (position >= length)
    mask = torch.rand(batch, n, generator=generator) < 0.5
    if kind == "one row":
        mask[0] = True
    return mask if kind != "everywhere" else torch.ones_like(mask)


@given(problems(), st.data())
def test_it_is_the_oracles(problem, data):
    """Out, LSE and gradients; what real tokens get is free of what padding holds, and finite."""
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float64)
    padded = data.draw(masks(problem.batch, problem.n))
    with torch.no_grad():
        for x in (k, v):
            x[padded] = data.draw(st.sampled_from(HARMFUL))
        if data.draw(st.booleans()):
            q[padded] = data.draw(st.sampled_from(HARMFUL[1:]))
            grad_out[padded] = 0
            grad_lse = grad_lse.masked_fill(padded[:, None], 0)
    system = data.draw(st.sampled_from(SYSTEMS))
    out, lse, pattern = attend(system, problem, q, k, v, key_padding_mask=padded)
    options = {"pattern": pattern, "is_causal": problem.is_causal, "key_padding_mask": padded}
    want, want_lse = reference(q, k, v, **options)
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(out, want, **close)
    outputs, cotangents = [out], [grad_out]
    if lse is not None:
        torch.testing.assert_close(lse, want_lse, **close)
        outputs, cotangents = [out, lse], [grad_out, grad_lse]
    got = torch.autograd.grad(outputs, (q, k, v), cotangents)
    grad_lse = None if lse is None else grad_lse
    wanted = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    for name, a, b in zip("qkv", got, wanted, strict=True):
        torch.testing.assert_close(a, b, **close)
        assert name == "q" or a[padded].abs().sum() == 0


@pytest.mark.parametrize("system", SYSTEMS)
def test_cotangents_of_rows_without_keys_mean_nothing(system):
    problem = Problem(2, 20, 4, 4, 8)
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float64)
    padded = torch.tensor([[False], [True]]).expand(2, 20)
    grad_out[1], grad_lse[1] = torch.nan, torch.inf
    out, lse, pattern = attend(system, problem, q, k, v, key_padding_mask=padded)
    outputs, cotangents = (
        ((out,), (grad_out,)) if lse is None else ((out, lse), (grad_out, grad_lse))
    )
    got = torch.autograd.grad(outputs, (q, k, v), cotangents)
    grad_out[1], grad_lse[1] = 0, 0
    options = {"pattern": pattern, "key_padding_mask": padded}
    options["grad_lse"] = None if lse is None else grad_lse
    want = reference_gradients(q, k, v, grad_out, **options)
    for x, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(x, wanted, rtol=1e-10, atol=1e-11)
        assert (x[1] == 0).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_numbers_whose_scores_overflow_reach_no_gradient(system):
    problem = Problem(2, 40, 4, 4, 16, is_causal=True)
    q, k, v, grad_out, _ = problem.tensors(torch.float32)
    padded = torch.arange(40) < torch.tensor([[0], [17]])
    with torch.no_grad():
        q[padded], k[padded], v[padded], grad_out[padded] = 1e38, -3e38, 1e38, 0
    out, _, pattern = attend(system, problem, q, k, v, key_padding_mask=padded)
    options = {"pattern": pattern, "is_causal": True, "key_padding_mask": padded}
    got = torch.autograd.grad(out, (q, k, v), grad_out)
    assert out.isfinite().all()
    for a, b in zip(got, reference_gradients(q, k, v, grad_out, **options), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("held", (6e4, -torch.inf, torch.nan))
def test_in_every_dtype_padding_leaves_no_trace(system, dtype, held):
    """With anything in it the results are those with zeros in it, bit for bit."""
    problem = Problem(2, 40, 4, 2, 16, is_causal=True)
    q, k, v, *_ = (x.detach() for x in problem.tensors(dtype))
    padded = torch.arange(40) >= torch.tensor([[40], [23]])
    clean = [x.masked_fill(padded[:, :, None, None], 0.0) for x in (q, k, v)]
    full = [x.masked_fill(padded[:, :, None, None], held) for x in (q, k, v)]
    want = attend(system, problem, *clean, key_padding_mask=padded)
    got = attend(system, problem, *full, key_padding_mask=padded)
    real = ~padded
    assert torch.equal(got[0][real], want[0][real])
    assert got[0].isfinite().all()
    if want[1] is not None:
        assert torch.equal(got[1].mT[real], want[1].mT[real])
    exact = reference(*clean, pattern=want[2], is_causal=True, key_padding_mask=padded)[0]
    assert relative_rms(got[0][real], exact[real]) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("size", (1e2, 1e4))
def test_rows_of_very_negative_scores_have_keys(system, size):
    """Scores of -size**2 * 16 are far below any constant that might stand for a masked key."""
    problem = Problem(2, 24, 2, 2, 16, ((24, 1),))
    generator = torch.Generator().manual_seed(0)
    q = size * (1 + 1e-6 * torch.rand(2, 24, 2, 16, generator=generator, dtype=torch.float64))
    k = -size * (1 + 1e-6 * torch.rand(2, 24, 2, 16, generator=generator, dtype=torch.float64))
    v = torch.randn(2, 24, 2, 16, generator=generator, dtype=torch.float64)
    padded = torch.arange(24) % 3 == torch.tensor([[0], [1]])
    if system.startswith("partition"):
        problem = Problem(2, 24, 1, 1, 16, ((24, 1),))
        q, k, v = (x[:, :, :1] for x in (q, k, v))
    out, lse, pattern = attend(system, problem, q, k, v, key_padding_mask=padded)
    want, want_lse = reference(q, k, v, pattern=pattern, key_padding_mask=padded)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    if lse is not None:
        torch.testing.assert_close(lse, want_lse, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", (1e-8, 1e-5, 1.0, 1e4))
@pytest.mark.parametrize("system", SYSTEMS)
def test_half_precision_with_any_scale(system, scale):
    problem = Problem(2, 40, 4, 4, 16, ((40, 1),))
    if system.startswith("partition"):
        problem = Problem(2, 40, 1, 1, 16, ((40, 1),))
    q, k, v, *_ = (x.detach() for x in problem.tensors(torch.float16))
    padded = torch.arange(40) >= torch.tensor([[40], [23]])
    out, *_ = attend(system, problem, q, k, v, key_padding_mask=padded, scale=scale)
    theirs = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        attn_mask=~padded[:, None, None],
        scale=scale,
    ).transpose(1, 2)
    exact = reference(q, k, v, key_padding_mask=padded, scale=scale)[0]
    assert relative_rms(out, exact) <= 2 * relative_rms(theirs, exact) + 2e-4


@pytest.mark.parametrize("held", (1e6, torch.nan, torch.inf))
@pytest.mark.parametrize("batch_first", (True, False))
def test_in_a_module(batch_first, held):
    """Neither what real tokens get nor the gradients of the weights know what padding holds."""
    torch.manual_seed(0)
    options = {"batch_first": batch_first, "dtype": torch.float64}
    module = MultiheadDilatedAttention(16, 4, [8, 16], [1, 2], **options)
    padded = torch.arange(20) >= torch.tensor([[20], [13]])
    tokens = torch.randn(2, 20, 16, dtype=torch.float64)
    results = []
    for x in (tokens, tokens.masked_fill(padded[..., None], held)):
        x = x if batch_first else x.transpose(0, 1)
        for inputs in ((x, x, x), (x, x.clone(), x.clone())):
            out = module(*inputs, key_padding_mask=padded)[0]
            out = (out if batch_first else out.transpose(0, 1))[~padded]
            grads = torch.autograd.grad(out.square().sum(), list(module.parameters()))
            results.append((out, *grads))
    for found in results[1:]:
        for got, want in zip(found, results[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
