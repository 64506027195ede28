"""Branch arithmetic: counts, pairs, offsets, and the groups of heads that become views."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.patterns import DilatedBranches, HeadPartition
from tests.models.helpers import problems


@st.composite
def patterns(draw):
    """A drawn problem and one of its patterns."""
    problem = draw(problems())
    partition = draw(st.booleans())
    return problem, HeadPartition(*problem.lists) if partition else problem.pattern


@settings(max_examples=60)
@given(drawn=patterns())
def test_pairs_are_the_sum_of_counts(drawn):
    problem, pattern = drawn
    rows = torch.arange(problem.n)
    past = rows[None, :] <= rows[:, None]
    counts = [pattern.counts(h, problem.heads, rows, problem.n) for h in range(problem.heads)]
    assert pattern.pairs(problem.n, problem.heads, False) == sum(int(c.sum()) for c in counts)
    assert pattern.pairs(problem.n, problem.heads, True) == sum(int(c[past].sum()) for c in counts)


@settings(max_examples=100)
@given(drawn=patterns())
def test_head_groups_hold_every_head_of_a_branch_once_with_its_offset_and_key_head(drawn):
    problem, pattern = drawn
    heads, kv_heads = problem.heads, problem.kv_heads
    seen = []
    for group in pattern.head_groups(heads, kv_heads):
        q_heads = range(heads)[group.q_heads]
        kv = range(kv_heads)[group.kv_heads]
        assert len(q_heads) == len(kv) > 0
        assert [h // (heads // kv_heads) for h in q_heads] == list(kv)
        shape = (group.segment_length, group.dilation_rate)
        seen += [(*shape, h, group.offset) for h in q_heads]
    want = [
        (w, r, h, offset)
        for branch, (w, r) in enumerate(pattern.branches())
        for h in range(heads)
        if (offset := pattern.offset(branch, h, heads)) is not None
    ]
    assert sorted(seen) == sorted(want)


def test_counts_by_hand():
    """w = 4, r = 2, six tokens: head 1 keeps 1 3 | 5; a second branch (6, 3) keeps 1 4."""
    counts = DilatedBranches([4, 6], [2, 3]).counts(1, 2, torch.arange(6), 6)
    want = torch.zeros(6, 6, dtype=torch.int64)
    for i, j in ((1, 1), (1, 3), (3, 1), (3, 3), (5, 5), (1, 1), (1, 4), (4, 1), (4, 4)):
        want[i, j] += 1
    assert torch.equal(counts, want)


def test_published_pair_counts():
    """Branch (w, r) of N tokens costs (N / w) (w / r)^2 pairs a head (LongNet, eq. 18 ff.)."""
    pattern = DilatedBranches([2048, 4096, 8192], [1, 2, 4])
    assert pattern.pairs(8192, 1, False) == 4 * 2048**2 + 2 * 2048**2 + 2048**2
    assert pattern.pairs(8192, 12, True) == 12 * 7 * (2048 * 2049 // 2)


def test_offsets_by_rule():
    assert [DilatedBranches([8], [3]).offset(0, h, 5) for h in range(5)] == [0, 1, 2, 0, 1]
    block = DilatedBranches([8], [3], "block")
    assert [block.offset(0, h, 5) for h in range(5)] == [0, 0, 1, 1, 2]
    # As many heads as rates: torchscale and the paper agree.
    assert [DilatedBranches([8], [4], "block").offset(0, h, 4) for h in range(4)] == [0, 1, 2, 3]


def test_head_partition_gives_the_first_branches_the_larger_groups():
    pattern = HeadPartition([8, 8, 8], [1, 2, 2])
    table = [[pattern.offset(b, h, 8) for h in range(8)] for b in range(3)]
    none = None
    assert table == [
        [0, 0, 0, none, none, none, none, none],
        [none, none, none, 1, 1, 1, none, none],
        [none, none, none, none, none, none, 0, 0],
    ]
    # Fewer heads than branches: the last branches have none.
    assert [pattern.offset(2, h, 2) for h in range(2)] == [None, None]


def test_lists_become_tuples_and_patterns_are_hashable():
    pattern = DilatedBranches([4, 8], [1, 2])
    assert pattern == DilatedBranches((4, 8), (1, 2)) and hash(pattern) == hash(
        DilatedBranches((4, 8), (1, 2))
    )
    assert list(pattern.branches()) == [(4, 1), (8, 2)]


@pytest.mark.parametrize("pattern", (DilatedBranches, HeadPartition))
@pytest.mark.parametrize(
    ("segment_lengths", "dilation_rates", "message"),
    (
        (8, [1], r"segment_lengths=8: expected a non-empty sequence"),
        ([], [], r"segment_lengths=\[\]: expected a non-empty sequence"),
        ("88", [1, 1], r"segment_lengths='88': expected a non-empty sequence"),
        ([8], 1, r"dilation_rates=1: expected a non-empty sequence"),
        ([0], [1], r"segment_lengths=\[0\]: expected integers >= 1"),
        ([8, -4], [1, 1], r"segment_lengths=\[8, -4\]: expected integers >= 1"),
        ([8], [0], r"dilation_rates=\[0\]: expected integers >= 1"),
        ([8.0], [1], r"segment_lengths=\[8.0\]: expected integers >= 1"),
        ([True], [1], r"segment_lengths=\[True\]: expected integers >= 1"),
        ([8, 16], [1], r"dilation_rates=\(1,\): expected 2 rates"),
        ([8], [1, 2], r"dilation_rates=\(1, 2\): expected 1 rates"),
    ),
)
def test_bad_branches_are_named(pattern, segment_lengths, dilation_rates, message):
    with pytest.raises(ValueError, match=message):
        pattern(segment_lengths, dilation_rates)


def test_an_unknown_head_offset_lists_the_choices():
    with pytest.raises(ValueError, match="head_offset='cyclic': expected one of modulo, block"):
        DilatedBranches([8], [1], "cyclic")
