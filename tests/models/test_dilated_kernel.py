"""The fused dilated kernels in Triton's interpreter (on a GPU: as they are), against the oracle."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import UnsupportedBackend, dilated_attention, head_partitioned_attention
from models.dilated import resolve_backend
from models.dilated_op import dilated
from models.kernels import dilated as kernels
from models.kernels import tiles
from models.kernels.row_statistics import plain_statistics, row_statistics
from models.kernels.tiles import Tile
from models.oracle import attend_rows, reference, reference_gradients
from models.patterns.branches import DilatedBranches, HeadPartition
from tests.models.helpers import LAYOUTS, Problem, relative_rms, rounding_floor, unpacked

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="interpreted here; test_gpu_kernels.py has them compiled",
)
DTYPES = (torch.float32, torch.float16)
# Wider than tall, taller than wide, and as in the tables: the loops differ.
TILES = (Tile(16, 16, 1, 1), Tile(16, 32, 1, 1), Tile(32, 16, 1, 1))


@st.composite
def small_problems(draw):
    """As `helpers.problems`, but small: the interpreter takes some 20 ms per program."""
    batch, kv_heads, group = draw(st.sampled_from(((1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1))))
    branch = st.tuples(st.integers(4, 45), st.integers(1, 5))
    return Problem(
        batch=batch,
        n=draw(st.integers(1, 36)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        dim=draw(st.sampled_from((5, 16, 32))),
        branches=tuple(draw(st.lists(branch, min_size=1, max_size=3))),
        head_offset=draw(st.sampled_from(("modulo", "block"))),
        is_causal=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        grad_layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**16)),
    )


def attend(problem, q, k, v, **options):
    return dilated_attention(
        q,
        k,
        v,
        *problem.lists,
        is_causal=problem.is_causal,
        head_offset=problem.head_offset,
        backend="triton",
        **options,
    )


def all_forced(tile, rotated=False):
    """Every kernel with `tile`, the forward one with its loop rotated or not."""
    stack = ExitStack()
    for kernel in ("forward", "backward_q", "backward_kv"):
        of_kernel = replace(tile, rotated=rotated and kernel == "forward")
        stack.enter_context(tiles.forced("dilated", kernel, of_kernel))
    return stack


def eager(problem, q, k, v):
    """Plain attention on the pattern in the inputs' dtype: what the errors are compared with."""
    rows = torch.arange(q.shape[1])
    return attend_rows(q, k, v, rows, pattern=problem.pattern, is_causal=problem.is_causal)


@settings(max_examples=7)
@given(
    dtype=st.sampled_from(DTYPES),
    problem=small_problems(),
    tile=st.sampled_from(TILES),
    rotated=st.booleans(),
)
@example(torch.float16, Problem(1, 20, 4, 2, 16, ((8, 1), (20, 2), (13, 1))), TILES[0], True)
@example(torch.float16, Problem(1, 35, 2, 2, 32, ((7, 3), (200, 1)), "block", True), TILES[1], True)
@example(torch.float16, Problem(2, 36, 1, 1, 5, ((36, 1), (30, 2))), TILES[2], False)
@example(torch.float32, Problem(1, 5, 1, 1, 16, ((1, 1), (5, 2), (3, 4))), TILES[1], False)
@example(
    torch.float32, Problem(1, 36, 2, 1, 16, ((36, 1), (30, 2)), is_causal=True), TILES[2], False
)
@example(torch.float32, Problem(1, 33, 2, 2, 16, ((7, 3), (200, 1)), "block"), TILES[1], False)
def test_outputs_and_gradients_are_the_oracles(dtype, problem, tile, rotated):
    q, k, v, grad_out, grad_lse = problem.tensors(dtype)
    options = {"pattern": problem.pattern, "is_causal": problem.is_causal}
    with all_forced(tile, rotated and dtype == torch.float16):
        out, lse = attend(problem, q, k, v, return_lse=True)
        got = torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))
    want, want_lse = reference(q, k, v, **options)
    plain, plain_lse = eager(problem, q, k, v)
    floor, eps = rounding_floor(dtype), torch.finfo(torch.float32).eps
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert relative_rms(out, want) <= max(2 * relative_rms(plain, want), floor)
    assert torch.equal(lse.isneginf(), want_lse.isneginf())
    held = want_lse.isfinite()
    # Scores of half-precision inputs are exact products summed in float32.
    error = (lse[held] - want_lse[held]).abs().max() if held.any() else 0
    assert error <= 16 * eps * max(1, want_lse[held].abs().max() if held.any() else 1)
    plain_lse = plain_lse.masked_fill(~held, 0)
    baseline = torch.autograd.grad((plain, plain_lse), (q, k, v), (grad_out, grad_lse * held))
    want = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse * held, **options)
    assert relative_rms(got, want) <= max(3 * relative_rms(baseline, want), 2 * floor)


