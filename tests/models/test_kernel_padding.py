"""Padding and documents in our Triton kernels, in its interpreter, against the oracle."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import block_sparse_attention
from models.kernels import hop, tiles
from models.kernels.tiles import Tile
from models.oracle import reference, reference_gradients
from models.padding import without_padding
from tests.models.helpers import (
    LAYOUTS,
    BlockProblem,
    Problem,
    attend_branches,
    relative_rms,
    rounding_floor,
)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="interpreted here; test_gpu_kernels.py has them compiled",
)
DTYPES = (torch.float32, torch.float16)
TILES = (Tile(16, 16, 1, 1), Tile(16, 32, 1, 1), Tile(32, 16, 1, 1))
# Where the padding is; "low" has some, and real keys whose scores are all about -1e5.
PLACES = ("start", "end", "some", "all", "a row", "low")
HELD = (6e4, float("nan"), -float("inf"))


def padding(place, batch, n, seed=0):
    """A mask (B, N) with padding at `place`, as much as `seed` says."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.arange(n)
    lengths = torch.randint(0, n, (batch, 1), generator=generator)
    if place == "all":
        return torch.ones(batch, n, dtype=torch.bool)
    if place == "a row":
        return (torch.arange(batch) == 0)[:, None].expand(batch, n)
    if place in ("some", "low"):
        return torch.rand(batch, n, generator=generator) < 0.5
    return tokens < lengths if place == "start" else tokens > lengths


def padded_tensors(problem, dtype, place):
    """q, k, v, both cotangents and the mask: what is padding holds no numbers or large ones."""
    q, k, v, grad_out, grad_lse = problem.tensors(dtype)
    if place is None:
        return (q, k, v), grad_out, grad_lse, None
    mask = padding(place, problem.batch, problem.n, problem.seed)
    with torch.no_grad():
        if place == "low":
            q[..., 0], k[..., 0] = 400, -250
        k[mask] = v[mask] = HELD[problem.seed % len(HELD)]
        q[mask] = torch.nan
    return (q, k, v), grad_out, grad_lse, mask


def assert_right(run, qkv, grad_out, grad_lse, **options):
    """run(q, k, v) gives the oracle's out, LSE and gradients."""
    out, lse = run(*qkv)
    assert out.dtype == qkv[0].dtype and lse.dtype == torch.float32
    assert out.is_contiguous() and lse.is_contiguous()
    want, want_lse = reference(*qkv, **options)
    assert_near(out, lse, want, want_lse, out.dtype)
    held = want_lse.isfinite()
    # Of no use to a row without keys, and often no number there.
    got = torch.autograd.grad((out, lse), qkv, (grad_out, grad_lse.masked_fill(~held, torch.nan)))
    grad_lse = grad_lse.masked_fill(~held, 0.0)
    wanted = reference_gradients(*qkv, grad_out, grad_lse=grad_lse, **options)
    assert_gradients_near(got, wanted, want_lse, out.dtype)


def size_of(lse):
    """Rounding of scores grows with them."""
    held = lse[lse.isfinite()]
    return torch.finfo(torch.float32).eps * max(1.0, held.abs().max().item() if len(held) else 0.0)


def assert_near(out, lse, want, want_lse, dtype):
    """Exactly 0 and -inf where there is no key, else near."""
    held = want_lse.isfinite()
    assert torch.equal(lse.isneginf(), ~held)
    assert (out[~held.transpose(1, 2)] == 0).all()
    if held.any():
        assert (lse[held] - want_lse[held]).abs().max() <= 16 * size_of(want_lse)
        assert relative_rms(out, want) <= rounding_floor(dtype) + 4 * size_of(want_lse)


def assert_gradients_near(got, want, want_lse, dtype):
    if want_lse.isfinite().any():
        assert relative_rms(got, want) <= 2 * rounding_floor(dtype) + 4 * size_of(want_lse)
    else:
        assert all((x == 0).all() for x in got)


def attend_blocks(q, k, v, mask, is_causal, scale, **masks):
    options = {"is_causal": is_causal, "scale": scale, "backend": "triton", "return_lse": True}
    return block_sparse_attention(q, k, v, mask, **options, **masks)


