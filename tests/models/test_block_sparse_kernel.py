"""The block-sparse kernels in Triton's interpreter, against the oracle."""

from contextlib import ExitStack, contextmanager

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import UnsupportedBackend
from models.block_sparse import block_sparse_attention, resolve_backend
from models.block_sparse_op import block_sparse
from models.kernels import block_sparse as kernels
from models.kernels import tiles
from models.kernels.tiles import Tile
from models.oracle import attend_rows, reference, reference_gradients
from models.patterns import block_pairs
from models.patterns.block_mask import BlockMask
from tests.models.helpers import LAYOUTS, Problem, relative_rms, rounding_floor

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="interpreted here; test_gpu_kernels.py has them compiled",
)
DTYPES = (torch.float32, torch.float16)
# One block a program, with or without the rotated loop (for half types), or two neighbours.
WAYS = ("plain", "rotated", "pairs")


@st.composite
def drawn(draw):
    """A small ragged problem and a mask over it, with empty rows and columns now and then."""
    batch, kv_heads, group = draw(st.sampled_from(((1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1))))
    block_size, heads = draw(st.sampled_from((16, 32))), kv_heads * group
    problem = Problem(
        batch=batch,
        n=draw(st.integers(1, 60)),
        heads=heads,
        kv_heads=kv_heads,
        dim=draw(st.sampled_from((5, 16, 32))),
        is_causal=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        grad_layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**16)),
    )
    blocks = -(-problem.n // block_size)
    generator = torch.Generator().manual_seed(problem.seed)
    shape = (draw(st.sampled_from((1, heads))), blocks, blocks)
    kept = torch.rand(shape, generator=generator) < draw(st.sampled_from((0.0, 0.4, 0.8, 1.0)))
    mask = BlockMask.from_dense(kept, block_size)
    return problem, mask, draw(st.sampled_from((1, 2, 4))), draw(st.sampled_from(WAYS))


def full(n, block_size, heads=1):
    blocks = -(-n // block_size)
    return BlockMask.from_dense(torch.ones(heads, blocks, blocks, dtype=torch.bool), block_size)


@contextmanager
def stepping(mask, entries, way="plain"):
    """Kernels that take so many blocks a step; the forward pass one of WAYS.

    Heads that have keys and lists in common share programs whichever it is.
    """
    size, rotated = mask.block_size, way == "rotated"
    of_kernel = {
        "forward": Tile(size, size * entries, 1, 1, rotated=rotated),
        "forward_pair": Tile(size, size * entries, 1, 1),
        "backward_q": Tile(size, size * entries, 1, 1),
        "backward_kv": Tile(size * entries, size, 1, 1),
    }
    with ExitStack() as stack:
        for kernel, tile in of_kernel.items():
            stack.enter_context(tiles.forced("block_sparse", kernel, tile))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(block_pairs, "MOST_LOADED", 2 if way == "pairs" else -1)
        yield


# Lists of odd and even length; of two neighbours one lacks the other's first, all of it, or none.
LACKING = BlockMask.from_dense(
    torch.tensor(
        [
            [
                [0, 1, 1, 0, 1, 1],
                [1, 1, 1, 0, 1, 0],
                [1, 0, 1, 0, 0, 0],
                [0, 1, 0, 1, 0, 1],
                [0, 0, 0, 0, 0, 0],
                [1, 1, 1, 1, 0, 1],
            ]
        ],
        dtype=torch.bool,
    ),
    16,
)


def attend(problem, q, k, v, mask, **options):
    return block_sparse_attention(
        q, k, v, mask, is_causal=problem.is_causal, backend="triton", **options
    )


@settings(max_examples=7)
@given(case=drawn(), dtype=st.sampled_from(DTYPES))
@example((Problem(2, 40, 2, 1, 16, is_causal=True), full(40, 16), 2, "plain"), torch.float32)
@example((Problem(1, 40, 4, 2, 16, is_causal=True), full(40, 16), 2, "plain"), torch.float16)
@example((Problem(1, 64, 2, 2, 32), full(64, 16, 2), 4, "pairs"), torch.float16)
@example((Problem(1, 90, 1, 1, 16), LACKING, 2, "pairs"), torch.float32)
@example((Problem(1, 90, 1, 1, 16, is_causal=True), LACKING, 1, "pairs"), torch.float16)
@example((Problem(1, 90, 1, 1, 16), LACKING, 2, "rotated"), torch.float16)
def test_outputs_and_gradients_are_the_oracles(case, dtype):
    problem, mask, entries, way = case
    way = "plain" if way == "rotated" and dtype == torch.float32 else way
    q, k, v, grad_out, grad_lse = problem.tensors(dtype)
    options = {"pattern": mask, "is_causal": problem.is_causal}
    with stepping(mask, entries, way):
        out, lse = attend(problem, q, k, v, mask, return_lse=True)
        got = torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))
    want, want_lse = reference(q, k, v, **options)
    plain, plain_lse = attend_rows(q, k, v, torch.arange(problem.n), **options)
    floor, held = rounding_floor(dtype), want_lse.isfinite()
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert torch.equal(lse.isneginf(), ~held)
    if not held.any():
        assert all((x == 0).all() for x in (out, *got))
        return
    assert relative_rms(out, want) <= max(2 * relative_rms(plain, want), floor)
    error = (lse[held] - want_lse[held]).abs().max()
    assert error <= 16 * torch.finfo(torch.float32).eps * max(1, want_lse[held].abs().max())
    plain_lse = plain_lse.masked_fill(~held, 0)
    baseline = torch.autograd.grad((plain, plain_lse), (q, k, v), (grad_out, grad_lse * held))
    want = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse * held, **options)
    assert relative_rms(got, want) <= max(3 * relative_rms(baseline, want), 2 * floor)


