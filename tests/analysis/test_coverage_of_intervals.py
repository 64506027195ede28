"""A thousand studies of a machine that is known: how often 95 % intervals hold the truth.

Hosts and rounds are fast or slow for all cases at once, and for each case in its own way, by 1 to
10 %; processes and samples differ less. What an interval must hold is what another day would give.
"""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import scaling
from analysis.statistics.intervals import geometric_mean_speedup, speedup, time
from analysis.statistics.rounds import RoundSamples, log_medians
from analysis.statistics.spread import estimate

SHAPES, SYSTEMS = 40, 4  # the first system is what the others are compared with
SERIES, LENGTHS, POWER = 8, 2 ** np.arange(9, 14), 1.55
PROCESSES, SAMPLES = 3, 5


class Study:
    """Times of SHAPES x SYSTEMS cases, and of SERIES over LENGTHS, in some rounds."""

    def __init__(self, rng, rounds, hosts=1):
        self.truth = rng.normal(0, 1, SHAPES * SYSTEMS)
        growth = np.log(0.3 + (LENGTHS / 1024) ** POWER)
        truth = np.concatenate([self.truth, *[growth] * SERIES])
        cases = truth.size
        own = np.exp(rng.uniform(np.log(0.01), np.log(0.1), (cases, 1)))
        host = np.arange(rounds) % hosts
        shared = rng.normal(0, 0.1, rounds) + rng.normal(0, 0.1, hosts)[host] * (hosts > 1)
        logs = truth[:, None] + shared + own * rng.standard_normal((cases, rounds))
        if hosts > 1:
            logs += 2 * own * rng.standard_normal((cases, hosts))[:, host]
        logs = logs[..., None, None] + rng.normal(0, 0.01, (cases, rounds, PROCESSES, 1))
        times = np.exp(logs + rng.normal(0, 0.02, (cases, rounds, PROCESSES, SAMPLES)))
        self.cases = [
            tuple(
                RoundSamples(f"host-{host[place]}", f"round-{place}", tuple(map(tuple, one)))
                for place, one in enumerate(case)
            )
            for case in times.tolist()
        ]
        last, size = self.cases[self.truth.size :], len(LENGTHS)
        self.series = [last[size * place : size * (place + 1)] for place in range(SERIES)]
        logs = [log_medians(case) for case in self.cases[: self.truth.size]]
        bases = [logs[place - place % SYSTEMS] for place in range(len(logs))]
        self.spread = estimate(
            (own, base if base is not own else None) for own, base in zip(logs, bases, strict=True)
        )

    def ratio(self, shape, system):
        """The two cases of a ratio, and its true value."""
        base, own = SYSTEMS * shape, SYSTEMS * shape + system
        truth = np.exp(self.truth[base] - self.truth[own])
        return self.cases[base], self.cases[own], truth


@pytest.mark.parametrize(("rounds", "hosts"), [(2, 1), (3, 1), (4, 2)])
def test_ratios_of_another_day_lie_in_the_interval(rounds, hosts):
    rng = np.random.default_rng(rounds)
    hits, means, times = [], [], []
    for _ in range(200):
        study = Study(rng, rounds, hosts)
        for shape in range(5):
            base, own, truth = study.ratio(shape, 1 + shape % 3)
            hits.append(truth in speedup(base, own, study.spread))
            times.append(np.exp(study.truth[shape]) in time(study.cases[shape], study.spread))
        pairs = [study.ratio(shape, 1) for shape in range(5)]
        mean = geometric_mean_speedup([pair[:2] for pair in pairs], study.spread)
        means.append(np.exp(np.mean([np.log(truth) for *_, truth in pairs])) in mean)
    assert len(hits) == 1000
    assert 0.93 <= np.mean(hits) <= 0.995
    assert np.mean(means) >= 0.93
    assert np.mean(times) >= 0.93


@pytest.mark.parametrize("rounds", [2, 3])
def test_exponents_of_another_day_lie_in_the_interval(rounds):
    rng = np.random.default_rng(rounds)
    hits = []
    for _ in range(30):
        study = Study(rng, rounds)
        for samples in study.series:
            found = scaling.fit(LENGTHS, samples, study.spread, draws=100)
            hits.append(POWER in found.exponent)
    assert len(hits) == 240 and np.mean(hits) >= 0.93


def _of_processes(base, own, rng):
    """The interval that resampled processes of one round gave: Student's t, Welch's freedom."""
    logs, variances = [], []
    for samples in (base, own):
        rows = np.array(samples[0].replicates)
        drawn = rng.integers(PROCESSES, size=(200, PROCESSES))
        inside = rng.integers(SAMPLES, size=(200, PROCESSES, SAMPLES))
        medians = np.median(rows[drawn[..., None], inside].reshape(200, -1), axis=1)
        logs.append(np.log(np.median(rows)))
        variances.append(np.log(medians).var())
    freedom = sum(variances) ** 2 / sum(v**2 / (PROCESSES - 1) for v in variances)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(variances))
    return np.exp([logs[0] - logs[1] - half, logs[0] - logs[1] + half])


def test_processes_of_one_round_say_far_too_little():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(50):
        study = Study(rng, 1)
        for shape in range(20):
            base, own, truth = study.ratio(shape, 1)
            low, high = _of_processes(base, own, rng)
            hits.append(low <= truth <= high)
    assert np.mean(hits) < 0.7
