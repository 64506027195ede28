"""Whatever befalls a case's process becomes a record."""

import errno
import os
import signal
import tempfile
import time
from types import SimpleNamespace

import pytest
import torch

from experiments import atomic_write, load
from experiments.grid import Limits
from experiments.machine import describe
from experiments.procedures import attention, ranks
from experiments.schema import Record
from models import UnsupportedBackend
from models.dilated_op import PASSES

QUICK = {"replicates": 1, "min_samples": 2, "max_samples": 3, "sample_seconds": 0.01}
VARIANTS = [
    "dense",
    "dense-eager",
    "dilated-gather",
    "dilated-sdpa",
    "head-partitioned",
    "multihead-dilated-sdpa",
    "block-sparse",
    "block-sparse-sdpa",
]
BACKENDS = {"dense-eager": "eager", "dilated-gather": "gather"}


@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_good_case_gives_a_valid_record(measure, variant, passes):
    result = measure(variant=variant, pass_=passes)
    checked = Record.model_validate(result)
    assert checked.status == "ok"
    assert 2 <= len(checked.replicates[0].samples_ms) <= 3
    assert checked.error.output.relative_rms <= 2 * checked.error.output.baseline_relative_rms
    assert (checked.error.gradient is None) == (passes == "forward")
    assert checked.error.rows_checked == 40
    assert checked.backend.startswith(BACKENDS.get(variant, "sdpa"))
    assert checked.ceilings.matmul_flops_per_s > 1e8 and checked.ceilings.copy_bytes_per_s > 1e8
    assert checked.useful_flops > 0 and 0 < checked.realised_density <= 1


def test_replicates_are_fresh_processes(measure, monkeypatch):
    real = attention.replicate

    def pids(*arguments):
        return {**real(*arguments), "samples_ms": [float(os.getpid())]}

    monkeypatch.setattr(attention, "replicate", pids)
    result = measure(Limits(**{**QUICK, "replicates": 3}))
    pids = {replicate["samples_ms"][0] for replicate in result["replicates"]}
    assert len(pids) == 3 and os.getpid() not in pids


def test_a_wrong_output_is_failed_and_not_timed(measure, monkeypatch):
    forward, backward = PASSES["cpu-flash"]

    def slightly_wrong(*arguments):
        out, lse = forward(*arguments)
        return out * (1 + 1e-5), lse

    monkeypatch.setitem(PASSES, "cpu-flash", (slightly_wrong, backward))
    result = measure()
    assert (result["status"], result["replicates"]) == ("failed", [])
    assert result["reason"].startswith("output: relative error 1.0")
    Record.model_validate(result)


def test_a_wrong_gradient_is_failed(measure, monkeypatch):
    forward, backward = PASSES["cpu-flash"]

    def wrong_gradient(*arguments):
        dq, dk, dv = backward(*arguments)
        return dq, dk * (1 + 1e-4), dv

    monkeypatch.setitem(PASSES, "cpu-flash", (forward, wrong_gradient))
    assert measure()["status"] == "ok"
    result = measure(pass_="forward_backward")
    assert result["status"] == "failed" and result["reason"].startswith("gradient: ")


def test_what_no_backend_can_is_unsupported_and_still_counted(measure):
    result = measure(variant="dense-cudnn", batch=2, seq_len=40, heads=4, head_dim=8)
    assert (result["status"], result["backend"]) == ("unsupported", None)
    assert result["reason"] == "sdpa-cudnn: needs a CUDA device"
    assert result["useful_flops"] == 4 * 8 * 2 * 4 * 40 * 41 // 2
    assert (result["realised_density"], result["ceilings"]) == (1.0, None)
    Record.model_validate(result)


def test_the_parent_builds_nothing(measure, monkeypatch):
    parent, real = os.getpid(), attention.build

    def build(*arguments):
        assert os.getpid() != parent
        return real(*arguments)

    monkeypatch.setattr(attention, "build", build)
    result = measure(variant="block-sparse", seq_len=512, pattern="strided", sparsity=0.75)
    assert result["status"] == "ok"
    assert abs(result["realised_density"] - 0.25) < 1 / 32


def test_out_of_memory_is_a_result(measure):
    limits = Limits(**QUICK, memory_gib=0.1)
    big = {"seq_len": 8192, "heads": 8, "kv_heads": 8, "segment_lengths": (8192,)}
    result = measure(limits, variant="dilated-gather", dilation_rates=(1,), **big)
    assert result["status"] == "oom" and "memory" in result["reason"]
    Record.model_validate(result)


def test_what_the_oracle_cannot_do_is_no_result_of_the_variant(measure, monkeypatch):
    def fail(*_):
        raise MemoryError("can't allocate memory")

    monkeypatch.setattr(attention, "make_reference", fail)
    result = measure()
    assert result["status"] == "failed"
    assert result["reason"] == "no reference to check against: can't allocate memory"


def test_a_case_over_its_limit_is_a_result(measure, monkeypatch):
    monkeypatch.setattr(attention, "replicate", lambda *_: time.sleep(60))
    start = time.monotonic()
    result = measure(Limits(**QUICK, timeout_s=1.5))
    assert time.monotonic() - start < 10
    assert result["status"] == "timeout" and result["reason"].startswith("over its limit of 1.5 s")
    Record.model_validate(result)


