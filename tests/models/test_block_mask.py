"""Block masks: CSR lists against the dense table they stand for."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from models import block_schedule
from models.patterns import BlockMask
from models.patterns.block_picture import shares


@st.composite
def tables(draw, heads=(1, 2, 3)):
    """A bool table (heads, M, M), from empty to full."""
    blocks = draw(st.integers(1, 12))
    kept = draw(st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return torch.rand(draw(st.sampled_from(heads)), blocks, blocks, generator=generator) < kept


def lists(mask):
    """The rows as plain Python lists, [list][row]."""
    ptr = mask.row_ptr.tolist()
    columns = mask.col_idx.tolist()
    return [[columns[a:b] for a, b in zip(p[:-1], p[1:], strict=True)] for p in ptr]


def assert_valid(mask):
    """Rows ascend without repetition, lists follow each other, dtypes are the documented ones."""
    assert mask.row_ptr.dtype == torch.int64 and mask.col_idx.dtype == torch.int32
    assert mask.row_ptr[0, 0] == 0 and mask.row_ptr[-1, -1] == len(mask.col_idx)
    assert torch.equal(mask.row_ptr[1:, 0], mask.row_ptr[:-1, -1])
    assert all(row == sorted(set(row)) for head in lists(mask) for row in head)


def assert_same(a, b):
    assert torch.equal(a.row_ptr, b.row_ptr) and torch.equal(a.col_idx, b.col_idx)
    assert a.block_size == b.block_size


@given(table=tables())
def test_dense_and_back(table):
    mask = BlockMask.from_dense(table, 16)
    assert_valid(mask)
    assert torch.equal(mask.to_dense(), table)
    assert lists(mask) == [[row.nonzero()[:, 0].tolist() for row in head] for head in table]
    assert (mask.blocks, mask.heads) == (table.shape[1], table.shape[0])


@given(table=tables())
def test_transpose_causal_and_lengths_are_those_of_the_table(table):
    mask = BlockMask.from_dense(table, 16)
    for got, want in ((mask.transpose(), table.mT), (mask.causal(), table.tril())):
        assert_valid(got)
        assert torch.equal(got.to_dense(), want)
    assert_same(mask.transpose().transpose(), mask)
    assert torch.equal(mask.lengths(), table.sum(2))
    numbers = torch.arange(1, table.shape[2] + 1)
    assert torch.equal(mask.last_blocks(), (table * numbers).amax(2) - 1)
    for order, lengths in zip(mask.longest_first().tolist(), mask.lengths().tolist(), strict=True):
        assert order == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


@given(table=tables())
def test_derived_masks_are_made_once(table):
    mask = BlockMask.from_dense(table, 16)
    assert mask.transpose() is mask.transpose()
    assert mask.causal() is mask.causal()
    assert mask.longest_first() is mask.longest_first()
    assert mask.causal().causal() is mask.causal()


@given(table=tables())
def test_density_is_kept_over_allowed(table):
    mask = BlockMask.from_dense(table, 16)
    blocks = table.shape[1]
    assert mask.density() == pytest.approx(table.double().mean().item(), abs=1e-12)
    allowed = torch.ones(blocks, blocks).tril().bool()
    want = table[:, allowed].double().mean().item()
    assert mask.density(is_causal=True) == pytest.approx(want, abs=1e-12)


@given(data=st.data())
def test_union_and_intersection(data):
    a = data.draw(tables(heads=(1, 3)))
    b = data.draw(tables(heads=(1, 3)))
    size = min(a.shape[1], b.shape[1])
    a, b = a[:, :size, :size], b[:, :size, :size]
    first, second = BlockMask.from_dense(a, 32), BlockMask.from_dense(b, 32)
    for got, want in ((first | second, a | b), (first & second, a & b)):
        assert_valid(got)
        assert torch.equal(got.to_dense(), want)
    assert_same(first.union(second), first | second)
    assert_same(first.intersection(second), first & second)


@given(table=tables(), block_size=st.integers(1, 9), short=st.integers(0, 8), data=st.data())
def test_counts_and_pairs_are_those_of_single_tokens(table, block_size, short, data):
    mask = BlockMask.from_dense(table, block_size)
    seq_len = table.shape[1] * block_size - short % block_size
    heads = data.draw(st.sampled_from((2, 4))) if len(table) == 1 else len(table)
    tokens = table.repeat_interleave(block_size, 1).repeat_interleave(block_size, 2)
    tokens = tokens[:, :seq_len, :seq_len].expand(heads, -1, -1)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, seq_len - 1), max_size=9)), dtype=int)
    for head in range(heads):
        got = mask.counts(head, heads, rows, seq_len)
        assert got.dtype == torch.int64 and torch.equal(got, tokens[head, rows].long())
    assert mask.pairs(seq_len, heads, False) == int(tokens.sum())
    assert mask.pairs(seq_len, heads, True) == int(tokens.tril().sum())


def test_a_pair_count_beyond_32_bits():
    """2^20 tokens, all blocks: 2^40 pairs a head."""
    blocks = 1 << 7
    mask = BlockMask.from_dense(torch.ones(1, blocks, blocks, dtype=torch.bool), 1 << 13)
    n = 1 << 20
    assert mask.pairs(n, 3, False) == 3 * n * n
    assert mask.pairs(n, 3, True) == 3 * n * (n + 1) // 2


def test_what_is_not_a_mask_is_refused():
    ptr = torch.tensor([[0, 1, 3]])
    columns = torch.tensor([1, 0, 1], dtype=torch.int32)
    assert lists(BlockMask(ptr, columns, 64)) == [[[1], [0, 1]]]
    for arguments, message in (
        ((ptr, columns, 0), "block_size=0: expected an integer >= 1"),
        ((ptr, columns, True), "block_size=True"),
        ((ptr, columns, 64.0), "block_size=64.0"),
        ((ptr.int(), columns, 64), "row_ptr=.*int32.*: expected a tensor of torch.int64"),
        ((ptr[0], columns, 64), "row_ptr=.*: expected .* with 2 dims"),
        ((ptr, columns.long(), 64), "col_idx=.*: expected a tensor of torch.int32"),
        (([[0]], columns, 64), "row_ptr=<class 'list'>"),
        ((ptr[:, :1], columns[:0], 64), r"row_ptr=\(1, 1\): expected \(G, M \+ 1\)"),
        ((ptr, columns[:2], 64), "from 0 to len.col_idx.=2"),
        ((ptr + 1, columns, 64), "offsets that never fall"),
        ((torch.tensor([[0, 3, 1]]), columns[:1], 64), "offsets that never fall"),
        ((torch.tensor([[0, 1, 2], [1, 2, 3]]), columns, 64), "each list starting"),
        ((ptr, columns + 1, 64), "block numbers from 0 to 1"),
        ((ptr, columns - 1, 64), "block numbers from 0 to 1"),
        ((ptr, columns.sort(descending=True).values, 64), "ascending block numbers"),
        ((ptr, torch.ones_like(columns), 64), "none twice"),
    ):
        with pytest.raises(ValueError, match=message):
            BlockMask(*arguments)
    for dense in (torch.ones(2, 2, dtype=torch.bool), torch.ones(1, 2, 2), None):
        with pytest.raises(ValueError, match="dense=.*: expected a bool tensor"):
            BlockMask.from_dense(dense, 64)


def test_masks_that_do_not_go_together_are_refused():
    def full(heads, blocks, block_size=64):
        return BlockMask.from_dense(torch.ones(heads, blocks, blocks, dtype=torch.bool), block_size)

    for other in (full(1, 3), full(1, 2, 32), None):
        with pytest.raises(ValueError, match="other=.*: expected a BlockMask of 2 blocks of 64"):
            full(1, 2).union(other)
    with pytest.raises(ValueError, match="lists of 2 heads: expected 1 or 3"):
        full(2, 2).intersection(full(3, 2))
    mask = full(2, 2)
    for seq_len, heads, message in (
        (64, 2, "mask has 2 blocks of 64 tokens: expected 1 blocks for 64 tokens"),
        (129, 2, "expected 3 blocks"),
        (128, 4, "mask has lists of 2 heads: expected 1 or 4"),
    ):
        with pytest.raises(ValueError, match=message):
            mask.pairs(seq_len, heads, False)
        with pytest.raises(ValueError, match=message):
            mask.counts(0, heads, torch.arange(2), seq_len)


@settings(max_examples=30)
@given(table=tables(), cells=st.integers(1, 14))
def test_the_picture_shows_the_share_of_blocks_kept(table, cells):
    mask = BlockMask.from_dense(table, 16)
    head = len(table) - 1
    image = shares(mask.row_ptr[head], mask.col_idx, cells)
    size = min(cells, table.shape[1])
    cell = torch.arange(table.shape[1]) * size // table.shape[1]
    for i in range(size):
        for j in range(size):
            part = table[head][cell == i][:, cell == j]
            assert image[i, j] == pytest.approx(part.double().mean().item(), abs=1e-12)


def test_drawing_fills_axes_in_units_of_blocks():
    table = torch.zeros(2, 3, 3, dtype=torch.bool)
    table[1, 2, 0] = True
    axes = Figure().subplots()
    BlockMask.from_dense(table, 16).draw(axes, head=1)
    (image,) = axes.get_images()
    assert image.get_extent() == [0, 3, 3, 0]
    assert image.get_array().tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("n", (65, 90, 96))
@pytest.mark.parametrize("factor", (1, 2, 4))
def test_a_split_mask_holds_the_same_pairs(factor, n):
    generator = torch.Generator().manual_seed(4)
    mask = BlockMask.from_dense(torch.rand(2, 3, 3, generator=generator) < 0.5, 32)
    small, rows = mask.split(factor, n), torch.arange(n)
    assert small.block_size == 32 // factor and small.blocks == -(-n // small.block_size)
    for head in (0, 1):
        assert torch.equal(small.counts(head, 2, rows, n), mask.counts(head, 2, rows, n))
    assert mask.split(factor, n) is small
    with pytest.raises(ValueError, match="factor=3: expected a divisor of 32"):
        mask.split(3, n)


def test_the_living_mask_is_found_by_its_lists():
    mask = BlockMask.from_dense(torch.ones(1, 3, 3, dtype=torch.bool), 16)
    assert BlockMask.of(mask.row_ptr, mask.col_idx, 16) is mask
    assert BlockMask.of(mask.row_ptr.detach(), mask.col_idx[:], 16) is mask
    for other in (
        BlockMask.of(mask.row_ptr.clone(), mask.col_idx, 16),
        BlockMask.of(mask.row_ptr, mask.col_idx.clone(), 16),
    ):
        assert other is not mask
        assert_same(other, mask)
    assert BlockMask.of(mask.row_ptr, mask.col_idx, 8).block_size == 8
    row_ptr, col_idx, gone = mask.row_ptr, mask.col_idx, weakref.ref(mask)
    mask.causal(), mask.transpose()
    block_schedule.schedule(mask, torch.zeros(1, 48, 2, 8), 2, False)
    del mask
    assert gone() is None
    assert_valid(BlockMask.of(row_ptr, col_idx, 16))


def test_plans_are_made_once():
    mask = BlockMask.from_dense(torch.ones(1, 3, 3, dtype=torch.bool), 16)
    plans = [block_schedule.schedule(mask, torch.zeros(b, 48, 2, 8), 2, False) for b in (1, 2)]
    assert plans[0] is plans[1]
    assert block_schedule.schedule(mask, torch.zeros(1, 47, 2, 8), 2, False) is not plans[0]
