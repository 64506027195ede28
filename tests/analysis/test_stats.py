"""Times, speed-ups and their intervals: by hand, and against scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.statistics.intervals import (
    Interval,
    Side,
    geometric_mean_speedup,
    speedup,
    time,
    unpaired_speedup,
)
from analysis.statistics.rounds import At, RoundSamples, joined
from analysis.statistics.spread import FLOOR, PLAIN, Levels, Prior, Spread

TIMES = st.floats(1e-3, 1e6)


def rounds(*medians, hosts=None, days=None, first=1):
    """A case whose rounds have these medians, each of an occasion of its own if not said."""
    names = [f"round-{number}" for number in range(first, first + len(medians))]
    hosts = hosts or [""] * len(medians)
    return tuple(
        RoundSamples(host, day, name, ((0.5 * ms, ms), (3 * ms,)))
        for host, day, name, ms in zip(hosts, days or names, names, medians, strict=True)
    )


def by_t(logs, variance=None, freedom=None, again=1):
    """Value and bounds of exp of the mean of logs, and of `again` more about it.

    By their own variance, or the one given.
    """
    count, mean = len(logs), np.mean(logs)
    variance = np.var(logs, ddof=1) if variance is None else variance
    scale = math.sqrt(variance * (1 / count + 1 / again))
    low, high = stats.t.interval(0.95, freedom or count - 1, mean, scale)
    return math.exp(mean), math.exp(low), math.exp(high)


def numbers(interval):
    return interval.value, interval.low, interval.high


def test_the_unit_is_the_median_of_all_samples_of_a_round():
    samples = (RoundSamples("", "a", "a", ((1.0, 9.0), (2.0,), (3.0, 4.0))),)
    found = time(samples, PLAIN)
    assert found.value == pytest.approx(3.0)
    assert found.confidence == 0 and math.isnan(found.low) and math.isnan(found.high)


@given(st.lists(TIMES, min_size=2, max_size=6, unique=True))
def test_a_time_is_the_geometric_mean_with_the_interval_of_scipy(medians):
    expected = by_t(np.log(medians), max(np.var(np.log(medians), ddof=1), FLOOR))
    assert numbers(time(rounds(*medians), PLAIN)) == pytest.approx(expected)


def test_of_two_hosts_each_is_one_observation():
    samples = rounds(1.0, 4.0, 8.0, hosts=["a", "a", "b"])
    assert numbers(time(samples, PLAIN)) == pytest.approx(by_t(np.log([2.0, 8.0]), again=1))
    assert numbers(time(samples, PLAIN))[0] == pytest.approx(4.0)


def test_a_variance_is_moderated_by_the_prior():
    spread = Spread(
        time=Levels(occasion=Prior(0.01, 4.0)),
        ratio=Levels(occasion=Prior(0.02, 6.0)),
        common=Levels(),
    )
    base, other = (2.0, 2.2, 2.1), (1.0, 1.05, 1.1)
    own = np.var(np.log(base), ddof=1)
    expected = by_t(np.log(base), (4 * 0.01 + 2 * own) / 6, 6)
    assert numbers(time(rounds(*base), spread)) == pytest.approx(expected)
    logs = np.log(np.divide(base, other))
    expected = by_t(logs, (6 * 0.02 + 2 * np.var(logs, ddof=1)) / 8, 8)
    assert numbers(speedup(rounds(*base), rounds(*other), spread)) == pytest.approx(expected)


def test_what_rounds_have_in_common_adds_to_a_time_and_not_to_a_ratio():
    effects = tuple((At("", name, name), x) for name, x in (("round-1", -0.1), ("round-2", 0.1)))
    spread = Spread(
        time=Levels(occasion=Prior(0.0004, 8.0)),
        effects=effects,
        common=Levels(occasion=Prior(0.01, 1.0)),
    )
    samples = rounds(math.exp(-0.1), math.exp(0.12))
    own = (8 * 0.0004 + 0.02**2 / 2) / 9  # less the effects, the logs are 0 and 0.02
    half = math.hypot(
        stats.t.ppf(0.975, 9) * math.sqrt(1.5 * own), stats.t.ppf(0.975, 1) * math.sqrt(0.015)
    )
    expected = (math.exp(0.01), math.exp(0.01 - half), math.exp(0.01 + half))
    assert numbers(time(samples, spread)) == pytest.approx(expected)
    twice = rounds(*(2 * one.replicates[0][1] for one in samples))
    gain = speedup(twice, samples, spread)
    assert gain.value == pytest.approx(2) and gain.high / gain.low == pytest.approx(1, abs=4e-3)


def test_rounds_that_agree_by_chance_are_not_exact():
    found = speedup(rounds(4.2, 4.2, 4.2), rounds(2.1, 2.1, 2.1), PLAIN)
    half = stats.t.ppf(0.975, 2) * 1e-4 * math.sqrt(1 / 3 + 1)
    expected = (2, 2 * math.exp(-half), 2 * math.exp(half))
    assert numbers(found) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=5))
def test_of_the_same_rounds_a_ratio_is_that_of_the_times(pairs):
    base, other = (rounds(*side) for side in zip(*pairs, strict=True))
    ratio = time(base, PLAIN).value / time(other, PLAIN).value
    assert speedup(base, other, PLAIN).value == pytest.approx(ratio, rel=1e-9)


def test_a_ratio_is_of_the_rounds_that_both_have():
    base, other = rounds(2.0, 3.0, 50.0), rounds(1.0, 1.0)
    assert numbers(speedup(base, other, PLAIN)) == pytest.approx(by_t(np.log([2.0, 3.0])))
    alone = speedup(base, other[:1], PLAIN)
    assert alone == Interval.without_spread(alone.value) or math.isnan(alone.low)
    assert alone.value == pytest.approx(2.0) and alone.confidence == 0


def test_without_a_round_in_common_there_is_the_ratio_of_the_times_alone():
    found = speedup(rounds(2.0, 8.0), rounds(1.0, 4.0, first=3), PLAIN)
    assert found.value == pytest.approx(2.0)
    assert found.confidence == 0 and math.isnan(found.high)


def test_a_geometric_mean_is_formed_within_each_round():
    pairs = [
        (rounds(2.0, 4.0), rounds(1.0, 1.0)),
        (rounds(8.0, 4.0), rounds(1.0, 1.0)),
    ]
    # In both rounds the mean of the logs is log 4: what one pair gains the other loses.
    found = geometric_mean_speedup(pairs, PLAIN)
    assert found.value == pytest.approx(4.0) and found.high / found.low < 1.004
    single = speedup(*pairs[0], PLAIN)
    assert single.high / single.low > 50
    with pytest.raises(ValueError, match="pairs"):
        geometric_mean_speedup([], PLAIN)
    apart = [pairs[0], (rounds(8.0, 8.0, first=7), rounds(1.0, 1.0, first=7))]
    found = geometric_mean_speedup(apart, PLAIN)
    assert found.value == pytest.approx((math.sqrt(8) * 8) ** 0.5) and found.confidence == 0


def test_sets_without_a_round_in_common_add_their_variances():
    one, other = (2.0, 2.2, 1.9), (1.0, 1.1)
    found = unpaired_speedup(Side((rounds(*one),), PLAIN), Side((rounds(*other),), PLAIN))
    means = [np.mean(np.log(side)) for side in (one, other)]
    halves = [
        stats.t.ppf(0.975, len(side) - 1) * math.sqrt(np.var(np.log(side), ddof=1) / len(side))
        for side in (one, other)
    ]
    value, half = means[0] - means[1], math.hypot(*halves)
    expected = (math.exp(value), math.exp(value - half), math.exp(value + half))
    assert numbers(found) == pytest.approx(expected)
    single = unpaired_speedup(Side((rounds(*one),), PLAIN), Side((rounds(1.0),), PLAIN))
    assert single.confidence == 0 and single.value == pytest.approx(math.exp(means[0]))


def test_between_sets_of_one_occasion_only_their_rounds_differ():
    spread = Spread(time=Levels(occasion=Prior(0.04, 5.0)))
    sides = [Side((rounds(*of, days=["d"] * 2),), spread) for of in ((2.0, 2.2), (1.0, 1.1))]
    together = unpaired_speedup(*sides, is_of_one_occasion=True)
    plain = unpaired_speedup(*(Side(side.cases, PLAIN) for side in sides))
    assert numbers(together) == pytest.approx(numbers(plain))
    apart = unpaired_speedup(*sides)
    half = math.hypot(math.log(plain.high / plain.value), *2 * [stats.t.ppf(0.975, 5) * 0.2])
    assert math.log(apart.high / apart.value) == pytest.approx(half)


def test_the_mean_of_unpaired_sets_is_over_all_cases():
    sides = (
        Side((rounds(2.0, 2.0), rounds(8.0, 8.0)), PLAIN),
        Side((rounds(1.0, 1.0), rounds(1.0, 1.0)), PLAIN),
    )
    assert unpaired_speedup(*sides).value == pytest.approx(4.0)


def test_the_samples_of_several_cases_are_joined_round_by_round():
    found = joined([rounds(1.0, 2.0), rounds(3.0)])
    assert [(one.round, len(one.replicates)) for one in found] == [("round-1", 4), ("round-2", 2)]
    assert found[0].all == [0.5, 1.0, 3.0, 1.5, 3.0, 9.0]


@pytest.mark.parametrize("bad", [(), ((),), ((1.0, 0.0),), ((-1.0,),), ((math.nan,),)])
def test_bad_samples_are_refused(bad):
    with pytest.raises(ValueError, match="samples: expected finite numbers > 0"):
        time((RoundSamples("", "a", "a", bad),), PLAIN)


def test_no_round_and_a_round_twice_are_refused():
    for samples in ((), rounds(1.0) + rounds(2.0)):
        with pytest.raises(ValueError, match="one or more distinct rounds"):
            time(samples, PLAIN)


def test_interval_reads_as_value_and_bounds():
    assert f"{Interval(1.984, 1.906, 2.0449, 0.95):.2f}" == "1.98 [1.91, 2.04]"


def test_draws_have_quantiles_and_none_have_no_interval():
    assert Interval.of_draws(0.5, np.linspace(0, 1, 41), 0.95).low == pytest.approx(0.025)
    assert Interval.of_draws(3.0, np.linspace(0, 1, 41), 0.95).high == 3.0
    assert Interval.of_draws(3.0, np.empty(0), 0.95).confidence == 0
