"""Replicas against their own formulas, and against what is known of the published code."""

import importlib

import pytest
import torch

from experiments.procedures import choose
from models.dense import dense_attention
from models.dilated import dilated_attention, head_partitioned_attention
from models.patterns import BlockMask, DilatedBranches, dilated, local_window
from models.registry import VARIANTS

REPLICAS = [variant for variant in VARIANTS.values() if variant.replica_of]
BRANCHED = [variant for variant in REPLICAS if variant.takes == "branches"]
# The published schedules, and the rates that the plots' script made of its segment lengths.
SEGMENTS, RATES = (64, 128, 256), (1, 2, 4)
PLOT = (8192, 16384, 32768, 65536)
AS_MADE, AS_MEANT = (1, 2, 8, 128), (1, 2, 4, 8)


def _parts(variant):
    module = importlib.import_module(variant.module)
    return module, getattr(module, variant.entry.partition(":")[2])


def _replica(name):
    return _parts(VARIANTS[f"published-{name}"])


def _inputs(n=512, heads=8, dim=16, batch=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, n, heads, dim, generator=generator).to(dtype) for _ in range(3)]


def _pattern(variant, n):
    if variant.takes == "blocks":
        return (dilated(n, sparsity=0.9),)
    return SEGMENTS, RATES


def _redrawn(inputs, start):
    fresh = _inputs(*inputs[0].shape[1:], batch=len(inputs[0]), seed=1)
    return [
        torch.cat([x[:, :start], y[:, start:]], dim=1) for x, y in zip(inputs, fresh, strict=True)
    ]


