"""What all cases of a machine say of its rounds: priors by moments, and what rounds share."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from analysis.statistics.rounds import At, log_ratio, occasions
from analysis.statistics.spread import (
    ALL_BETWEEN_OCCASIONS,
    BETWEEN_OCCASIONS,
    FLOOR,
    Component,
    Levels,
    Prior,
    Spread,
    estimate,
    prior_of,
)


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
    assert Prior(0.04, 3).halved() == Prior(0.02, 3)


def test_a_repetition_varies_as_much_as_its_own_clusters_and_those_it_is_compared_with():
    part = Component(Prior(0.06, 5), count=3, again=2)
    assert part.of_mean == Prior(pytest.approx(0.02), 5)
    assert part.of_repetition == Prior(pytest.approx(0.06 * (1 / 3 + 1 / 2)), 5)


AT = (At("x", "d1", "a"), At("x", "d1", "b"), At("x", "d2", "c"), At("y", "d3", "d"))
SIX = tuple(At("x", day, f"{day}-{one}") for day in ("d1", "d2") for one in range(6))
KNOWN = Levels(host=Prior(0.09, 2), occasion=Prior(0.04, 3), round=Prior(0.01, 4))


@pytest.mark.parametrize(
    ("at", "levels", "expected"),
    [
        # The level's own prior with 2 degrees at 0.02, its clusters, and what is above it.
        (AT[:2], replace(KNOWN, host=Prior()), [("round", 2, 2), ("occasion", 1, 1)]),
        (AT[:2], KNOWN, [("round", 2, 2), ("host", 1, 1), ("occasion", 1, 1)]),
        (AT[:3], replace(KNOWN, host=Prior()), [("occasion", 2, 1)]),
        (AT[:3], KNOWN, [("occasion", 2, 1), ("host", 1, 1)]),
        # Two occasions on one host and one on the other vary less than one.
        (AT, KNOWN, [("host", 2, 1), ("occasion", math.inf, 4)]),
        # As six rounds do less than two, on both occasions.
        (SIX, replace(KNOWN, host=Prior()), [("occasion", 2, 1), ("round", math.inf, 3)]),
        (AT[:2], Levels(), [(None, 2, 2)]),
    ],
)
def test_the_parts_of_a_variance(at, levels, expected):
    found = levels.components(0.02, 2, at)
    (name, count, again), *above = expected
    own = getattr(levels, name).moderated(0.02, 2) if name else Prior(0.02, 2)
    parts = [Component(own, count, again)]
    parts += [Component(getattr(levels, one), n, more) for one, n, more in above]
    assert [(one.of_one, one.count) for one in found] == [(one.of_one, one.count) for one in parts]
    assert [one.again for one in found] == pytest.approx([one.again for one in parts])


def case(level, own, rounds=("a", "b", "c"), hosts=None, days=None):
    effect = {"a": -0.2, "b": 0.0, "c": 0.2}
    names = zip(hosts or [""] * 3, days or rounds, rounds, strict=False)
    at = [At(*one) for one in names]
    return {one: level + effect[one.round] + x for one, x in zip(at, own, strict=False)}


def test_the_effect_of_a_round_is_common_to_all_cases():
    zero_sum = np.random.default_rng(0).standard_normal((20, 3)) * 0.01
    zero_sum -= zero_sum.mean(axis=0)
    cases = [case(level, own) for level, own in enumerate(zero_sum)]
    found = estimate([(one, None) for one in cases])
    assert [at.round for at, _ in found.effects] == ["a", "b", "c"]
    assert [value for _, value in found.effects] == pytest.approx([-0.2, 0.0, 0.2], abs=1e-9)
    known = ALL_BETWEEN_OCCASIONS.moderated(0.04, 2)
    assert found.common.occasion == Prior(pytest.approx(known.variance), known.freedom)
    blended = (2 * 0.0001 + 4 * BETWEEN_OCCASIONS.halved().variance) / 6
    assert found.time.occasion.variance == pytest.approx(blended, rel=0.1)
    assert found.ratio == Levels(occasion=BETWEEN_OCCASIONS)
    # What is left beside the effects: of one case, and of all.
    own, common = found.of_time(cases[3])
    variance = float(np.var(zero_sum[3], ddof=1))
    expected = found.time.occasion.moderated(variance, 2)
    assert own.of_one == Prior(pytest.approx(expected.variance), expected.freedom)
    assert (own.count, own.again) == (3, 1) and common.of_one == found.common.occasion


def test_an_effect_is_found_although_a_round_has_not_all_cases():
    cases = [case(level, (0, 0, 0)) for level in range(10)]
    cases += [case(level, (0, 0), rounds=("a", "b")) for level in range(5)]
    cases += [case(7.0, (0,), rounds=("c",))]
    effects = {at.round: value for at, value in estimate([(one, None) for one in cases]).effects}
    assert effects["c"] - effects["a"] == pytest.approx(0.4)
    assert effects["b"] - effects["a"] == pytest.approx(0.2)


def test_a_ratio_loses_what_its_sides_share():
    rng = np.random.default_rng(1)
    base = case(0.0, (0, 0, 0))
    ratios = rng.standard_normal((40, 3)) * 0.01
    found = estimate([(case(1.0, own), base) for own in ratios]).ratio.occasion
    # Of three occasions, beside four that are assumed.
    blended = (2 * 0.0001 + 4 * BETWEEN_OCCASIONS.variance) / 6
    assert found.variance == pytest.approx(blended, rel=0.05)
    assert found.freedom > 10


def test_rounds_of_one_occasion_do_not_say_what_differs_between_occasions():
    rng = np.random.default_rng(3)
    days = ("d",) * 3
    base = case(0.0, (0, 0, 0), days=days)
    cases = [case(1.0, own, days=days) for own in rng.standard_normal((40, 3)) * 0.01]
    found = estimate([(own, base) for own in cases])
    assert found.ratio.occasion == BETWEEN_OCCASIONS
    assert found.ratio.round.variance == pytest.approx(0.0001, rel=0.3)
    own, between = found.of_ratio(log_ratio(base, cases[0]))
    assert (own.count, own.again, own.of_one.freedom) == (3, 2, found.ratio.round.freedom + 2)
    assert between == Component(BETWEEN_OCCASIONS, 1, 1)
    # A time has both, beside those that all cases have in common.
    levels = [one.of_one for one in found.of_time(cases[0])]
    assert levels[1] == BETWEEN_OCCASIONS.halved() and levels[3] == ALL_BETWEEN_OCCASIONS
    assert levels[2] == found.common.round


def test_variances_are_those_of_their_level():
    rng = np.random.default_rng(2)
    names = [(host, f"{host}{day}", f"{host}{day}{one}")
             for host in "xy" for day in "12" for one in "ab"]  # fmt: skip
    at = [At(*one) for one in names]
    base = dict.fromkeys(at, 0.0)
    cases = []
    for _ in range(400):
        host, day, one = (sd * rng.standard_normal(n) for sd, n in ((0.3, 2), (0.1, 4), (0.01, 8)))
        logs = np.repeat(host, 4) + np.repeat(day, 2) + one
        cases.append(dict(zip(at, logs.tolist(), strict=True)))
    found = estimate([(own, base) for own in cases]).ratio
    assert found.round.variance == pytest.approx(1e-4, rel=0.15)
    assumed = BETWEEN_OCCASIONS.variance + 1e-4 / 2
    blended = (4 * assumed + 3 * (1e-2 + 1e-4 / 2)) / 7
    assert found.occasion.variance == pytest.approx(blended, rel=0.15)
    # Of one degree of freedom each.
    assert found.host.variance == pytest.approx(0.09 + 1e-2 / 2 + 1e-4 / 4, rel=0.5)


def test_few_cases_take_what_others_have_shown():
    both = BETWEEN_OCCASIONS.halved().variance + ALL_BETWEEN_OCCASIONS.variance
    expected = Spread(
        Levels(occasion=Prior(both, BETWEEN_OCCASIONS.freedom)), Levels(occasion=BETWEEN_OCCASIONS)
    )
    assert estimate([(case(0.0, (0, 0.1, 0)), None)] * 9) == expected
    assert estimate([]) == expected


def test_rounds_within_an_hour_are_one_occasion():
    def at(hours, lasts=0.5):
        began = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hours)
        return began, began + timedelta(hours=lasts)

    times = {"c": at(3.0), "a": at(0), "b": at(1.5), "d": at(4.6), "e": at(3.2, 1.0)}
    # From the end of one to the beginning of the next: 1 h, 1 h, 0, 0.4 h; none is above.
    assert occasions(times) == dict.fromkeys("abced", "a")
    assert occasions(times | {"c": at(3.1), "e": at(3.2, 0.1)}) == (
        {"a": "a", "b": "a", "c": "c", "e": "c", "d": "c"}
    )
    assert occasions({}) == {}
