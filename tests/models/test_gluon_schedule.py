"""Where the Gluon kernel goes, and which memory its descriptors and coordinates name."""

import math

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.kernels import dilated, dilated_gluon
from models.kernels.gluon_descriptors import bounds, descriptors, readable
from models.kernels.gluon_schedule import place_of, steps_of, tile_at
from models.patterns.branches import DilatedBranches
from tests.models.helpers import Problem

LAYOUTS = ("packed", "fused", "heads_first", "tokens_first")


@settings(max_examples=60)
@given(
    n=st.integers(1, 90),
    w=st.integers(1, 100),
    r=st.integers(1, 12),
    offset=st.integers(0, 11),
    block=st.sampled_from((8, 16)),
    layout=st.sampled_from(LAYOUTS),
)
@example(n=20, w=20, r=7, offset=6, block=8, layout="packed")
@example(n=5, w=9, r=12, offset=3, block=8, layout="fused")
def test_boxes_hold_the_kept_tokens_and_stay_in_the_tensor(n, w, r, offset, block, layout):
    """Which tokens each (descriptor, coordinate) names, against the definition of the pattern."""
    x, *_ = Problem(2, n, 2, 2, 8, layout=layout).tensors(torch.float32)
    long, short = descriptors(readable(x.detach()), r, block)
    for view in (long, short):
        last = sum((size - 1) * step for size, step in zip(view.shape, view.strides, strict=True))
        assert last <= sum(
            (size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)
        )
        rows, residues = view.shape[1:3]
        assert {r * a + b for a in range(rows) for b in range(residues)} <= set(range(n))
        assert rows == 1 or view.strides[1] == r * x.stride(1)
        assert residues == 1 or view.strides[2] == x.stride(1)
        assert view.strides[4] == 1 and all(step % 4 == 0 for step in view.strides[:4])
    w, offset = min(w, n), offset % r
    for first in range(offset, n, w):
        segment = first // w * w
        kept = [t for t in range(segment, min(segment + w, n)) if (t - segment) % r == offset]
        if not kept or first != kept[0]:
            continue
        row, residue, is_long = place_of.fn(first, r, n)
        rows, residues = (long if is_long else short).shape[1:3]
        for start in range(0, len(kept), block):
            box = [
                r * a + residue if a < rows and residue < residues else None
                for a in range(row + start, row + start + block)
            ]
            here = kept[start : start + block]
            assert box[: len(here)] == here


@given(n=st.integers(1, 300), rate=st.integers(1, 40))
def test_each_token_is_of_one_descriptor(n, rate):
    long, short = bounds(n, rate)
    assert min(*long, *short) >= 1
    for token in range(n):
        row, residue, is_long = place_of.fn(token, rate, n)
        rows, residues = long if is_long else short
        assert row * rate + residue == token and row < rows and residue < residues
        # All rows of the residue that there are, and no more.
        assert rows == len(range(residue, n, rate))


@given(units=st.integers(1, 40), tiles=st.integers(1, 9), span=st.integers(1, 40))
def test_each_tile_is_walked_to_once_the_longest_first(units, tiles, span):
    span = min(span, units)
    order = [tile_at.fn(index, units, tiles, span) for index in range(units * tiles)]
    assert sorted(order) == [(tile, unit) for tile in range(tiles) for unit in range(units)]
    for first in range(0, units, span):
        group = [tile for tile, unit in order if first <= unit < first + span]
        assert group == sorted(group, reverse=True)
    units_met = list(dict.fromkeys(unit // span for _, unit in order))
    assert units_met == sorted(units_met)


@given(kept=st.integers(1, 600), start=st.integers(0, 4), is_causal=st.booleans())
def test_steps_cover_the_keys_and_only_the_first_is_cut(kept, start, is_causal):
    start *= 128
    if start >= kept:
        return
    steps = steps_of.fn(start, kept, 128, 128, is_causal)
    end = min(kept, start + 128) if is_causal else kept
    assert (steps - 1) * 128 < end <= steps * 128
    # All steps but the first, which is that of the last keys, are seen whole by every query.
    assert (steps - 1) * 128 <= (start if is_causal else kept)
    assert steps == math.ceil(end / 128)


def test_a_launch_takes_units_together_whose_keys_fit_into_l2():
    q = torch.empty(2, 8192, 8, 64, dtype=torch.float16, device="meta")
    lists = dilated.branch_lists(DilatedBranches([2048, 8192, 4096], [1, 4, 2]), 8)
    carried, other, base = dilated_gluon.walks(q, *lists, 4)
    assert (carried.rate, other.rate, base.rate) == (4, 2, 1)
    assert (carried.branch, other.branch, base.branch) == (1, 2, 0)
    assert carried.n_tiles == 2 * 8 * 16 and base.n_tiles == 2 * 8 * 4 * 16
    # 2,048 tokens of K and V are 512 KiB, which four heads share: all 64 units fit.
    assert base.span == 64
    q = torch.empty(64, 8192, 8, 64, dtype=torch.float16, device="meta")
    assert dilated_gluon.walks(q, *lists, 4)[-1].span == 4 * 64


def test_inputs_that_tma_cannot_read_are_copied():
    x = torch.zeros(1, 6, 2, 16, dtype=torch.float16)
    assert readable(x) is x and readable(x[:, ::2]).data_ptr() == x.data_ptr()
    for strange in (x.expand(2, -1, -1, -1), x[:, :, :1].expand(-1, -1, 2, -1)):
        assert 0 not in readable(strange).stride() and torch.equal(readable(strange), strange)
    assert readable(x.mT.contiguous().mT).stride(3) == 1
