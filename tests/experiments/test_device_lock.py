"""One job per device, and a lock that ends with its holder however that ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import device_lock, machine, private_folder
from experiments.machine import DeviceError, Gpu

HOLD = """
import sys, time
from pathlib import Path
from experiments import private_folder
from experiments.device_lock import hold
private_folder.SHARED = Path(sys.argv[2])
with hold("cpu"):
    print("held", time.time(), flush=True)
    time.sleep(float(sys.argv[1]))
    print("left", time.time(), flush=True)
"""


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Leases of these tests do not meet those of a run that goes on beside them."""
    monkeypatch.setattr(private_folder, "SHARED", tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def holder(seconds):
    command = [sys.executable, "-c", HOLD, str(seconds), str(private_folder.SHARED)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_locks_of_one_device_do_not_overlap(own_folder):
    jobs = [holder(0.3) for _ in range(3)]
    spans = []
    for job in jobs:
        held, left = (float(line.split()[1]) for line in job.communicate()[0].splitlines())
        spans.append((held, left))
    spans.sort()
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_a_killed_holder_frees_its_device(own_folder):
    job = holder(60)
    assert job.stdout.readline().startswith("held")
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    start = time.monotonic()
    with holder(0) as successor:
        assert successor.stdout.readline().startswith("held")
    assert time.monotonic() - start < 10


def test_any_free_gpu_is_taken_and_shown_alone(own_folder, monkeypatch):
    cards = tuple(Gpu(str(i), f"GPU-{i}a", "NVIDIA H100", "580", 80 * 2**30) for i in range(2))
    monkeypatch.setattr(device_lock, "gpus", lambda: cards)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with device_lock.hold("cuda") as first:
        assert (first, os.environ["CUDA_VISIBLE_DEVICES"]) == ("cuda:0", "GPU-0a")
        with device_lock.hold("cuda") as second:
            assert (second, os.environ["CUDA_VISIBLE_DEVICES"]) == ("cuda:1", "GPU-1a")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_machine_and_device_choice(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert machine.choose_device(None) == "cpu"
    with pytest.raises(DeviceError, match="--device cuda:3: not here; there is cpu"):
        machine.choose_device("cuda:3")
    cards = (Gpu("1", "GPU-b", "NVIDIA H200", "580.1", 141 * 2**30),)
    monkeypatch.setattr(machine, "gpus", lambda: cards)
    assert machine.choose_device(None) == "cuda"
    here = machine.describe("cuda:1")
    assert here.id.startswith("nvidia-h200-") and here.device_memory_bytes == 141 * 2**30
    assert machine.describe("cpu").id != here.id and machine.describe("cpu") == machine.describe(
        "cpu"
    )
