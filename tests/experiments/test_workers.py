"""References in one lasting process, replicates in processes made ahead; contexts are stand-ins."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import device_lock, runner
from experiments import grid as grids
from experiments.grid import Limits
from experiments.machine import describe
from experiments.procedures import attention, choose, ranks
from experiments.supervise import Account, supervise
from experiments.workers import Context, Workers
from tests.experiments.test_children import children_of_this, die_soon, is_alive

THREE = Limits(replicates=3, min_samples=2, max_samples=3, sample_seconds=0.01, timeout_s=60)
NEAR = {"max_abs": 0.0, "relative_rms": 0.0, "baseline_relative_rms": 0.0}
ERROR = {"reference": "none", "rows_checked": 1, "output": NEAR, "gradient": None}
DONE = {"samples_ms": [1.0], "peak_memory_bytes": 1, "error": ERROR}
KNOWN = {
    "backend": "sdpa-math",
    "realised_density": 1.0,
    "useful_flops": 1,
    "ceilings": {"matmul_flops_per_s": 1.0, "copy_bytes_per_s": 1.0},
}


class Log:
    """Events of all processes in one file: (seconds, name, process) in the order written."""

    def __init__(self, path: Path):
        self.path = path
        path.touch()

    def __call__(self, name: str) -> None:
        line = f"{time.monotonic()} {name} {os.getpid()}\n"
        with self.path.open("a") as file:
            file.write(line)

    def events(self) -> list[tuple[str, int]]:
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [(name, int(pid)) for _, name, pid in lines]

    def pids(self, name: str) -> list[int]:
        return [pid for event, pid in self.events() if event == name]


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "log")


@pytest.fixture
def work(monkeypatch, log):
    """Put `reference` and `replicate`, functions of the case, for the real ones; logged."""

    def put(reference=lambda case: None, replicate=lambda case: None, module=attention):
        def make_reference(case, device, path, kept):
            log("reference")
            reference(case)
            log("reference-ends")
            return dict(KNOWN)

        def make_replicate(case, device, path, limits):
            log("samples")
            replicate(case)
            log("samples-end")
            return dict(DONE)

        monkeypatch.setattr(module, "make_reference", make_reference)
        monkeypatch.setattr(module, "replicate", make_replicate)

    return put


@pytest.fixture
def workers(log):
    with Workers(Context(lambda: log("context"), lambda: log("give-back"))) as workers:
        yield workers
    assert children_of_this() == []


@pytest.fixture
def go(case, workers):
    def run(limits=THREE, *, workers=workers, tick=None, account=None, **changes):
        what = ("smoke", case(**changes), limits, describe("cpu"), "0" * 16)
        procedure = choose(what[1].variant)
        known = {"procedure": procedure, "ceilings": KNOWN["ceilings"]}
        return supervise(*what, **known, workers=workers, tick=tick, account=account)

    return run


def keeper_of(workers):
    return workers._reference_worker._process.pid


def test_the_real_work_gives_the_record_of_plain_forks(go):
    ours, plain = go(), go(workers=None)
    for result in (ours, plain):
        assert result["status"] == "ok" and len(result["replicates"]) == 3
    for key in ("case", "error", "useful_flops", "realised_density", "backend"):
        assert ours[key] == plain[key]


def test_one_reference_worker_makes_all_references_and_each_replicate_is_a_process(go, work, log):
    work()
    for seed in range(3):
        assert go(seed=seed)["status"] == "ok"
    assert len(set(log.pids("reference"))) == 1 and len(log.pids("reference")) == 3
    assert len(set(log.pids("samples"))) == len(log.pids("samples")) == 9
    assert log.pids("give-back") == log.pids("reference")
    # One context each, and no process that was not needed.
    assert sorted(log.pids("context")) == sorted({*log.pids("reference"), *log.pids("samples")})


def test_contexts_are_made_ahead_but_never_while_samples_are_taken(go, work, log):
    work(lambda _: time.sleep(0.5), lambda _: time.sleep(0.3))
    go()
    events = log.events()
    names = [name for name, _ in events]
    reference_worker = log.pids("reference")[0]
    first = events.index(("context", log.pids("samples")[0]))
    assert names.index("reference") < first < names.index("reference-ends")
    for number, pid in enumerate(log.pids("samples")[1:], start=1):
        made = events.index(("context", pid))
        before = log.pids("samples")[number - 1]
        assert events.index(("samples-end", before)) < made < events.index(("samples", pid))
    assert events.index(("give-back", reference_worker)) < names.index("samples")
    sampling = False
    for name, _ in events:
        assert not (sampling and name == "context")
        sampling = {"samples": True, "samples-end": False}.get(name, sampling)


def test_no_process_is_left_after_a_case_but_the_idle_reference_worker(go, work, log, workers):
    work()
    for replicates in (1, 3):
        go(replace(THREE, replicates=replicates))
        assert children_of_this() == [str(keeper_of(workers))]


@pytest.mark.parametrize("end", ["SIGKILL", "SIGABRT", "memory", "hang", "error"])
def test_a_reference_worker_that_failed_is_thrown_away(go, work, log, workers, end):
    def fail(case):
        if case.seed != 1:
            return
        if end == "memory":
            raise MemoryError("no more")
        if end == "error":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if end == "hang":
            time.sleep(60)
        os.kill(os.getpid(), getattr(signal, end))

    work(fail)
    assert go(seed=0)["status"] == "ok"
    result = go(replace(THREE, timeout_s=1.5 if end == "hang" else 60), seed=1)
    assert result["status"] == "failed"
    told = {
        "memory": "no reference to check against: no more",
        "hang": "no reference to check against: over its limit of 1.5 s",
        "error": "RuntimeError: CUDA error: an illegal memory access was encountered",
    }
    assert result["reason"].startswith(told.get(end, f"its process was killed by {end}"))
    assert go(seed=2)["status"] == "ok"
    first, failed, other = log.pids("reference")
    assert first == failed != other and die_soon(failed)


def test_a_reference_worker_that_cannot_is_kept(go, work, log):
    def cannot(case):
        from models import UnsupportedBackend

        raise UnsupportedBackend("not here")

    work(cannot)
    results = [go(seed=seed) for seed in range(2)]
    assert {(r["status"], r["reason"]) for r in results} == {("unsupported", "not here")}
    assert len(set(log.pids("reference"))) == 1


def test_a_reference_worker_that_died_between_cases_is_replaced(go, work, log, workers):
    work()
    go(seed=0)
    os.kill(keeper_of(workers), signal.SIGKILL)
    assert go(seed=1)["status"] == "ok"
    assert len(set(log.pids("reference"))) == 2


def test_memory_that_is_not_given_back_is_a_failure(go, work, log):
    def fail():
        raise RuntimeError("CUDA error: launch failed")

    work()
    with Workers(Context(lambda: None, fail)) as workers:
        result = go(workers=workers)
    assert result["reason"] == "RuntimeError: CUDA error: launch failed"


def test_a_reference_worker_sees_the_cards_of_its_case(go, work, log, monkeypatch):
    work()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    go(seed=0)
    go(seed=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    go(seed=2)
    one, same, other = log.pids("reference")
    assert one == same != other


def test_a_standby_that_is_killed_is_replaced(go, work, log, workers):
    def kill_standbys(case):
        # The standby is the newest process of the parent; this is the reference worker.
        end = time.monotonic() + 5
        while len(log.pids("context")) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(log.pids("context")[1], signal.SIGKILL)

    work(kill_standbys)
    result = go()
    assert result["status"] == "ok" and len(result["replicates"]) == 3
    killed = log.pids("context")[1]
    assert killed not in log.pids("samples") and len(set(log.pids("samples"))) == 3


def test_a_context_that_cannot_be_made_is_told(go, work, log):
    def fail():
        log("context")
        raise RuntimeError("CUDA error: device busy")

    work()
    with Workers(Context(fail, lambda: None)) as workers:
        result = go(workers=workers)
    assert (result["status"], result["reason"]) == (
        "failed",
        "RuntimeError: CUDA error: device busy",
    )
    assert len(log.pids("context")) == 2 and log.pids("reference") == []


def test_a_context_that_hangs_is_over_its_limit(go, work):
    work()
    start = time.monotonic()
    with Workers(Context(lambda: time.sleep(60), lambda: None)) as workers:
        result = go(replace(THREE, timeout_s=1), workers=workers)
    assert result["reason"].startswith("no reference to check against: over its limit of 1 s")
    assert time.monotonic() - start < 4


def test_a_failed_replicate_leaves_no_standby(go, work, log, workers):
    def fail(case):
        raise ValueError("odd")

    work(replicate=fail)
    assert go()["reason"] == "ValueError: odd"
    assert children_of_this() == [str(keeper_of(workers))]
    assert len(log.pids("samples")) == 1


def test_ranks_start_in_a_process_without_a_context(go, work, log):
    work(module=ranks)
    result = go(variant="ring-standard", world_size=1, simulated=False)
    assert result["status"] == "ok"
    assert log.pids("context") == log.pids("reference")
    assert not set(log.pids("context")) & set(log.pids("samples"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("stage", ["reference", "samples"])
def test_an_exception_in_the_parent_leaves_no_process_at_work(go, work, log, workers, error, stage):
    def slow(case):
        time.sleep(60 if case.seed == 0 else 0)

    def tick():
        if log.pids(stage):
            raise error

    work(**{{"reference": "reference", "samples": "replicate"}[stage]: slow})
    with pytest.raises(error):
        go(tick=tick)
    assert all(die_soon(pid) for pid in log.pids("samples"))
    left = children_of_this()
    assert left == ([] if stage == "reference" else [str(keeper_of(workers))])
    # What an interrupted process would have said is nobody's answer.
    assert go(seed=1)["status"] == "ok"


def test_all_die_with_a_parent_that_is_killed(tmp_path):
    program = f"""
        import os, sys, time
        from pathlib import Path
        sys.path.insert(0, {os.getcwd()!r})
        from experiments.workers import Context, Workers

        folder = Path({str(tmp_path)!r})
        make = lambda: (folder / str(os.getpid())).touch()
        with Workers(Context(make, lambda: None)) as workers:
            deadline = time.monotonic() + 60
            workers.reference(time.sleep, (60,), deadline=deadline)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    end = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2 and all(is_alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    assert all(die_soon(pid) for pid in pids)


def test_a_run_has_one_reference_worker_and_waits_for_no_lock_of_its_own(
    work, log, workers, tmp_path
):
    work()
    only = {"variant": "dense", "pass": "forward"}
    tasks = runner.select(grids.tasks("smoke", ["dilated"]), only)
    assert len(tasks) > 1
    ticks = []
    runner.run(
        tasks,
        "smoke",
        device="cpu",
        out=tmp_path / "out",
        workers=workers,
        tick=lambda: ticks.append(None),
    )
    assert len(log.pids("reference")) == len(tasks) and len(set(log.pids("reference"))) == 1
    assert len(ticks) >= len(tasks)
    with device_lock.hold("cpu") as held:
        assert held == "cpu" and is_alive(keeper_of(workers))


def test_an_account_says_where_the_time_went(go, work, monkeypatch):
    work(lambda _: time.sleep(0.4), lambda _: time.sleep(0.2))
    monkeypatch.setitem(DONE, "samples_ms", [50.0, 50.0])
    account = Account()
    result = go(account=account)
    spent = account.seconds
    assert spent["reference"] >= 0.4 and spent["samples"] == pytest.approx(0.3)
    assert spent["rest"] >= 0.3 and spent["processes"] > 0
    assert sum(spent.values()) <= result["wall_s"]
    assert [part.split()[0] for part in str(account).split(", ")] == list(spent)
    assert str(account).endswith(", samples 0.30 s")
