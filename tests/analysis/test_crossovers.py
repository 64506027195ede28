"""Where fitted curves meet: known roots, ranges, and intervals from draws of both fits."""

import numpy as np
import pytest

from analysis.statistics.crossovers import crossover
from analysis.statistics.scaling import fit
from analysis.statistics.spread import PLAIN
from tests.analysis.test_scaling import LENGTHS, TRUTHS, in_rounds, noisy


def exact(truth, lengths=LENGTHS):
    return fit(lengths, truth(lengths.astype(float)).tolist(), draws=50)


def test_crossover_recovers_a_known_root():
    dense, sparse = exact(lambda n: 1e-7 * n**2), exact(lambda n: 1e-3 * n)
    found = crossover(dense, sparse)  # 1e-7 n^2 = 1e-3 n at n = 10000
    assert found.status == "found" and found.smaller_at_end == "b"
    assert found.n.value == pytest.approx(10_000, rel=1e-4)
    assert found.roots == (found.n.value,) and found.share_in_range == 1.0
    assert found.n.low == pytest.approx(found.n.high, rel=1e-3)
    assert crossover(sparse, dense).n.value == pytest.approx(10_000, rel=1e-4)


def test_crossover_beyond_the_measured_range_is_not_in_range():
    dense, sparse = exact(lambda n: 1e-7 * n**2), exact(lambda n: 1e-3 * n)
    short = exact(lambda n: 1e-3 * n, LENGTHS[:4])  # up to 4096, the root is at 10000
    for found in (crossover(dense, short), crossover(dense, sparse, n_range=(512, 8192))):
        assert found.status == "not in range" and found.n is None and found.roots == ()
        assert found.share_in_range == 0.0 and found.smaller_at_end == "a"
    assert crossover(dense, short, n_range=(1, 1e9)).n_range == (512, 4096)
    with pytest.raises(ValueError, match="n_range: expected ranges that overlap"):
        crossover(dense, short, n_range=(8192, 32768))


def test_crossover_is_the_last_of_several():
    curve = exact(lambda n: 1.6 + 1e-7 * n**2)
    line = exact(lambda n: 1e-3 * n)  # meet at 2000 and at 8000
    found = crossover(curve, line)
    assert found.roots == pytest.approx((2000, 8000), rel=1e-3)
    assert found.n.value == found.roots[-1]


def test_crossover_of_a_curve_with_itself_is_nowhere():
    same = exact(lambda n: 1e-3 * n)
    assert crossover(same, same).smaller_at_end == "neither"
    assert crossover(same, same).status == "not in range"


def test_crossover_interval_covers_although_both_fits_share_a_seed():
    (_, linear), rng = TRUTHS["linear"], np.random.default_rng(0)
    grid = np.geomspace(512, 32768, 200_001)
    truth = grid[np.flatnonzero(np.diff(linear(grid) > 0.05 + 1e-7 * grid**2))[-1]]
    found = [
        crossover(
            fit(LENGTHS, noisy(linear, rng), draws=100),
            fit(LENGTHS, noisy(lambda n: 0.05 + 1e-7 * n**2.0, rng), draws=100),
        ).n
        for _ in range(25)
    ]
    assert np.mean([truth in n for n in found]) >= 0.85
    assert np.median([(n.high - n.low) / truth for n in found]) < 0.12


def test_crossover_near_the_end_reaches_the_end_of_the_range():
    rng = np.random.default_rng(1)
    dense = fit(LENGTHS, noisy(lambda n: 1e-7 * n**2.0, rng, sigma=0.1))
    sparse = fit(LENGTHS, noisy(lambda n: 3.0e-3 * n, rng, sigma=0.1))  # meet at 30000 of 32768
    found = crossover(dense, sparse)
    assert 0 < found.share_in_range < 1
    if found.n is not None:
        assert found.n.high == pytest.approx(32768)


def test_times_of_one_round_meet_without_an_interval():
    rounds = in_rounds(lambda n: 1e-7 * n**2.0, np.random.default_rng(3), between=0.0, count=1)
    found = crossover(fit(LENGTHS, rounds, PLAIN), exact(lambda n: 1e-3 * n))
    assert found.n.confidence == 0 and found.n.value == found.roots[-1]
    assert np.isnan([found.n.low, found.n.high, found.share_in_range]).all()
