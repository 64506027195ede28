"""The ring's Triton op, interpreted: pieces against float64, a ring of one against the oracle.

On a GPU `test_gpu_kernels.py` has it compiled.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import UnsupportedBackend, kernels
from models.kernels import hop, tiles
from models.kernels.hop import Triton
from models.kernels.row_statistics import plain_statistics, row_statistics
from models.kernels.tiles import Tile
from models.merge import merge_into
from models.oracle import reference, reference_gradients
from models.patterns import BlockMask, DilatedBranches
from models.ring.attention import ring_attention
from models.ring.call import resolve_backend, resolve_op
from models.ring.hops import Eager
from tests.models.helpers import (
    LAYOUTS,
    Problem,
    random_tensor,
    relative_rms,
    rounding_floor,
    unpacked,
)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="interpreted here; test_gpu_kernels.py has them compiled",
)
DTYPES = (torch.float32, torch.float16)
TILES = (Tile(16, 16, 1, 1), Tile(16, 32, 1, 1), Tile(32, 16, 1, 1))
# Every third token, as a branch of rate 3 has them; ops ask for a contiguous last dimension.
_LAYOUTS = (*(layout for layout in LAYOUTS if layout != "every_second"), "every_third")


@dataclass(frozen=True)
class PieceProblem:
    """A piece of a hop whose rows have seen other keys besides."""

    batch: int = 1
    n_queries: int = 20
    n_keys: int = 20
    heads: int = 2
    dim: int = 16
    is_causal: bool = False
    layout: str = "packed"
    seed: int = 0

    scale = 0.3

    def tensors(self, dtype):
        """grad_out, q, k, v as ops take them, (B, H, N, D): transposed views."""
        generator = torch.Generator().manual_seed(self.seed)
        made = []
        for n in (self.n_queries, self.n_queries, self.n_keys, self.n_keys):
            shape = (self.batch, n, self.heads, self.dim)
            if self.layout == "every_third":
                wide = (self.batch, 3 * n, self.heads, self.dim)
                x = random_tensor(wide, dtype, generator)[:, 1::3]
            else:
                x = random_tensor(shape, dtype, generator, self.layout)
            made.append(x.detach().transpose(1, 2))
        return made

    def joined(self, out, lse):
        """out and LSE of the piece together with other keys, laid out as a rank has them."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        other = torch.randn(out.shape, generator=generator).to(out.dtype)
        other_lse = lse + 2 * torch.randn(lse.shape, generator=generator)
        packed = {"memory_format": torch.contiguous_format}
        out, lse = (x.transpose(1, 2).clone(**packed) for x in (out, lse))
        merge_into(out, lse, other.transpose(1, 2), other_lse.transpose(1, 2))
        return out.transpose(1, 2), lse.transpose(1, 2)


@st.composite
def pieces(draw):
    n_queries, is_causal = draw(st.integers(1, 40)), draw(st.booleans())
    return PieceProblem(
        batch=draw(st.integers(1, 2)),
        n_queries=n_queries,
        n_keys=n_queries if is_causal else draw(st.integers(1, 40)),
        heads=draw(st.integers(1, 2)),
        dim=draw(st.sampled_from((1, 5, 8, 32, 72))),
        is_causal=is_causal,
        layout=draw(st.sampled_from(_LAYOUTS)),
        seed=draw(st.integers(0, 2**16)),
    )


def scores_of(q, k, is_causal, scale):
    """Scaled scores, float32 at least, after products in the inputs' dtype."""
    scores = (scale * q @ k.mT).to(torch.promote_types(q.dtype, torch.float32))
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores


def plain_forward(q, k, v, is_causal, scale, dtype):
    """A piece's out and LSE with products in `dtype`."""
    q, k, v = (x.to(dtype) for x in (q, k, v))
    scores = scores_of(q, k, is_causal, scale)
    return scores.softmax(dim=-1).to(dtype) @ v, scores.logsumexp(dim=-1)


def plain_backward(grad_out, q, k, v, out, lse, is_causal, scale, dtype):
    """A piece's part of dq, dk, dv given the joined out and LSE, with products in `dtype`."""
    grad_out, q, k, v, out = (x.to(dtype) for x in (grad_out, q, k, v, out))
    weights = (scores_of(q, k, is_causal, scale) - lse[..., None]).exp()
    delta = (grad_out * out).to(weights.dtype).sum(dim=-1, keepdim=True)
    ds = (weights * ((grad_out @ v.mT).to(weights.dtype) - delta)).to(dtype)
    return scale * ds @ k, scale * ds.mT @ q, weights.to(dtype).mT @ grad_out