def test_one_branch_of_everything_is_dense_attention():
    for n, is_causal in ((33, True), (20, False)):
        q, k, v, *_ = Problem(1, n, 2, 1, 16).tensors(torch.float32)
        out, lse = dilated_attention(
            q, k, v, [n], [1], is_causal=is_causal, backend="triton", return_lse=True
        )
        want, want_lse = reference(q, k, v, is_causal=is_causal)
        assert relative_rms(out, want) < 4e-7
        assert relative_rms(lse, want_lse) < 4e-7


def test_weights_sum_to_one_where_there_are_keys():
    problem = Problem(1, 45, 3, 3, 16, ((20, 2), (45, 4)), is_causal=True)
    q, k, v, *_ = problem.tensors(torch.float32)
    out, lse = attend(problem, q, k, torch.ones_like(v), return_lse=True)
    held = lse.isfinite().transpose(1, 2)
    assert (out[held] - 1).abs().max() < 1e-6
    assert (out[~held] == 0).all() and held.any() and not held.all()


def test_causal_outputs_do_not_see_the_future():
    problem = Problem(1, 37, 1, 1, 16, ((16, 1), (24, 2), (37, 3)), is_causal=True)
    qkv = [x.detach() for x in problem.tensors(torch.float16)[:3]]
    before = attend(problem, *qkv, return_lse=True)
    for cut in (1, 17, 35):
        q, k, v = (x.clone() for x in qkv)
        for x in (q, k, v):
            x[:, cut:] = 3 * x[:, cut:] + 1
        after = attend(problem, q, k, v, return_lse=True)
        assert torch.equal(before[0][:, :cut], after[0][:, :cut])
        assert torch.equal(before[1][:, :, :cut], after[1][:, :, :cut])
        assert not torch.equal(before[0][:, cut:], after[0][:, cut:])


def test_every_bit_repeats():
    problem = Problem(1, 20, 2, 1, 16, ((16, 1), (20, 3)), is_causal=True)
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float16)
    runs = []
    for _ in range(2):
        outputs = attend(problem, q, k, v, return_lse=True)
        grads = torch.autograd.grad(outputs, (q, k, v), (grad_out, grad_lse))
        runs.append((*outputs, *grads))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("through", ("out", "lse"))
def test_one_output_alone_has_gradients(through):
    problem = Problem(1, 20, 2, 1, 16, ((8, 1), (13, 2)))
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float32)
    out, lse = attend(problem, q, k, v, return_lse=True)
    if through == "out":
        got, grad_lse = torch.autograd.grad(out, (q, k, v), grad_out), None
    else:
        got = torch.autograd.grad(lse, (q, k, v), grad_lse, materialize_grads=True)
        grad_out = torch.zeros_like(grad_out)
    want = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, pattern=problem.pattern)
    assert relative_rms(got, want) < 1e-6


def test_expanded_cotangents_and_inputs():
    problem = Problem(2, 20, 2, 2, 16, ((8, 1), (20, 2)))
    q, k, v, *_ = problem.tensors(torch.float32)
    k = k[:1].detach().expand(2, -1, -1, -1).requires_grad_()
    out = attend(problem, q, k, v)
    got = torch.autograd.grad(out.sum(), (q, k, v))
    want = reference_gradients(q, k, v, torch.ones_like(out), pattern=problem.pattern)
    assert relative_rms(got, want) < 1e-6


