"""Dilated attention, forward: every backend, dtype and ragged shape against the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import dense_attention, dilated_attention, head_partitioned_attention, strided
from models.dilated import resolve_backend
from models.fused_ops import CpuFlash
from models.oracle import reference
from models.patterns import DilatedBranches, HeadPartition
from models.strided import views
from tests.models.helpers import (
    DILATED_BACKENDS,
    Problem,
    in_each_dtype,
    problems,
    relative_rms,
    rounding_floor,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
both_backends = pytest.mark.parametrize("backend", DILATED_BACKENDS)


def attend(problem, q, k, v, backend, **options):
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


@both_backends
@settings(max_examples=40)
@given(problem=problems(), dtype=st.sampled_from(DTYPES))
@in_each_dtype(
    DTYPES,
    {"problem": Problem(batch=2, n=32, branches=((8, 1), (16, 2)), layout="fused")},
    {"problem": Problem(batch=3, n=90, kv_heads=2, branches=((7, 3), (90, 4), (200, 1)))},
)
def test_error_is_within_twice_dense_attentions_own(problem, dtype, backend):
    """Both errors are rms against float64; `rounding_floor` is the least bound."""
    q, k, v, *_ = problem.tensors(dtype)
    options = {"is_causal": problem.is_causal}
    out, lse = attend(problem, q, k, v, backend, return_lse=True)
    want, want_lse = reference(q, k, v, pattern=problem.pattern, **options)
    dense = dense_attention(q, k, v, backend="sdpa-flash", **options)
    eps = torch.finfo(dtype).eps
    bound = max(2 * relative_rms(dense, reference(q, k, v, **options)[0]), rounding_floor(dtype))
    assert out.dtype == dtype and lse.dtype == torch.promote_types(dtype, torch.float32)
    assert relative_rms(out, want) <= bound
    assert torch.equal(lse.isneginf(), want_lse.isneginf())
    covered = want_lse.isfinite()
    error = (lse[covered] - want_lse[covered]).square().mean().sqrt()
    assert error <= 2 * eps * max(1, want_lse[covered].square().mean().sqrt())


@both_backends
@pytest.mark.parametrize("n", (1, 33, 64))
@pytest.mark.parametrize("is_causal", (False, True))
def test_one_branch_of_everything_is_dense_attention(n, is_causal, backend):
    q, k, v, *_ = Problem(2, n, 4, 2, 16).tensors(torch.float64)
    out, lse = dilated_attention(
        q, k, v, [n], [1], is_causal=is_causal, backend=backend, return_lse=True
    )
    want, want_lse = dense_attention(q, k, v, is_causal=is_causal, return_lse=True)
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(lse, want_lse, rtol=1e-12, atol=1e-13)


@both_backends
@pytest.mark.parametrize("scale", (None, 1, 0.03, 2.5))
def test_scale_multiplies_the_scores(scale, backend):
    problem = Problem(1, 40, branches=((16, 1), (40, 3)))
    q, k, v, *_ = problem.tensors(torch.float64)
    out = attend(problem, q, k, v, backend, scale=scale)
    want = reference(
        q * (8**-0.5 if scale is None else scale), k, v, pattern=problem.pattern, scale=1
    )
    torch.testing.assert_close(out, want[0], rtol=1e-11, atol=1e-12)


@both_backends
def test_head_offset_rules_differ_where_they_should(backend):
    """Of 4 heads and r = 2, "modulo" keeps offsets 0 1 0 1 and "block" 0 0 1 1."""
    q, k, v, *_ = Problem(1, 8).tensors(torch.float64)
    modulo, block = (
        dilated_attention(q, k, v, [8], [2], head_offset=rule, backend=backend)
        for rule in ("modulo", "block")
    )
    for head, even in enumerate((True, False, True, False)):
        assert (modulo[0, int(even) :: 2, head] == 0).all()
        assert (modulo[0, int(not even) :: 2, head] != 0).all()
    for head, even in enumerate((True, True, False, False)):
        assert (block[0, int(even) :: 2, head] == 0).all()
    assert torch.equal(modulo[:, :, (0, 3)], block[:, :, (0, 3)])


@both_backends
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("cut", (1, 17, 40, 59))
def test_causal_outputs_do_not_see_the_future(cut, dtype, backend):
    problem = Problem(2, 60, 4, 2, 16, ((16, 1), (24, 2), (60, 3)), is_causal=True)
    q, k, v, *_ = (x.detach() for x in problem.tensors(dtype))
    before = attend(problem, q, k, v, backend, return_lse=True)
    for x in (q, k, v):
        x[:, cut:] = 3 * x[:, cut:] + 1
    after = attend(problem, q, k, v, backend, return_lse=True)
    assert torch.equal(before[0][:, :cut], after[0][:, :cut])
    assert torch.equal(before[1][:, :, :cut], after[1][:, :, :cut])
    assert not torch.equal(before[0][:, cut:], after[0][:, cut:])


@both_backends
def test_a_segment_sees_itself_only(backend):
    problem = Problem(2, 50, branches=((16, 2),))
    q, k, v, *_ = (x.detach() for x in problem.tensors(torch.float32))
    before = attend(problem, q, k, v, backend)
    for x in (q, k, v):
        x[:, 16:32] += 1
    after = attend(problem, q, k, v, backend)
    changed = (before != after).flatten(2).any(dim=2)
    assert changed[:, 16:32].any() and not changed[:, :16].any() and not changed[:, 32:].any()


@both_backends
def test_batch_elements_are_independent(backend):
    problem = Problem(3, 48, 4, 2, 16, ((8, 1), (16, 3), (100, 2)))
    q, k, v, *_ = problem.tensors(torch.float32)
    out = attend(problem, q, k, v, backend)
    order = torch.tensor([2, 0, 1])
    swapped = attend(problem, q[order], k[order], v[order], backend)
    assert relative_rms(swapped, out[order]) < 4e-7
    alone = torch.cat(
        [attend(problem, *(x[b : b + 1] for x in (q, k, v)), backend) for b in range(3)]
    )
    assert relative_rms(alone, out) < 4e-7


@both_backends
@settings(max_examples=25)
@given(problem=problems())
def test_key_padding_mask_is_the_oracles(problem, backend):
    q, k, v, *_ = problem.tensors(torch.float64)
    padded = torch.rand(problem.batch, problem.n, generator=torch.Generator().manual_seed(1)) < 0.4
    out, lse = attend(problem, q, k, v, backend, key_padding_mask=padded, return_lse=True)
    options = {"pattern": problem.pattern, "is_causal": problem.is_causal}
    want, want_lse = reference(q, k, v, key_padding_mask=padded, **options)
    torch.testing.assert_close(out, want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(lse, want_lse, rtol=1e-11, atol=1e-12)


@both_backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_at_the_end_is_as_if_it_were_not_there(dtype, backend):
    problem = Problem(2, 30, 4, 2, 16, ((8, 1), (12, 2)))
    q, k, v, *_ = (x.detach() for x in problem.tensors(dtype))
    short = attend(problem, *(x[:, :21] for x in (q, k, v)), backend)
    k[:, 21:], v[:, 21:] = 100.0, 100.0
    padded = torch.arange(30).expand(2, 30) >= 21
    out = attend(problem, q, k, v, backend, key_padding_mask=padded)
    assert relative_rms(out[:, :21], short) <= torch.finfo(dtype).eps
    assert (out[:, 24:] == 0).all()  # both branches start a segment at 24: no key left


@both_backends
def test_a_wholly_padded_sequence_gives_zero_and_minus_infinity(backend):
    problem = Problem(2, 20, branches=((8, 1), (16, 2)))
    q, k, v, *_ = problem.tensors(torch.float32)
    padded = torch.tensor([[True], [False]]).expand(2, 20)
    out, lse = attend(problem, q, k, v, backend, key_padding_mask=padded, return_lse=True)
    assert (out[0] == 0).all() and lse[0].isneginf().all()
    assert relative_rms(out[1:], attend(problem, q, k, v, backend)[1:]) < 2e-7


@both_backends
@settings(max_examples=20)
@given(problem=problems())
def test_head_partitioned_keeps_one_branch_a_head(problem, backend):
    q, k, v, *_ = problem.tensors(torch.float64)
    pattern = HeadPartition(*problem.lists)
    options = {"is_causal": problem.is_causal}
    out, lse = head_partitioned_attention(
        q, k, v, *problem.lists, backend=backend, return_lse=True, **options
    )
    want, want_lse = reference(q, k, v, pattern=pattern, **options)
    torch.testing.assert_close(out, want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(lse, want_lse, rtol=1e-11, atol=1e-12)
    position = torch.arange(problem.n)
    for head in range(problem.heads):
        kept = torch.zeros(problem.n, dtype=torch.bool)
        for branch, (w, r) in enumerate(problem.branches):
            offset = pattern.offset(branch, head, problem.heads)
            kept |= torch.zeros_like(kept) if offset is None else (position % w) % r == offset
        assert torch.equal((out[:, :, head] != 0).any(-1), kept.expand(problem.batch, -1))


class WatchedFlash(CpuFlash):
    """CpuFlash that notes where the tensors it is given lie."""

    def __init__(self):
        object.__setattr__(self, "storages", [])

    def forward(self, q, k, v, is_causal, scale, bias=None):
        self.storages.append([x.untyped_storage().data_ptr() for x in (q, k, v)])
        return super().forward(q, k, v, is_causal, scale, bias)


@pytest.mark.parametrize("layout", ("packed", "fused", "heads_first", "tokens_first"))
def test_the_strided_path_copies_nothing_of_q_k_v(layout):
    problem = Problem(2, 50, 6, 3, 8, ((8, 1), (16, 2), (64, 4)), layout=layout)
    q, k, v, *_ = (x.detach() for x in problem.tensors(torch.float32))
    op = WatchedFlash()
    groups = tuple(problem.pattern.head_groups(6, 3))
    strided.forward(q, k, v, op, groups, False, 0.3)
    home = [x.untyped_storage().data_ptr() for x in (q, k, v)]
    assert len(op.storages) > 10 and all(given == home for given in op.storages)


def test_views_hold_every_kept_row_once():
    """Each element of a branch appears in exactly one view, at the rows that `offset` says."""
    batch, n, heads = 2, 24, 4
    for branch, foldable in (((8, 3), True), ((8, 3), False), ((7, 2), True), ((99, 5), True)):
        pattern = DilatedBranches([branch[0]], [branch[1]])
        x = torch.zeros(batch, n, heads, 1)
        for view in views(pattern.head_groups(heads, heads), x.shape, foldable):
            view.of(x, view.group.q_heads).add_(1)
        position = torch.arange(n)
        for head in range(heads):
            want = ((position % branch[0]) % branch[1] == head % branch[1]).float()
            assert torch.equal(x[:, :, head, 0], want.expand(batch, n))


def test_backend_names():
    q = torch.zeros(1, 4, 1, 8)
    assert resolve_backend(q, "auto") == resolve_backend(q, "sdpa") == "sdpa (cpu-flash)"
    assert resolve_backend(q, "gather") == "gather"
    assert resolve_backend(q.to("meta"), "auto") == "gather"
