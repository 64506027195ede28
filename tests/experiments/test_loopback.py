"""Ranks of one machine listen where no other machine reaches them."""

import os
import time
from pathlib import Path

import pytest

from experiments.workers import Workers

_LOOPBACK = 0x8


def interface():
    """What gloo would be told in a process of a case."""
    return os.environ.get("GLOO_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch):
    # Set, and then not: what the test sets is taken back after it.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")


def told(forks: bool):
    return Workers(None).replicate(interface, (), deadline=time.monotonic() + 30, forks=forks).value


def test_ranks_are_bound_to_the_loopback():
    assert told(forks=False) is None
    flags = Path(f"/sys/class/net/{told(forks=True)}/flags").read_text()
    assert int(flags, 16) & _LOOPBACK


def test_another_interface_that_is_asked_for_is_taken(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert told(forks=True) == "eth7"
