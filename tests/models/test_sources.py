"""Sources: the same tokens whatever the way they are read, and nothing held of the rest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sources import GeneratedSource, HostSource, MappedSource

SHAPE = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}


def whole(seq_len, **options):
    return [x.clone() for x in GeneratedSource(seq_len, **SHAPE, **options).read(0, seq_len)]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seq_len=st.integers(1, 90), block=st.integers(1, 40))
def test_a_token_is_the_same_however_it_is_read(data, seq_len, block):
    start = data.draw(st.integers(0, seq_len - 1))
    stop = data.draw(st.integers(start + 1, seq_len))
    source = GeneratedSource(seq_len, **SHAPE, block=block)
    expected = whole(seq_len, block=block)
    for got, all_of_it in zip(source.read(start, stop), expected, strict=True):
        assert torch.equal(got, all_of_it[:, start:stop])


def test_a_longer_sequence_begins_with_the_shorter_one():
    for short, long in zip(whole(50, block=32), whole(200, block=32), strict=True):
        assert torch.equal(short, long[:, :50])


def test_values_are_standard_normal_and_differ_by_seed_tensor_and_block():
    q, k, v = whole(4096, block=512)
    for x in (q, k, v):
        assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    correlation = np.corrcoef([x[..., :2, :].flatten().numpy() for x in (q, k, v)])
    assert abs(correlation - np.eye(3)).max() < 0.02
    assert not torch.equal(q[:, :512], q[:, 512:1024])
    assert not torch.equal(q, whole(4096, block=512, seed=1)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_values_come_in_the_dtype_asked_for(dtype):
    assert [x.dtype for x in whole(9, dtype=dtype)] == 3 * [dtype]


def test_files_and_host_memory_give_what_lies_there(tmp_path):
    tensors = whole(100)
    paths = [tmp_path / f"{name}.npy" for name in "qkv"]
    for path, x in zip(paths, tensors, strict=True):
        np.save(path, x.numpy())
    mapped, host = MappedSource(*paths), HostSource(*tensors)
    for source in (mapped, host):
        sizes = (source.batch, source.seq_len, source.heads, source.kv_heads, source.head_dim)
        assert sizes == (2, 100, 4, 2, 8)
        for start, stop in ((0, 7), (7, 100), (99, 100)):
            for got, x in zip(source.read(start, stop), tensors, strict=True):
                assert torch.equal(got, x[:, start:stop])
    # The host's chunks are its own memory; files are read into a buffer.
    assert host.read(3, 5)[0].data_ptr() == tensors[0][:, 3:5].data_ptr()


def test_a_file_is_not_written_to(tmp_path):
    paths = [tmp_path / f"{name}.npy" for name in "qkv"]
    for path in paths:
        np.save(path, np.ones((1, 4, 1, 2), np.float32))
    MappedSource(*paths).read(0, 4)[0].zero_()
    assert (np.load(paths[0]) == 1).all()


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="seq_len=0: expected an integer >= 1"):
        GeneratedSource(0, heads=1, head_dim=8)
    with pytest.raises(ValueError, match="kv_heads=3: expected a divisor of heads=4"):
        GeneratedSource(8, heads=4, kv_heads=3, head_dim=8)
    with pytest.raises(ValueError, match="block=0"):
        GeneratedSource(8, heads=4, head_dim=8, block=0)
    source = GeneratedSource(8, heads=1, head_dim=8)
    for start, stop in ((-1, 3), (3, 3), (0, 9)):
        with pytest.raises(ValueError, match="expected 0 <= start < stop <= 8"):
            source.read(start, stop)
    q, k, v = whole(8)
    with pytest.raises(ValueError, match="expected k's shape"):
        HostSource(q, k, v[:, :4])
    missing, text, integers = (tmp_path / name for name in ("none.npy", "text.npy", "int.npy"))
    text.write_text("no array")
    np.save(integers, np.ones((1, 4, 1, 2), np.int64))
    for path, why in ((missing, "No such file"), (text, "expected a .npy"), (integers, "int64")):
        with pytest.raises(ValueError, match=why):
            MappedSource(path, path, path)