@st.composite
def small_problems(draw):
    """The interpreter takes some 20 ms a program: one or two tiles, two sets of them at most."""
    batch, kv_heads, group = draw(st.sampled_from(((1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1))))
    n = draw(st.integers(1, 30))
    return Problem(
        batch=batch,
        n=n,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        dim=draw(st.sampled_from((5, 16))),
        branches=((draw(st.integers(n // 3 + 1, n)), 1), (n, draw(st.integers(1, 3)))),
        is_causal=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**16)),
    )


def forced(table, tile, dtype, **others):
    """Every kernel with `tile` or its own of `others`; the forward one rotated if it can be."""
    stack = ExitStack()
    for kernel in tiles.KERNELS:
        rotated = kernel == "forward" and dtype == torch.float16
        of_kernel = replace(others.get(kernel, tile), rotated=rotated)
        stack.enter_context(tiles.forced(table, kernel, of_kernel))
    return stack


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy: what is dropped may overflow
@settings(max_examples=3)
@given(
    dtype=st.sampled_from(DTYPES),
    problem=small_problems(),
    place=st.sampled_from(PLACES),
    tile=st.sampled_from(TILES),
)
@example(
    torch.float16, Problem(2, 25, 1, 1, 16, ((20, 1), (25, 2)), is_causal=True), "some", TILES[0]
)
@example(torch.float32, Problem(1, 20, 2, 1, 16, ((20, 2), (15, 3))), "low", TILES[1])
def test_dilated(dtype, problem, place, tile):
    qkv, grad_out, grad_lse, mask = padded_tensors(problem, dtype, place)

    def run(q, k, v):
        q, k, v = without_padding(q, k, v, mask)
        options = (problem.pattern, problem.is_causal, 1.0)
        return attend_branches(q, k, v, *options, key_padding_mask=mask)

    options = {"pattern": problem.pattern, "is_causal": problem.is_causal, "scale": 1.0}
    with forced("dilated", tile, dtype):
        assert_right(run, qkv, grad_out, grad_lse, key_padding_mask=mask, **options)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=3)
@given(
    dtype=st.sampled_from(DTYPES),
    problem=small_problems(),
    place=st.sampled_from(PLACES),
    tile=st.sampled_from(TILES),
    by_head=st.booleans(),
)
@example(torch.float16, Problem(2, 33, 2, 2, 16, is_causal=True), "some", TILES[1], True)
@example(torch.float32, Problem(1, 33, 1, 1, 16), "low", TILES[2], False)
def test_a_piece_of_a_hop(dtype, problem, place, tile, by_head):
    problem = replace(problem, heads=problem.kv_heads)
    qkv, grad_out, grad_lse, mask = padded_tensors(problem, dtype, place)
    bias = torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, -torch.inf)[:, None, None]
    bias = bias.expand(-1, problem.heads, -1, -1) if by_head else bias
    options = {"is_causal": problem.is_causal, "scale": 1.0, "key_padding_mask": mask}
    qkv = without_padding(*qkv, mask)
    q, k, v = (x.transpose(1, 2) for x in qkv)
    with forced("hop", tile, dtype):
        out, lse = hop.Triton().forward(q, k, v, problem.is_causal, 1.0, bias)
        joined = out.to(dtype), lse.masked_fill(lse.isneginf(), 0.0)  # as a ring keeps it
        cotangent = grad_out.transpose(1, 2)
        got = hop.Triton().backward(cotangent, q, k, v, *joined, problem.is_causal, 1.0, bias)
    assert {x.dtype for x in (out, lse, *got)} == {torch.float32}
    want, want_lse = reference(*qkv, **options)
    assert_near(out.transpose(1, 2), lse, want, want_lse, dtype)
    wanted = reference_gradients(*qkv, grad_out, **options)
    assert_gradients_near([x.transpose(1, 2) for x in got], wanted, want_lse, dtype)


def documents(batch, n, seed):
    """Ids (B, N) of up to three documents, of any integers, lengths and order."""
    generator = torch.Generator().manual_seed(seed)
    names = torch.tensor([-1, 0, 2**40 + 1])[torch.randperm(3, generator=generator)]
    ends = torch.randint(0, n, (batch, 2), generator=generator).sort(dim=1).values
    return names[torch.searchsorted(ends, torch.arange(n).expand(batch, n).contiguous())]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=3)
