"""GPU samples are without the host's time: the policy on a simulated card, in numbers."""

from dataclasses import dataclass, field

import pytest
import torch

from experiments import cuda_timer, measure

GPU_TIER = {"min_samples": 20, "max_samples": 200, "sample_seconds": 0.3}
TOLERANCE = {"abs": 1e-9}


@dataclass
class Event:
    """The card's time when it comes to it."""

    card: "SimulatedCard"
    at: float

    def query(self):
        return self.card.host >= self.at

    def synchronize(self):
        self.card.host = max(self.card.host, self.at)

    def elapsed_time(self, other):
        return other.at - self.at


@dataclass
class SimulatedCard:
    """A host that issues work and a card that does it in order, on one clock in ms.

    flush_ms: of a flush; spun: what the card does of a spin asked for, less where it clocks higher
    than when it was calibrated. free: when the card has done all that was issued.
    """

    flush_ms: float = 0.0
    spun: float = 1.0
    host: float = 0.0
    free: float = 0.0
    spins: list = field(default_factory=list)

    def work(self, ms):
        self.free = max(self.free, self.host) + ms

    def clock_ms(self):
        return self.host

    def wait(self):
        self.host = max(self.host, self.free)

    def flush(self):
        self.work(self.flush_ms)

    def spin(self, ms):
        self.spins.append(ms)
        self.work(self.spun * ms)

    def mark(self):
        self.host += 0.005
        self.work(0.0)
        return Event(self, self.free)

    def call(self, host_ms, card_ms, launches=1):
        """A call whose launches are spread evenly over the host's time for it."""
        for _ in range(launches):
            self.host += host_ms / launches
            self.work(card_ms / launches)


def naive(step, card):
    """A sample as it was taken before: between two events, without a queue."""
    card.wait()
    card.flush()
    start = card.mark()
    step()
    stop = card.mark()
    stop.synchronize()
    return start.elapsed_time(stop)


def timed(step, card, count=10):
    timer = cuda_timer.Timer(step, card, warm_ups=3)
    return timer, [timer.sample() for _ in range(count)]


@pytest.mark.parametrize(
    ("flush_ms", "host_ms", "card_ms", "launches", "seen"),
    [
        (0.0, 0.080, 0.035, 1, 0.115),
        # What a flush of 90 us leaves of it.
        (0.090, 0.123, 0.035, 1, 0.073),
        (0.0, 2.0, 0.5, 100, 2.005),
        # A card with more to do than the host waits for the first launch alone.
        (0.0, 0.080, 1.0, 4, 1.020),
    ],
)
def test_a_sample_is_the_cards_time_alone(flush_ms, host_ms, card_ms, launches, seen):
    card = SimulatedCard(flush_ms)

    def step():
        card.call(host_ms, card_ms, launches)

    assert naive(step, card) == pytest.approx(seen, **TOLERANCE)
    timer, samples = timed(step, card)
    assert samples == pytest.approx([card_ms] * 10, **TOLERANCE)
    assert timer.timed_by == "queued events"
    assert timer.host_ms == pytest.approx(host_ms, **TOLERANCE)
    assert timer.spent_ms == pytest.approx(10 * (1.5 * host_ms + 0.05), **TOLERANCE)


def test_a_late_host_is_found_out_and_the_sample_taken_again():
    card, calls = SimulatedCard(), iter(range(1000))

    def step():
        card.call(5.0 if next(calls) % 7 == 6 else 0.080, 0.035)

    timer, samples = timed(step, card, 60)
    assert samples == pytest.approx([0.035] * 60, **TOLERANCE)
    assert timer.timed_by == "queued events"
    # 60 good ones, and of the 3 + 60 + again calls every seventh was late.
    assert next(calls) == 3 + 60 + 10
    assert timer.host_ms == pytest.approx(0.080, **TOLERANCE)


def test_a_card_that_spins_faster_than_calibrated_gets_longer_queues():
    card = SimulatedCard(spun=0.25)
    timer, samples = timed(lambda: card.call(0.080, 0.035), card)
    assert samples == pytest.approx([0.035] * 10, **TOLERANCE)
    assert card.spins == pytest.approx([0.17, 0.34, 0.68] * 10, **TOLERANCE)
    assert timer.timed_by == "queued events"


def test_a_call_that_waits_for_the_card_is_said_not_to_be_queued():
    card = SimulatedCard()

    def step():
        card.call(0.040, 0.010)
        card.wait()  # as when the host reads a number off the card
        card.call(0.040, 0.025)

    timer, samples = timed(step, card, 50)
    assert timer.timed_by == "events"
    # Tried behind ever longer queues once, and then as they come.
    assert card.spins == pytest.approx([0.185 * 2**n for n in range(5)], **TOLERANCE)
    assert timer.spent_ms == pytest.approx(31 * 0.185 + 5 * 0.075, **TOLERANCE)
    assert samples == pytest.approx([0.115] * 50, **TOLERANCE)


