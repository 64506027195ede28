"""What all cases of a machine say of its rounds: priors by moments, and what rounds share."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from analysis.statistics.rounds import At
from analysis.statistics.spread import FLOOR, PLAIN, Prior, estimate, prior_of


def test_a_prior_has_the_moments_of_the_log_variances():
    variances, freedoms = np.geomspace(1e-6, 1e-2, 12), np.full(12, 2.0)
    found = prior_of(variances, freedoms)
    logs = np.log(variances) - digamma(1) + math.log(1)
    beyond = logs.var(ddof=1) - polygamma(1, 1)
    # A standard error down.
    error = logs.var(ddof=1) * math.sqrt(2 / 11)
    assert polygamma(1, found.freedom / 2) == pytest.approx(beyond + error)
    half = brentq(lambda x: polygamma(1, x) - beyond, 0.01, 100)
    assert math.log(found.variance) == pytest.approx(logs.mean() + digamma(half) - math.log(half))


@pytest.mark.parametrize("freedom", [2, 5])
def test_a_known_prior_is_recovered(freedom):
    rng = np.random.default_rng(0)
    true = 0.09 * 6.0 / rng.chisquare(6.0, 20_000)
    found = prior_of(true * rng.chisquare(freedom, 20_000) / freedom, [freedom] * 20_000)
    assert found.variance == pytest.approx(0.09, rel=0.05)
    assert 5 < found.freedom < 6


def test_variances_that_differ_by_chance_alone_count_the_more_the_more_there_are():
    freedoms = []
    for count in (50, 500, 5000):
        # The quantiles of a chi-square differ a little less than its draws.
        variances = 0.0004 * stats.chi2.ppf((np.arange(count) + 0.5) / count, 3) / 3
        found = prior_of(variances, [3] * count)
        assert found.variance == pytest.approx(0.0004, rel=0.05)
        freedoms.append(found.freedom)
    assert 10 < freedoms[0] < freedoms[1] < freedoms[2] <= 15000 and freedoms[2] > 50


def test_few_variances_make_no_prior():
    assert prior_of([1e-4] * 9, [2] * 9) == Prior()
    assert prior_of([1e-4] * 10, [2] * 10).freedom == 20


def test_identical_rounds_have_the_floor():
    assert Prior().moderated(0.0, 2) == Prior(FLOOR, 2)
    assert prior_of([0.0] * 10, [2] * 10).variance == pytest.approx(
        FLOOR * math.exp(-digamma(1)) * math.exp(digamma(10) - math.log(10))
    )


def test_moderation_is_the_mean_by_freedom():
    found = Prior(0.04, 3).moderated(0.01, 2)
    assert (found.variance, found.freedom) == (pytest.approx(0.14 / 5), 5)
    assert Prior(0.04, 3).halved() == Prior(0.02, 3) and Prior(0.04, 3).over(2) == Prior(0.02, 3)


def case(level, own, rounds=("a", "b", "c"), hosts=None):
    at = [At(host, name) for host, name in zip(hosts or [""] * 3, rounds, strict=False)]
    effect = {"a": -0.2, "b": 0.0, "c": 0.2}
    return {one: level + effect[one.round] + x for one, x in zip(at, own, strict=False)}


def test_the_effect_of_a_round_is_common_to_all_cases():
    zero_sum = np.random.default_rng(0).standard_normal((20, 3)) * 0.01
    zero_sum -= zero_sum.mean(axis=0)
    cases = [case(level, own) for level, own in enumerate(zero_sum)]
    found = estimate([(one, None) for one in cases])
    assert [name for name, _ in found.effects] == ["a", "b", "c"]
    assert [value for _, value in found.effects] == pytest.approx([-0.2, 0.0, 0.2], abs=1e-9)
    assert (found.common.variance, found.common.freedom) == (pytest.approx(0.04), 2)
    assert 0.00005 < found.time.variance < 0.0002
    assert found.ratio == Prior()
    less = found.without_effects(cases[3])
    assert list(less.values()) == pytest.approx(3 + zero_sum[3])


def test_an_effect_is_found_although_a_round_has_not_all_cases():
    cases = [case(level, (0, 0, 0)) for level in range(10)]
    cases += [case(level, (0, 0), rounds=("a", "b")) for level in range(5)]
    cases += [case(7.0, (0,), rounds=("c",))]
    effects = dict(estimate([(one, None) for one in cases]).effects)
    assert effects["c"] - effects["a"] == pytest.approx(0.4)
    assert effects["b"] - effects["a"] == pytest.approx(0.2)


def test_a_ratio_loses_what_its_sides_share():
    rng = np.random.default_rng(1)
    base = case(0.0, (0, 0, 0))
    ratios = rng.standard_normal((40, 3)) * 0.01
    found = estimate([(case(1.0, own), base) for own in ratios])
    assert found.ratio.variance == pytest.approx(0.0001, rel=0.3)
    assert found.ratio.freedom > 10


def test_variances_between_hosts_count_alone_where_there_are_some():
    rng = np.random.default_rng(2)
    within = [case(0.0, rng.standard_normal(3) * 0.001) for _ in range(20)]
    hosts = ("x", "x", "y")
    between = [case(0.0, rng.standard_normal(3) * 0.1, hosts=hosts) for _ in range(20)]
    base = {at: 0.0 for one in (within[0], between[0]) for at in one}
    found = estimate([(one, base) for one in (*within, *between)])
    assert found.ratio.variance > 0.001
    assert estimate([(one, base) for one in within]).ratio.variance < 0.1


def test_few_cases_speak_each_for_itself():
    assert estimate([(case(0.0, (0, 0.1, 0)), None)] * 9) == PLAIN
    assert estimate([]) == PLAIN