def test_tokens_further_apart_than_32_bits_count():
    """One head of a tensor whose token stride, times a tile, passes 2^31 elements."""
    n, stride = 18, 2**28
    problem = Problem(1, n, 1, 1, 16, ((n, 1), (n, 2)), is_causal=True)
    *small, grad_out, _ = problem.tensors(torch.float16)
    wide = torch.empty(n * stride, dtype=torch.float16)  # pages that nothing touches are free
    far = [wide.as_strided((1, n, 1, 16), (0, stride, 16, 1), 64 * i) for i in range(3)]
    for x, y in zip(far, small, strict=True):
        x.copy_(y.detach())
    outputs = []
    for tensors in (far, small):
        leaves = [x.detach().requires_grad_() for x in tensors]
        out = attend(problem, *leaves)
        outputs.append((out, *torch.autograd.grad(out, leaves, grad_out)))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_key_padding_mask():
    problem = Problem(2, 30, 2, 2, 16, ((8, 1), (30, 2)), is_causal=True)
    q, k, v, grad_out, _ = problem.tensors(torch.float32)
    padded = torch.arange(30) >= torch.tensor([[30], [17]])
    options = {"is_causal": True, "key_padding_mask": padded, "pattern": problem.pattern}
    out = attend(problem, q, k, v, key_padding_mask=padded)
    assert relative_rms(out, reference(q, k, v, **options)[0]) < 1e-6
    got = torch.autograd.grad(out, (q, k, v), grad_out)
    assert relative_rms(got, reference_gradients(q, k, v, grad_out, **options)) < 2e-6


def test_head_partitioned():
    problem = Problem(1, 30, 5, 5, 16, ((8, 1), (30, 2)))
    q, k, v, grad_out, _ = problem.tensors(torch.float32)
    out = head_partitioned_attention(q, k, v, *problem.lists, backend="triton")
    pattern = HeadPartition(*problem.lists)
    assert relative_rms(out, reference(q, k, v, pattern=pattern)[0]) < 1e-6
    got = torch.autograd.grad(out, (q, k, v), grad_out)
    assert relative_rms(got, reference_gradients(q, k, v, grad_out, pattern=pattern)) < 1e-6


@pytest.mark.parametrize("padded", (False, True))
def test_the_op_is_what_pytorch_expects_of_ops(padded):
    q, k, v, grad_out, grad_lse = Problem(1, 12, 1, 1, 16).tensors(torch.float32)
    mask = torch.arange(12)[None] > 8 if padded else None
    rest = (mask, None, [12, 12], [1, 2], "modulo", False, 0.25, "triton")
    # The rest of it is compiled code, which test_compiled.py has for the op.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(dilated.forward, (q, k, v, *rest), test_utils=checks)
    qkv = tuple(x.detach() for x in (q, k, v))
    arguments = (grad_out, grad_lse, *qkv, *dilated(*qkv, *rest), *rest)
    torch.library.opcheck(dilated.backward, arguments, test_utils=checks)