def test_a_full_mask_is_dense_attention():
    for n, is_causal in ((70, True), (64, False)):
        problem = Problem(2, n, 2, 1, 16, is_causal=is_causal)
        q, k, v, *_ = problem.tensors(torch.float32)
        out = attend(problem, q, k, v, full(n, 16))
        assert relative_rms(out, reference(q, k, v, is_causal=is_causal)[0]) < 4e-7


def test_causal_outputs_do_not_see_the_future():
    problem, mask = Problem(1, 43, 2, 2, 16, is_causal=True), full(43, 16)
    qkv = [x.detach() for x in problem.tensors(torch.float16)[:3]]
    before = attend(problem, *qkv, mask)
    for cut in (1, 16, 40):
        q, k, v = (x.clone() for x in qkv)
        for x in (q, k, v):
            x[:, cut:] = 3 * x[:, cut:] + 1
        after = attend(problem, q, k, v, mask)
        assert torch.equal(before[:, :cut], after[:, :cut])
        assert not torch.equal(before[:, cut:], after[:, cut:])


def test_weights_sum_to_one_where_there_are_keys():
    generator = torch.Generator().manual_seed(1)
    mask = BlockMask.from_dense(torch.rand(2, 5, 5, generator=generator) < 0.4, 16)
    problem = Problem(1, 75, 2, 2, 16)
    q, k, v, *_ = problem.tensors(torch.float32)
    out, lse = attend(problem, q, k, torch.ones_like(v), mask, return_lse=True)
    held = lse.isfinite().transpose(1, 2)
    assert (out[held] - 1).abs().max() < 1e-6
    assert (out[~held] == 0).all() and held.any() and not held.all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which interprets
