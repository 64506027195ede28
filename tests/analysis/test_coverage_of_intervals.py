"""A thousand studies of a machine that is known: how often 95 % intervals hold a repetition.

Hosts, occasions and rounds are fast or slow for all cases at once, and for each case in its own
way: rounds by 1 to 5 %, occasions as the prior says, hosts by more; processes and samples differ
less. What an interval must hold is what two rounds of another occasion find, on another host where
there are several; and with it, more often still, the truth.
"""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import scaling
from analysis.statistics.intervals import geometric_mean_speedup, speedup, time
from analysis.statistics.rounds import RoundSamples, log_medians
from analysis.statistics.spread import ALL_BETWEEN_OCCASIONS, BETWEEN_OCCASIONS, estimate

SHAPES, SYSTEMS = 40, 4  # the first system is what the others are compared with
SERIES, LENGTHS, POWER = 8, 2 ** np.arange(9, 14), 1.55
PROCESSES, SAMPLES = 3, 3


class Study:
    """Times of SHAPES x SYSTEMS cases, and of SERIES over LENGTHS.

    rounds: of each occasion. hosts: occasions are on these by turns. of: the study that this one
    repeats, on the same host, or another where that had several.
    """

    def __init__(self, rng, rounds, hosts=1, of=None):
        self.truth = rng.normal(0, 1, SHAPES * SYSTEMS) if of is None else of.truth
        growth = np.log(0.3 + (LENGTHS / 1024) ** POWER)
        truth = np.concatenate([self.truth, *[growth] * SERIES])
        cases, prior = truth.size, BETWEEN_OCCASIONS.halved()
        own = np.exp(rng.uniform(np.log(0.01), np.log(0.05), (cases, 1)))
        between = prior.variance * prior.freedom / rng.chisquare(prior.freedom, (cases, 1))
        self.own, self.between = (own, np.sqrt(between)) if of is None else (of.own, of.between)
        self.differ = hosts > 1 if of is None else of.differ
        occasion = np.repeat(np.arange(len(rounds)), rounds)
        host, count = occasion % hosts, occasion.size
        logs = truth[:, None] + rng.normal(0, 0.03, count)
        logs += np.sqrt(ALL_BETWEEN_OCCASIONS.variance) * rng.standard_normal(len(rounds))[occasion]
        logs += self.own * rng.standard_normal((cases, count))
        logs += self.between * rng.standard_normal((cases, len(rounds)))[:, occasion]
        if self.differ:
            logs += rng.normal(0, 0.1, hosts)[host]
            logs += 2 * self.between * rng.standard_normal((cases, hosts))[:, host]
        logs = logs[..., None, None] + rng.normal(0, 0.01, (cases, count, PROCESSES, 1))
        times = np.exp(logs + rng.normal(0, 0.02, (cases, count, PROCESSES, SAMPLES)))
        names = [(f"host-{host[at]}", f"day-{occasion[at]}", f"round-{at}") for at in range(count)]
        self.cases = [
            tuple(
                RoundSamples(*name, tuple(map(tuple, one)))
                for name, one in zip(names, case, strict=True)
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


ONE = [((2,), 1), ((4,), 1)]
SEVERAL = [((2, 1), 1), ((1, 1, 1), 1), ((4, 4, 4), 1), ((1,) * 8, 2), ((1, 1, 1), 3)]


@pytest.mark.parametrize(("rounds", "hosts"), ONE + SEVERAL)
def test_what_another_day_finds_lies_in_the_interval(rounds, hosts):
    rng = np.random.default_rng(sum(rounds))
    hits, true, means, times = [], [], [], []
    for _ in range(100):
        study = Study(rng, rounds, hosts)
        again = Study(rng, (2,), of=study)
        for shape in range(10):
            base, own, truth = study.ratio(shape, 1 + shape % 3)
            found = speedup(base, own, study.spread)
            hits.append(
                speedup(*again.ratio(shape, 1 + shape % 3)[:2], again.spread).value in found
            )
            true.append(truth in found)
            of_time = time(study.cases[SYSTEMS * shape], study.spread)
            times.append(time(again.cases[SYSTEMS * shape], again.spread).value in of_time)
        mean, mean_again = (
            geometric_mean_speedup([one.ratio(shape, 1)[:2] for shape in range(5)], one.spread)
            for one in (study, again)
        )
        means.append(mean_again.value in mean)
    assert len(hits) == 1000
    assert 0.93 <= np.mean(hits) <= 0.985
    assert np.mean(true) >= 0.95
    assert np.mean(means) >= 0.93
    assert np.mean(times) >= 0.93


@pytest.mark.parametrize("rounds", [(2,), (1, 1), (2, 1)])
def test_exponents_of_another_day_lie_in_the_interval(rounds):
    rng = np.random.default_rng(sum(rounds))
    hits, true = [], []
    for _ in range(30):
        study = Study(rng, rounds)
        again = Study(rng, (2,), of=study)
        for samples, further in zip(study.series, again.series, strict=True):
            found = scaling.fit(LENGTHS, samples, study.spread, draws=100)
            other = scaling.fit(LENGTHS, further, again.spread, draws=2)
            hits.append(other.exponent.value in found.exponent)
            true.append(POWER in found.exponent)
    assert len(hits) == 240 and np.mean(hits) >= 0.93 and np.mean(true) >= 0.95


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
        study = Study(rng, (1,))
        for shape in range(20):
            base, own, truth = study.ratio(shape, 1)
            low, high = _of_processes(base, own, rng)
            hits.append(low <= truth <= high)
    assert np.mean(hits) < 0.7
