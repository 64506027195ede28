"""Three signals stop a run alike, and so does the end of its scheduler."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import load, stop
from experiments.load import Start

pytestmark = pytest.mark.usefixtures("handlers")


@pytest.mark.parametrize("number", stop.STOPS)
def test_each_signal_stops_and_a_second_cuts_nothing_short(number):
    signal.signal(number, signal.SIG_DFL)
    stop.raise_when_told()
    with pytest.raises(stop.Stopped, match=signal.Signals(number).name) as stopped:
        os.kill(os.getpid(), number)
    assert stopped.value.status == 128 + number
    for other in stop.STOPS:
        os.kill(os.getpid(), other)


def test_a_stop_waits_for_the_end_of_what_it_would_cut():
    done = []
    stop.raise_when_told()
    with pytest.raises(stop.Stopped, match="SIGTERM"), stop.deferred():
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]


def test_a_stop_that_was_swallowed_is_raised_again(monkeypatch):
    monkeypatch.delenv(stop.ENDS_WITH, raising=False)
    check = stop.check_stop()
    stop.raise_when_told()
    check()
    # As Python does with what is raised while it finalizes an object.
    with contextlib.suppress(stop.Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(stop.Stopped, match="SIGTERM"):
        check()


def test_what_was_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop.raise_when_told()
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_run_ends_with_its_scheduler(monkeypatch):
    scheduler = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setenv(stop.ENDS_WITH, str(scheduler.pid))
    check = stop.check_stop()
    check()
    scheduler.kill()
    scheduler.wait()
    with pytest.raises(stop.Stopped):
        check()
    with pytest.raises(stop.Stopped):
        stop.check_stop()


def test_without_a_scheduler_nothing_is_watched(monkeypatch):
    monkeypatch.delenv(stop.ENDS_WITH, raising=False)
    assert stop.check_stop()() is None


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_own_work_and_that_of_ended_children_makes_no_busy_machine(monkeypatch):
    # Only this process and its child work in what the kernel is made to say.
    monkeypatch.setattr(load, "_busy_s", load._own_s)
    start = Start.now()
    burn(0.2)
    if (pid := os.fork()) == 0:
        burn(0.2)
        os._exit(0)
    os.waitpid(pid, 0)
    assert not start.was_busy() and load._own_s() - start.own_s > 0.35


@pytest.mark.parametrize(("others", "is_busy"), [(0.0, False), (0.05, False), (0.5, True)])
def test_a_tenth_of_the_processors_makes_a_busy_machine(monkeypatch, others, is_busy):
    clock = iter([100.0, 110.0])
    cores = len(os.sched_getaffinity(0))
    busy = iter([50.0, 50.0 + 3.0 + 10.0 * others * cores])
    own = iter([7.0, 10.0])
    monkeypatch.setattr(load.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(load, "_busy_s", lambda: next(busy))
    monkeypatch.setattr(load, "_own_s", lambda: next(own))
    assert Start.now().was_busy() is is_busy


def test_the_kernel_counts_what_others_take():
    start = Start.now()
    worker = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.8)
    taken = load._busy_s() - start.busy_s - (load._own_s() - start.own_s)
    worker.kill()
    worker.wait()
    assert taken > 0.2


def test_a_limit_of_address_space_counts_as_memory():
    code = (
        "import resource; from experiments.load import free_bytes;"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); print(free_bytes())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 0 < int(told.stdout) < 2**30, told.stderr
