"""Sources: the same tokens whatever the way they are read, and nothing held of the rest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import dilated_attention
from models.sources import GeneratedSource, HostSource, MappedSource
from models.streamed import StoreInto, streamed_dilated_attention
from tests.models.array_likes import Dataset, Recorder

pytestmark = pytest.mark.filterwarnings("error")
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
    """Standard normal ones in each: of 16,000 and more, within five standard errors."""
    for x in whole(500, dtype=dtype):
        assert x.dtype == dtype
        error = 5 / x.numel() ** 0.5
        assert x.double().mean().item() == pytest.approx(0, abs=error)
        assert x.double().std().item() == pytest.approx(1, abs=error)


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


ARRAYS = {
    "tensor that requires grad": lambda x: x.clone().requires_grad_(),
    "expanded tensor": lambda x: x[:, :, :1, :1].expand(x.shape),
    "tensor of heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "tensor of columns first": lambda x: x.mT.contiguous().mT,
    "array": lambda x: x.numpy(),
    "read-only array": lambda x: np.broadcast_to(x.numpy(), x.shape),
    "reversed array": lambda x: np.ascontiguousarray(x.numpy()[:, ::-1, :, ::-1])[:, ::-1, :, ::-1],
    "array by columns": lambda x: np.asfortranarray(x.numpy()),
    "every second element": lambda x: np.repeat(x.numpy(), 2, axis=3)[..., ::2],
    "big-endian array": lambda x: x.numpy().astype(">f4"),
    "field of records": lambda x: _as_field(x.numpy()),
    "dataset": lambda x: Dataset(x.numpy()),
    "read-only dataset": lambda x: Dataset(x.numpy(), mode="r", read_only=True),
    "big-endian dataset": lambda x: Dataset(x.numpy().astype(">f4")),
}


def _as_field(x):
    """x in records of 5 bytes: strides that are no multiple of its size."""
    records = np.zeros(x.shape, [("value", np.float32), ("flag", np.int8)])
    records["value"] = x
    return records["value"]


def same_as_in_one_piece(source, q, k, v):
    branches = (8, 16, 40), (1, 2, 5)
    expected = dilated_attention(q, k, v, *branches, return_lse=True)
    found = [torch.zeros(x.shape) for x in expected]
    streamed_dilated_attention(source, *branches, sink=StoreInto(*found))
    return all(torch.equal(a, b.detach()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_any_kind_give_the_numbers_that_lie_there(kind):
    torch.set_warn_always(True)
    arrays = [ARRAYS[kind](x) for x in whole(40)]
    q, k, v = (
        x if isinstance(x, torch.Tensor) else torch.tensor(np.array(x, np.float32)) for x in arrays
    )
    assert same_as_in_one_piece(HostSource(*arrays), q, k, v)
    torch.set_warn_always(False)
    if isinstance(arrays[0], Dataset):
        assert all(x.slices == 2 * [(0, 16), (16, 32), (32, 40)] for x in arrays)


@pytest.mark.parametrize("kind", ["array", "array by columns", "big-endian array"])
def test_files_of_any_layout_give_the_numbers_that_lie_there(kind, tmp_path):
    tensors, paths = whole(40), [str(tmp_path / f"{name}.npy") for name in "qkv"]
    for path, x in zip(paths, tensors, strict=True):
        np.save(path, ARRAYS[kind](x))
    assert same_as_in_one_piece(MappedSource(*paths), *tensors)


def test_an_empty_batch_is_a_sequence_too(tmp_path):
    paths = [tmp_path / f"{name}.npy" for name in "qkv"]
    for path in paths:
        np.save(path, np.zeros((0, 40, 4, 8), np.float32))
    tensors = [torch.zeros(0, 40, 4, 8) for _ in paths]
    generated = GeneratedSource(40, batch=0, heads=4, head_dim=8)
    for source in (generated, HostSource(*tensors), MappedSource(*paths)):
        assert [x.shape for x in source.read(3, 9)] == 3 * [(0, 6, 4, 8)]
        assert same_as_in_one_piece(source, *tensors)


def test_numbers_of_any_kind_are_taken():
    numbers = {name: np.int64(value) for name, value in SHAPE.items()}
    source = GeneratedSource(np.int32(50), **numbers, block=np.uint8(32), seed=np.int16(3))
    expected = whole(50, block=32, seed=3)
    for got, x in zip(source.read(np.int64(7), np.uint16(40)), expected, strict=True):
        assert torch.equal(got, x[:, 7:40])
    assert type(source.seq_len) is int


def test_bad_numbers_are_named():
    good = {"seq_len": 8, **SHAPE}
    for name in ("seq_len", "heads", "kv_heads", "head_dim", "block"):
        for value in (0, -1, 1.0, True, "8", np.float32(4), [8]):
            with pytest.raises(ValueError, match=f"^{name}=.*: expected an integer >= 1"):
                GeneratedSource(**{**good, name: value})
    for name in ("batch", "seed"):
        for value in (-1, 1.5, None):
            with pytest.raises(ValueError, match=f"^{name}=.*: expected an integer >= 0"):
                GeneratedSource(**{**good, name: value})
    for device in ("nowhere", "meta", 1.5):
        with pytest.raises(ValueError, match="^device=.*: expected a CPU or CUDA device"):
            GeneratedSource(**good, device=device)
    with pytest.raises(ValueError, match="kv_heads=3: expected a divisor of heads=4"):
        GeneratedSource(8, heads=4, kv_heads=3, head_dim=8)
    with pytest.raises(ValueError, match="dtype=torch.int64: expected float64"):
        GeneratedSource(**good, dtype=torch.int64)
    source = GeneratedSource(8, heads=1, head_dim=8)
    for start, stop in ((-1, 3), (3, 3), (0, 9), (0.0, 3), (0, None)):
        with pytest.raises(ValueError, match="expected 0 <= start < stop <= 8"):
            source.read(start, stop)


BAD_K = {
    "list": (lambda k: k.tolist(), "k=list: expected an array, with shape"),
    "path": (lambda k: "k.npy", "k=str: expected an array"),
    "integers": (lambda k: k.numpy().astype(np.int32), "k.dtype=int32: expected float64"),
    "objects": (lambda k: k.numpy().astype(object), "k.dtype=object"),
    "complex": (lambda k: k.to(torch.complex64), "k.dtype=torch.complex64"),
    "masked": (lambda k: np.ma.array(k.numpy()), "k=MaskedArray: expected"),
    "scalar": (lambda k: np.float32(3), r"k=\(\): expected a tensor \(batch"),
    "unbatched": (lambda k: k[0], r"k=\(8, 2, 8\): expected a tensor \(batch"),
    "other dtype": (lambda k: k.numpy().astype(np.float64), "k is torch.float64 .* as q is"),
    "other length": (lambda k: k[:, :4], "expected k's shape|expected 8 tokens"),
    "other batch": (lambda k: k[:1], r"expected k's shape|k.shape=\(1"),
    "sparse": (lambda k: k.to_sparse(), "k is torch.sparse_coo: expected a strided"),
    "nested": (lambda k: torch.nested.as_nested_tensor(k), "k is nested: expected a strided"),
    "meta": (lambda k: k.to("meta"), "k is on meta"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", BAD_K)
def test_bad_arrays_are_named(kind):
    make, message = BAD_K[kind]
    q, k, v = whole(8)
    with pytest.raises(ValueError, match=message):
        HostSource(q, make(k), v)
    if kind in ("other length", "other batch"):
        with pytest.raises(ValueError, match=message):
            HostSource(q, make(k), make(v))


def _archive(path):
    with open(path, "wb") as file:
        np.savez(file, np.zeros((1, 4, 1, 2), np.float32))


def _cut_short(path):
    np.save(path, np.zeros((1, 4, 1, 2), np.float32))
    path.write_bytes(path.read_bytes()[:-4])


BAD_FILES = {
    "none": (lambda path: None, "k.npy: expected a .npy file, .*No such file"),
    "folder": (lambda path: path.mkdir(), "k.npy: expected a .npy file, .*directory"),
    "text": (lambda path: path.write_text("no array"), "k.npy: expected a .npy file"),
    "nothing": (lambda path: path.touch(), "k.npy: expected a .npy file"),
    "archive": (_archive, "k.npy: expected a .npy file"),
    "cut short": (_cut_short, "k.npy: expected a .npy file, whole, .*greater than file size"),
    "objects": (
        lambda path: np.save(path, np.array([None] * 4), allow_pickle=True),
        "k.npy: expected a .npy file, .*Python objects",
    ),
    "integers": (
        lambda path: np.save(path, np.ones((1, 4, 1, 2), np.int64)),
        "k.npy.dtype=int64: expected float64",
    ),
    "other dtype": (
        lambda path: np.save(path, np.ones((1, 4, 1, 2), np.float64)),
        "k is torch.float64 .* as q is",
    ),
    "other length": (
        lambda path: np.save(path, np.ones((1, 5, 1, 2), np.float32)),
        "expected k's shape",
    ),
    "other rank": (
        lambda path: np.save(path, np.ones((4, 1, 2), np.float32)),
        r"k=\(4, 1, 2\): expected a tensor \(batch",
    ),
    "scalar": (lambda path: np.save(path, np.float32(1)), r"k=\(\): expected a tensor"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_named(kind, tmp_path):
    make, message = BAD_FILES[kind]
    good, bad = tmp_path / "q.npy", tmp_path / "k.npy"
    np.save(good, np.ones((1, 4, 1, 2), np.float32))
    make(bad)
    with pytest.raises(ValueError, match=message):
        MappedSource(good, bad, good)


@pytest.mark.parametrize("path", [None, 3, np.zeros(3, np.float32)])
def test_what_is_no_path_is_named(path, tmp_path):
    good = tmp_path / "q.npy"
    np.save(good, np.ones((1, 4, 1, 2), np.float32))
    with pytest.raises(ValueError, match="v=.*: expected the path of a .npy file"):
        MappedSource(good, good, path)


def test_a_file_that_is_replaced_is_noticed(tmp_path):
    path = tmp_path / "x.npy"
    for other in (np.ones((1, 5, 1, 2), np.float32), np.ones((1, 4, 1, 2), np.float64)):
        np.save(path, np.ones((1, 4, 1, 2), np.float32))
        source = MappedSource(path, path, path)
        source.read(0, 2)
        np.save(path, other)
        with pytest.raises(ValueError, match=r"x.npy: holds .*: expected float32 \(1, 4, 1, 2\)"):
            source.read(2, 4)
    _cut_short(path)
    with pytest.raises(ValueError, match="greater than file size"):
        source.read(2, 4)


def stream(source):
    streamed_dilated_attention(source, (8,), (1,), sink=lambda *_: None)


def test_a_source_that_says_what_cannot_be_is_refused_before_any_read():
    good = GeneratedSource(40, **SHAPE)
    bad = {
        "batch": (-1, "source.batch=-1: expected"),
        "seq_len": (4.0, "source.seq_len=4.0: expected an integer"),
        "heads": (None, "source.heads=None"),
        "kv_heads": (3, "source.kv_heads=3: expected a divisor of heads=4"),
        "head_dim": (0, "source.head_dim=0"),
        "dtype": (np.float32, "source.dtype=.*: expected float64"),
        "device": ("nowhere", "source.device='nowhere'"),
    }
    for name, (value, message) in bad.items():
        source = Recorder(good, **{name: value})
        with pytest.raises(ValueError, match=message):
            stream(source)
        assert source.reads == []
    for source in (None, whole(8), torch.zeros(1, 8, 1, 4)):
        with pytest.raises(ValueError, match="source=.*: expected one of models.sources"):
            stream(source)
    counts = Recorder(good, **{name: np.int64(getattr(good, name)) for name in SHAPE})
    stream(counts)
    assert len(counts.reads) == 5


BAD_READS = {
    "too few tokens": (lambda q, k, v: (q, k[:, 1:], v), r"k as \(\(2, 7, 2, 8\).*expected"),
    "too many tokens": (lambda q, k, v: (q.repeat(1, 2, 1, 1), k, v), r"q as \(\(2, 16, 4, 8\)"),
    "no batch": (lambda q, k, v: (q, k, v[0]), r"v as \(\(8, 2, 8\)"),
    "other heads": (lambda q, k, v: (q, k.repeat(1, 1, 2, 1), v), r"k as \(\(2, 8, 4, 8\)"),
    "other dtype": (lambda q, k, v: (q, k, v.double()), r"v as .*torch.float64"),
    "other device": (lambda q, k, v: (q.to("meta"), k, v), "q as .*meta"),
    "array": (lambda q, k, v: (q.numpy(), k, v), "q as ndarray: expected"),
    "sparse": (lambda q, k, v: (q, k.to_sparse(), v), "k as Tensor: expected"),
    "two": (lambda q, k, v: (q, k), "tuple: expected q, k and v"),
    "stacked": (lambda q, k, v: torch.stack([q, q, q]), "Tensor: expected q, k and v"),
    "nothing": (lambda q, k, v: None, "NoneType: expected q, k and v"),
}


@pytest.mark.parametrize("kind", BAD_READS)
def test_a_source_that_gives_something_else_is_named_at_the_first_chunk(kind):
    change, message = BAD_READS[kind]
    source, chunks = Recorder(GeneratedSource(40, **SHAPE)), []
    read = source.read
    source.read = lambda start, stop: change(*read(start, stop))
    with pytest.raises(ValueError, match=rf"source.read\(0, 8\) gave {message}"):
        streamed_dilated_attention(source, (8,), (1,), sink=lambda *chunk: chunks.append(chunk))
    assert source.reads == [(0, 8)] and chunks == []
