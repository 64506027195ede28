"""Streaming: a sequence in chunks is the sequence in one piece."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import dilated_attention
from models.errors import UnsupportedBackend
from models.oracle import reference
from models.patterns.branches import DilatedBranches
from models.sources import GeneratedSource
from models.streamed import StoreInto, default_chunk, streamed_dilated_attention

BRANCHES = [
    ((16, 32, 64), (1, 2, 4)),
    ((16, 32), (1, 6)),  # a rate that does not divide its segment
    ((24, 16), (1, 5)),
    ((16, 64, 10**6), (1, 4, 8)),  # longer than any sequence here
    ((16, 96, 200), (1, 3, 40)),
]


class Recorder:
    """A source that notes what is read of another."""

    def __init__(self, source):
        self.source, self.reads = source, []

    def __getattr__(self, name):
        return getattr(self.source, name)

    def read(self, start, stop):
        self.reads.append((start, stop))
        return self.source.read(start, stop)


def generated(seq_len, dtype=torch.float32, batch=1, heads=4, kv_heads=2):
    shape = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "head_dim": 16}
    return GeneratedSource(seq_len, **shape, dtype=dtype, block=48)


def both(source, branches, **options):
    """(out, lse) in one piece, and streamed."""
    n = source.seq_len
    q, k, v = (x.clone() for x in source.read(0, n))
    chunk = options.pop("chunk", None)
    whole = dilated_attention(q, k, v, *branches, return_lse=True, **options)
    out, lse = torch.full_like(whole[0], 7), torch.full_like(whole[1], 7)
    sink = StoreInto(out, lse)
    streamed_dilated_attention(source, *branches, sink=sink, chunk=chunk, **options)
    return whole, (out, lse)


@settings(max_examples=60, deadline=None)
@given(
    seq_len=st.integers(1, 300),
    branches=st.sampled_from(BRANCHES),
    is_causal=st.booleans(),
    batch=st.integers(1, 2),
    kv_heads=st.sampled_from([1, 2, 4]),
    chunk=st.sampled_from([None, 64, 96]),
)
def test_float32_is_bit_for_bit_the_sequence_in_one_piece(
    seq_len, branches, is_causal, batch, kv_heads, chunk
):
    source = generated(seq_len, batch=batch, kv_heads=kv_heads)
    if chunk and not _resident_last(branches, chunk):
        chunk = None
    whole, streamed = both(source, branches, is_causal=is_causal, chunk=chunk, backend="sdpa")
    for a, b in zip(whole, streamed, strict=True):
        assert torch.equal(a, b)


def _resident_last(branches, chunk):
    resident = [chunk % w != 0 for w in branches[0]]
    return resident == sorted(resident)


@settings(max_examples=30, deadline=None)
@given(
    seq_len=st.integers(1, 200),
    branches=st.sampled_from(BRANCHES),
    is_causal=st.booleans(),
    head_offset=st.sampled_from(["modulo", "block"]),
    chunk=st.integers(1, 250),
)
def test_any_chunk_is_the_oracle(seq_len, branches, is_causal, head_offset, chunk):
    source = generated(seq_len, torch.float64)
    q, k, v = (x.clone() for x in source.read(0, seq_len))
    options = {"is_causal": is_causal, "head_offset": head_offset, "chunk": chunk}
    pattern = DilatedBranches(*branches, head_offset)
    exact, exact_lse = reference(q, k, v, pattern=pattern, is_causal=is_causal)
    for backend in ("sdpa", "gather"):
        _, (out, lse) = both(source, branches, backend=backend, **options)
        torch.testing.assert_close(out, exact, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(lse, exact_lse, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("branches", BRANCHES)
def test_half_types_are_off_by_one_rounding_at_most(dtype, branches):
    whole, streamed = both(generated(200, dtype), branches)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(streamed[0], whole[0], rtol=step, atol=step)
    torch.testing.assert_close(streamed[1], whole[1], rtol=1e-5, atol=1e-5)


def test_the_future_is_not_read_into_the_past():
    source = generated(300)
    q, k, v = (x.clone() for x in source.read(0, 300))
    changed = Recorder(source)

    def read(start, stop):
        parts = [x.clone() for x in source.read(start, stop)]
        for x in parts:
            x[:, max(0, 150 - start) :] += 3
        return parts

    changed.read = read
    branches, outs = ((16, 64, 300), (1, 2, 8)), []
    for one in (source, changed):
        outs.append(torch.empty_like(q))
        streamed_dilated_attention(one, *branches, sink=StoreInto(outs[-1]), is_causal=True)
    assert torch.equal(outs[0][:, :150], outs[1][:, :150])
    assert not torch.equal(outs[0][:, 150:], outs[1][:, 150:])


def test_each_chunk_is_read_once_and_twice_with_a_resident_branch():
    chunks = [(0, 64), (64, 128), (128, 192), (192, 200)]
    for branches, passes in ((((16, 64), (1, 4)), 1), (((16, 64, 200), (1, 4, 8)), 2)):
        source, out = Recorder(generated(200)), torch.empty(1, 200, 4, 16)
        streamed_dilated_attention(source, *branches, sink=StoreInto(out))
        assert source.reads == passes * chunks


def test_the_default_chunk_holds_whole_segments():
    assert default_chunk(10**6, (2048, 4096, 32768)) == 32768
    assert default_chunk(10**6, (24, 16)) == 48
    assert default_chunk(10**6, (2048, 10**6)) == 2048
    assert default_chunk(100, (64, 48)) == 100
    assert default_chunk(10**6, (10**6,)) == 32768
    assert default_chunk(500, (10**6,)) == 500


def test_bad_input_is_named_before_anything_is_read():
    source = Recorder(generated(100))
    sink = StoreInto(torch.empty(1, 100, 4, 16))
    bad = [
        (ValueError, "chunk=0: expected an integer >= 1", {"chunk": 0}),
        (ValueError, "scale=-1: expected a positive number", {"scale": -1}),
        (ValueError, "head_offset='none'", {"head_offset": "none"}),
        (ValueError, "backend='quick'", {"backend": "quick"}),
        (UnsupportedBackend, "triton-tf32", {"backend": "triton-tf32"}),
    ]
    for error, message, options in bad:
        if "triton" in message:
            source.source = generated(100, torch.float64)
        with pytest.raises(error, match=message):
            streamed_dilated_attention(source, (16,), (1,), sink=sink, **options)
    with pytest.raises(ValueError, match="dilation_rates"):
        streamed_dilated_attention(source, (16, 32), (1,), sink=sink)
    assert source.reads == []
