"""Packed sequences: no token attends across documents, and segments start anew with each."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import MultiheadDilatedAttention, dense_attention, dilated_attention
from models.documents import batches
from models.oracle import reference, reference_gradients
from tests.models.helpers import Problem, problems
from tests.models.test_padding import HARMFUL, SYSTEMS, attend, masks

CLOSE = {"rtol": 1e-11, "atol": 1e-11}


@st.composite
def documents(draw, batch, n):
    """Ids (B, N): runs of any length, of any integers, or tokens dealt out at random."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    if draw(st.booleans()):
        return torch.randint(-3, 3, (batch, n), generator=generator)
    starts = torch.rand(batch, n, generator=generator) < draw(st.sampled_from((0.0, 0.1, 0.5, 1.0)))
    ids = starts.cumsum(1)
    names = torch.randperm(n + 1, generator=generator) - n // 2
    return names[ids].to(draw(st.sampled_from((torch.int64, torch.int32, torch.int16))))


@settings(max_examples=30)
@given(problems(), st.data())
def test_they_are_the_oracles(problem, data):
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float64)
    ids = data.draw(documents(problem.batch, problem.n))
    padded = data.draw(st.none() | masks(problem.batch, problem.n))
    masked = {"document_ids": ids, "key_padding_mask": padded}
    if padded is not None:
        with torch.no_grad():
            for x in (k, v):
                x[padded] = data.draw(st.sampled_from(HARMFUL))
    system = data.draw(st.sampled_from(SYSTEMS))
    out, lse, pattern = attend(system, problem, q, k, v, **masked)
    options = {"pattern": pattern, "is_causal": problem.is_causal, **masked}
    want, want_lse = reference(q, k, v, **options)
    torch.testing.assert_close(out, want, **CLOSE)
    outputs, cotangents = [out], [grad_out]
    if lse is not None:
        torch.testing.assert_close(lse, want_lse, **CLOSE)
        outputs, cotangents = [out, lse], [grad_out, grad_lse]
    got = torch.autograd.grad(outputs, (q, k, v), cotangents)
    grad_lse = None if lse is None else grad_lse
    wanted = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("held", (6e4, torch.inf, torch.nan))
def test_nothing_of_a_document_reaches_another(system, held):
    """Not even NaN: the second document is as it is by itself, gradients too."""
    problem = Problem(1, 41, 2, 2, 8, ((8, 1), (20, 2)), is_causal=True)
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float64)
    ids = (torch.arange(41) >= 17).long()[None]
    alone = [x[:, 17:].detach().requires_grad_() for x in (q, k, v)]
    with torch.no_grad():
        for x in (q, k, v, grad_out):
            x[:, :17] = held
    out, lse, _ = attend(system, problem, q, k, v, document_ids=ids)
    own, own_lse, _ = attend(system, problem, *alone)
    torch.testing.assert_close(out[:, 17:], own, **CLOSE)
    if lse is not None:
        torch.testing.assert_close(lse[:, :, 17:], own_lse, **CLOSE)
    got = torch.autograd.grad(out, (q, k, v), grad_out)
    want = torch.autograd.grad(own, alone, grad_out[:, 17:])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a[:, 17:], b, **CLOSE)


@given(st.integers(0, 2**16), st.integers(1, 3), st.integers(1, 400))
def test_batches_hold_every_token_once_and_little_padding(seed, batch, n):
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(batch, n, generator=generator) < 0.05).cumsum(1)
    seen = torch.zeros(batch * n, dtype=torch.long)
    for found in batches(ids):
        seen[found.tokens[found.valid]] += 1
        assert found.valid.float().mean() >= 0.8
        for tokens, valid in zip(found.tokens, found.valid, strict=True):
            tokens = tokens[valid]
            assert len({(int(t) // n, int(ids.flatten()[t])) for t in tokens}) == 1
            assert torch.equal(tokens, tokens.sort().values)
    assert torch.equal(seen, torch.ones_like(seen))


def test_a_module_takes_them():
    torch.manual_seed(0)
    module = MultiheadDilatedAttention(16, 4, [8, 16], [1, 2], dtype=torch.float64)
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    ids = (torch.arange(30) >= 11).long().expand(2, 30)
    out = module(x, x, x, is_causal=True, document_ids=ids)[0]
    parts = [module(part, part, part, is_causal=True)[0] for part in (x[:, :11], x[:, 11:])]
    torch.testing.assert_close(out, torch.cat(parts, dim=1), **CLOSE)


@pytest.mark.parametrize(
    "ids",
    (torch.zeros(1, 8), torch.zeros(1, 8, dtype=torch.bool), torch.zeros(8).long(), [0] * 8),
)
def test_bad_ids_are_named(ids):
    q = torch.zeros(1, 8, 2, 4)
    for function in (dense_attention, lambda *a, **o: dilated_attention(*a, [8], [1], **o)):
        with pytest.raises(ValueError, match="document_ids="):
            function(q, q, q, document_ids=ids)
