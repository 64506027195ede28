"""The Triton kernels as a GPU runs them: real sizes, every head size and dtype, awkward memory."""

import shutil
import subprocess
import sys

import pytest
import torch

from models import block_sparse_attention, dilated_attention
from models.kernels import tiles
from models.kernels.hop import Triton
from models.merge import merge_into
from models.oracle import reference, reference_gradients
from models.patterns import BlockMask, DilatedBranches, global_local, local_window, random
from models.ring.attention import ring_attention
from models.ring.call import resolve_backend
from models.ring.hops import Eager
from tests.models.helpers import relative_rms
from tests.models.test_gpu import TOLERANCE, check, dilated, every_dtype, full_float32, tensors

__all__ = ["full_float32"]  # a fixture that applies here too
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
half = pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
HEAD_DIMS = (32, 64, 96, 128, 256)
# The two schedules of the papers, cut to size, and one with everything ragged.
SCHEDULES = (
    ([512, 1024, 2048, 4096], [1, 2, 4, 6]),
    ([256, 1000, 3000], [3, 1, 4]),
    ([64, 700], [2, 300]),
)


@every_dtype
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("lists", SCHEDULES, ids=str)
def test_dilated(lists, dim, is_causal, dtype):
    """Ragged, strided as slices of one projection, grouped queries."""
    inputs = tensors(dtype, batch=2, n=1999, heads=6, kv_heads=2, dim=dim, fused=True)
    check(dilated("triton", lists), DilatedBranches(*lists), *inputs, is_causal)


@pytest.mark.parametrize("head_offset", ("modulo", "block"))
def test_dilated_head_offsets(head_offset):
    lists = ([512, 2048], [3, 4])

    def attention(q, k, v, **options):
        return dilated_attention(
            q, k, v, *lists, head_offset=head_offset, backend="triton", **options
        )

    inputs = tensors(torch.float16, heads=6, kv_heads=2)
    check(attention, DilatedBranches(*lists, head_offset), *inputs, True)


hopper = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0),
    reason="the Gluon kernel is for compute capability 9.0",
)


@hopper
@half
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("dim", (64, 128))
@pytest.mark.parametrize("lists", SCHEDULES, ids=str)
def test_gluon(lists, dim, is_causal, dtype):
    """Ragged, strided as slices of one projection, grouped queries; gradients by Triton."""
    inputs = tensors(dtype, batch=2, n=1999, heads=6, kv_heads=2, dim=dim, fused=True)
    check(dilated("gluon", lists), DilatedBranches(*lists), *inputs, is_causal)


@hopper
@pytest.mark.parametrize("head_offset", ("modulo", "block"))
@pytest.mark.parametrize("n", (1, 127, 128, 129, 4099))
def test_gluon_at_the_edges_of_tiles(n, head_offset):
    """Without a branch of rate 1 the base has no keys; heads keep none of a short segment."""
    for lists in (([512, 2048], [3, 4]), ([n], [1]), ([128, 300], [1, 7])):

        def attention(q, k, v, lists=lists, **options):
            return dilated_attention(
                q, k, v, *lists, head_offset=head_offset, backend="gluon", **options
            )

        q, k, v, grad_out, grad_lse = tensors(torch.float16, n=n, heads=6, kv_heads=3)
        pattern = DilatedBranches(*lists, head_offset)
        held = pattern_rows(pattern, n, 6)
        check(attention, pattern, q, k, v, grad_out, grad_lse * held, True)


def pattern_rows(pattern, n, heads):
    """(1, heads, n): 1 where a query has keys, as an LSE of -inf has no gradient; else 0."""

    def kept(head, row):
        return len(pattern.keys(head, heads, row, n, True)) > 0

    rows = [[kept(head, row) for row in range(n)] for head in range(heads)]
    return torch.tensor([rows], device="cuda", dtype=torch.float32)


@hopper
@pytest.mark.parametrize("is_causal", (False, True))
def test_gluon_leaks_nothing_between_segments(is_causal):
    """A NaN reaches nobody but those who attend to its token: tiles reach into other segments."""
    attention = dilated("gluon", ([500], [3]))
    q, k, v, *_ = tensors(torch.float16, batch=2, n=1400, heads=3, kv_heads=3)
    q, k, v = (x.detach() for x in (q, k, v))
    clean, clean_lse = attention(q, k, v, is_causal=is_causal, return_lse=True)
    for x in (q, k, v):
        x[:, 500:1000] = torch.nan
    out, lse = attention(q, k, v, is_causal=is_causal, return_lse=True)
    for part in (slice(0, 500), slice(1000, 1400)):
        assert torch.equal(out[:, part], clean[:, part])
        assert torch.equal(lse[:, :, part], clean_lse[:, :, part])