def all_forced(tile, rotated=False):
    stack = ExitStack()
    for kernel in ("forward", "backward_q", "backward_kv"):
        of_kernel = replace(tile, rotated=rotated and kernel == "forward")
        stack.enter_context(tiles.forced("hop", kernel, of_kernel))
    return stack


@settings(max_examples=7)
@given(
    dtype=st.sampled_from(DTYPES),
    problem=pieces(),
    tile=st.sampled_from(TILES),
    rotated=st.booleans(),
)
@example(torch.float16, PieceProblem(2, 33, 40, 2, 72), TILES[0], True)
@example(torch.float32, PieceProblem(1, 33, 40, 1, 72), TILES[0], True)
@example(torch.float16, PieceProblem(1, 50, 1, 1, 8), TILES[1], True)
@example(torch.float32, PieceProblem(1, 1, 50, 1, 5), TILES[2], False)
@example(torch.float32, PieceProblem(2, 48, 48, 2, 32, True, "every_third"), TILES[1], False)
@example(torch.float16, PieceProblem(1, 49, 49, 1, 32, True, "tokens_first"), TILES[2], True)
def test_a_piece_forward_and_backward(dtype, problem, tile, rotated):
    grad_out, q, k, v = problem.tensors(dtype)
    options, op = (problem.is_causal, problem.scale), Triton()
    with all_forced(tile, rotated and dtype == torch.float16):
        out, lse = op.forward(q, k, v, *options)
        joined, joined_lse = problem.joined(out, lse)
        # As ring attention keeps it: rounded to the inputs' dtype.
        joined = joined.to(dtype)
        got = op.backward(grad_out, q, k, v, joined, joined_lse, *options)
    assert {x.dtype for x in (out, lse, *got)} == {torch.float32}
    assert out.shape == q.shape and lse.shape == q.shape[:3]
    assert [x.shape for x in got] == [x.shape for x in (q, k, v)]
    floor, eps = rounding_floor(dtype), torch.finfo(torch.float32).eps
    want, want_lse = plain_forward(q, k, v, *options, torch.float64)
    plain, _ = plain_forward(q, k, v, *options, dtype)
    assert relative_rms(out, want) <= max(2 * relative_rms(plain, want), floor)
    assert (lse - want_lse).abs().max() <= 16 * eps * max(1, want_lse.abs().max())
    arguments = (grad_out, q, k, v, joined, joined_lse, *options)
    want = plain_backward(*arguments, torch.float64)
    baseline = relative_rms(plain_backward(*arguments, dtype), want)
    # exp(S - LSE) makes rounding of the LSE, which grows with it, the error of every weight.
    size = max(1, joined_lse.abs().max())
    assert relative_rms(got, want) <= max(3 * baseline, 2 * floor * size)


@pytest.mark.parametrize("is_causal", (False, True))
def test_half_inputs_are_not_rounded_to_half_again(is_causal):
    """With values that are all alike, out is exact but for float32's rounding."""
    _, q, k, v = PieceProblem(n_queries=40, n_keys=40).tensors(torch.float16)
    out, _ = Triton().forward(q, k, torch.full_like(v, 0.7), is_causal, 0.3)
    # The weights are rounded to half before they meet the values: their sum is not.
    assert (out - torch.tensor(0.7).half().float()).abs().max() < 2**-11
    assert not torch.equal(out, out.half().float())


@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("joined_dtype", (torch.float32, torch.float16), ids=str)
def test_it_is_the_eager_op(is_causal, joined_dtype):
    """The joined out may be float32 beside half inputs."""
    problem = PieceProblem(2, 30, 30, 2, 16, is_causal)
    grad_out, q, k, v = problem.tensors(torch.float16)
    results = []
    joined = None
    for op in (Eager(), Triton()):
        out, lse = op.forward(q, k, v, is_causal, 0.3)
        if joined is None:
            joined, joined_lse = problem.joined(out, lse)
            joined = joined.to(joined_dtype)
        grads = op.backward(grad_out, q, k, v, joined, joined_lse, is_causal, 0.3)
        results.append((out, lse, *grads))
    assert relative_rms(results[1], results[0]) < 2**-11


