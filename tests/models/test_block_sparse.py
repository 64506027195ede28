"""Block-sparse attention by gathered blocks: every dtype and mask against the oracle."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from models import UnsupportedBackend, block_schedule, block_sparse_attention, dense_attention
from models import patterns as builders
from models.block_sparse import resolve_backend
from models.oracle import reference, reference_gradients
from models.patterns import BlockMask
from tests.models.helpers import (
    LAYOUTS,
    BlockProblem,
    Problem,
    block_problems,
    in_each_dtype,
    random_tensor,
    relative_rms,
    rounding_floor,
)
from tests.models.ring_ranks import Ranks

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Rows long and short, a short last block, rows without keys, grouped queries.
MIXED = BlockProblem(2, 90, 6, 2, 16, block_size=8, kept=0.3)
OF_HEADS = BlockProblem(1, 90, 6, 2, 16, is_causal=True, per_head=True, layout="fused")


def attend(problem, q, k, v, **options):
    return block_sparse_attention(
        q, k, v, problem.pattern, is_causal=problem.is_causal, backend="sdpa", **options
    )


def gradients(problem, q, k, v, grad_out, grad_lse):
    if grad_lse is None:
        return torch.autograd.grad(attend(problem, q, k, v), (q, k, v), grad_out)
    outputs = attend(problem, q, k, v, return_lse=True)
    return torch.autograd.grad(outputs, (q, k, v), (grad_out, grad_lse))


@settings(max_examples=40)
@given(problem=block_problems(), dtype=st.sampled_from(DTYPES))
@in_each_dtype(DTYPES, {"problem": MIXED}, {"problem": OF_HEADS})
def test_error_is_within_twice_dense_attentions_own(problem, dtype):
    """Both errors are rms against float64; `rounding_floor` is the least bound."""
    q, k, v, *_ = problem.tensors(dtype)
    options = {"is_causal": problem.is_causal}
    out, lse = attend(problem, q, k, v, return_lse=True)
    want, want_lse = reference(q, k, v, pattern=problem.pattern, **options)
    assert out.dtype == dtype and lse.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(lse.isneginf(), want_lse.isneginf())
    covered = want_lse.isfinite()
    assert (out.transpose(1, 2)[~covered] == 0).all()
    if not covered.any():
        return
    dense = dense_attention(q, k, v, backend="sdpa-flash", **options)
    bound = max(2 * relative_rms(dense, reference(q, k, v, **options)[0]), rounding_floor(dtype))
    assert relative_rms(out, want) <= bound
    error = (lse[covered] - want_lse[covered]).square().mean().sqrt()
    eps = torch.finfo(lse.dtype).eps
    assert error <= 4 * eps * max(1, want_lse[covered].square().mean().sqrt())


@settings(max_examples=40)
@given(problem=block_problems(), dtype=st.sampled_from(DTYPES), through_lse=st.booleans())
@in_each_dtype(
    DTYPES, {"problem": MIXED, "through_lse": True}, {"problem": OF_HEADS, "through_lse": False}
)
@example(problem=MIXED, dtype=torch.bfloat16, through_lse=False)
@example(problem=OF_HEADS, dtype=torch.float32, through_lse=True)
def test_gradient_error_is_within_thrice_dense_attentions_own(problem, dtype, through_lse):
    """Errors of the three gradients as one vector; `rounding_floor` is the least bound."""
    q, k, v, grad_out, grad_lse = problem.tensors(dtype)
    grad_lse = grad_lse if through_lse else None
    options = {"is_causal": problem.is_causal, "grad_lse": grad_lse}
    got = gradients(problem, q, k, v, grad_out, grad_lse)
    want = reference_gradients(q, k, v, grad_out, pattern=problem.pattern, **options)
    assert all(x.dtype == dtype for x in got)
    assert all(x.shape == y.shape for x, y in zip(got, (q, k, v), strict=True))
    if problem.pattern.pairs(problem.n, problem.heads, problem.is_causal) == 0:
        assert all((x == 0).all() for x in got)
        return

    def dense(q, k, v, **more):
        return dense_attention(q, k, v, is_causal=problem.is_causal, backend="sdpa-flash", **more)

    if grad_lse is None:
        theirs = torch.autograd.grad(dense(q, k, v), (q, k, v), grad_out)
    else:
        outputs = dense(q, k, v, return_lse=True)
        theirs = torch.autograd.grad(outputs, (q, k, v), (grad_out, grad_lse))
    baseline = relative_rms(theirs, reference_gradients(q, k, v, grad_out, **options))
    assert relative_rms(got, want) <= max(3 * baseline, rounding_floor(dtype))


@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("per_head", (False, True))
def test_finite_differences_agree(per_head, is_causal):
    problem = BlockProblem(
        1, 5, 2, 1, 2, is_causal=is_causal, block_size=2, kept=0.6, per_head=per_head, seed=1
    )
    q, k, v, *_ = problem.tensors(torch.float64)

    def both_outputs(q, k, v):
        out, lse = attend(problem, q, k, v, return_lse=True)
        return out, lse.masked_fill(lse.isneginf(), 0)

    assert torch.autograd.gradcheck(both_outputs, (q, k, v), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("n", (1, 33, 64))
@pytest.mark.parametrize("is_causal", (False, True))
def test_the_full_mask_is_dense_attention(n, is_causal):
    q, k, v, *_ = Problem(2, n, 4, 2, 16).tensors(torch.float64)
    blocks = -(-n // 16)
    mask = BlockMask.from_dense(torch.ones(1, blocks, blocks, dtype=torch.bool), 16)
    got = block_sparse_attention(q, k, v, mask, is_causal=is_causal, return_lse=True)
    want = dense_attention(q, k, v, is_causal=is_causal, return_lse=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ("local_window", "dilated", "global_local", "strided", "random"))
@pytest.mark.parametrize("is_causal", (False, True))
def test_weights_of_every_pattern_sum_to_one(name, is_causal):
    mask = getattr(builders, name)(500, sparsity=0.7, block_size=16, is_causal=is_causal, heads=2)
    q, k, v, *_ = Problem(1, 500, 2, 2, 8).tensors(torch.float32)
    out = block_sparse_attention(q, k, torch.ones_like(v), mask, is_causal=is_causal)
    torch.testing.assert_close(out, torch.ones_like(out), rtol=1e-6, atol=0)


def test_a_mask_read_off_the_tensors():
    """`top_k` on tensors that require gradients, which go through the attention only."""
    problem = Problem(1, 100, 4, 2, 8)
    q, k, v, grad_out, _ = problem.tensors(torch.float64)
    mask = builders.top_k(q, k, sparsity=0.6, block_size=8)
    got = torch.autograd.grad(block_sparse_attention(q, k, v, mask), (q, k, v), grad_out)
    assert relative_rms(got, reference_gradients(q, k, v, grad_out, pattern=mask)) < 1e-14


def test_the_union_of_masks_is_the_union_of_keys():
    """Two masks without common blocks join by their LSE to what their union gives."""
    q, k, v, *_ = Problem(1, 60, 2, 2, 8).tensors(torch.float64)
    table = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    first, second = BlockMask.from_dense(table, 8), BlockMask.from_dense(~table, 8)
    parts = [block_sparse_attention(q, k, v, mask, return_lse=True)[1] for mask in (first, second)]
    both, lse = block_sparse_attention(q, k, v, first | second, return_lse=True)
    torch.testing.assert_close(torch.logaddexp(*parts), lse, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(both, dense_attention(q, k, v), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("cut", (1, 17, 40, 59))
def test_causal_outputs_do_not_see_the_future(cut, dtype):
    problem = BlockProblem(2, 60, 4, 2, 16, is_causal=True, kept=0.7)
    q, k, v, *_ = (x.detach() for x in problem.tensors(dtype))
    before = attend(problem, q, k, v, return_lse=True)
    for x in (q, k, v):
        x[:, cut:] = 3 * x[:, cut:] + 1
    after = attend(problem, q, k, v, return_lse=True)
    assert torch.equal(before[0][:, :cut], after[0][:, :cut])
    assert torch.equal(before[1][:, :, :cut], after[1][:, :, :cut])
    assert not torch.equal(before[0][:, cut:], after[0][:, cut:])


def test_keys_that_are_not_kept_are_not_read():
    """Not even as 0 * NaN: what no row attends to may hold anything."""
    q, k, v, grad_out, _ = Problem(1, 40, 2, 2, 8).tensors(torch.float32)
    mask = BlockMask.from_dense(torch.tensor([[[1, 0, 1], [1, 0, 0], [0, 0, 1]]]).bool(), 16)
    want = block_sparse_attention(q, k, v, mask)
    k, v = (x.detach().clone() for x in (k, v))
    k[:, 16:32], v[:, 16:32] = torch.nan, torch.inf
    assert torch.equal(block_sparse_attention(q, k, v, mask), want)


@pytest.mark.parametrize("scale", (None, 1, 0.03, 2.5))
def test_scale_multiplies_the_scores(scale):
    q, k, v, grad_out, _ = MIXED.tensors(torch.float64)
    factor = 16**-0.5 if scale is None else scale
    want = reference(q * factor, k, v, pattern=MIXED.pattern, scale=1)
    torch.testing.assert_close(attend(MIXED, q, k, v, scale=scale), want[0], rtol=1e-11, atol=1e-12)
    got = torch.autograd.grad(attend(MIXED, q, k, v, scale=scale), (q, k, v), grad_out)
    want = torch.autograd.grad(want[0], (q, k, v), grad_out)
    assert relative_rms(got, want) < 1e-14


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_scores_in_the_thousands_stay_exact(dtype):
    """Softmax weights of 0 and 1 exactly, no overflow, no NaN, forward and backward."""
    q, k, v, grad_out, _ = MIXED.tensors(dtype)
    out, lse = attend(MIXED, q, k, v, scale=1000, return_lse=True)
    want, want_lse = reference(q, k, v, pattern=MIXED.pattern, scale=1000)
    assert relative_rms(out, want) < 2e5 * torch.finfo(dtype).eps
    torch.testing.assert_close(lse.double(), want_lse, rtol=8 * torch.finfo(dtype).eps, atol=0)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out, (q, k, v), grad_out))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_of_the_cotangent(layout):
    problem = BlockProblem(2, 30, 4, 2, 8, kept=0.6)
    q, k, v, *_ = problem.tensors(torch.float64)
    generator = torch.Generator().manual_seed(5)
    drawn = random_tensor(q.shape, torch.float64, generator, layout).detach()
    for cotangent in (drawn, drawn[:1].expand(2, -1, -1, -1), torch.ones(()).expand(q.shape)):
        got = gradients(problem, q, k, v, cotangent.double(), None)
        want = reference_gradients(q, k, v, cotangent, pattern=problem.pattern)
        assert relative_rms(got, want) < 1e-14


def test_lse_alone_has_a_gradient():
    q, k, v, grad_out, grad_lse = MIXED.tensors(torch.float64)
    _, lse = attend(MIXED, q, k, v, return_lse=True)
    got = torch.autograd.grad(lse, (q, k, v), grad_lse)
    want = reference_gradients(
        q, k, v, torch.zeros_like(grad_out), grad_lse=grad_lse, pattern=MIXED.pattern
    )
    assert relative_rms(got, want) < 1e-14
    assert got[2].abs().max() == 0


@pytest.mark.parametrize("per_head", (False, True))
def test_the_order_of_work_does_not_matter(per_head, monkeypatch):
    """Chunks of any size, and rows in pieces that are joined by their LSE."""
    problem = BlockProblem(2, 60, 4, 2, 8, is_causal=True, kept=0.8, per_head=per_head)
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float64)
    want = (
        *reference(q, k, v, pattern=problem.pattern, is_causal=True),
        *reference_gradients(
            q, k, v, grad_out, grad_lse=grad_lse, pattern=problem.pattern, is_causal=True
        ),
    )
    for at_once, a_tile in ((1, 1), (1, 400), (1 << 10, 400), (1 << 18, 1), (1 << 18, 1 << 20)):
        monkeypatch.setattr(block_schedule, "_SCORES_PER_THREAD", at_once)
        monkeypatch.setattr(block_schedule, "_SCORES_PER_TILE", a_tile)
        got = attend(problem, q, k, v, return_lse=True)
        got += torch.autograd.grad(got, (q, k, v), (grad_out, grad_lse))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def repeat():
    torch.set_num_threads(2)
    problem = BlockProblem(1, 500, 4, 2, 32, block_size=16, kept=0.4)
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float32)
    first = None
    for _ in range(3):
        got = attend(problem, q, k, v, return_lse=True)
        got += torch.autograd.grad(got, (q, k, v), (grad_out, grad_lse))
        first = first or got
        assert all(torch.equal(a, b) for a, b in zip(first, got, strict=True))


def test_every_bit_repeats_on_two_threads():
    """In a process of its own: threads in this one would hang those that it forks."""
    with Ranks(1) as ranks:
        ranks.run(repeat)


class Largest(TorchDispatchMode):
    """Notes the most elements that any tensor made has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize("full_rows", (0, 1))
