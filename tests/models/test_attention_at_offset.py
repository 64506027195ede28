"""Queries at the end of longer sequences: the last rows of attention over all of it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import attention_at_offset, dense_attention
from models.attention_at_offset import (
    block_sparse_attention_at_offset,
    dilated_attention_at_offset,
)
from models.block_sparse import block_sparse_attention
from models.oracle import reference, reference_gradients
from models.patterns import BlockMask, local_window, random, strided
from models.patterns.block_leading import leading
from tests.models.helpers import (
    BlockProblem,
    Problem,
    block_problems,
    problems,
    relative_rms,
    rounding_floor,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MIXED = Problem(2, 61, 6, 2, 8, branches=((7, 3), (16, 2), (200, 4)))


def attend(problem, q, k, v, **options):
    if isinstance(problem, BlockProblem):
        return block_sparse_attention_at_offset(q, k, v, problem.pattern, **options)
    options["head_offset"] = problem.head_offset
    return dilated_attention_at_offset(q, k, v, *problem.lists, **options)


def last(problem, queries):
    return torch.arange(problem.n - queries, problem.n)


@settings(max_examples=40)
@given(problem=st.one_of(problems(), block_problems()), data=st.data())
def test_it_is_the_last_rows_with_their_gradients(problem, data):
    """In float64; block masks have rows without keys too."""
    rows = last(problem, data.draw(st.integers(1, problem.n)))
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float64)
    options = {"pattern": problem.pattern, "is_causal": True, "scale": 0.3}
    want, want_lse = reference(q, k, v, rows=rows, **options)
    outputs = attend(problem, q[:, rows[0] :], k, v, scale=0.3, return_lse=True)
    torch.testing.assert_close(outputs[0], want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(outputs[1], want_lse, rtol=1e-11, atol=1e-12)
    if want_lse.isneginf().all():
        assert not any(x.requires_grad for x in outputs)  # of no query and no key
        return
    cotangents = (grad_out[:, rows], grad_lse[..., rows])
    grads = torch.autograd.grad(outputs, (q, k, v), cotangents)
    wanted = reference_gradients(
        q, k, v, cotangents[0], rows=rows, grad_lse=cotangents[1], **options
    )
    for got, one in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", (MIXED, BlockProblem(2, 90, 6, 2, 16, block_size=8, kept=0.3)))
def test_error_is_within_twice_dense_attentions_own(problem, dtype):
    q, k, v, *_ = problem.tensors(dtype)
    rows = last(problem, 5)
    out, lse = attend(problem, q[:, rows], k, v, return_lse=True)
    assert out.dtype == dtype and lse.dtype == torch.promote_types(dtype, torch.float32)
    want, _ = reference(q, k, v, rows=rows, pattern=problem.pattern, is_causal=True)
    dense = dense_attention(q, k, v, is_causal=True)[:, rows]
    own = relative_rms(dense, reference(q, k, v, rows=rows, is_causal=True)[0])
    assert relative_rms(out, want) <= max(2 * own, rounding_floor(dtype))


@pytest.mark.parametrize("problem", (MIXED, BlockProblem(2, 61, 4, 2, 8, block_size=8, kept=0.4)))
def test_few_scores_at_a_time_change_nothing(problem, monkeypatch):
    q, k, v, *_ = problem.tensors(torch.float64)
    want = attend(problem, q[:, 30:], k, v, return_lse=True)
    monkeypatch.setattr(attention_at_offset, "_SCORES_AT_ONCE", 3 * 2 * problem.heads * 61)
    for got, one in zip(attend(problem, q[:, 30:], k, v, return_lse=True), want, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n", (33, 40, 61))
@pytest.mark.parametrize(
    "problem",
    (
        Problem(heads=4, kv_heads=2, branches=((8, 2), (32, 4))),
        BlockProblem(heads=4, kv_heads=2, kept=0.6),
        BlockProblem(heads=4, kv_heads=2, kept=0.15, per_head=True),
    ),
)
def test_a_step_reads_kept_keys_alone(problem, n):
    """What no head keeps may hold anything."""
    problem = replace(problem, n=n)
    q, k, v, *_ = problem.tensors(torch.float64)
    row = torch.tensor([n - 1])
    counts = [problem.pattern.counts(head, 4, row, n)[0] for head in range(4)]
    unread = torch.stack(counts).sum(0) == 0
    assert 0 < unread.sum() < n
    want = attend(problem, q[:, row], k, v)
    k, v = (x.masked_fill(unread[:, None, None], torch.nan) for x in (k, v))
    assert torch.equal(attend(problem, q[:, row], k, v), want)


@pytest.mark.parametrize("build", (local_window, random, strided))
@pytest.mark.parametrize("heads", (1, 4))
def test_one_mask_serves_a_growing_sequence(build, heads):
    """A causal mask's leading blocks: the rows of a sequence do not depend on what follows it."""
    whole = build(100, sparsity=0.6, block_size=8, is_causal=True, heads=heads)
    dense = whole.to_dense()
    q, k, v, *_ = Problem(1, 100, 4, 2, 8).tensors(torch.float64)
    want = block_sparse_attention(q, k, v, whole, is_causal=True)
    for n in (1, 8, 9, 61, 100):
        mask = leading(whole, -(-n // 8))
        assert torch.equal(mask.to_dense(), dense[:, : mask.blocks, : mask.blocks])
        out = block_sparse_attention(q[:, :n], k[:, :n], v[:, :n], mask, is_causal=True)
        torch.testing.assert_close(out, want[:, :n], rtol=1e-12, atol=1e-13)
        out = block_sparse_attention_at_offset(q[:, n - 1 : n], k[:, :n], v[:, :n], whole)
        torch.testing.assert_close(out, want[:, n - 1 : n], rtol=1e-12, atol=1e-13)


def test_leading_blocks_of_any_mask():
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(3, 7, 7, generator=generator) < 0.4
    mask = BlockMask.from_dense(dense, 16)
    assert leading(mask, 7) is mask
    for blocks in range(1, 7):
        assert torch.equal(leading(mask, blocks).to_dense(), dense[:, :blocks, :blocks])
    with pytest.raises(ValueError, match="blocks=8: expected at most the mask's 7"):
        leading(mask, 8)


def test_dilated_steps_compile_whole():
    q, k, v, *_ = MIXED.tensors(torch.float32)
    compiled = torch.compile(dilated_attention_at_offset, backend="eager", fullgraph=True)
    want = dilated_attention_at_offset(q[:, -3:], k, v, *MIXED.lists)
    torch.testing.assert_close(compiled(q[:, -3:], k, v, *MIXED.lists), want)


def test_autocast_casts_as_it_does_elsewhere():
    q, k, v, *_ = MIXED.tensors(torch.float32)
    want = attend(MIXED, *(x.bfloat16() for x in (q[:, -3:], k, v)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(MIXED, q[:, -3:], k, v), want)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"q": torch.zeros(1, 9, 4, 8)}, r"q.shape=\(1, 9, 4, 8\): expected at most k's 8 tokens"),
        ({"scale": -1.0}, "scale=-1.0: expected a positive number"),
        ({"v": None}, "v=NoneType: expected a tensor"),
    ),
)
@pytest.mark.parametrize("pattern", (([4], [1]), (local_window(8, sparsity=0.0, block_size=4),)))
def test_bad_arguments_are_named(pattern, change, message):
    arguments = {"q": torch.zeros(1, 1, 4, 8), "k": torch.zeros(1, 8, 4, 8)}
    arguments |= {"v": torch.zeros(1, 8, 4, 8), "scale": None} | change
    q, k, v, scale = arguments.values()
    function = (
        dilated_attention_at_offset if len(pattern) == 2 else block_sparse_attention_at_offset
    )
    with pytest.raises(ValueError, match=message):
        function(q, k, v, *pattern, scale=scale)


def test_bad_masks_are_named():
    q, k = torch.zeros(1, 1, 4, 8), torch.zeros(1, 17, 4, 8)
    for mask, message in (
        ("window", "mask=str: expected a models.patterns.BlockMask"),
        (local_window(8, sparsity=0.0, block_size=4), "mask has 2 blocks of 4 tokens: .* least 5"),
        (random(32, sparsity=0.5, block_size=4, heads=3), "lists of 3 heads: expected 1 or 4"),
    ):
        with pytest.raises(ValueError, match=message):
            block_sparse_attention_at_offset(q, k, k, mask)