@pytest.mark.parametrize("way", WAYS)
def test_what_a_row_does_not_list_cannot_touch_it(way):
    """Not by numbers that are none: two tiles of a program have their own lists."""
    mask = LACKING
    for heads, is_causal in ((1, False), (1, True), (2, False)):
        if heads == 2 and way != "plain":
            continue  # whichever it is: the two heads share their programs
        problem = Problem(1, 90, heads, 1, 16, is_causal=is_causal)
        q, k, v, *_ = (x.detach() for x in problem.tensors(torch.float16))
        listed = mask.to_dense()[0].tril() if is_causal else mask.to_dense()[0]
        with stepping(mask, 2, way):
            before = attend(problem, q, k, v, mask, return_lse=True)
            for block in (0, 2, 5):
                bad_k, bad_v = k.clone(), v.clone()
                bad_k[:, 16 * block : 16 * block + 16] = float("nan")
                bad_v[:, 16 * block : 16 * block + 16] = float("inf")
                after = attend(problem, q, bad_k, bad_v, mask, return_lse=True)
                free = ~listed[:, block].repeat_interleave(16)[:90]
                assert torch.equal(after[0][:, free], before[0][:, free])
                assert torch.equal(after[1][:, :, free], before[1][:, :, free])
                assert not after[0][:, ~free].isfinite().all(dim=-1).any()
            bad_q = q.clone()
            bad_q[:, 64:80] = float("nan")  # of the block that lists none
            after = attend(problem, bad_q, k, v, mask, return_lse=True)
            assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])


def test_heads_that_share_keys_and_lists_share_programs():
    """Four query heads with two of keys: lists that are equal by pairs, one for all, or others."""
    generator = torch.Generator().manual_seed(2)
    kept = torch.rand(2, 3, 3, generator=generator) < 0.6
    q, k, v, *_ = Problem(1, 43, 4, 2, 16).tensors(torch.float32)
    q, k, v = (x.detach() for x in (q, k, v))
    for dense, by_head in (
        (kept[[0, 0, 1, 1]], True),
        (kept[:1], True),
        (kept[[0, 1, 1, 0]], False),
    ):
        mask = BlockMask.from_dense(dense, 16)
        assert kernels.two_tiles(q, k, mask, False)[0] == by_head
        for is_causal in (False, True):
            options = {"is_causal": is_causal, "return_lse": True}
            got = block_sparse_attention(q, k, v, mask, backend="triton", **options)
            out, lse = reference(q, k, v, pattern=mask, is_causal=is_causal)
            held = lse.isfinite()
            assert relative_rms(got[0], out) < 1e-6 and torch.equal(got[1].isneginf(), ~held)
            assert (got[1][held] - lse[held]).abs().max() < 1e-5


@pytest.mark.parametrize("is_causal", (False, True))
def test_blocks_that_no_tile_holds_are_split(is_causal):
    problem = Problem(1, 150, 2, 1, 16, is_causal=is_causal)
    q, k, v, grad_out, _ = problem.tensors(torch.float32)
    kept = torch.tensor([[[True, False], [True, True]], [[True, True], [False, True]]])
    mask = BlockMask.from_dense(kept, 128)
    options = {"pattern": mask, "is_causal": is_causal}
    out = attend(problem, q, k, v, mask)
    assert relative_rms(out, reference(q, k, v, **options)[0]) < 1e-6
    got = torch.autograd.grad(out, (q, k, v), grad_out)
    assert relative_rms(got, reference_gradients(q, k, v, grad_out, **options)) < 2e-6


