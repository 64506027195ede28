"""What only a card would show, shown without one: compiling, alignment, CUDA graphs, indices."""

import gc
import weakref

import pytest
import torch
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensorMode

from models import block_sparse_attention, dilated_attention, patterns
from models.kernels import cuda_graphs, dilated, launch, tiles
from models.oracle import reference
from tests.models.helpers import relative_rms

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="stands for a card")


@pytest.fixture
def card(monkeypatch):
    """As if the tensors were on one of Hopper's."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


@pytest.mark.parametrize(
    "backend, dynamic", (("triton", False), ("triton", True), ("gluon", False))
)
def test_torch_compile_takes_aligned_cuda_inputs_whole(card, backend, dynamic):
    """Dynamo has no address of a tensor: asking for it there broke every such call."""

    def attend(q, k, v):
        return dilated_attention(q, k, v, [64, 128], [1, 2], backend=backend, return_lse=True)

    torch._dynamo.reset()
    with FakeTensorMode():
        q, k, v = (torch.empty(1, 128, 2, 64, device="cuda", dtype=torch.float16) for _ in range(3))
        out, lse = torch.compile(attend, backend="eager", fullgraph=True, dynamic=dynamic)(q, k, v)
    assert (out.device, lse.device) == (q.device, q.device)
    assert (out.shape, lse.shape) == (q.shape, (1, 2, 128))


def test_strides_of_one_are_zero_and_units_divide_the_others():
    x = torch.zeros(1, 10, 3, 72, dtype=torch.float16)
    assert launch.strides(x) == [0, 216, 72]
    assert launch.vector(x) == 8 and launch.strides(x, unit=8) == [0, 27, 9]
    assert launch.strides(x[:, :, :1]) == [0, 216, 0]
    assert launch.vector(x.float()) == 4


@pytest.mark.parametrize(
    "dim, first, dtype, vector",
    (
        (36, 0, torch.float16, 4),
        (33, 0, torch.float16, 1),
        (64, 4, torch.float16, 4),
        (64, 3, torch.float16, 1),
        (64, 2, torch.float32, 2),
        (6, 0, torch.float32, 2),
    ),
)
def test_what_is_loaded_at_once_divides_every_row(dim, first, dtype, vector):
    whole = torch.zeros(2 * 5 * 2 * dim + first, dtype=dtype)
    aligned = torch.zeros(2, 5, 2, dim, dtype=dtype)
    x = whole[first:].view(2, 5, 2, dim)
    assert launch.vector(aligned, x) == vector
    assert [stride * vector for stride in launch.strides(x, unit=vector)] == list(x.stride()[:3])


@pytest.mark.parametrize("dim, first", ((36, 0), (33, 0), (40, 3), (72, 0)))
def test_rows_that_begin_anywhere_are_read_right(dim, first):
    generator = torch.Generator().manual_seed(dim)
    whole = torch.randn(3, 30 * 2 * dim + first, generator=generator).half()
    q, k, v = (x[first:].view(1, 30, 2, dim) for x in whole)
    pattern = patterns.DilatedBranches((8, 30), (1, 2))
    out = dilated_attention(q, k, v, (8, 30), (1, 2), is_causal=True, backend="triton")
    assert relative_rms(out, reference(q, k, v, pattern=pattern, is_causal=True)[0]) < 1e-3


class Launches:
    """In the place of a kernel: keeps what it would have been launched with."""

    arg_names = ()

    def __init__(self):
        self.options = []

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.options.append(options)


@pytest.mark.parametrize(
    "rows, stride, shortest, index",
    (
        # 2^24 rows from segment to segment: of one tile 2 segments at most are met.
        (2**24, 2**10, 2**20, tl.int32),
        (2**24, 2**10, 100, tl.int64),
        (2**25, 2**10, 2**20, tl.int64),
        (2**10, 2**24, 2**20, tl.int64),
    ),
)
def test_indices_of_64_bits_come_where_32_do_not_reach(rows, stride, shortest, index):
    q = torch.empty_strided((1, 2, 1, 64), (0, stride, 64, 1), dtype=torch.float16, device="meta")
    work = dilated.Plan(torch.zeros(1), 1, True, 1, 1, rows, 0, 1, shortest, rows)
    kernel = Launches()
    q.data_ptr = lambda: 0
    tile = tiles.Tile(128, 64, 4, 3)
    dilated._launch(kernel, (q, q, q), None, (), (), work, tile, True, False)
    assert {options["INDEX"] for options in kernel.options} == {index}


@pytest.fixture
def capture(monkeypatch):
    """As if every call went into a CUDA graph from here on, and those kept were none."""
    monkeypatch.setattr(cuda_graphs, "_KEPT", {})
    return lambda: monkeypatch.setattr(cuda_graphs, "is_capturing", lambda device: True)


def test_a_captured_graphs_table_outlives_the_cache_of_plans(capture):
    dilated.plan.cache_clear()
    q = torch.zeros(1, 20, 1, 16)

    def attend(x):
        return dilated_attention(x, x, x, [8, 20], [1, 2], backend="triton")

    attend(q)
    work = dilated.plan_of(q, [8, 20], [1, 2], [0, 0], 1, 16)
    capture()
    attend(q)
    table = weakref.ref(work.table)
    del work
    dilated.plan.cache_clear()  # as 256 other shapes would
    gc.collect()
    assert table() is not None


def test_a_new_shape_inside_a_graph_is_refused(capture):
    dilated.plan.cache_clear()
    capture()
    q = torch.zeros(2, 21, 1, 16)
    with pytest.raises(RuntimeError, match="21 tokens, 2 x 1 heads: this shape is new"):
        dilated_attention(q, q, q, [8], [1], backend="triton")


def test_a_captured_graphs_lists_outlive_the_mask(capture):
    mask = patterns.local_window(64, sparsity=0.5, block_size=16)
    q = torch.zeros(1, 64, 1, 16, dtype=torch.float16, requires_grad=True)
    block_sparse_attention(q, q, q, mask, is_causal=True, backend="triton").sum().backward()
    capture()
    block_sparse_attention(q, q, q, mask, is_causal=True, backend="triton").sum().backward()
    causal = mask.causal()
    lists = [
        weakref.ref(x) for by in (causal, causal.transpose()) for x in (by.row_ptr, by.col_idx)
    ]
    del mask, causal
    gc.collect()
    assert all(x() is not None for x in lists)
