import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from experiments import cards, ceilings, runner, stop
from experiments import measure as measuring
from experiments.case import Case
from experiments.digest import ROOT
from experiments.grid import Limits
from experiments.machine import describe
from experiments.procedures import choose
from experiments.supervise import supervise
from models.registry import VARIANTS

QUICK = Limits(replicates=1, min_samples=2, max_samples=3, sample_seconds=0.01, timeout_s=60)

PATTERNS = {
    "branches": {"segment_lengths": (16, 32), "dilation_rates": (1, 3)},
    "blocks": {"pattern": "random", "sparsity": 0.5, "block_size": 16},
}


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch):
    """What is measured of the machine beside a case takes a moment."""
    monkeypatch.setitem(ceilings._SIDE, "cpu", 64)
    monkeypatch.setitem(ceilings._COPY_BYTES, "cpu", 2**20)
    monkeypatch.setattr(ceilings, "_SECONDS", 1e-4)


@pytest.fixture
def handlers():
    """The signals' handlers are put back: a test may have them raise."""
    before = {number: signal.getsignal(number) for number in stop.STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stop._told, stop._is_waiting = None, False


@pytest.fixture
def put(monkeypatch):
    """Have these cards be the CUDA devices."""

    def put(*gpus):
        monkeypatch.setitem(cards._POOLS, "cuda", lambda: gpus)

    return put


@pytest.fixture(scope="session")
def published():
    """The published records whose names match a pattern, sorted by round and name."""
    return lambda pattern: sorted((ROOT / "results/published").glob(f"*/*/{pattern}.json"))


@pytest.fixture
def no_lock(monkeypatch):
    """Runs do not wait for those of other tests: of tiny shapes the times say nothing."""
    monkeypatch.setattr(runner, "hold", lambda device, cards, tick: nullcontext(device))


@pytest.fixture
def one_core(monkeypatch):
    """For a procedure that is called in this process, which is to stay with one thread."""
    monkeypatch.setattr(measuring, "os", SimpleNamespace(sched_getaffinity=lambda _: {0}))


@pytest.fixture
def case():
    """Build a small case; keyword arguments replace fields."""

    def build(**changes):
        fields = {
            "variant": "dilated-sdpa",
            "batch": 2,
            "seq_len": 40,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 8,
            "dtype": "float32",
            "is_causal": True,
            "pass_": "forward",
        } | changes
        takes = VARIANTS[fields["variant"]].takes
        return Case(**{**PATTERNS.get(takes, {}), **fields})

    return build


@pytest.fixture
def measure(case):
    """Measure a small case under quick limits; returns its record."""

    def run(limits=QUICK, **changes):
        one = case(**changes)
        what = ("smoke", one, limits, describe("cpu"), "0" * 16)
        return supervise(*what, procedure=choose(one.variant))

    return run