@pytest.mark.parametrize("variant", REPLICAS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("heads", [8, 5])
def test_a_replica_is_its_formula(variant, is_causal, heads):
    module, run = _parts(variant)
    inputs, rows = _inputs(heads=heads, dtype=torch.float64), torch.arange(0, 512, 3)
    pattern = _pattern(variant, 512)
    expected, condition = module.formula(*inputs, rows, *pattern, is_causal=is_causal)
    out = run(*inputs, *pattern, is_causal=is_causal)
    assert out.shape == inputs[0].shape and condition >= 1
    assert (out[:, rows] - expected).abs().max() <= 1e-14 * condition * expected.abs().max()


@pytest.mark.parametrize("variant", REPLICAS, ids=lambda variant: variant.name)
def test_a_replica_stands_beside_an_exact_variant_that_takes_the_same(variant):
    exact = VARIANTS[variant.replica_of]
    assert exact.replica_of is None and exact.takes == variant.takes
    assert choose(variant.name) == "replica"


@pytest.mark.parametrize("variant", BRANCHED, ids=lambda variant: variant.name)
def test_a_length_that_a_segment_does_not_divide_is_refused(variant):
    _, run = _parts(variant)
    with pytest.raises(ValueError, match="100 does not divide 512"):
        run(*_inputs(), (64, 100), (1, 2))


@pytest.mark.parametrize("variant", BRANCHED, ids=lambda variant: variant.name)
def test_a_branched_replica_is_far_from_dilated_attention(variant):
    _, run = _parts(variant)
    inputs = _inputs()
    exact = dilated_attention(*inputs, SEGMENTS, RATES)
    assert (run(*inputs, SEGMENTS, RATES) - exact).abs().max() > 0.5


# --- over heads


def test_over_heads_no_token_sees_another():
    _, run = _replica("over-heads")
    inputs = _inputs()
    before = run(*inputs, SEGMENTS, RATES)[:, 0]
    after = run(*_redrawn(inputs, 1), SEGMENTS, RATES)[:, 0]
    assert (after - before).abs().max() == 0.0
    exact = [dilated_attention(*x, SEGMENTS, RATES)[:, 0] for x in (inputs, _redrawn(inputs, 1))]
    assert (exact[1] - exact[0]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("n", "segments", "times"),
    [
        (2048, (1024, 1024, 1024), 274),
        (4096, (1024, 2048, 2048), 335),
        (8192, (1024, 2048, 4096), 353),
    ],
)
def test_over_heads_does_hundreds_of_times_less_work_than_what_it_was_set_against(
    n, segments, times
):
    loop, heads = _replica("head-partition")[0], _replica("over-heads")[0]
    ratio = loop.pairs(n, 8, segments, RATES) / heads.pairs(n, 8, segments, RATES)
    assert round(ratio) == times


# --- head partition


def test_the_head_loop_is_the_partition_over_its_groups():
    _, run = _replica("head-partition")
    inputs = _inputs()
    expected = head_partitioned_attention(*inputs, SEGMENTS, RATES, is_causal=True) / 3
    out = run(*inputs, SEGMENTS, RATES, is_causal=True)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    # 3, 3 and 2 heads keep all, half and a quarter of the positions.
    zero = (out == 0).all(dim=-1).double().mean().item()
    assert zero == pytest.approx(1 - (3 + 3 / 2 + 2 / 4) / 8)
    q, k, v = inputs
    sums = run(q, k, torch.ones_like(v), SEGMENTS, RATES).mean(dim=-1)
    torch.testing.assert_close(sums[sums != 0], torch.full_like(sums[sums != 0], 1 / 3))


# --- signed sum


def test_the_signed_sum_gives_nan_for_zeros_and_lets_the_future_in():
    _, run = _replica("signed-sum")
    zeros = [torch.zeros(1, 256, 4, 8)] * 3
    assert run(*zeros, SEGMENTS, RATES).isnan().any()
    inputs = _inputs()
    before, after = (
        run(*x, SEGMENTS, RATES, is_causal=True)[:, :256] for x in (inputs, _redrawn(inputs, 256))
    )
    assert (after - before).abs().max() > 1


def test_uneven_groups_compute_some_heads_twice_and_the_last_never():
    _, run = _replica("signed-sum")
    q, k, v = _inputs(n=64, heads=12)
    out = run(q, k, v, (4, 8, 16, 32, 64), (1, 2, 4, 4, 4))
    used = (out != 0).any(dim=-1).any(dim=1)[0]
    assert used.tolist() == [True] * 10 + [False] * 2
    # Heads 4 and 5 have the rows of branch 1, the odd ones, and of branch 2, every fourth.
    rows = (out[0, :, 4] != 0).any(dim=-1)
    assert rows[:8].tolist() == [False, True, True, True] * 2


def _work(module, n, segments, rates, heads=4):
    return module.pairs(n, heads, tuple(min(w, n) for w in segments), rates)


def test_the_shape_of_the_plots_comes_from_the_rates_that_the_script_made():
    module, _ = _replica("signed-sum")

    def share(n, rates):
        first = _work(module, 8192, PLOT, (1, 1, 1, 1)) / 8192
        return _work(module, n, PLOT, rates) / n / first

    assert share(2**16, AS_MADE) == pytest.approx(0.391, abs=5e-4)
    assert share(2**16, AS_MEANT) == pytest.approx(0.469, abs=5e-4)
    assert share(2**14, (1, 2, 2, 2)) == pytest.approx(0.625)
    assert share(2**15, (1, 2, 8, 8)) == pytest.approx(0.406, abs=5e-4)
    assert share(2**24, AS_MADE) == share(2**16, AS_MADE)
    # The plot of 64M tokens has three branches.
    three = _work(module, 2**16, PLOT[:3], AS_MADE[:3]) / 2**16
    assert three / (_work(module, 8192, PLOT[:3], (1, 1, 1)) / 8192) == pytest.approx(
        0.641, abs=5e-4
    )


def test_of_the_plots_rows_two_in_five_are_computed():
    _, run = _replica("signed-sum")
    q, k, v = _inputs(n=1024, heads=4, dim=4, batch=1)
    out = run(q, k, v, (128, 256, 512, 1024), AS_MADE)
    kept = (out != 0).any(dim=-1).double().mean().item()
    assert kept == pytest.approx((1 + 1 / 2 + 1 / 8 + 1 / 128) / 4) == pytest.approx(0.41, abs=5e-3)


# --- block sums


def test_blocks_add_up_to_their_number_whatever_sparsity_is_asked():
    _, run = _replica("block-sums")
    q, k, v = _inputs(n=2048, heads=2)
    masks = [dilated(2048, sparsity=s) for s in (0.9, 0.95, 0.98)] + [
        local_window(2048, sparsity=0.5)
    ]
    outs = [run(q, k, v, mask) for mask in masks]
    assert all(torch.equal(outs[0], out) for out in outs[1:])
    sums = run(q, k, torch.ones_like(v), masks[0]).mean(dim=-1)
    kept = torch.bincount(torch.tensor(_replica("block-sums")[0].kept_blocks(32)[0]))
    assert (kept.min(), kept.max()) == (4, 7)
    expected = kept.repeat_interleave(64)[None, :, None].expand(2, -1, 2).float()
    torch.testing.assert_close(sums, expected)


@pytest.mark.parametrize(
    ("n", "launches", "sparsity"),
    [(2048, 210, 79.5), (4096, 434, 89.4), (8192, 882, 94.6), (16384, 1778, 97.3)],
)
def test_the_blocks_that_were_kept(n, launches, sparsity):
    module, _ = _replica("block-sums")
    assert len(module.kept_blocks(n // 64)[0]) == launches
    density = module.pairs(n, 8, dilated(n, sparsity=0.5)) / (8 * n * n)
    assert 100 * (1 - density) == pytest.approx(sparsity, abs=0.05)


def test_causal_block_sums_see_later_blocks():
    _, run = _replica("block-sums")
    inputs, mask = _inputs(n=1024), dilated(1024, sparsity=0.9)
    before, after = (
        run(*x, mask, is_causal=True)[:, :512] for x in (inputs, _redrawn(inputs, 512))
    )
    assert (after - before).abs().max() > 1


def test_a_block_that_does_not_divide_is_refused():
    _, run = _replica("block-sums")
    mask = BlockMask.from_dense(torch.ones(1, 9, 9, dtype=torch.bool), 60)
    with pytest.raises(ValueError, match="blocks of 60: expected a divisor of 512"):
        run(*_inputs(), mask)


# --- dense ring


def test_the_ring_was_dense_whatever_segments_were_given():
    _, run = _replica("dense-ring")
    inputs = _inputs()
    out = run(*inputs, SEGMENTS, RATES)
    assert torch.equal(out, run(*inputs, (512,), (8,)))
    torch.testing.assert_close(out, dense_attention(*inputs), rtol=1e-5, atol=1e-6)
    pattern = DilatedBranches(SEGMENTS, RATES)
    assert pattern.pairs(512, 8, False) < 8 * 512**2
