"""Sinks: any array gets the results, and one that cannot is refused before anything is read."""

import warnings

import numpy as np
import pytest
import torch

from models import dilated_attention
from models.sources import GeneratedSource
from models.streamed import StoreInto, streamed_dilated_attention
from tests.models.array_likes import Dataset, Recorder

pytestmark = pytest.mark.filterwarnings("error")
B, N, H, D = 2, 80, 4, 8
SHAPES = (B, N, H, D), (B, H, N)
BRANCHES = (16, 80), (1, 5)


@pytest.fixture(autouse=True)
def every_warning():
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def generated(dtype=torch.float32):
    shape = {"batch": B, "heads": H, "kv_heads": 2, "head_dim": D}
    return Recorder(GeneratedSource(N, **shape, dtype=dtype, block=32))


def whole(dtype=torch.float32):
    q, k, v = (x.clone() for x in generated(dtype).read(0, N))
    return dilated_attention(q, k, v, *BRANCHES, return_lse=True)


def streamed(sink, dtype=torch.float32, **options):
    streamed_dilated_attention(generated(dtype), *BRANCHES, sink=sink, **options)


def memory_map(folder, shape, dtype, mode="r+"):
    path = folder / f"{len(shape)}.npy"
    np.lib.format.open_memmap(path, "w+", dtype, shape)[:] = 7
    return np.lib.format.open_memmap(path, mode)


