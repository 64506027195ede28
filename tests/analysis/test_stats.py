"""Medians and speed-ups: exactness, coverage in simulation, and what few samples give."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import quantile_test

from analysis.statistics.intervals import (
    Interval,
    bootstrap_medians,
    geometric_mean_speedup,
    median_interval,
    speedup,
)

TIMES = st.floats(1e-3, 1e6)


def processes(rng, median, between, within, count=5, samples=20):
    """Replicates whose process effect and sample noise are both relative, medians at `median`."""
    effect = median * np.exp(between * rng.standard_normal((count, 1)))
    return (effect * np.exp(within * rng.standard_normal((count, samples)))).tolist()


@pytest.mark.parametrize("count", [7, 10, 20])
def test_median_interval_covers_on_skewed_samples(count):
    rng = np.random.default_rng(count)
    slow = 1 + (rng.random((1000, count)) < 0.05)  # one in twenty is interrupted
    samples = slow * rng.lognormal(0, 0.3, (1000, count))
    # The interrupted ones move the true median: solve F(m) = 1/2 by a large sample.
    truth = np.median((1 + (rng.random(2_000_000) < 0.05)) * rng.lognormal(0, 0.3, 2_000_000))
    hits = [truth in median_interval(row) for row in samples]
    assert 0.93 <= np.mean(hits) <= 1.0


@given(st.lists(TIMES, min_size=6, max_size=60), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_median_interval_is_that_of_scipy(samples, confidence):
    interval = median_interval(samples, confidence)
    expected = quantile_test(samples, p=0.5).confidence_interval(confidence)
    assert (interval.low, interval.high) == (expected.low, expected.high)
    assert interval.low <= interval.value == np.median(samples) <= interval.high
    assert interval.confidence >= confidence


@pytest.mark.parametrize(("count", "achieved"), [(2, 0.5), (3, 0.75), (4, 0.875), (5, 0.9375)])
def test_few_samples_give_extremes_and_say_what_they_achieve(count, achieved):
    samples = [3.0, 1.0, 2.0, 9.0, 4.0][:count]
    interval = median_interval(samples)
    assert (interval.low, interval.high) == (min(samples), max(samples))
    assert interval.confidence == pytest.approx(achieved, abs=1e-12)


def test_ranks_at_ten_samples_and_the_coverage_they_achieve():
    interval = median_interval(range(1, 11))
    assert (interval.value, interval.low, interval.high) == (5.5, 2, 9)
    assert interval.confidence == pytest.approx(1 - 2 * 11 / 1024)


def test_one_sample_has_no_interval():
    interval = median_interval([4.0])
    assert interval.value == 4.0 and interval.confidence == 0
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert 4.0 not in interval


def test_interval_reads_as_value_and_bounds():
    assert f"{Interval(1.984, 1.906, 2.0449, 0.95):.2f}" == "1.98 [1.91, 2.04]"


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf], [[1.0, 2.0]]])
def test_bad_samples_are_refused(samples):
    with pytest.raises(ValueError, match="samples: expected finite numbers"):
        median_interval(samples)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_bad_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence"):
        median_interval([1.0, 2.0], confidence)
    with pytest.raises(ValueError, match="confidence"):
        speedup([[1.0]], [[1.0]], confidence=confidence)


def test_bootstrap_medians_of_ragged_replicates_are_of_their_own_samples():
    rng = np.random.default_rng(0)
    draws = bootstrap_medians([[1.0], [2.0, 2.0, 2.0], [5.0, 5.0]], 4000, rng)
    assert set(draws) <= {1.0, 1.5, 2.0, 3.0, 3.5, 5.0}
    # The median is 5 exactly where the last replicate is drawn at least twice of three times.
    assert np.mean(draws == 5.0) == pytest.approx(7 / 27, abs=0.03)


def test_bootstrap_medians_agree_with_a_plain_loop():
    replicates = [[1.0, 4.0, 2.0], [3.0, 7.0, 5.0, 6.0], [2.5, 3.5]]
    rng = np.random.default_rng(1)
    loop = [
        np.median(
            np.concatenate(
                [
                    rng.choice(replicates[i], size=len(replicates[i]))
                    for i in rng.integers(3, size=3)
                ]
            )
        )
        for _ in range(4000)
    ]
    draws = bootstrap_medians(replicates, 4000, rng)
    assert np.mean(draws) == pytest.approx(np.mean(loop), abs=0.08)
    assert np.std(draws) == pytest.approx(np.std(loop), rel=0.06)


def test_noiseless_speedup_is_exact():
    assert speedup([[4.2] * 20] * 5, [[2.1] * 20] * 5) == Interval(2.0, 2.0, 2.0, 0.95)


@pytest.mark.parametrize(
    ("count", "between", "lowest"), [(3, 0.03, 0.93), (5, 0.03, 0.93), (5, 0.0, 0.93)]
)
def test_speedup_covers_where_processes_differ(count, between, lowest):
    rng = np.random.default_rng(17)
    hits, widths = [], []
    for seed in range(200):
        base = processes(rng, 2.0, between, 0.02, count)
        interval = speedup(base, processes(rng, 1.0, between, 0.02, count), seed=seed)
        hits.append(2.0 in interval)
        widths.append(interval.high - interval.low)
    assert lowest <= np.mean(hits) <= 1.0
    assert np.median(widths) < 0.35  # of 2.0: useful, not vacuous


def test_one_replicate_understates_as_documented():
    rng = np.random.default_rng(3)
    hits = [
        2.0 in speedup(processes(rng, 2.0, 0.03, 0.02, 1), processes(rng, 1.0, 0.03, 0.02, 1))
        for _ in range(100)
    ]
    assert np.mean(hits) < 0.5


def test_single_sample_speedup_has_no_interval():
    interval = speedup([[4.0]], [[2.0, 2.1], [1.9, 2.0]])
    assert interval.value == 2.0 and interval.confidence == 0
    assert math.isnan(interval.low) and math.isnan(interval.high)


def test_speedup_is_seeded():
    rng = np.random.default_rng(0)
    base, other = processes(rng, 2.0, 0.03, 0.02), processes(rng, 1.0, 0.03, 0.02)
    assert speedup(base, other, seed=4) == speedup(base, other, seed=4)
    assert speedup(base, other, seed=4).low != speedup(base, other, seed=5).low


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(TIMES, min_size=1, max_size=5), min_size=2, max_size=4),
    st.lists(st.lists(TIMES, min_size=1, max_size=5), min_size=2, max_size=4),
    st.sampled_from([0.125, 4.0, 64.0]),
)
def test_speedup_is_free_of_the_unit_and_holds_its_value(base, other, unit):
    interval = speedup(base, other, resamples=50)
    scaled = speedup(
        [[unit * t for t in row] for row in base],
        [[unit * t for t in row] for row in other],
        resamples=50,
    )
    assert interval.low <= interval.value <= interval.high
    assert scaled.value == pytest.approx(interval.value, rel=1e-12)
    assert scaled.low == pytest.approx(interval.low, rel=1e-6)


@pytest.mark.parametrize("bad", [[], [[]], [[1.0, 0.0]], [[-1.0]], [[math.nan]]])
def test_speedup_refuses_bad_replicates(bad):
    with pytest.raises(ValueError, match="replicates"):
        speedup(bad, [[1.0, 2.0]])


def test_geometric_mean_is_of_the_paired_ratios():
    pairs = [([[t] * 3] * 3, [[1.0] * 3] * 3) for t in (1.0, 4.0, 16.0)]
    assert geometric_mean_speedup(pairs).value == pytest.approx(4.0, rel=1e-12)
    with pytest.raises(ValueError, match="pairs"):
        geometric_mean_speedup([])


def test_geometric_mean_covers_and_is_narrower_than_its_points():
    rng = np.random.default_rng(5)
    hits, narrower = [], []
    for seed in range(100):
        pairs = [
            (processes(rng, 2.0 * n, 0.03, 0.02), processes(rng, n, 0.03, 0.02)) for n in (1, 4, 16)
        ]
        mean = geometric_mean_speedup(pairs, seed=seed)
        hits.append(2.0 in mean)
        narrower.append(mean.high - mean.low)
    single = [speedup(*pairs[0]).high - speedup(*pairs[0]).low]
    assert np.mean(hits) >= 0.92
    assert np.median(narrower) < single[0]


def test_a_notebook_of_speedups_takes_under_two_seconds():
    rng = np.random.default_rng(0)
    base, other = processes(rng, 2.0, 0.03, 0.02), processes(rng, 1.0, 0.03, 0.02)
    started = time.process_time()
    for _ in range(100):
        speedup(base, other)
        median_interval(base[0])
    assert time.process_time() - started < 2.0