def test_a_long_pass_is_not_queued_again_nor_a_slow_host_at_all():
    card, calls = SimulatedCard(), iter(range(100))

    def late():
        card.call(3.0 if next(calls) == 5 else 0.080, 900.0)

    timer, samples = timed(late, card, 5)
    assert next(calls) == 3 + 6
    assert timer.timed_by == "events"
    assert samples == pytest.approx([900.0] * 2 + [900.08] * 3, **TOLERANCE)

    card = SimulatedCard()
    timer, samples = timed(lambda: card.call(4.0, 1.0), card, 3)
    assert (timer.timed_by, card.spins) == ("events", [])
    assert samples == pytest.approx([5.0] * 3, **TOLERANCE)


@pytest.mark.parametrize(
    ("host_ms", "card_ms", "count"), [(0.08, 0.035, 200), (0.123, 5.0, 60), (2.0, 0.5, 33)]
)
def test_a_replicate_on_a_card_says_how_it_was_timed(monkeypatch, host_ms, card_ms, count):
    card = SimulatedCard(0.09)
    monkeypatch.setattr(cuda_timer, "Card", lambda: card)
    found = measure.take_samples(lambda: card.call(host_ms, card_ms), "cuda", GPU_TIER)
    assert found.pop("samples_ms") == pytest.approx([card_ms] * count, **TOLERANCE)
    assert found.pop("host_ms") == pytest.approx(host_ms, **TOLERANCE)
    assert found == {"timed_by": "queued events"}
    # At most 0.1 s of queues a replicate, so 0.3 s a case.
    assert sum(card.spins) <= cuda_timer.MOST_MS + max(card.spins)


def test_the_least_samples_are_taken_whatever_they_cost(monkeypatch):
    card = SimulatedCard()
    monkeypatch.setattr(cuda_timer, "Card", lambda: card)
    limits = {**GPU_TIER, "min_samples": 40}
    found = measure.take_samples(lambda: card.call(3.0, 0.5), "cuda", limits)
    assert len(found["samples_ms"]) == 40
    assert sum(card.spins) == pytest.approx(40 * 4.55, **TOLERANCE)


def test_a_cpu_is_timed_by_the_wall_clock(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(clock)))
    limits = {"min_samples": 2, "max_samples": 3, "sample_seconds": 2.5}
    # Of two seconds each, the first counts.
    found = measure.take_samples(lambda: next(clock), "cpu", limits)
    assert found == {"samples_ms": [2000.0, 2000.0]}


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        ([90.0, 80.0, 40.0, 30.0, 31.0, 32.0, 33.0], [30.0, 31.0, 32.0, 33.0]),
        ([200.0, 100.0, 101.0], [100.0, 101.0]),
        ([1999.0, 1500.0, 1501.0], [1500.0, 1501.0]),
        ([2000.0, 1500.0], [2000.0, 1500.0]),
    ],
)
def test_passes_of_a_fifth_of_a_second_warm_up_unless_one_is_long(passes, expected):
    left = iter(passes)
    limits = {"min_samples": 2, "max_samples": 50, "sample_seconds": 0.1}
    assert measure.warm_samples(lambda: next(left), limits) == expected
    assert [*left] == []


def test_the_tuner_races_tiles_by_the_same_clock(monkeypatch):
    tuning = pytest.importorskip("experiments.tuning.clocks")
    from experiments.tuning.plan import Entry
    from models.kernels import tiles
    from models.kernels.tiles import Tile

    fast, slow, wrong = (Tile(m, 64, 4, 3) for m in (128, 64, 32))
    card, now = SimulatedCard(0.09), []

    def forced(table, kernel, tile):
        now.append(tile)
        return torch.no_grad()

    def call():
        card.call(0.123, 0.035 if now[-1] == fast else 0.045)
        return [torch.zeros(2) if now[-1] == wrong else torch.ones(2)]

    monkeypatch.setattr(tiles, "forced", forced)
    monkeypatch.setattr(tuning, "problem", lambda *_: call)
    monkeypatch.setattr(cuda_timer, "Card", lambda: card)
    sample = tuning.OnCard("a card")(Entry("dilated", "forward", 64, 16), fast)
    assert sample(fast, 3) == pytest.approx([0.035] * 3, **TOLERANCE)
    assert sample(slow, 2) == pytest.approx([0.045] * 2, **TOLERANCE)
    with pytest.raises(tuning.Wrong):
        sample(wrong, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_spin_on_a_card_takes_the_time_asked_for():
    card = cuda_timer.Card()
    timer = cuda_timer.Timer(lambda: card.spin(0.5), card, warm_ups=3)
    samples = sorted(timer.sample() for _ in range(9))
    assert timer.timed_by == "queued events"
    assert samples[4] == pytest.approx(0.5, rel=0.3)
    assert 0 < timer.host_ms < 0.5


def test_samples_of_two_kinds_are_not_mixed(monkeypatch):
    """Once one cannot be queued, those queued before are no longer of the record."""
    card, calls = SimulatedCard(0.09), iter(range(1000))
    monkeypatch.setattr(cuda_timer, "Card", lambda: card)

    def step():
        card.call(0.080 if next(calls) < 10 else 4.0, 0.5)

    limits = {"min_samples": 10, "max_samples": 20, "sample_seconds": 60.0}
    found = measure._time_cuda(step, limits)
    assert found["timed_by"] == "events"
    assert len(found["samples_ms"]) >= 10
    assert found["samples_ms"] == pytest.approx([4.415] * len(found["samples_ms"]), **TOLERANCE)