TARGETS = {
    "tensor": lambda shape, _: torch.full(shape, 7.0),
    "strided tensor": lambda shape, _: torch.zeros(*shape[::-1], 2)[..., 1].permute(
        *reversed(range(len(shape)))
    ),
    "wider tensor": lambda shape, _: torch.zeros(shape, dtype=torch.float64),
    "array": lambda shape, _: np.full(shape, 7, np.float32),
    "reversed array": lambda shape, _: np.zeros(shape, np.float32)[:, ::-1],
    "array by columns": lambda shape, _: np.zeros(shape, np.float32, order="F"),
    "big-endian array": lambda shape, _: np.zeros(shape, ">f4"),
    "wider array": lambda shape, _: np.zeros(shape, np.float64),
    "memory map": lambda shape, folder: memory_map(folder, shape, np.float32),
    "dataset": lambda shape, _: Dataset(np.zeros(shape, np.float32)),
    "wider dataset": lambda shape, _: Dataset(np.zeros(shape, np.float64)),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_any_array_gets_the_results_of_one_piece(kind, tmp_path):
    targets = [TARGETS[kind](shape, tmp_path) for shape in SHAPES]
    streamed(StoreInto(*targets))
    if kind == "memory map":
        targets = [np.load(tmp_path / f"{len(shape)}.npy") for shape in SHAPES]
    for target, expected in zip(targets, whole(), strict=True):
        assert np.array_equal(np.asarray(target), expected.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_no_number_changes_in_a_wider_array(dtype):
    expected, expected_lse = whole(dtype)
    out, held = np.zeros(SHAPES[0]), torch.zeros(SHAPES[0], dtype=dtype)
    lse = torch.zeros(SHAPES[1], dtype=torch.float64)
    for target in (out, held):
        streamed(StoreInto(target, lse), dtype)
    streamed(StoreInto(out), dtype)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(held, expected, rtol=step, atol=step)
    torch.testing.assert_close(lse, expected_lse.double(), rtol=1e-5, atol=1e-5)
    assert np.array_equal(out, held.double().numpy())


def test_two_arrays_may_lie_in_one_piece_of_memory_side_by_side():
    both = np.zeros((B, N, H, D + 1), np.float32)
    streamed(StoreInto(both[..., :D], both[..., D].transpose(0, 2, 1)))
    assert np.array_equal(both[..., :D], whole()[0].numpy())
    assert np.array_equal(both[..., D], whole()[1].transpose(1, 2).numpy())


def out_of(shape=SHAPES[0], dtype=np.float32):
    return np.zeros(shape, dtype)


def read_only(array):
    array.flags.writeable = False
    return array


class Closed:
    """As h5py has it: an attribute of a dataset whose file is closed is an error."""

    @property
    def shape(self):
        raise RuntimeError("not open")


def tensor_of(read_only_array):
    with warnings.catch_warnings(action="ignore"):
        return torch.from_numpy(read_only_array)


BAD_OUT = {
    "list": (lambda _: out_of().tolist(), "out=list: expected an array"),
    "none": (lambda _: None, "out=NoneType: expected an array"),
    "path": (lambda folder: folder / "out.npy", r"out=\w*Path: expected an array"),
    "read-only map": (lambda p: memory_map(p, SHAPES[0], "f4", "r"), "out=memmap .* is read-only"),
    "map copied on write": (
        lambda p: memory_map(p, SHAPES[0], "f4", "c"),
        "out=memmap .* mode 'c'",
    ),
    "view of such a map": (
        lambda p: np.asarray(memory_map(p, (B, N, H, D, 1), "f4", "c"))[..., 0],
        "out=ndarray .* mode 'c'",
    ),
    "read-only array": (lambda _: read_only(out_of()), "out=ndarray .* is read-only"),
    "tensor of such a map": (
        lambda p: tensor_of(memory_map(p, SHAPES[0], "f4", "r")),
        "out=Tensor .* lies in a read-only memory map",
    ),
    "array of such a tensor": (
        lambda p: tensor_of(memory_map(p, SHAPES[0], "f4", "r")).mT.numpy(),
        "out=ndarray .* lies in a read-only memory map",
    ),
    "repeated array": (lambda _: np.broadcast_to(np.zeros((), "f4"), SHAPES[0]), "out=ndarray"),
    "masked array": (lambda _: np.ma.zeros(SHAPES[0], "f4"), "out=MaskedArray"),
    "file read": (lambda _: Dataset(out_of(), mode="r"), "out=Dataset .* is read-only"),
    "store read": (lambda _: Dataset(out_of(), read_only=True), "out=Dataset .* is read-only"),
    "closed file": (lambda _: Closed(), "out=Closed: expected an array, .*: not open"),
    "expanded": (lambda _: torch.zeros(B, N, H, 1).expand(SHAPES[0]), "out=Tensor .* share memory"),
    "overlapping": (lambda _: torch.zeros(9999).as_strided(SHAPES[0], (N, 1, 2, 9)), "share mem"),
    "in autograd": (lambda _: torch.zeros(SHAPES[0], requires_grad=True), "out=Tensor .* grad"),
    "meta": (lambda _: torch.zeros(SHAPES[0], device="meta"), "out is on meta"),
    "sparse": (lambda _: torch.zeros(SHAPES[0]).to_sparse(), "out is torch.sparse_coo"),
    "integers": (lambda _: out_of(dtype=np.int64), "out.dtype=int64: expected float64"),
    "objects": (lambda _: out_of(dtype=object), "out.dtype=object: expected float64"),
    "complex": (lambda _: torch.zeros(SHAPES[0], dtype=torch.complex64), "out.dtype=torch.complex"),
    "narrower": (lambda _: out_of(dtype=np.float16), "out.dtype=float16: expected torch.float32"),
    "narrower tensor": (lambda _: torch.zeros(SHAPES[0]).bfloat16(), "out.dtype=torch.bfloat16"),
    "unbatched": (lambda _: out_of(SHAPES[0][1:]), r"out.shape=\(80, 4, 8\): expected \(batch"),
    "heads first": (lambda _: out_of((B, H, N, D)), r"expected \(2, 80, 4, 8\), \(batch, tokens"),
    "shorter": (lambda _: out_of((B, N - 1, H, D)), r"out.shape=\(2, 79, 4, 8\)"),
    "longer": (lambda _: Dataset(out_of((B, N + 1, H, D))), r"out.shape=\(2, 81, 4, 8\)"),
    "fewer heads": (lambda _: torch.zeros(B, N, 1, D), r"out.shape=\(2, 80, 1, 8\)"),
}
BAD_LSE = {
    "list": (lambda _: [0.0], "lse=list: expected an array"),
    "as out": (lambda out: torch.zeros(SHAPES[0]), r"lse.shape=.* expected \(batch, heads"),
    "tokens first": (lambda out: torch.zeros(B, N, H), r"lse.shape=\(2, 80, 4\): expected \(2, 4,"),
    "narrower": (lambda out: np.zeros(SHAPES[1], "f2"), "lse.dtype=float16: expected torch.float"),
    "read-only": (lambda out: read_only(np.zeros(SHAPES[1], "f4")), "lse=ndarray .* is read-only"),
    "part of out": (lambda out: out[..., 0].transpose(1, 2), "lse=Tensor .* memory of its own"),
    "part, as array": (lambda out: out.numpy()[..., 3].transpose(0, 2, 1), "lse=ndarray .* memory"),
}


@pytest.mark.parametrize("kind", BAD_OUT)
def test_an_array_that_cannot_be_out_is_refused_before_any_read(kind, tmp_path):
    make, message = BAD_OUT[kind]
    out, source = make(tmp_path), generated()
    with pytest.raises(ValueError, match=message):
        streamed_dilated_attention(source, *BRANCHES, sink=StoreInto(out))
    assert source.reads == []


@pytest.mark.parametrize("kind", BAD_LSE)
def test_an_array_that_cannot_be_lse_is_refused_before_any_read(kind):
    make, message = BAD_LSE[kind]
    out, source = torch.zeros(SHAPES[0]), generated()
    with pytest.raises(ValueError, match=message):
        streamed_dilated_attention(source, *BRANCHES, sink=StoreInto(out, make(out)))
    assert source.reads == []


def test_what_was_writable_when_it_was_given_is_looked_at_again():
    out, source = out_of(), generated()
    sink = StoreInto(out)
    read_only(out)
    with pytest.raises(ValueError, match="is read-only"):
        streamed_dilated_attention(source, *BRANCHES, sink=sink)
    assert source.reads == []
    with torch.inference_mode():
        held = torch.zeros(SHAPES[0])
        streamed(StoreInto(held))
    assert torch.equal(held, whole()[0])
    with pytest.raises(ValueError, match="out=Tensor .* inference mode"):
        StoreInto(held)


def test_a_sink_is_a_function_and_may_refuse_at_the_start():
    parts, source = [], generated()
    streamed(lambda start, out, lse: parts.append((start, out, lse)))
    assert [start for start, *_ in parts] == [0, 16, 32, 48, 64]
    assert torch.equal(torch.cat([out for _, out, _ in parts], dim=1), whole()[0])
    assert torch.equal(torch.cat([lse for *_, lse in parts], dim=2), whole()[1])

    class Full:
        def prepare(self, *results):
            raise OSError(f"no room for {results}")

        def __call__(self, start, out, lse):
            raise AssertionError("not to be called")

    with pytest.raises(OSError, match=r"no room for \(2, 80, 4, 8, torch.float32, torch.float32\)"):
        streamed_dilated_attention(source, *BRANCHES, sink=Full())
    for sink in (None, out_of(), [print]):
        with pytest.raises(ValueError, match="sink=.*: expected a function"):
            streamed_dilated_attention(source, *BRANCHES, sink=sink)
    assert source.reads == []


def test_chunks_that_do_not_fit_are_refused_one_by_one_too():
    """A function around `StoreInto` keeps its `prepare` from being called."""
    for out, message in (
        (torch.zeros(B, N, 1, D), r"out.shape=\(2, 80, 1, 8\)"),
        (torch.zeros(B, N - 8, H, D), "start=64: expected tokens within out"),
        (torch.zeros(SHAPES[0], dtype=torch.float16), "out.dtype=torch.float16"),
    ):
        store = StoreInto(out)
        with pytest.raises(ValueError, match=message):
            streamed(lambda *chunk, store=store: store(*chunk))


def test_under_autocast_results_are_those_of_autocast():
    q, k, v = (x.clone() for x in generated().read(0, N))
    out, lse = torch.zeros(SHAPES[0]), torch.zeros(SHAPES[1])
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="expected torch.bfloat16"):
            StoreInto(out.half()).prepare(B, N, H, D, torch.bfloat16, torch.float32)
        streamed(StoreInto(out, lse))
        expected = dilated_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), *BRANCHES)
    torch.testing.assert_close(out, expected.float(), rtol=2e-2, atol=2e-2)