def test_every_bit_repeats():
    problem, mask = Problem(1, 43, 4, 2, 16, is_causal=True), full(43, 16)
    q, k, v, grad_out, _ = problem.tensors(torch.float16)
    runs = []
    for _ in range(2):
        out = attend(problem, q, k, v, mask)
        runs.append((out, *torch.autograd.grad(out, (q, k, v), grad_out)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_tokens_further_apart_than_32_bits_count():
    n, stride = 33, 2**27
    problem, mask = Problem(1, n, 1, 1, 16, is_causal=True), full(n, 16)
    *small, grad_out, _ = problem.tensors(torch.float16)
    wide = torch.empty(n * stride, dtype=torch.float16)  # pages that nothing touches are free
    far = [wide.as_strided((1, n, 1, 16), (0, stride, 16, 1), 64 * i) for i in range(3)]
    for x, y in zip(far, small, strict=True):
        x.copy_(y.detach())
    outputs = []
    for tensors in (far, small):
        leaves = [x.detach().requires_grad_() for x in tensors]
        out = attend(problem, *leaves, mask)
        outputs.append((out, *torch.autograd.grad(out, leaves, grad_out)))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def op_arguments(problem, mask):
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float32)
    lists = (mask.row_ptr, mask.col_idx, mask.block_size)
    return (q, k, v), (*lists, problem.is_causal, 0.25, "triton", True), grad_out, grad_lse


@pytest.mark.parametrize("masked", (False, True))
def test_the_ops_are_what_pytorch_expects_of_ops(masked):
    mask = full(20, 16)
    qkv, rest, grad_out, grad_lse = op_arguments(Problem(1, 20, 1, 1, 16), mask)
    tokens = torch.arange(20)[None]
    rest = (tokens > 15, tokens // 6, *rest) if masked else (None, None, *rest)
    # The rest of it is compiled code, which test_compiled.py has for the op.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(block_sparse.forward, (*qkv, *rest), test_utils=checks)
    qkv = tuple(x.detach() for x in qkv)
    saved = block_sparse(*qkv, *rest)
    for cotangent in (grad_lse, None):
        arguments = (grad_out, cotangent, *qkv, *saved, *rest)
        torch.library.opcheck(block_sparse.backward, arguments, test_utils=checks)


@pytest.mark.parametrize("masked", (False, True))
def test_compiled_whole_by_torch_compile(masked, monkeypatch):
    """With a mask that nothing has used before, whose lists are made once, inside the op."""
    monkeypatch.setattr(block_pairs, "MOST_LOADED", 1)
    problem, mask = Problem(1, 43, 1, 1, 16, is_causal=True), full(43, 16)
    q, k, v, grad_out, _ = problem.tensors(torch.float32)
    tokens = torch.arange(43)[None]
    masks = {"key_padding_mask": tokens > 35, "document_ids": tokens // 20} if masked else {}

    def attention(q, k, v):
        options = {"is_causal": True, "scale": 0.25, "backend": "triton", **masks}
        return block_sparse_attention(q, k, v, mask, **options) * 2

    results = []
    for run in (torch.compile(attention, backend="aot_eager", fullgraph=True), attention):
        out = run(q, k, v)
        results.append((out, *torch.autograd.grad(out, (q, k, v), grad_out)))
        assert "_causal" in vars(mask)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_mask_first_used_for_inference_can_train():
    problem, mask = Problem(1, 40, 2, 1, 16, is_causal=True), full(40, 16)
    q, k, v, grad_out, _ = problem.tensors(torch.float32)
    with torch.inference_mode():
        first = attend(problem, q, k, v, mask)
    out = attend(problem, q, k, v, mask)
    assert torch.equal(out, first)
    want = reference_gradients(q, k, v, grad_out, pattern=mask, is_causal=True)
    assert relative_rms(torch.autograd.grad(out, (q, k, v), grad_out), want) < 2e-6


def test_what_it_cannot_do_it_says():
    for size, dtype, reason in (
        (48, torch.float32, "block_size=48: takes 16, 32, 64, 128"),
        (16, torch.float64, "takes no float64"),
        (16, torch.bfloat16, "interpreter multiplies the bits of bfloat16"),
    ):
        q = torch.zeros(1, 48, 1, 16, dtype=dtype)
        with pytest.raises(UnsupportedBackend, match=f"triton: .*{reason}"):
            block_sparse_attention(q, q, q, full(48, size), backend="triton")
        assert resolve_backend(q, full(48, size), "auto") == "sdpa"
