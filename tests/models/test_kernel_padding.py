"""Keys that are padding in our Triton kernels, in its interpreter, against the oracle."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.errors import UnsupportedBackend
from models.kernels import dilated, dilated_gluon, tiles
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
    """run(q, k, v) gives the oracle's out, LSE and gradients; nothing where there is no key."""
    out, lse = run(*qkv)
    want, want_lse = reference(*qkv, **options)
    held = want_lse.isfinite()
    assert out.dtype == qkv[0].dtype and lse.dtype == torch.float32
    assert out.is_contiguous() and lse.is_contiguous()
    assert torch.equal(lse.isneginf(), ~held)
    assert (out[~held.transpose(1, 2)] == 0).all()
    # Of no use to a row without keys, and often no number there.
    got = torch.autograd.grad((out, lse), qkv, (grad_out, grad_lse.masked_fill(~held, torch.nan)))
    if not held.any():
        assert all((x == 0).all() for x in got)
        return
    floor, eps = rounding_floor(out.dtype), torch.finfo(torch.float32).eps
    size = want_lse[held].abs().max().clamp(min=1)
    assert (lse[held] - want_lse[held]).abs().max() <= 16 * eps * size
    assert relative_rms(out, want) <= floor + 4 * eps * size
    grad_lse = grad_lse.masked_fill(~held, 0.0)
    wanted = reference_gradients(*qkv, grad_out, grad_lse=grad_lse, **options)
    assert relative_rms(got, wanted) <= 2 * floor + 4 * eps * size


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
