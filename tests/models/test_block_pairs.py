"""Rows of a block mask that go together, against its dense table."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import patterns
from models.patterns import block_pairs
from models.patterns.block_mask import BlockMask
from tests.models.test_block_mask import tables


def lists_of(lists):
    """Three key lists of each pair of each head."""
    row_ptr, col_idx, order = lists
    ends = row_ptr.tolist()
    flat = col_idx.tolist()
    heads = [[flat[a:b] for a, b in zip(of, of[1:], strict=False)] for of in ends]
    return [[rows[3 * p : 3 * p + 3] for p in range(order.shape[1])] for rows in heads]


@given(table=tables(), is_causal=st.booleans())
def test_each_of_two_rows_has_its_list_and_shares_what_nothing_cuts(table, is_causal):
    table = table.tril() if is_causal else table
    blocks = table.shape[1]
    mask = BlockMask.from_dense(table, 16)
    lists = block_pairs.paired(mask.row_ptr, mask.col_idx, is_causal)
    assert [x.dtype for x in lists] == [torch.int64, torch.int32, torch.int32]
    for of_head, kept, order in zip(lists_of(lists), table, lists[2].tolist(), strict=True):
        rows = [set(row.nonzero().flatten().tolist()) for row in kept] + [set()]
        assert len(of_head) == (blocks + 1) // 2
        for pair, (both, *own) in enumerate(of_head):
            first, second = rows[2 * pair : 2 * pair + 2]
            # The diagonals of the two, or the last block of the sequence, which may be short.
            uncut = 2 * pair if is_causal else blocks - 1
            assert both == [block for block in sorted(first & second) if block < uncut]
            assert own == [sorted(first - set(both)), sorted(second - set(both))]
        work = [2 * len(both) + len(a) + len(b) for both, a, b in of_head]
        assert order == sorted(range(len(work)), key=lambda pair: (-work[pair], pair))


@pytest.mark.parametrize("is_causal", (False, True))
def test_neighbours_go_together_where_they_share_most(is_causal):
    """A window's rows share all but two blocks; of rows drawn at random a tenth is alike."""
    options = {"sparsity": 0.9, "block_size": 64, "is_causal": is_causal}
    window = patterns.local_window(16384, **options)
    window = window.causal() if is_causal else window
    row_ptr, col_idx, order = window.neighbours(is_causal)
    assert 0.5 < len(col_idx) / len(window.col_idx) < 0.6
    assert row_ptr.shape == (1, 3 * 128 + 1) and order.shape == (1, 128)
    assert window.neighbours(is_causal)[1] is col_idx
    random = patterns.random(16384, heads=1, **options)
    random = random.causal() if is_causal else random
    lists = block_pairs.paired(random.row_ptr, random.col_idx, is_causal)
    loaded = len(lists[1]) / len(random.col_idx)
    assert loaded > 0.9 and random.neighbours(is_causal) is None


@given(table=tables())
def test_heads_are_alike_where_their_tables_are(table):
    mask = BlockMask.from_dense(table, 16)
    odd, even = table[1::2], table[::2]
    assert mask.pairs_heads == (len(table) == 1 or torch.equal(odd, even))
    assert BlockMask.from_dense(table.repeat_interleave(2, 0), 16).pairs_heads