@given(
    dtype=st.sampled_from(DTYPES),
    problem=small_problems(),
    place=st.sampled_from((*PLACES, None)),
    entries=st.sampled_from((1, 2)),
    has_documents=st.booleans(),
)
@example(torch.float16, Problem(1, 45, 2, 1, 16, is_causal=True), "some", 2, True)
@example(torch.float32, Problem(1, 45, 1, 1, 16), "low", 2, False)
@example(torch.float32, Problem(1, 45, 1, 1, 16, seed=3), None, 1, True)
def test_block_sparse(dtype, problem, place, entries, has_documents):
    batch, n = problem.batch, problem.n
    mask = BlockProblem(n=n, block_size=16, kept=0.7, heads=problem.heads, seed=1).pattern
    qkv, grad_out, grad_lse, padded = padded_tensors(problem, dtype, place)
    ids = documents(batch, n, problem.seed) if has_documents else None

    def run(q, k, v):
        masks = {"key_padding_mask": padded, "document_ids": ids}
        return attend_blocks(q, k, v, mask, problem.is_causal, 1.0, **masks)

    options = {"pattern": mask, "is_causal": problem.is_causal, "scale": 1.0}
    options |= {"key_padding_mask": padded, "document_ids": ids}
    tile, turned = Tile(16, 16 * entries, 1, 1), Tile(16 * entries, 16, 1, 1)
    with forced("block_sparse", tile, dtype, backward_kv=turned):
        assert_right(run, qkv, grad_out, grad_lse, **options)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_number_leaks_from_a_document():
    """Of three documents in one block the second has NaN, inf, and cotangents that are none."""
    problem = Problem(1, 20, 1, 1, 16, is_causal=True)
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float32)
    ids = torch.tensor([[7] * 6 + [3] * 7 + [5] * 7])
    own = (ids != 3)[0]
    with torch.no_grad():
        q[:, 7], k[:, 8], v[:, 9] = torch.nan, torch.inf, torch.nan
        grad_out[:, 10], grad_lse[..., 11] = torch.inf, torch.nan
    mask = BlockProblem(n=20, block_size=32, kept=1.0).pattern
    out, lse = attend_blocks(q, k, v, mask, True, 1.0, document_ids=ids)
    got = torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))
    options = {"pattern": mask, "is_causal": True, "scale": 1.0, "document_ids": ids}
    want, want_lse = reference(q, k, v, **options)
    assert relative_rms(out[:, own], want[:, own]) < 1e-6
    assert relative_rms(lse[..., own], want_lse[..., own]) < 1e-6
    assert out[:, 8].isnan().all()
    wanted = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    assert relative_rms([x[:, own] for x in got], [x[:, own] for x in wanted]) < 2e-6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kernel", ("dilated", "block_sparse"))
@pytest.mark.parametrize("scale", (1e-6, 1e4))
def test_scales_that_half_precision_does_not_hold(kernel, scale):
    """Scores are scaled in float32."""
    problem = Problem(1, 20, 1, 1, 16, ((20, 1),))
    q, k, v, *cotangents = problem.tensors(torch.float16)
    grad_out, grad_lse = (x / 8 for x in cotangents)  # half precision must hold what they make
    padded = padding("end", 1, 20)
    options = {"scale": scale, "key_padding_mask": padded}
    inputs = without_padding(q, k, v, padded)
    if kernel == "dilated":
        options["pattern"] = problem.pattern
        given = (problem.pattern, False, scale)
        out, lse = attend_branches(*inputs, *given, key_padding_mask=padded)
    else:
        options["pattern"] = BlockProblem(n=20, block_size=16, kept=1.0).pattern
        out, lse = attend_blocks(q, k, v, options["pattern"], False, scale, key_padding_mask=padded)
    want, want_lse = reference(q, k, v, **options)
    assert_near(out, lse, want, want_lse, torch.float16)
    got = torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))
    wanted = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    assert_gradients_near(got[2:], wanted[2:], want_lse, torch.float16)
    floor = rounding_floor(torch.float16)
    for each, other in zip(got[:2], wanted[:2], strict=True):
        # With a large scale the weights' gradients cancel, but for the rounding of out.
        allowed = floor * (4 * other.abs().max() + 16 * scale) + 2**-24  # the least above 0
        assert (each - other).abs().max() <= allowed
