"""What ring attention takes: empty batches, numbers of any kind, every dtype, autocast."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from models.oracle import reference
from models.patterns import DilatedBranches
from models.ring import Grid, distributed_dilated_attention, ring_attention, shard
from tests.models.helpers import relative_rms
from tests.models.ring_problems import RingProblem, ring, shards_of

PROBLEM = RingProblem(2, 60, 4, 2, 8, is_causal=True)


def without_sequences(is_length_given):
    """On a rank: an empty batch, padded, by messages and by an all-gather."""
    q, kv = (torch.zeros(0, 6, heads, 8, requires_grad=True) for heads in (4, 2))
    options = {"seq_len": 12, "timeout": np.float32(5)} if is_length_given else {}
    options |= {"key_padding_mask": torch.zeros(0, 6, dtype=torch.bool), "return_lse": True}
    branches = DilatedBranches((12,), (2,))
    shapes = []
    for attention in (ring_attention, distributed_dilated_attention):
        out, lse = attention(q, kv, kv, pattern=branches, **options)
        grads = torch.autograd.grad((out.sum(), lse.sum()), (q, kv))
        shapes.append([x.shape for x in (out, lse, *grads)])
    return shapes


@pytest.mark.parametrize("is_length_given", (False, True))
def test_an_empty_batch(is_length_given, rings):
    expected = [(0, 6, 4, 8), (0, 4, 6), (0, 6, 4, 8), (0, 6, 2, 8)]
    assert rings.run(2, without_sequences, is_length_given) == [[expected] * 2] * 2


def numbers_of_numpy(problem):
    """On a rank: out with numbers of NumPy, and with Python's."""
    q, k, v, *_ = shards_of(problem, torch.float32)
    order = Grid("hilbert", np.int32(7))
    assert order == Grid("hilbert", 7)
    given = {"seq_len": np.int64(60), "timeout": np.float32(20), "is_causal": np.bool_(True)}
    plain = {"seq_len": 60, "timeout": 20, "is_causal": True}
    return [
        ring(problem, q, k, v, order=order, **x).detach()
        for x in (given | {"scale": np.float64(0.25)}, plain | {"scale": 0.25})
    ]


def test_numbers_of_any_kind(rings):
    for a, b in rings.run(3, numbers_of_numpy, PROBLEM):
        assert torch.equal(a, b)


def of_dtypes(pattern, cast):
    """On a rank: dtypes of out, LSE and dq, and the error of out, under autocast and without."""
    rank, size = dist.get_rank(), dist.get_world_size()
    attention = distributed_dilated_attention if pattern else ring_attention
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        q, k, v = (x.detach() for x in PROBLEM.tensors(dtype)[:3])
        parts = [shard(x, rank, size).requires_grad_() for x in (q, k, v)]
        with torch.autocast("cpu", cast or torch.bfloat16, enabled=cast is not None):
            out, lse = attention(*parts, pattern=pattern, order="zigzag", return_lse=True)
        (dq,) = torch.autograd.grad(out.sum(), parts[0])
        inputs = [x if dtype == torch.float64 else x.to(cast or dtype) for x in (q, k, v)]
        want = shard(reference(*inputs, pattern=pattern)[0], rank, size)
        found[dtype] = (out.dtype, lse.dtype, dq.dtype, relative_rms(out, want))
    return found


@pytest.mark.parametrize("cast", (None, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("pattern", (None, DilatedBranches((16, 60), (1, 3))), ids=type)
def test_the_dtype_rule_is_that_of_scaled_dot_product_attention(pattern, cast, rings):
    for of_rank in rings.run(2, of_dtypes, pattern, cast):
        for dtype, (out, lse, dq, error) in of_rank.items():
            expected = dtype if cast is None or dtype == torch.float64 else cast
            assert (out, dq) == (expected, dtype)
            assert lse == torch.promote_types(expected, torch.float32)
            assert error <= 4 * torch.finfo(expected).eps


@pytest.mark.parametrize("backend", ("sdpa", "eager"))
@pytest.mark.parametrize("size", (1e4, 6e4))
def test_large_activations_of_half_precision(size, backend):
    """Scores up to 1e11: out is the oracle's, and finite."""
    q, k, v = (x.detach().float() for x in PROBLEM.tensors(torch.float32)[:3])
    q, k, v = ((size * x).clamp(-6e4, 6e4).half() for x in (q, k, v))
    options = {"is_causal": True, "return_lse": True}
    out, lse = ring_attention(q, k, v, order="contiguous", backend=backend, **options)
    want, want_lse = reference(q, k, v, is_causal=True)
    assert relative_rms(out, want) < 1e-3 and relative_rms(lse, want_lse) < 1e-6
