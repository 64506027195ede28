"""Calls in processes of their own: in order, on a core each, told to begin, gone at the end."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from experiments.training import side_by_side

CORES = sorted(os.sched_getaffinity(0))


def _where(number):
    return number, os.getpid(), sorted(os.sched_getaffinity(0)), torch.get_num_threads()


def _is_there(pid) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _own_children() -> list:
    """Those that were forked here: a server of other tests' processes may have its own."""
    return [one for one in multiprocessing.active_children() if one.name.startswith("ForkProcess")]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_results_come_in_order_from_a_process_on_each_core(count):
    with side_by_side.prepared(_where, [(number,) for number in range(count)]) as calls:
        found = calls.results()
    numbers, pids, cores, threads = zip(*found, strict=True)
    assert numbers == tuple(range(count)) and set(threads) == {1}
    processes = min(count, len(CORES))
    assert len(set(pids)) == processes and os.getpid() not in pids
    assert [one for (one,) in cores] == [CORES[n % processes] for n in range(count)]
    assert not any(map(_is_there, pids)) and _own_children() == []


def _fails_at(number, bad):
    if number == bad:
        raise ValueError(f"odd {number}")
    return number


@pytest.mark.parametrize("bad", [0, 1, 4])
def test_a_failure_is_told_and_all_are_gone(bad):
    arguments = [(number, bad) for number in range(5)]
    with (
        pytest.raises(side_by_side.TrainingFailed, match=f"^ValueError: odd {bad}$"),
        side_by_side.prepared(_fails_at, arguments) as calls,
    ):
        calls.results()
    assert _own_children() == []


def _kills_itself(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told():
    with (
        pytest.raises(side_by_side.TrainingFailed, match="process was killed by SIGKILL"),
        side_by_side.prepared(_kills_itself, [(0,)]) as calls,
    ):
        calls.results()


def _touch(path):
    Path(path).touch()


def test_nothing_begins_before_it_is_told_to(tmp_path):
    path = tmp_path / "begun"
    with (
        pytest.raises(KeyError, match="of the body"),
        side_by_side.prepared(_touch, [(path,)]) as calls,
    ):
        (child,) = _own_children()
        raise KeyError("of the body")
    assert not path.exists() and not _is_there(child.pid)
    with side_by_side.prepared(_touch, [(path,)]) as calls:
        assert calls.results() == [None]
    assert path.exists()


def test_none_is_none():
    with side_by_side.prepared(_where, []) as calls:
        assert calls.results() == []


def test_cores_and_threads_of_the_caller_stay_its_own():
    with side_by_side.prepared(_where, [(0,), (1,)]) as calls:
        calls.results()
    assert sorted(os.sched_getaffinity(0)) == CORES and torch.get_num_threads() == 1


def _long(number):
    return [float(number)] * 100_000


def test_results_larger_than_a_pipe_come_too():
    with side_by_side.prepared(_long, [(number,) for number in range(6)]) as calls:
        found = calls.results()
    assert [(one[0], len(one)) for one in found] == [(float(n), 100_000) for n in range(6)]