def test_no_tensor_of_n_times_n(full_rows):
    """2^15 tokens, forward and backward; a row of all 512 blocks is done in pieces."""
    n, dim = 1 << 15, 4
    mask = builders.local_window(n, sparsity=0.98)
    table = torch.zeros(1, mask.blocks, mask.blocks, dtype=torch.bool)
    table[0, :full_rows] = True
    mask = mask | BlockMask.from_dense(table, 64)
    q, k, v = (torch.randn(1, n, 1, dim, requires_grad=True) for _ in range(3))
    with Largest() as largest:
        block_sparse_attention(q, k, v, mask).sum().backward()
    assert largest.elements <= block_schedule._SCORES_PER_TILE < n * n / 1000


def test_backend_names():
    mask = BlockMask.from_dense(torch.ones(1, 1, 1, dtype=torch.bool), 64)
    q = torch.zeros(1, 4, 1, 8)
    assert resolve_backend(q, mask, "auto") == resolve_backend(q, mask, "sdpa") == "sdpa"
    assert resolve_backend(q.half(), mask, "auto") == "sdpa"
    assert resolve_backend(q.to("meta"), mask, "auto") == "sdpa"
    with pytest.raises(UnsupportedBackend, match="flex: takes .* not torch.float64"):
        resolve_backend(q.double(), mask, "flex")
    with pytest.raises(UnsupportedBackend, match="flash-attn-4: "):
        resolve_backend(q, mask, "flash-attn-4")
    with pytest.raises(UnsupportedBackend, match="triton: "):
        resolve_backend(q.double(), mask, "triton")


def test_bad_arguments_are_named():
    q = torch.zeros(1, 100, 4, 8)
    full = torch.ones(1, 2, 2, dtype=torch.bool)
    mask = BlockMask.from_dense(full, 64)
    for arguments, options, message in (
        ((q, q, q, full), {}, "mask=Tensor: expected a models.patterns.BlockMask"),
        ((q, q, q, None), {}, "mask=NoneType"),
        ((q[:, :64], q[:, :64], q[:, :64], mask), {}, "expected 1 blocks for 64 tokens"),
        ((q, q, q, BlockMask.from_dense(full.expand(2, 2, 2), 64)), {}, "2 heads: expected 1 or 4"),
        ((*[q.to("meta")] * 3, mask), {}, "mask is on cpu: expected meta"),
        ((q, q[:, :50], q[:, :50], mask), {}, "expected 100 tokens"),
        ((q, q, q, mask), {"scale": 0}, "scale=0: expected a positive number"),
        ((q, q, q, mask), {"backend": "gather"}, "backend='gather': expected one of auto, triton"),
        ((q[0], q, q, mask), {}, "q=.*: expected a tensor"),
        ((q.long(), q, q, mask), {}, "q.dtype=torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            block_sparse_attention(*arguments, **options)
