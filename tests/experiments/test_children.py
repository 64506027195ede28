"""A function in a child: what came of it, by when, and that nothing is left behind."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import children, forked_process, stop
from experiments.check import CheckFailed
from experiments.children import Outcome, run, run_all
from models import UnsupportedBackend

SOON = 20.0


def go(function, *arguments, seconds=SOON, **options):
    return run(function, arguments, deadline=time.monotonic() + seconds, **options)


def raising(error):
    def fail():
        raise error

    return fail


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def die_soon(pid):
    """Whether the process is gone within seconds: the kernel ends a group one by one."""
    end = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not is_alive(pid)


def children_of_this():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def spawn(path, *, and_then=lambda: None):
    """Start a grandchild that sleeps, in a program of its own, and note its number."""
    sleeper = subprocess.Popen(["sleep", "60"])
    Path(path).write_text(str(sleeper.pid))
    and_then()
    return sleeper.pid


def fork(path):
    """Start a grandchild that holds all that its parent holds, the pipe too; then crash."""
    if (pid := os.fork()) == 0:
        time.sleep(60)
    Path(path).write_text(str(pid))
    os.abort()


def test_a_value_comes_back_and_the_child_is_gone():
    outcome = go(lambda a, b: (a + b, os.getpid()), 1, 2)
    assert (outcome.status, outcome.reason, outcome.value[0]) == ("ok", None, 3)
    assert outcome.value[1] != os.getpid() and not is_alive(outcome.value[1])
    assert 0 < outcome.seconds < SOON
    assert children_of_this() == []


def test_a_name_is_looked_up_under_experiments():
    assert "dilated" in go("grid.names").value
    with pytest.raises(AttributeError, match="no attribute 'nobody'"):
        go("grid.nobody")


def test_a_tensor_comes_back_by_value():
    # torch would send a handle that ends with the process.
    assert go(torch.zeros, 3).value.tolist() == [0, 0, 0]
    assert go(np.arange, 300_000).value.sum() == 300_000 * 299_999 // 2


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (MemoryError(), "oom", "MemoryError"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "oom", "CUDA out of memory"),
        (RuntimeError("CUDA error: out of memory\nmore"), "oom", "CUDA error: out of memory"),
        (OSError(12, "Cannot allocate memory"), "oom", "[Errno 12] Cannot allocate memory"),
        (UnsupportedBackend("not on this card"), "unsupported", "not on this card"),
        (CheckFailed("output: wrong"), "failed", "output: wrong"),
        (RuntimeError("odd\nmore"), "failed", "RuntimeError: odd"),
        (ValueError(), "failed", "ValueError: ValueError"),
        (SystemExit(3), "failed", "SystemExit: 3"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt: KeyboardInterrupt"),
    ],
)
def test_an_error_is_an_outcome(error, status, reason):
    outcome = go(raising(error))
    assert (outcome.status, outcome.value, outcome.reason) == (status, None, reason)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda: os.abort(), "its process was killed by SIGABRT"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "its process was killed by SIGKILL"),
        (lambda: os._exit(7), "its process ended with exit code 7 and no result"),
        (lambda: os._exit(0), "its process ended with exit code 0 and no result"),
    ],
)
def test_a_process_that_dies_is_an_outcome(end, reason):
    outcome = go(end)
    assert (outcome.status, outcome.reason) == ("failed", reason)


def test_what_cannot_be_sent_or_read_is_an_outcome():
    assert go(lambda: lambda: 0).reason.startswith("its result cannot be sent: ")
    outcome = go(Unreadable)
    assert outcome.status == "failed"
    assert outcome.reason == "its result cannot be read: ValueError('spoilt')"


class Unreadable:
    def __reduce__(self):
        return spoilt, ()


def spoilt():
    raise ValueError("spoilt")


def test_a_child_takes_no_more_memory_than_allowed():
    def take():
        return np.ones(2**28, dtype=np.int8).sum()

    assert go(take, memory_gib=0.1).status == "oom"
    for enough in (1.0, math.inf, None):
        assert go(take, memory_gib=enough).status == "ok"


def test_a_child_that_hangs_is_ended_in_time():
    def hang():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    start = time.monotonic()
    outcome = go(hang, seconds=0.5)
    assert 0.5 <= time.monotonic() - start < 2.5
    assert outcome.status == "timeout" and outcome.reason == "over its limit of 0.5 s"
    assert go(hang, seconds=-1) == Outcome(
        "not run", reason="not started: no time was left", cause="day"
    )


def test_a_child_stopped_is_ended_too():
    assert go(lambda: os.kill(os.getpid(), signal.SIGSTOP), seconds=0.5).status == "timeout"
    assert children_of_this() == []


@pytest.mark.parametrize("end", [lambda: time.sleep(60), os.abort, lambda: None])
def test_grandchildren_go_with_their_parent(tmp_path, end):
    go(lambda: spawn(tmp_path / "pid", and_then=end), seconds=2)
    assert die_soon(int((tmp_path / "pid").read_text()))


def test_a_crash_is_seen_although_a_grandchild_holds_the_pipe(tmp_path):
    start = time.monotonic()
    outcome = go(lambda: fork(tmp_path / "pid"))
    assert outcome.reason == "its process was killed by SIGABRT"
    assert time.monotonic() - start < 5
    assert die_soon(int((tmp_path / "pid").read_text()))


def test_a_child_is_none_of_the_parents_listeners(monkeypatch):
    """Nor does it read what is typed, nor get the terminal's interrupt."""
    before = signal.signal(signal.SIGTERM, lambda *_: 1 / 0)
    try:
        outcome = go(lambda: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome.reason == "its process was killed by SIGTERM"
    assert go(lambda: os.read(0, 10)).value == b""
    assert go(os.getpgrp).value != os.getpgrp()
    assert go(Path("/proc/self/oom_score_adj").read_text).value == "1000\n"


def test_the_parent_ticks_while_it_waits():
    ticks = []
    go(lambda: time.sleep(2.2), tick=lambda: ticks.append(time.monotonic()))
    assert len(ticks) >= 3
    assert all(b - a < 1 for a, b in zip(ticks, ticks[1:], strict=False))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_in_the_parent_leaves_no_child(tmp_path, error):
    def tick():
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise error

    def task():
        spawn(tmp_path / "pid", and_then=lambda: time.sleep(60))

    with pytest.raises(error):
        run_all(
            [(task, ()), (time.sleep, (60,)), (time.sleep, (60,))],
            processes=2,
            deadline=time.monotonic() + SOON,
            each_s=SOON,
            tick=tick,
        )
    assert children_of_this() == []
    assert die_soon(int((tmp_path / "pid").read_text()))


def test_a_stop_before_the_fork_is_noted_leaves_no_child(handlers, monkeypatch):
    """The kernel may give a signal to a library's thread, whose mask is its own."""

    def stop_it(parent):
        os.kill(parent, signal.SIGTERM)
        time.sleep(60)

    fork = forked_process._fork

    def fork_slowly():
        pid = fork()
        if pid:
            time.sleep(0.1)
        return pid

    monkeypatch.setattr(forked_process, "_fork", fork_slowly)
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    stop.raise_when_told()
    try:
        with pytest.raises(stop.Stopped, match="SIGTERM"):
            go(stop_it, os.getpid())
        assert children_of_this() == []
    finally:
        over.set()
        thread.join()


def test_children_die_with_a_parent_that_is_killed(tmp_path):
    program = f"""
        import os, sys, time
        from pathlib import Path
        sys.path.insert(0, {os.getcwd()!r})
        from experiments.children import run_all

        def task(name):
            (Path({str(tmp_path)!r}) / name).write_text(str(os.getpid()))
            time.sleep(60)

        deadline = time.monotonic() + 60
        run_all([(task, ("a",)), (task, ("b",))], processes=2, deadline=deadline, each_s=60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    end = time.monotonic() + SOON
    files = [tmp_path / "a", tmp_path / "b"]
    while not all(f.exists() and f.read_text() for f in files) and time.monotonic() < end:
        time.sleep(0.05)
    pids = [int(f.read_text()) for f in files]
    assert all(is_alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    assert all(die_soon(pid) for pid in pids)


def test_all_kinds_of_children_at_once(tmp_path):
    tasks = [
        (time.sleep, (60,)),
        (os.abort, ()),
        (np.ones, (2**32,)),
        (spawn, (tmp_path / "pid",)),
        ("grid.names", ()),
        (pow, (2, 10)),
    ]
    start = time.monotonic()
    outcomes = run_all(
        tasks, processes=3, deadline=start + SOON, each_s=1.5, memory_gib=1.0, tick=None
    )
    assert 1.5 <= time.monotonic() - start < 6
    statuses = [outcome.status for outcome in outcomes]
    assert statuses == ["timeout", "failed", "oom", "ok", "ok", "ok"]
    assert outcomes[5].value == 1024 and outcomes[0].reason == "over its limit of 1.5 s"
    assert die_soon(outcomes[3].value)
    assert children_of_this() == []


def test_no_more_run_at_once_than_asked_for(tmp_path):
    def note(number):
        begin = time.monotonic()
        time.sleep(0.2)
        return begin, time.monotonic()

    outcomes = run_all(
        [(note, (i,)) for i in range(5)],
        processes=2,
        deadline=time.monotonic() + SOON,
        each_s=SOON,
    )
    spans = [outcome.value for outcome in outcomes]
    for begin, _ in spans:
        assert sum(b <= begin < e for b, e in spans) <= 2
    assert any(sum(b <= begin < e for b, e in spans) == 2 for begin, _ in spans)


def test_what_has_not_started_by_the_deadline_does_not():
    start = time.monotonic()
    outcomes = run_all(
        [(time.sleep, (60,)) for _ in range(3)], processes=2, deadline=start + 1, each_s=60
    )
    assert 1 <= time.monotonic() - start < 3
    assert [outcome.status for outcome in outcomes] == ["timeout", "timeout", "not run"]
    assert run_all([], processes=1, deadline=start, each_s=1) == []
    with pytest.raises(ValueError, match="processes=0: expected an integer >= 1"):
        run_all([], processes=0, deadline=start, each_s=1)


def test_a_fork_beside_threads_warns_nobody():
    import threading

    event = threading.Event()
    thread = threading.Thread(target=event.wait)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outcome = go(lambda: [f[0] for f in warnings.filters])
    finally:
        event.set()
        thread.join()
    assert outcome.status == "ok" and outcome.value[0] == "error"


def test_attempt_is_what_a_child_does():
    assert children.attempt(pow, (2, 3)) == ("ok", 8, None, None)
    assert children.attempt(pow, ("a", 3))[0] == "failed"
