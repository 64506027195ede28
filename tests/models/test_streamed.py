"""Streaming: a sequence in chunks is the sequence in one piece."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import dilated_attention
from models.errors import UnsupportedBackend
from models.oracle import reference
from models.patterns.branches import DilatedBranches
from models.sources import GeneratedSource, HostSource
from models.streamed import StoreInto, default_chunk, streamed_dilated_attention
from tests.models.array_likes import Recorder

BRANCHES = [
    ((16, 32, 64), (1, 2, 4)),
    ((16, 32), (1, 6)),  # a rate that does not divide its segment
    ((24, 16), (1, 5)),
    ((16, 64, 10**6), (1, 4, 8)),  # longer than any sequence here
    ((16, 96, 200), (1, 3, 40)),
]


def generated(seq_len, dtype=torch.float32, batch=1, heads=4, kv_heads=2):
    shape = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "head_dim": 16}
    return GeneratedSource(seq_len, **shape, dtype=dtype, block=48)


def padding(batch, seq_len, share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, seq_len, generator=generator) < share


def both(source, branches, *, chunk=None, **options):
    """(out, lse) in one piece, and streamed."""
    q, k, v = (x.clone() for x in source.read(0, source.seq_len))
    whole = dilated_attention(q, k, v, *branches, return_lse=True, **options)
    return whole, streamed(source, branches, chunk=chunk, **options)


def streamed(source, branches, **options):
    """(out, lse) of all chunks."""
    dtype = torch.promote_types(source.dtype, torch.float32)
    out = torch.full((source.batch, source.seq_len, source.heads, source.head_dim), 7.0)
    out, lse = out.to(source.dtype), torch.full(out.shape[:3], 7, dtype=dtype).mT.contiguous()
    streamed_dilated_attention(source, *branches, sink=StoreInto(out, lse), **options)
    return out, lse


@settings(max_examples=40, deadline=None)
@given(
    seq_len=st.integers(1, 300),
    branches=st.sampled_from(BRANCHES),
    is_causal=st.booleans(),
    batch=st.integers(1, 2),
    kv_heads=st.sampled_from([1, 2, 4]),
    chunk=st.sampled_from([None, 64, 96]),
    padded=st.sampled_from([None, 0.02, 0.3, 0.9, 1.0]),
)
def test_float32_is_bit_for_bit_the_sequence_in_one_piece(
    seq_len, branches, is_causal, batch, kv_heads, chunk, padded
):
    source = generated(seq_len, batch=batch, kv_heads=kv_heads)
    if chunk and not _resident_last(branches, chunk):
        chunk = None
    options = {"is_causal": is_causal, "chunk": chunk, "key_padding_mask": None}
    if padded is not None:
        options["key_padding_mask"] = padding(batch, seq_len, padded)
    whole, chunks = both(source, branches, backend="sdpa", **options)
    for a, b in zip(whole, chunks, strict=True):
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
        out, lse = streamed(source, branches, backend=backend, **options)
        torch.testing.assert_close(out, exact, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(lse, exact_lse, rtol=1e-10, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    seq_len=st.integers(1, 150),
    branches=st.sampled_from(BRANCHES),
    is_causal=st.booleans(),
    chunk=st.integers(4, 160),
    share=st.sampled_from([0.05, 0.5, 0.95]),
    held=st.sampled_from([1e6, float("inf"), float("nan")]),
    seed=st.integers(0, 99),
)
def test_padding_is_never_attended_to_whatever_it_holds(
    seq_len, branches, is_causal, chunk, share, held, seed
):
    mask = padding(2, seq_len, share, seed)
    tensors = [x.clone() for x in generated(seq_len, torch.float64, batch=2).read(0, seq_len)]
    options = {"is_causal": is_causal, "key_padding_mask": mask}
    exact, exact_lse = reference(*tensors, pattern=DilatedBranches(*branches), **options)
    for x in tensors[1:]:
        x[mask] = held
    for backend in ("sdpa", "gather"):
        source = HostSource(*tensors)
        out, lse = streamed(source, branches, backend=backend, chunk=chunk, **options)
        torch.testing.assert_close(out, exact, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(lse, exact_lse, rtol=1e-10, atol=1e-12)
        no_key = exact_lse.isneginf()
        assert torch.equal(lse.isneginf(), no_key) and (out[no_key.mT] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_queries_of_padding_may_hold_anything_too(dtype):
    mask = padding(1, 200, 0.3)
    tensors = [x.clone() for x in generated(200, dtype).read(0, 200)]
    whole = dilated_attention(*tensors, *BRANCHES[-1], key_padding_mask=mask)
    for x in tensors:
        x[mask] = torch.nan
    out, _ = streamed(HostSource(*tensors), BRANCHES[-1], key_padding_mask=mask)
    step = max(torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(out[~mask], whole[~mask], rtol=step, atol=step)
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("branches", BRANCHES)
def test_half_types_are_off_by_one_rounding_at_most(dtype, branches):
    whole, chunks = both(generated(200, dtype), branches)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(chunks[0], whole[0], rtol=step, atol=step)
    torch.testing.assert_close(chunks[1], whole[1], rtol=1e-5, atol=1e-5)


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
    assert default_chunk(np.int64(500), np.array([24, 16])) == 48
    for seq_len, lengths, message in (
        (0, (16,), "seq_len=0: expected an integer >= 1"),
        (5.5, (16,), "seq_len=5.5"),
        (500, (), "segment_lengths="),
        (500, None, "segment_lengths=None"),
        (500, (16, 0), "segment_lengths="),
        (500, (16.0,), "segment_lengths="),
    ):
        with pytest.raises(ValueError, match=message):
            default_chunk(seq_len, lengths)


def test_numbers_of_any_kind_are_taken():
    source, outs = generated(100), []
    for branches, options in (
        (((16, 32), (1, 2)), {"chunk": 64, "scale": 0.5}),
        ((np.array([16, 32]), np.uint8([1, 2])), {"chunk": np.int32(64), "scale": np.float32(0.5)}),
    ):
        outs.append(torch.zeros(1, 100, 4, 16))
        streamed_dilated_attention(source, *branches, sink=StoreInto(outs[-1]), **options)
    assert torch.equal(*outs)


def test_bad_input_is_named_before_anything_is_read():
    source = Recorder(generated(100))
    sink = StoreInto(torch.empty(1, 100, 4, 16))
    mask = torch.zeros(1, 100, dtype=torch.bool)
    bad = [
        *((ValueError, f"chunk={c!r}: expected an integer >= 1", {"chunk": c}) for c in (0, 1.5)),
        (ValueError, "chunk='8': expected an integer", {"chunk": "8"}),
        (ValueError, "scale=-1: expected a positive number", {"scale": -1}),
        (ValueError, "head_offset='none'", {"head_offset": "none"}),
        (ValueError, "backend='quick'", {"backend": "quick"}),
        (ValueError, "key_padding_mask=list", {"key_padding_mask": mask.tolist()}),
        (ValueError, "key_padding_mask=torch.float32", {"key_padding_mask": mask.float()}),
        (ValueError, r"key_padding_mask=.* \(100,\): expected", {"key_padding_mask": mask[0]}),
        (ValueError, r"key_padding_mask=.* \(1, 99\)", {"key_padding_mask": mask[:, 1:]}),
        (ValueError, r"key_padding_mask=.* \(2, 100\)", {"key_padding_mask": mask.expand(2, -1)}),
        (ValueError, "key_padding_mask is on meta", {"key_padding_mask": mask.to("meta")}),
        (UnsupportedBackend, "triton-tf32", {"backend": "triton-tf32"}),
    ]
    for error, message, options in bad:
        if "triton" in message:
            source.source = generated(100, torch.float64)
        with pytest.raises(error, match=message):
            streamed_dilated_attention(source, (16,), (1,), sink=sink, **options)
    for branches in (((16, 32), (1,)), ((16,), (0,)), ((16,), None)):
        with pytest.raises(ValueError, match="dilation_rates"):
            streamed_dilated_attention(source, *branches, sink=sink)
    assert source.reads == []
