"""Builders of block masks: the budget of every row, the rule of each, time and memory at 1M."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import patterns
from models.patterns import block_builders
from models.patterns.block_random import distinct, left_out
from tests.models.test_block_mask import assert_same, assert_valid, lists

BY_LENGTH = ("local_window", "dilated", "global_local", "strided", "random")
every_builder = pytest.mark.parametrize("name", (*BY_LENGTH, "top_k"))
every_builder_by_length = pytest.mark.parametrize("name", BY_LENGTH)


def build(name, seq_len, heads=1, **options):
    builder = getattr(patterns, name)
    if name == "top_k":
        generator = torch.Generator().manual_seed(seq_len)
        q, k = (torch.randn(1, seq_len, heads, 4, generator=generator) for _ in range(2))
        return builder(q, k, **options)
    return builder(seq_len, heads=heads, **options)


def rows_of(name, blocks, **options):
    """The rows of head 0, with blocks of one token."""
    return lists(build(name, blocks, block_size=1, **options))[0]


@every_builder
@settings(max_examples=40)
@given(
    seq_len=st.integers(1, 200),
    block_size=st.sampled_from((1, 3, 16, 64)),
    sparsity=st.one_of(st.sampled_from((0, 0.5, 0.9, 0.95, 0.98, 0.999)), st.floats(0, 0.9999)),
    is_causal=st.booleans(),
    heads=st.sampled_from((1, 3)),
)
@example(seq_len=1, block_size=64, sparsity=0.0, is_causal=True, heads=1)
@example(seq_len=200, block_size=1, sparsity=0.3, is_causal=True, heads=1)
def test_every_row_keeps_its_budget_and_its_own_block(
    name, seq_len, block_size, sparsity, is_causal, heads
):
    mask = build(
        name, seq_len, heads, sparsity=sparsity, block_size=block_size, is_causal=is_causal
    )
    assert_valid(mask)
    mask.check_fits(seq_len, heads)
    assert mask.heads == heads and mask.block_size == block_size
    kept = allowed = 0
    for head in lists(mask):
        for i, row in enumerate(head):
            limit = i + 1 if is_causal else mask.blocks
            assert len(row) == max(1, round((1 - sparsity) * limit))
            assert i in row and max(row) < limit
            kept, allowed = kept + len(row), allowed + limit
    assert mask.density(is_causal) == pytest.approx(kept / allowed, abs=1e-12)


@every_builder_by_length
@pytest.mark.parametrize("is_causal", (False, True))
def test_a_million_tokens_in_64_megabytes(name, is_causal):
    """The lists alone, since of what else is needed only pieces are held."""
    mask = build(name, 2**20, sparsity=0.98, is_causal=is_causal)
    assert mask.row_ptr.nbytes + mask.col_idx.nbytes < 64e6
    assert mask.density(is_causal) == pytest.approx(0.02, abs=1 / mask.blocks)
    columns = mask.transpose()
    assert len(columns.col_idx) == len(mask.col_idx)


@every_builder_by_length
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("sparsity", (0.2, 0.9))
def test_pieces_join_seamlessly(name, is_causal, sparsity, monkeypatch):
    """Rows are built a bounded number at a time; where they are cut must not show."""
    options = {"sparsity": sparsity, "block_size": 1, "is_causal": is_causal, "heads": 2}
    whole = build(name, 150, **options)
    monkeypatch.setattr(block_builders, "_ENTRIES_AT_ONCE", 70)
    assert_same(build(name, 150, **options), whole)


@pytest.mark.parametrize("blocks", (1, 2, 9, 64))
def test_local_window_keeps_the_nearest(blocks):
    for i, row in enumerate(rows_of("local_window", blocks, sparsity=0.6)):
        kept = len(row)
        assert row == list(range(row[0], row[0] + kept))
        assert row[0] == min(max(i - kept // 2, 0), blocks - kept)
    for i, row in enumerate(rows_of("local_window", blocks, sparsity=0.6, is_causal=True)):
        assert row == list(range(i + 1 - len(row), i + 1))


def test_dilated_steps_grow_and_reach_the_ends():
    for is_causal in (False, True):
        rows = rows_of("dilated", 256, sparsity=0.9, is_causal=is_causal)
        for i, row in enumerate(rows):
            for side in ([i - j for j in reversed(row) if j < i], [j - i for j in row if j > i]):
                steps = [b - a for a, b in zip([0, *side], side, strict=False)]
                # Rounding down moves a step by one at most.
                assert all(b >= a - 1 for a, b in zip(steps, steps[1:], strict=False))
                assert not side or i - side[-1] == 0 or i + side[-1] == 255
    (middle,) = [row for i, row in enumerate(rows_of("dilated", 256, sparsity=0.9)) if i == 128]
    left = [128 - j for j in reversed(middle) if j < 128]
    assert left == [t + (128 - 13) * t * t // 169 for t in range(1, 14)]
    assert len([j for j in middle if j > 128]) == 12


def test_global_local_is_first_blocks_and_a_window():
    rows = rows_of("global_local", 100, sparsity=0.9, global_blocks=3)
    for i, row in enumerate(rows):
        assert row[:3] == [0, 1, 2]
        assert row[3:] == list(range(row[3], row[3] + 7))
        assert row[3] == min(max(i - 3, 3), 93)
    for i, row in enumerate(rows_of("global_local", 100, sparsity=0.9, is_causal=True)):
        assert row == [0] * (len(row) > 1) + list(range(i + 2 - max(2, len(row)), i + 1))


@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize(("sparsity", "stride"), ((0.9, 20), (0.95, 40), (0.5, 4), (0.3, 3)))
def test_strided_is_a_window_and_every_sth_block(sparsity, stride, is_causal):
    for i, row in enumerate(rows_of("strided", 200, sparsity=sparsity, is_causal=is_causal)):
        limit = i + 1 if is_causal else 200
        window = {i}
        while max(window) + 1 in row:
            window.add(max(window) + 1)
        while min(window) - 1 in row:
            window.add(min(window) - 1)
        assert {j for j in range(limit) if (i - j) % stride == 0} <= set(row)
        assert all((i - j) % stride == 0 for j in set(row) - window)


def test_random_follows_its_seed_and_differs_between_heads():
    options = {"sparsity": 0.8, "block_size": 1, "heads": 2}
    mask = patterns.random(200, seed=3, **options)
    assert_same(mask, patterns.random(200, seed=3, **options))
    (first, second), (other, _) = lists(mask), lists(patterns.random(200, seed=4, **options))
    assert first != second and first != other
    # One head alone draws as the first of several does.
    options["heads"] = 1
    assert lists(patterns.random(200, seed=3, **options))[0] == first


def test_random_on_any_machine_is_this():
    """Written down once: the draw is integer arithmetic, alike on every device."""
    row = rows_of("random", 1000, sparsity=0.99)[500]
    assert row == [43, 52, 86, 357, 371, 500, 526, 652, 816, 950]


@pytest.mark.parametrize("sparsity", (0.9, 0.5, 0.1))
def test_random_draws_every_other_block_equally_often(sparsity):
    """Counts over 400 heads: mean and variance of a binomial, within five standard errors."""
    heads, blocks = 400, 20
    mask = patterns.random(blocks, sparsity=sparsity, block_size=1, heads=heads)
    counts = mask.to_dense().sum(0).double()
    share = (round((1 - sparsity) * blocks) - 1) / (blocks - 1)
    others = counts[~torch.eye(blocks, dtype=torch.bool)]
    variance = heads * share * (1 - share)
    assert (counts.diag() == heads).all()
    assert ((others - heads * share).abs() < 5 * variance**0.5).all()
    spread = (others - heads * share).square().mean().item() / variance
    assert spread == pytest.approx(1, abs=5 * (2 / len(others)) ** 0.5)


@given(
    pools=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    share=st.floats(0, 0.5),
    seed=st.integers(0, 2**70),
)
def test_distinct_and_left_out_part_the_pool(pools, share, seed):
    pool = torch.tensor(pools)[:, None]
    count = (pool * share).long()
    drawn = distinct(pool, count, torch.arange(len(pools))[:, None], seed, int(count.max()) + 1)
    width = max(1, int((pool - count).max()))
    rest = left_out(drawn, count, width)
    for size, n, some, others in zip(pools, count[:, 0].tolist(), drawn, rest, strict=True):
        some, others = some.tolist()[:n], others.tolist()[: size - n]
        assert some == sorted(some) and others == sorted(others)
        assert sorted(some + others) == list(range(size))


@settings(max_examples=40)
@given(
    n=st.integers(1, 70),
    block_size=st.sampled_from((1, 4, 16)),
    sparsity=st.floats(0, 0.99),
    is_causal=st.booleans(),
    group=st.sampled_from((1, 2)),
    batch=st.integers(1, 3),
)
def test_top_k_keeps_the_best_scores(n, block_size, sparsity, is_causal, group, batch):
    generator = torch.Generator().manual_seed(n)
    q = torch.randn(batch, n, 2 * group, 8, generator=generator)
    k = torch.randn(batch, n, 2, 8, generator=generator)
    options = {"sparsity": sparsity, "block_size": block_size, "is_causal": is_causal}
    mask = patterns.top_k(q, k, **options)
    blocks = mask.blocks
    q, k = (
        torch.stack([part.double().mean(1) for part in x.split(block_size, dim=1)]) for x in (q, k)
    )
    scores = torch.einsum("ibhd,jbhd->hij", q, k.repeat_interleave(group, dim=2)) / batch
    for head, rows in enumerate(lists(mask)):
        for i, row in enumerate(rows):
            limit = i + 1 if is_causal else blocks
            others = [j for j in range(limit) if j != i]
            others.sort(key=lambda j: -scores[head, i, j].item())
            assert row == sorted([i, *others[: len(row) - 1]])


@pytest.mark.parametrize("is_causal", (False, True))
def test_top_k_by_pieces(is_causal, monkeypatch):
    q, k = torch.randn(2, 1, 130, 3, 8, generator=torch.Generator().manual_seed(0))
    options = {"sparsity": 0.7, "block_size": 2, "is_causal": is_causal}
    whole = patterns.top_k(q.double(), k.double(), **options)
    monkeypatch.setattr(block_builders, "_SCORES_AT_ONCE", 3 * 65 * 4)
    assert_same(patterns.top_k(q.double(), k.double(), **options), whole)


@every_builder_by_length
def test_bad_arguments_are_named(name):
    builder = getattr(patterns, name)
    good = {"seq_len": 100, "sparsity": 0.5}
    for bad, message in (
        ({"seq_len": 0}, "seq_len=0: expected an integer >= 1"),
        ({"seq_len": 10.0}, "seq_len=10.0"),
        ({"block_size": -1}, "block_size=-1: expected an integer >= 1"),
        ({"heads": 0}, "heads=0: expected an integer >= 1"),
        ({"heads": True}, "heads=True"),
        ({"sparsity": 1}, "sparsity=1: expected at least 0 and below 1"),
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": float("nan")}, "sparsity=nan"),
        ({"sparsity": "0.9"}, "sparsity='0.9': expected a number"),
    ):
        with pytest.raises(ValueError, match=message):
            builder(**good | bad)


def test_bad_arguments_of_single_builders_are_named():
    with pytest.raises(ValueError, match="global_blocks=0: expected an integer >= 1"):
        patterns.global_local(100, sparsity=0.5, global_blocks=0)
    for seed in (-1, 1.0, None):
        with pytest.raises(ValueError, match=f"seed={seed}: expected an integer >= 0"):
            patterns.random(100, sparsity=0.5, seed=seed)
    q = torch.zeros(1, 10, 4, 8)
    with pytest.raises(ValueError, match="sparsity=2"):
        patterns.top_k(q, q, sparsity=2)
    with pytest.raises(ValueError, match="expected 10 tokens"):
        patterns.top_k(q, q[:, :5], sparsity=0.5)
    with pytest.raises(ValueError, match="number of heads that divides q's 4"):
        patterns.top_k(q, torch.zeros(1, 10, 3, 8), sparsity=0.5)


@every_builder_by_length
def test_numbers_of_any_kind_are_taken(name):
    builder = getattr(patterns, name)
    want = builder(100, sparsity=0.5, block_size=16, heads=2)
    integers = {"seq_len": np.int32(100), "block_size": np.int64(16), "heads": np.uint8(2)}
    assert_same(builder(**integers, sparsity=np.float32(0.5)), want)
    assert type(builder(**integers, sparsity=np.float64(0.5)).block_size) is int
    for bad in ({"heads": np.True_}, {"sparsity": np.False_}, {"sparsity": np.float32(1)}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
            builder(**{"seq_len": 100, "sparsity": 0.5, **bad})


def test_numbers_of_any_kind_of_single_builders():
    options = {"sparsity": 0.5, "block_size": 8}
    for name, argument in (("random", "seed"), ("global_local", "global_blocks")):
        builder = getattr(patterns, name)
        assert_same(
            builder(100, **options, **{argument: np.int64(3)}),
            builder(100, **options, **{argument: 3}),
        )
    q = torch.randn(1, 100, 2, 8)
    want = patterns.top_k(q, q, **options)
    assert_same(patterns.top_k(q, q, sparsity=np.float16(0.5), block_size=np.int16(8)), want)
    assert_same(want.split(np.int64(2), np.int64(100)), want.split(2, 100))
    with pytest.raises(ValueError, match="seed=True"):
        patterns.random(100, sparsity=0.5, seed=True)
