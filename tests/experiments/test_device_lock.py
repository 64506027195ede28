"""One job per device, and a lock that ends with its holder however that ends."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from experiments import cards, device_lock, machine, private_folder
from experiments.cards import DeviceError, Gpu

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


H100 = tuple(Gpu(str(i), f"GPU-{i}a", "NVIDIA H100", "580", 80 * 2**30) for i in range(4))


def shown():
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_any_free_gpu_is_taken_and_shown_alone(own_folder, monkeypatch, put):
    put(*H100[:2])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with device_lock.hold("cuda") as first:
        assert (first, shown()) == ("cuda:0", "GPU-0a")
        with device_lock.hold("cuda") as second:
            assert (second, shown()) == ("cuda:1", "GPU-1a")
    assert shown() == "0,1"


def test_a_ring_holds_its_cards_together(own_folder, put):
    put(*H100)
    with device_lock.hold("cuda:1", 3) as alone:
        # One that is named is that one.
        assert (alone, shown()) == ("cuda:1", "GPU-1a")
        with device_lock.hold("cuda:2"), device_lock.hold("cuda:0"):
            pass
    with device_lock.hold("cuda", 2) as first:
        assert (first, shown()) == ("cuda:0", "GPU-0a,GPU-1a")
        with device_lock.hold("cuda") as third:
            assert (third, shown()) == ("cuda:2", "GPU-2a")


def test_cards_of_another_kind_are_left_alone(own_folder, put):
    put(H100[0], replace(H100[1], name="NVIDIA A2"), H100[2])
    with device_lock.hold("cuda"), device_lock.hold("cuda") as second:
        assert second == "cuda:2"


def test_a_card_counted_otherwise_is_the_same_card(own_folder, put):
    """In a job's cgroup the card that it was given is the first."""
    put(*H100)
    with device_lock.hold("cuda:2"):
        put(replace(H100[2], index="0"))
        ticks = []

        def give_up():
            ticks.append(1)
            raise TimeoutError

        with pytest.raises(TimeoutError), device_lock.hold("cuda:0", tick=give_up):
            pass
    assert ticks == [1]


USE = """
import sys, time
from pathlib import Path
from experiments import private_folder
from experiments.device_lock import hold
private_folder.SHARED = Path(sys.argv[1])
for _ in range(4):
    with hold("stand-in", int(sys.argv[2])) as held:
        import os
        print("held", time.time(), os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
        time.sleep(0.02)
        print("left", time.time(), os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
"""


def test_many_jobs_share_a_pool_and_no_card_is_held_twice(own_folder, monkeypatch):
    monkeypatch.setenv(cards.STAND_INS, "4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", USE, str(private_folder.SHARED), str(count)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for count in (1, 1, 1, 2, 1, 3)
    ]
    events = []
    for job in jobs:
        for line in job.communicate()[0].splitlines():
            what, when, names = line.split()
            events += [(float(when), what == "held", name) for name in names.split(",")]
    held = set()
    for _, begins, name in sorted(events):
        assert (name in held) != begins
        held ^= {name}
    assert len(events) == 2 * 4 * (1 + 1 + 1 + 2 + 1 + 3) and not held
    # The fourth is held where enough jobs meet, which is as it happens.
    used = {name for *_, name in events}
    assert len(used) >= 3 and used <= {f"stand-in-{number}" for number in range(4)}


def test_machine_and_device_choice(put):
    put()
    assert machine.choose_device(None) == "cpu"
    with pytest.raises(DeviceError, match="--device cuda:3: not here; there is cpu"):
        machine.choose_device("cuda:3")
    put(Gpu("1", "GPU-b", "NVIDIA H200", "580.1", 141 * 2**30))
    assert machine.choose_device(None) == "cuda"
    here = machine.describe("cuda:1")
    assert here.id.startswith("nvidia-h200-") and here.device_memory_bytes == 141 * 2**30
    # What a scheduler gives to a job beside the card is no other machine.
    assert replace(here, cores=here.cores + 1, memory_bytes=1).id == here.id
    assert machine.describe("cpu").id != here.id and machine.describe("cpu") == machine.describe(
        "cpu"
    )
