"""Keys that are padding in our Triton kernels, in its interpreter, against the oracle."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.errors import UnsupportedBackend
from models.kernels import dilated, dilated_gluon, hop, tiles
from models.kernels.tiles import Tile
from models.oracle import reference, reference_gradients
from models.padding import without_padding
from tests.models.helpers import LAYOUTS, Problem, relative_rms, rounding_floor

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


@st.composite
def small_problems(draw):
    """The interpreter takes some 50 ms a program: one or two tiles of few heads."""
    kv_heads, n = draw(st.integers(1, 2)), draw(st.integers(1, 40))
    return Problem(
        batch=draw(st.integers(1, 2)),
        n=n,
        heads=kv_heads * draw(st.integers(1, 3 - kv_heads)),
        kv_heads=kv_heads,
        dim=draw(st.sampled_from((5, 16))),
        branches=((draw(st.integers(n // 3 + 1, n)), 1), (n, draw(st.integers(1, 3)))),
        is_causal=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**16)),
    )


def forced(table, tile, rotated):
    stack = ExitStack()
    for kernel in tiles.KERNELS:
        of_kernel = replace(tile, rotated=rotated and kernel == "forward")
        stack.enter_context(tiles.forced(table, kernel, of_kernel))
    return stack


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy: what is dropped may overflow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=2)
@given(
    problem=small_problems(),
    place=st.sampled_from(PLACES),
    tile=st.sampled_from(TILES),
)
@example(Problem(2, 33, 2, 1, 16, ((20, 1), (33, 2)), is_causal=True), "some", TILES[0])
@example(Problem(1, 33, 1, 1, 16, ((33, 2), (20, 3))), "low", TILES[1])
def test_dilated(dtype, problem, place, tile):
    qkv, grad_out, grad_lse, mask = padded_tensors(problem, dtype, place)

    def run(q, k, v):
        q, k, v = without_padding(q, k, v, mask)
        options = (problem.pattern, problem.is_causal, 1.0)
        return dilated.attend(q, k, v, *options, key_padding_mask=mask)

    options = {"pattern": problem.pattern, "is_causal": problem.is_causal, "scale": 1.0}
    with forced("dilated", tile, rotated=dtype == torch.float16):
        assert_right(run, qkv, grad_out, grad_lse, key_padding_mask=mask, **options)


def test_gluon_takes_none():
    q = torch.zeros(1, 4, 1, 64)
    pattern, mask = Problem(n=4, branches=((4, 1),)).pattern, padding("end", 1, 4)
    with pytest.raises(UnsupportedBackend, match="gluon: takes no key_padding_mask"):
        dilated_gluon.attend(q, q, q, pattern, False, 1.0, key_padding_mask=mask)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=2)
@given(
    problem=small_problems(),
    place=st.sampled_from(PLACES),
    tile=st.sampled_from(TILES),
    by_head=st.booleans(),
)
@example(Problem(2, 33, 2, 2, 16, is_causal=True), "some", TILES[1], True)
@example(Problem(1, 33, 1, 1, 16), "low", TILES[2], False)
def test_a_piece_of_a_hop(dtype, problem, place, tile, by_head):
    problem = replace(problem, heads=problem.kv_heads)
    qkv, grad_out, grad_lse, mask = padded_tensors(problem, dtype, place)
    bias = torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, -torch.inf)[:, None, None]
    bias = bias.expand(-1, problem.heads, -1, -1) if by_head else bias
    options = {"is_causal": problem.is_causal, "scale": 1.0, "key_padding_mask": mask}
    qkv = without_padding(*qkv, mask)
    q, k, v = (x.transpose(1, 2) for x in qkv)
    with forced("hop", tile, rotated=dtype == torch.float16):
        out, lse = hop.Triton().forward(q, k, v, problem.is_causal, 1.0, bias)
        joined = out.to(dtype), lse.masked_fill(lse.isneginf(), 0.0)  # as a ring keeps it
        cotangent = grad_out.transpose(1, 2)
        got = hop.Triton().backward(cotangent, q, k, v, *joined, problem.is_causal, 1.0, bias)
    assert {x.dtype for x in (out, lse, *got)} == {torch.float32}
    want, want_lse = reference(*qkv, **options)
    assert_near(out.transpose(1, 2), lse, want, want_lse, dtype)
    wanted = reference_gradients(*qkv, grad_out, **options)
    assert_gradients_near([x.transpose(1, 2) for x in got], wanted, want_lse, dtype)
