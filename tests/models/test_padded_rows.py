"""Padding before, after or around the tokens of a row: each row attends as it would alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import dilated_attention
from models.attention_at_offset import dilated_attention_at_offset
from models.padded_rows import PackedRows, PaddedRows, WholeRows
from tests.models.helpers import Problem

LISTS = ((4, 16), (1, 3))


def attend(q, k, v, **masks):
    if q.shape[1] == k.shape[1]:
        return dilated_attention(q, k, v, *LISTS, is_causal=True, **masks)
    return dilated_attention_at_offset(q, k, v, *LISTS)


@st.composite
def masks(draw):
    """(B, N) bool: of each row a run of tokens, or none."""
    n = draw(st.integers(1, 24))
    ends = st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted)
    runs = draw(st.lists(ends, min_size=1, max_size=4))
    place = torch.arange(n)
    return torch.stack([(start <= place) & (place < end) for start, end in runs])


@settings(max_examples=50)
@given(mask=masks(), data=st.data())
def test_each_row_attends_as_it_would_alone(mask, data):
    """All queries, or the last of them; padding holds NaN, and its own queries get no NaN."""
    batch, n = mask.shape
    queries = data.draw(st.integers(1, n))
    q, k, v, grad_out, _ = Problem(batch, n, 4, 2, 8).tensors(torch.float64)
    hidden = ~mask[..., None, None]
    dirty = [x.detach().masked_fill(hidden, torch.nan).requires_grad_() for x in (q, k, v)]
    out = PaddedRows.of(mask).attend(attend, dirty[0][:, n - queries :], *dirty[1:])
    assert out.shape == (batch, queries, 4, 8) and out.isfinite().all()
    grad_out = grad_out[:, n - queries :].masked_fill(hidden[:, n - queries :], 0.0)
    grads = torch.autograd.grad(out, dirty, grad_out, materialize_grads=True)
    wanted, alone = torch.zeros_like(q), [torch.zeros_like(x) for x in (q, k, v)]
    for row, tokens in enumerate(mask):
        if tokens.any():
            one = [x[row : row + 1, tokens].detach().requires_grad_() for x in (q, k, v)]
            own = dilated_attention(*one, *LISTS, is_causal=True)
            wanted[row, tokens] = own[0].detach()
            asked = tokens & (torch.arange(n) >= n - queries)
            cotangent = torch.zeros_like(wanted[row])
            cotangent[n - queries :] = grad_out[row]
            assert asked.any() or (cotangent == 0).all()
            parts = torch.autograd.grad(own, one, cotangent[tokens][None])
            for grad, part in zip(alone, parts, strict=True):
                grad[row, tokens] = part[0]
    kept = mask[:, n - queries :]
    close = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(out[kept], wanted[:, n - queries :][kept], **close)
    for got, want in zip(grads, alone, strict=True):
        torch.testing.assert_close(got, want, **close)


def test_runs_are_those_of_the_mask():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    assert PaddedRows.of(mask).runs == ((2, 4), (0, 3), (0, 0), (1, 2))
    assert torch.equal(PaddedRows.of(mask).padded, ~mask)


def test_padding_between_tokens_is_refused():
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1]]).bool()
    with pytest.raises(ValueError, match="row 1 has it between its tokens 1 and 3"):
        PaddedRows.of(mask)


def test_whole_rows_attend_as_they_are():
    q, k, v, *_ = Problem(2, 24, 4, 2, 8).tensors(torch.float64)
    for n in (1, 24):
        got = WholeRows().attend(attend, q[:, -n:], k, v)
        assert torch.equal(got, attend(q[:, -n:], k, v))


def test_packed_sequences_are_documents():
    q, k, v, *_ = Problem(1, 24, 4, 2, 8).tensors(torch.float64)
    ids = torch.tensor([[0] * 7 + [1] * 17])
    out = PackedRows(ids).attend(attend, q, k, v)
    for part in (slice(0, 7), slice(7, 24)):
        want = attend(q[:, part], k[:, part], v[:, part])
        torch.testing.assert_close(out[:, part], want, rtol=1e-12, atol=1e-13)