def test_compiled_whole_by_torch_compile():
    problem = Problem(1, 20, 2, 1, 16, ((8, 1), (20, 2)), is_causal=True)
    q, k, v, grad_out, _ = problem.tensors(torch.float32)
    compiled = torch.compile(
        lambda q, k, v: attend(problem, q, k, v) * 2, backend="aot_eager", fullgraph=True
    )
    results = []
    for attention in (compiled, lambda q, k, v: attend(problem, q, k, v) * 2):
        out = attention(q, k, v)
        results.append((out, *torch.autograd.grad(out, (q, k, v), grad_out)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_row_statistics():
    generator = torch.Generator().manual_seed(0)
    out, grad_out = (torch.randn(2, 70, 3, 20, generator=generator).half() for _ in range(2))
    lse, grad_lse = (torch.randn(2, 3, 70, generator=generator) for _ in range(2))
    for cotangent in (None, grad_lse):
        got = unpacked(row_statistics(grad_out, cotangent, out, lse), 70)
        want = plain_statistics(grad_out.double(), cotangent, out.double(), lse.double())
        for each, wanted in zip(got, want.unbind(-1), strict=True):
            assert relative_rms(each, wanted) < 4e-7


@pytest.mark.parametrize("is_causal", (False, True))
def test_rates_and_segments_of_any_size(is_causal):
    """A rate beyond 256 takes another way to divide, as do segments shorter than a tile."""
    for branches in (((700, 300), (900, 1)), ((3, 2), (17, 1), (20, 5)), ((20, 3), (30, 7))):
        problem = Problem(1, 50 if branches[0][0] < 700 else 1000, 1, 1, 16, branches)
        q, k, v, grad_out, _ = problem.tensors(torch.float32)
        options = {"pattern": problem.pattern, "is_causal": is_causal}
        tile = Tile(128, 128, 1, 1) if branches[0][0] == 700 else TILES[0]
        with all_forced(tile):
            out = dilated_attention(q, k, v, *problem.lists, is_causal=is_causal, backend="triton")
            got = torch.autograd.grad(out, (q, k, v), grad_out)
        assert relative_rms(out, reference(q, k, v, **options)[0]) < 1e-6
        assert relative_rms(got, reference_gradients(q, k, v, grad_out, **options)) < 2e-6


@pytest.mark.parametrize(
    "change, reason",
    (
        ({"dtype": torch.float64}, "accumulates in float32, so it takes no float64"),
        ({"dtype": torch.bfloat16}, "interpreter multiplies the bits of bfloat16"),
        ({"dim": 257}, "head_dim=257: takes up to 256"),
        ({"device": "meta"}, "does not run on meta"),
        ({"interpret": False}, "needs a CUDA device"),
        ({"triton": False}, "the package triton is not installed"),
        ({"backend": "triton-tf32", "dtype": torch.float16}, "rounds float32 products"),
    ),
    ids=lambda value: str(value)[:40],
)
def test_what_it_cannot_do_it_says(change, reason, monkeypatch):
    if "interpret" in change:
        monkeypatch.setattr(tiles, "INTERPRETED", False)
    if "triton" in change:
        monkeypatch.setattr("models.kernels.HAS_TRITON", False)
    q = torch.zeros(1, 4, 1, change.get("dim", 16), dtype=change.get("dtype", torch.float32))
    q, backend = q.to(change.get("device", "cpu")), change.get("backend", "triton")
    with pytest.raises(UnsupportedBackend, match=f"{backend}: .*{reason}"):
        resolve_backend(q, backend)
    with pytest.raises(UnsupportedBackend, match=reason):
        dilated_attention(q, q, q, [4], [1], backend=backend)


def test_tf32_is_named_and_runs():
    problem = Problem(1, 20, 2, 2, 16)
    q, k, v, *_ = problem.tensors(torch.float32)
    out = dilated_attention(q, k, v, *problem.lists, backend="triton-tf32")
    assert relative_rms(out, reference(q, k, v, pattern=problem.pattern)[0]) < 1e-3
    assert resolve_backend(q, "triton-tf32") == "triton-tf32"
    assert resolve_backend(q, "auto") == "sdpa (cpu-flash)"


def test_the_plan_covers_each_kept_row_once():
    branches, heads, n, block = ((8, 1), (20, 3), (30, 4)), 4, 45, 16
    pattern = DilatedBranches(*zip(*branches, strict=True))
    offsets = tuple(tuple(pattern.offset(b, h, heads) for h in range(heads)) for b in range(3))
    made = kernels.plan(branches, offsets, 2, n, heads, heads, block, torch.device("cpu"))
    assert (made.carried, made.base_has_keys) == (2, True)
    kept = {8: 16, 20: 16, 30: 16}  # 8, 7 and 8, each filled up to a multiple of 16
    assert made.rows == 2 * heads * (3 * kept[20] + 2 * kept[30])
    assert made.base_rows == 2 * heads * 6 * kept[8]
    assert made.base_programs == 2 * heads * 6
    assert made.carried_programs == 2 * heads * (3 + 2)
    assert made.table[:, 0].tolist() == [8, 30, 20]  # the base, then the longest first