def test_every_bit_repeats():
    problem = PieceProblem(1, 20, 40, 2, 16)
    grad_out, q, k, v = problem.tensors(torch.float16)
    runs = []
    for _ in range(2):
        out, lse = Triton().forward(q, k, v, False, 0.3)
        runs.append((out, lse, *Triton().backward(grad_out, q, k, v, out, lse, False, 0.3)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("is_causal", (False, True))
def test_tokens_further_apart_than_32_bits_count(is_causal):
    n, stride = 35, 2**27
    grad_out, *small = PieceProblem(1, n, n, 1, 16).tensors(torch.float16)
    wide = torch.empty(n * stride, dtype=torch.float16)  # pages that nothing touches are free
    far = [wide.as_strided((1, 1, n, 16), (0, 16, stride, 1), 64 * i) for i in range(3)]
    for x, y in zip(far, small, strict=True):
        x.copy_(y)
    results = []
    for q, k, v in (far, small):
        out, lse = Triton().forward(q, k, v, is_causal, 0.3)
        grads = Triton().backward(grad_out, q, k, v, out, lse, is_causal, 0.3)
        results.append((out, lse, *grads))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_row_statistics_of_strided_rows():
    generator = torch.Generator().manual_seed(0)
    out, grad_out = (torch.randn(2, 5, 3, 70, 20, generator=generator).half() for _ in range(2))
    lse = torch.randn(2, 70, 5, generator=generator).transpose(1, 2)
    arguments = (x[:, :, 1].transpose(1, 2) for x in (grad_out, out))
    grad_out, out = arguments
    packed = row_statistics(grad_out, None, out, lse)
    want = plain_statistics(grad_out.double(), None, out.double(), lse.double())
    assert packed.is_contiguous() and packed.shape == (2, 5, 80)
    for got, each in zip(unpacked(packed, 70), want.unbind(-1), strict=True):
        assert relative_rms(got, each) < 4e-7


PATTERNS = (
    None,
    DilatedBranches((8, 20, 33), (1, 2, 3)),
    DilatedBranches((16, 33), (3, 1), "block"),
    BlockMask.from_dense(torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(5)) < 0.6, 8),
)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: type(pattern).__name__)
@pytest.mark.parametrize("is_causal", (False, True))
def test_a_ring_of_one_is_the_oracle(is_causal, pattern):
    q, k, v, grad_out, grad_lse = Problem(1, 33, 4, 2, 16).tensors(torch.float32)
    options = {"pattern": pattern, "is_causal": is_causal}
    out, lse = ring_attention(q, k, v, backend="triton", return_lse=True, **options)
    want, want_lse = reference(q, k, v, **options)
    held = want_lse.isfinite()
    assert torch.equal(lse.isfinite(), held)
    assert relative_rms(out, want) <= 4e-7
    assert relative_rms(lse[held], want_lse[held]) <= 1e-6
    grad_lse = grad_lse * held
    got = torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))
    want = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    assert relative_rms(got, want) <= 1e-6


@pytest.mark.parametrize("is_causal", (False, True))
def test_the_widest_head_has_room_for_the_gradient_of_the_lse(is_causal):
    """It comes in columns beyond the head's, and tiles are of 256 at most."""
    q, k, v, grad_out, grad_lse = Problem(1, 20, 2, 1, 256).tensors(torch.float32)
    out, lse = ring_attention(q, k, v, is_causal=is_causal, backend="triton", return_lse=True)
    got = torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))
    want = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, is_causal=is_causal)
    assert relative_rms(got, want) < 1e-6


def test_it_is_named_and_not_picked_on_a_cpu():
    q = torch.zeros(1, 4, 1, 16)
    assert resolve_op(q, "triton") == Triton()
    assert resolve_backend(q, "triton") == "triton"
    assert resolve_backend(q, "auto") == "sdpa (cpu-flash)"
    assert resolve_backend(q, "eager") == "eager"
    assert hop.why_not(q) is None


@pytest.mark.parametrize(
    "change, reason",
    (
        ({"dtype": torch.float64}, "accumulates in float32, so it takes no float64"),
        ({"dtype": torch.bfloat16}, "interpreter multiplies the bits of bfloat16"),
        ({"dim": 257}, "head_dim=257: takes up to 256"),
        ({"interpret": False}, "needs a CUDA device"),
        ({"triton": False}, "the package triton is not installed"),
    ),
    ids=lambda value: str(value)[:40],
)
def test_what_it_cannot_do_it_says(change, reason, monkeypatch):
    if "interpret" in change:
        monkeypatch.setattr(tiles, "INTERPRETED", False)
    if "triton" in change:
        monkeypatch.setattr(kernels, "HAS_TRITON", False)
    q = torch.zeros(1, 4, 1, change.get("dim", 16), dtype=change.get("dtype", torch.float32))
    with pytest.raises(UnsupportedBackend, match=f"triton: .*{reason}"):
        resolve_backend(q, "triton")
    with pytest.raises(UnsupportedBackend, match=reason):
        ring_attention(q, q, q, backend="triton")
    assert "sdpa" in resolve_backend(q, "auto")
