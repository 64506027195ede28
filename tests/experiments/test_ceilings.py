"""Ceilings of a GPU are measured anew once a minute, for each dtype."""

import pytest

from experiments import ceilings


@pytest.fixture
def clock(monkeypatch):
    """A clock to be set; every measurement finds another rate."""
    now, rates = [1000.0], iter(range(1, 9))
    monkeypatch.setattr(ceilings, "_found", {})
    monkeypatch.setattr(ceilings, "_measure", lambda *_: {"copy_bytes_per_s": next(rates)})
    monkeypatch.setattr(ceilings.time, "monotonic", lambda: now[0])
    return now


def rate(dtype="float32", device="cuda"):
    return ceilings.measure(dtype, device)["copy_bytes_per_s"]


def test_a_ceiling_stands_for_a_minute(clock):
    found = ceilings.measure("float32", "cuda")
    found["copy_bytes_per_s"] = 0  # its own, nobody else's
    clock[0] += 59
    assert rate() == 1
    clock[0] += 1
    assert [rate(), rate()] == [2, 2]


def test_dtypes_have_their_own(clock):
    assert [rate(dtype) for dtype in ("float32", "float64") * 2] == [1, 2, 1, 2]


def test_on_a_cpu_each_case_has_its_own(clock, one_core):
    assert [rate(device="cpu"), rate(device="cpu")] == [1, 2]