@hopper
@half
def test_every_bit_of_gluon_repeats(dtype):
    """Whatever order the parts of a program and the copies came in: a race would show here."""
    q, k, v, *_ = tensors(dtype, batch=4, n=8192, heads=8, kv_heads=8)
    attention = dilated("gluon", ([512, 2048, 8192], [1, 3, 6]))
    runs = [attention(q, k, v, is_causal=True, return_lse=True) for _ in range(20)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def masks(n, block_size, is_causal):
    options = {"block_size": block_size, "is_causal": is_causal, "device": "cuda"}
    blocks = -(-n // block_size)
    generator = torch.Generator("cuda").manual_seed(3)
    kept = torch.rand(6, blocks, blocks, generator=generator, device="cuda") < 0.2
    return {
        "local": local_window(n, sparsity=0.7, **options),
        "global": global_local(n, sparsity=0.8, **options),
        "random": random(n, sparsity=0.9, heads=6, **options),
        "with empty rows": BlockMask.from_dense(kept, block_size),
    }


def block_sparse(mask):
    def attention(q, k, v, **options):
        return block_sparse_attention(q, k, v, mask, backend="triton", **options)

    return attention


@half
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("block_size", (16, 32, 64, 128))
def test_block_sparse(block_size, dim, is_causal, dtype):
    for n in (1999, 2048):
        q, k, v, grad_out, grad_lse = tensors(
            dtype, batch=2, n=n, heads=6, kv_heads=2, dim=dim, fused=True
        )
        for mask in masks(n, block_size, is_causal).values():
            held = mask.causal().lengths() if is_causal else mask.lengths()
            empty = (held == 0).repeat_interleave(block_size, dim=1)[:, :n]
            # An LSE of -inf has no gradient.
            cotangents = (grad_out, grad_lse.masked_fill(empty, 0))
            check(block_sparse(mask), mask, q, k, v, *cotangents, is_causal)


@half
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("dim", (32, 64))
def test_block_sparse_heads_that_share_keys_and_lists(dim, is_causal, dtype):
    for n in (1999, 2048):
        q, k, v, *cotangents = tensors(dtype, batch=2, n=n, heads=6, kv_heads=3, dim=dim)
        mask = random(n, sparsity=0.9, block_size=64, is_causal=is_causal, device="cuda")
        check(block_sparse(mask), mask, q, k, v, *cotangents, is_causal)


def piece(dtype, n_queries, n_keys, dim, step=1):
    """grad_out, q, k, v of a piece as its op takes them: views, every `step`-th token."""
    *_, grad_out, _ = tensors(dtype, batch=2, n=n_queries * step, heads=3, dim=dim)
    q, *_ = tensors(dtype, batch=2, n=n_queries * step, heads=3, kv_heads=3, dim=dim, fused=True)
    _, k, v, *_ = tensors(dtype, batch=2, n=n_keys * step, heads=3, kv_heads=3, dim=dim, fused=True)
    return [x.detach()[:, ::step].transpose(1, 2) for x in (grad_out, q, k, v)]


@every_dtype
@pytest.mark.parametrize("sizes", ((1500, 1999, False), (64, 1, False), (1999, 1999, True)))
@pytest.mark.parametrize("dim", (*HEAD_DIMS, 72))
@pytest.mark.parametrize("step", (1, 3))
def test_a_piece_of_a_hop(step, dim, sizes, dtype):
    """Given out and LSE of more keys than its own; results are float32, and half is no limit."""
    *lengths, is_causal = sizes
    grad_out, q, k, v = piece(dtype, *lengths, dim, step)
    options = (is_causal, dim**-0.5)
    doubles = [x.double() for x in (q, k, v)]
    out, lse = Triton().forward(q, k, v, *options)
    want, want_lse = Eager().forward(*doubles, *options)
    assert out.dtype == torch.float32 and relative_rms(out, want) <= TOLERANCE[dtype] / 2
    assert (lse - want_lse).abs().max() <= 2e-5 * want_lse.abs().max().clamp(min=1)
    other, other_lse = torch.randn_like(out), lse + torch.randn_like(lse)
    merge_into(out, lse, other, other_lse)
    out = out.to(dtype)
    got = Triton().backward(grad_out, q, k, v, out, lse, *options)
    want = Eager().backward(grad_out, *doubles, out.double(), lse.double(), *options)
    assert {x.dtype for x in got} == {torch.float32}
    assert relative_rms(got, want) <= TOLERANCE[dtype]


@every_dtype
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("name", ("dense", "dilated", "block-sparse"))
def test_a_ring_of_one(name, is_causal, dtype):
    pattern = {
        "dense": None,
        "dilated": DilatedBranches(*SCHEDULES[0]),
        "block-sparse": masks(1999, 64, is_causal)["global"],
    }[name]

    def attention(q, k, v, **options):
        return ring_attention(q, k, v, pattern=pattern, backend="triton", **options)

    inputs = tensors(dtype, batch=2, n=1999, heads=6, kv_heads=2, fused=True)
    check(attention, pattern, *inputs, is_causal)


def test_a_ring_keeps_parts_of_half_types_in_float32():
    q = torch.zeros(1, 8, 1, 64, device="cuda")
    assert resolve_backend(q.half(), "auto") == resolve_backend(q.bfloat16(), "auto") == "triton"
    assert resolve_backend(q, "auto") == "sdpa (cuda-efficient)"
    assert resolve_backend(q, "triton") == "triton"
    assert resolve_backend(q.half(), "sdpa") == "sdpa (cuda-flash)"


@half
def test_every_bit_of_a_piece_repeats(dtype):
    grad_out, q, k, v = piece(dtype, 1999, 1500, 64)
    runs = []
    for _ in range(3):
        out, lse = Triton().forward(q, k, v, False, 0.125)
        runs.append((out, lse, *Triton().backward(grad_out, q, k, v, out, lse, False, 0.125)))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("name", ("dilated", "block_sparse"))
@half
def test_every_bit_repeats_backward_too(dtype, name):
    q, k, v, grad_out, grad_lse = tensors(dtype, n=2000)
    mask = random(2000, sparsity=0.8, device="cuda")
    attention = dilated("triton") if name == "dilated" else block_sparse(mask)
    runs = []
    for _ in range(3):
        outputs = attention(q, k, v, is_causal=True, return_lse=True)
        runs.append((*outputs, *torch.autograd.grad(outputs, (q, k, v), (grad_out, grad_lse))))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_more_than_two_to_the_31_elements():
    """2^32 elements a tensor: the last tokens are those of a short sequence of their own."""
    n, tail, lists = 2**26, 8192, ([2048, 8192], [1, 4])
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    x = torch.randn(1, n, 1, 64, device="cuda", dtype=torch.float16)
    end = x[:, -tail:]
    with torch.no_grad():
        out = dilated_attention(x, x, x, *lists, is_causal=True, backend="triton")[:, -tail:]
        want = dilated_attention(end, end, end, *lists, is_causal=True, backend="triton")
        assert torch.equal(out, want)
        del out
        mask = local_window(n, sparsity=1 - 4 * 64 / n, device="cuda")
        out = block_sparse_attention(x, x, x, mask, backend="triton")[:, -64:]
    want, _ = reference(x[:, -256:], x[:, -256:], x[:, -256:], rows=torch.arange(192, 256).cuda())
    assert mask.lengths().max() == 4
    assert relative_rms(out, want) <= TOLERANCE[torch.float16]


def test_compiled_by_inductor():
    q, k, v, grad_out, _ = tensors(torch.float16, n=1024)
    mask = local_window(1024, sparsity=0.8, is_causal=True, device="cuda")
    for attention in (dilated("triton", ([256, 1024], [1, 2])), block_sparse(mask)):
        results = []
        # As it is first: a mask makes its lists then, on which compiled code relies.
        for run in (attention, torch.compile(attention, fullgraph=True)):
            out = run(q, k, v, is_causal=True)
            results.append((out, *torch.autograd.grad(out, (q, k, v), grad_out)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_tf32_is_between_half_and_float32():
    q, k, v, grad_out, _ = tensors(torch.float32, n=1000)
    lists = ([256, 1000], [1, 2])
    pattern = DilatedBranches(*lists)
    out = dilated("triton-tf32", lists)(q, k, v, is_causal=True)
    want, _ = reference(q, k, v, pattern=pattern, is_causal=True)
    assert 1e-6 < relative_rms(out, want) < TOLERANCE[torch.float16]
    got = torch.autograd.grad(out, (q, k, v), grad_out)
    want = reference_gradients(q, k, v, grad_out, pattern=pattern, is_causal=True)
    assert 1e-6 < relative_rms(got, want) < 2 * TOLERANCE[torch.float16]


def test_this_card_has_tiles():
    major, minor = torch.cuda.get_device_capability()
    assert tiles.generation(10 * major + minor) in tiles.CAPABILITIES


SMALL = """
import torch
from models import block_sparse_attention, dilated_attention
from models.patterns import random
from models.ring import ring_attention
q = torch.randn(1, 333, 4, 64, device="cuda", dtype=torch.float16, requires_grad=True)
mask = random(333, sparsity=0.5, device="cuda")
for causal in (False, True):
    options = {"is_causal": causal, "backend": "triton"}
    dilated_attention(q, q, q, [64, 200], [1, 3], **options).sum().backward()
    block_sparse_attention(q, q, q, mask, **options).sum().backward()
    ring_attention(q, q, q, **options).sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ("memcheck", "racecheck", "initcheck"))
def test_the_sanitizer_finds_nothing(tool):
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("no compute-sanitizer here")
    done = subprocess.run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SMALL],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