def test_time_running_out_keeps_the_replicates_there_are(measure, monkeypatch):
    real, calls = attention.replicate, []

    def slower_and_slower(*arguments):
        result = real(*arguments)
        if os.path.exists(calls[0]):
            time.sleep(60)
        open(calls[0], "w").close()
        return result

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        calls.append(os.path.join(folder, "once"))
        monkeypatch.setattr(attention, "replicate", slower_and_slower)
        result = measure(Limits(**{**QUICK, "replicates": 3}, timeout_s=3))
    assert result["status"] == "ok" and len(result["replicates"]) == 1


@pytest.mark.parametrize(
    ("number", "told", "cause"),
    [
        (signal.SIGKILL, "killed by SIGKILL", "day"),
        (signal.SIGTERM, "killed by SIGTERM", "day"),
        (signal.SIGSEGV, "killed by SIGSEGV", "case"),
    ],
)
def test_a_killed_process_is_a_result(measure, monkeypatch, number, told, cause):
    monkeypatch.setattr(attention, "replicate", lambda *_: os.kill(os.getpid(), number))
    result = measure()
    assert (result["status"], result["cause"]) == ("failed", cause) and told in result["reason"]
    Record.model_validate(result)


@pytest.mark.parametrize("stage", ["make_reference", "replicate"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "reference.pt"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "reference.pt"),
        RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_full_disk_is_told_and_is_of_the_day(measure, monkeypatch, stage, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(attention, stage, fail)
    result = measure()
    assert (result["status"], result["cause"]) == ("failed", "day")
    assert result["reason"].startswith("disk full: ")
    Record.model_validate(result)


def test_a_full_folder_of_temporary_files_is_named(monkeypatch):
    full = SimpleNamespace(f_bavail=0, f_files=0, f_favail=0)
    monkeypatch.setattr(atomic_write.os, "statvfs", lambda _: full)
    assert atomic_write.full_disk() == tempfile.gettempdir()
    full.f_bavail = 1
    assert atomic_write.full_disk() is None
    full.f_files = 100
    assert atomic_write.full_disk() == tempfile.gettempdir()


@pytest.mark.parametrize(("is_busy", "cause"), [(False, "case"), (True, "day")])
def test_a_time_out_is_of_the_day_where_others_worked(measure, monkeypatch, is_busy, cause):
    monkeypatch.setattr(attention, "replicate", lambda *_: time.sleep(60))
    monkeypatch.setattr(load.Start, "was_busy", lambda _: is_busy)
    result = measure(Limits(**QUICK, timeout_s=0.8))
    assert (result["status"], result["cause"]) == ("timeout", cause)
    assert ("while others used the processors" in result["reason"]) == is_busy


@pytest.mark.parametrize(("free", "cause"), [(0.9, "case"), (0.3, "day")])
def test_out_of_memory_is_of_the_day_where_others_had_it(measure, monkeypatch, free, cause):
    def fail(*_):
        raise MemoryError

    whole = describe("cpu").memory_bytes
    monkeypatch.setattr(attention, "replicate", fail)
    monkeypatch.setattr(load, "free_bytes", lambda: int(free * whole))
    result = measure()
    assert (result["status"], result["cause"]) == ("oom", cause)
    assert ("GiB could be taken" in result["reason"]) == (cause == "day")


def test_inputs_larger_than_memory_are_out_of_memory(measure, monkeypatch):
    def nothing(*_):
        raise AssertionError("nothing is to be made")

    monkeypatch.setattr(attention, "make_reference", nothing)
    huge = 2**31
    result = measure(variant="dense", batch=64, seq_len=huge, heads=4, kv_heads=2, head_dim=8)
    taken = 64 * huge * (4 + 2 * 2) * 8 * 4 / 2**30
    assert (result["status"], result["cause"]) == ("oom", "case")
    assert result["reason"].startswith(f"its inputs alone take {taken:,.3g} GiB, and ")
    Record.model_validate(result)


def test_ranks_leave_no_temporary_folder_when_they_are_killed(measure, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ranks, "_rank", lambda *_: time.sleep(60))
    ring = {"variant": "ring-standard", "world_size": 2, "simulated": False, "kv_heads": 4}
    result = measure(Limits(**QUICK, timeout_s=1.5), **ring)
    assert result["status"] == "timeout" and tempfile.tempdir == str(tmp_path)
    assert [*tmp_path.rglob("attention-ranks-*")] == []
    assert [*(tmp_path / f"attention-{os.getuid()}/temporary").iterdir()] == []


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (UnsupportedBackend("sdpa: not on this card"), "unsupported", "sdpa: not on this card"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "oom", "CUDA out of memory"),
        (RuntimeError("odd\nmore"), "failed", "RuntimeError: odd"),
    ],
)
def test_errors_become_statuses(measure, monkeypatch, error, status, reason):
    def fail(*_):
        raise error

    monkeypatch.setattr(attention, "replicate", fail)
    result = measure()
    assert (result["status"], result["reason"]) == (status, reason)
    Record.model_validate(result)


def test_a_record_names_the_command_that_makes_it_alone(measure, case):
    command = measure()["command"]
    assert command == f"python -m experiments run --tier smoke --case {case().name}"
