"""Intervals over seeds: numbers by hand, and how often they hold a repetition."""

import numpy as np
import pytest

from analysis.statistics import seeds


def test_a_mean_of_three_seeds_by_hand():
    found = seeds.mean([1.0, 2.0, 3.0], again=3)
    # t of 2 degrees at 97.5 %, times sqrt(1 * (1/3 + 1/3)).
    assert found.value == 2.0
    assert found.high - found.value == pytest.approx(4.302652729911275 * (2 / 3) ** 0.5)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_a_single_seed_says_nothing_of_spread():
    found = seeds.mean([1.5], again=4)
    assert found.value == 1.5 and np.isnan(found.low) and found.confidence == 0
    assert seeds.difference([1.5], [1.0, 1.1], again=4).confidence == 0
    with pytest.raises(ValueError, match=r"values=\[\]"):
        seeds.mean([], again=4)


def test_equal_values_on_both_sides_differ_by_exactly_that():
    found = seeds.difference([1.0, 1.0], [0.25, 0.25], again=2)
    assert (found.value, found.low, found.high) == (0.75, 0.75, 0.75)


def test_a_difference_changes_its_sign_with_its_sides():
    one, other = [1.0, 1.3, 0.9, 1.2], [0.7, 0.6, 0.9]
    found, turned = seeds.difference(one, other, 4), seeds.difference(other, one, 4)
    assert found.value == pytest.approx(1.1 - 2.2 / 3)
    assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low))


def test_an_interval_cut_to_the_range_of_a_share_holds_as_many_repetitions():
    """Shares near 1, of which Student's t passes 1 in most cases: 4,000 of 60 answers a seed."""
    rng = np.random.default_rng(5)
    held, cut, passed, trials = 0, 0, 0, 4000
    for _ in range(trials):
        ours, again = rng.binomial(60, 0.96, size=(2, 4)) / 60
        whole = seeds.mean([*ours], again=4)
        part = whole.within(0.0, 1.0)
        assert 0 <= part.low <= part.value <= part.high <= 1
        held += whole.low <= again.mean() <= whole.high
        cut += part.low <= again.mean() <= part.high
        passed += whole.high > 1
    assert passed / trials > 0.5
    assert cut == held and cut / trials == pytest.approx(0.95, abs=0.012)


def test_bounds_that_are_not_known_stay_so():
    found = seeds.mean([0.5], again=4).within(0.0, 1.0)
    assert found.value == 0.5 and np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_intervals_hold_what_a_repetition_finds(count):
    """In 95 % of cases: 4,000 of normal values, of which the share is known within 1.2 %."""
    rng = np.random.default_rng(7)
    held = {"mean": 0, "difference": 0}
    trials = 4000
    for _ in range(trials):
        own, base, again, base_again = rng.normal(size=(4, 4))
        ours = [*own, *rng.normal(size=count)][:count]
        found = seeds.mean(ours, again=4)
        held["mean"] += found.low <= again.mean() <= found.high
        found = seeds.difference(ours, [*base], again=4)
        held["difference"] += found.low <= again.mean() - base_again.mean() <= found.high
    assert held["mean"] / trials == pytest.approx(0.95, abs=0.012)
    # Welch's degrees of freedom are an approximation, on the safe side with few seeds.
    assert 0.938 <= held["difference"] / trials <= 0.985
