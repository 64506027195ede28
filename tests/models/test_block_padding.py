"""Block-sparse attention with padding by gathered blocks: the two passes against the oracle."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.block_gather import backward_needs_lse
from models.block_sparse_op import block_sparse
from models.oracle import reference, reference_gradients
from models.padding import without_padding
from tests.models.helpers import BlockProblem, block_problems, relative_rms

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows long and short, a short last block, rows without keys, grouped queries; and each head's own.
MIXED = BlockProblem(2, 90, 6, 2, 16, block_size=8, kept=0.3)
OF_HEADS = BlockProblem(2, 90, 6, 2, 16, is_causal=True, block_size=8, kept=0.5, per_head=True)


def both_passes(problem, tensors, *, with_lse=True, **masks):
    """out, LSE (or None) and the three gradients by the two ops."""
    q, k, v, grad_out, grad_lse = tensors
    mask, is_causal = problem.pattern, problem.is_causal
    needs_lse = with_lse or backward_needs_lse(q, k, mask, is_causal)
    rest = (masks.get("key_padding_mask"), masks.get("document_ids"))
    rest += (mask.row_ptr, mask.col_idx, mask.block_size)
    rest += (is_causal, problem.dim**-0.5, "sdpa", needs_lse)
    out, lse = block_sparse.forward(q, k, v, *rest)
    grad_lse = grad_lse if with_lse else None
    grads = block_sparse.backward(grad_out, grad_lse, q, k, v, out, lse, *rest)
    return out, lse if needs_lse else None, grads


def assert_right(problem, got, tensors, *, with_lse=True, **masks):
    """Against float64, from the very tensors of half precision where they are."""
    out, lse, grads = got
    q, k, v, grad_out, grad_lse = tensors
    options = {"pattern": problem.pattern, "is_causal": problem.is_causal, **masks}
    want, want_lse = reference(q, k, v, **options)
    grad_lse = grad_lse if with_lse else None
    wanted = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    eps = torch.finfo(q.dtype).eps
    assert all(x.is_contiguous() and x.dtype == q.dtype for x in (out, *grads))
    torch.testing.assert_close(out.double(), want, rtol=8 * eps, atol=8 * eps)
    assert all(x.isfinite().all() for x in grads)
    scale = torch.stack([x.abs().max() for x in wanted]).max().item()
    for x, y in zip(grads, wanted, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=8 * eps, atol=8 * eps * max(1, scale))
    if lse is not None:
        assert torch.equal(lse.isneginf(), want_lse.isneginf())
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)


def padded_tensors(problem, dtype, held, generator):
    """Tensors whose padding has held `held`, and the padding: some, none, or a whole sequence."""
    q, k, v, *grads = (x.detach() for x in problem.tensors(dtype))
    padded = torch.rand(problem.batch, problem.n, generator=generator) < 0.4
    padded[-1] |= problem.seed % 3 == 0
    held = torch.tensor(held).to(dtype)
    q, k, v = (x.masked_fill(padded[:, :, None, None], held) for x in (q, k, v))
    return [*without_padding(q, k, v, padded), *grads], padded


@settings(max_examples=30)
@given(
    dtype=st.sampled_from(DTYPES),
    problem=block_problems(),
    held=st.sampled_from((6e4, 1e6, torch.inf, torch.nan)),
    with_lse=st.booleans(),
)
@example(torch.float32, MIXED, torch.nan, True)
@example(torch.bfloat16, MIXED, torch.inf, False)
@example(torch.float16, OF_HEADS, torch.inf, False)
@example(torch.bfloat16, OF_HEADS, torch.nan, True)
def test_padding_is_never_attended_to(dtype, problem, held, with_lse):
    generator = torch.Generator().manual_seed(problem.seed)
    tensors, padded = padded_tensors(problem, dtype, held, generator)
    tensors[0] = tensors[0].clamp(-10, 10)
    masks = {"key_padding_mask": padded}
    got = both_passes(problem, tensors, with_lse=with_lse, **masks)
    assert_right(problem, got, tensors, with_lse=with_lse, **masks)
    assert (got[2][1][padded] == 0).all() and (got[2][2][padded] == 0).all()


@pytest.mark.parametrize("a_tile", (1, 400))
def test_rows_in_pieces(a_tile, monkeypatch):
    """Pieces of a row that hold padding alone, and rows of such pieces only."""
    monkeypatch.setattr("models.block_schedule._SCORES_PER_TILE", a_tile)
    for problem in (MIXED, OF_HEADS):
        q, k, v, *grads = (x.detach() for x in problem.tensors(torch.float64))
        padded = torch.zeros(problem.batch, problem.n, dtype=torch.bool)
        padded[0, 10:50], padded[1] = True, True
        padded[1, 70] = False
        tensors, masks = [*without_padding(q, k, v, padded), *grads], {"key_padding_mask": padded}
        assert_right(problem, both_passes(problem, tensors, **masks), tensors, **masks)


def test_rows_without_keys_take_nothing_from_their_gradients():
    """Not even where those, or their queries, hold inf or NaN."""
    q, k, v, grad_out, grad_lse = (x.detach() for x in MIXED.tensors(torch.float32))
    padded = torch.zeros(2, 90, dtype=torch.bool)
    padded[1] = True
    q[1], grad_out[1], grad_lse[1] = torch.nan, torch.inf, torch.nan
    _, k, v = without_padding(q, k, v, padded)
    tensors = (q, k, v, grad_out, grad_lse)
    out, lse, grads = both_passes(MIXED, tensors, key_padding_mask=padded)
    assert (out[1] == 0).all() and lse[1].isneginf().all()
    assert all((x[1] == 0).all() for x in grads)


def test_a_mask_that_masks_nothing_changes_no_bit():
    tensors = [x.detach() for x in MIXED.tensors(torch.float32)]
    want = both_passes(MIXED, tensors)
    nothing = torch.zeros(2, 90, dtype=torch.bool)
    got = both_passes(MIXED, tensors, key_padding_mask=nothing, document_ids=nothing.long())
    for a, b in zip((*got[:2], *got[2]), (*want[:2], *want[2]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("per_head", (False, True))
def test_an_empty_batch_is_an_empty_result(per_head):
    problem = BlockProblem(0, 20, 4, 2, 8, per_head=per_head)
    out, lse, grads = both_passes(problem, [x.detach() for x in problem.tensors(torch.float32)])
    assert out.shape == (0, 20, 4, 8) and lse.shape == (0, 4, 20)
    assert [x.shape for x in grads] == [(0, 20, 4, 8), (0, 20, 2, 8), (0, 20, 2, 8)]


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_large_activations_in_half_precision(dtype):
    """Scores of 1e9, in float32: one key takes all of the weight, and nothing is NaN."""
    q, k, v, grad_out, _ = (x.detach() for x in MIXED.tensors(dtype))
    tensors = (1e4 * q, 1e4 * k, v, grad_out, None)
    out, _, grads = both_passes(MIXED, tensors, with_lse=False)
    want, _ = reference(*tensors[:3], pattern=MIXED.pattern)
    assert relative_rms(out, want) < 2 * torch.finfo(dtype).eps
    assert all(x.isfinite().all() for x in grads)
