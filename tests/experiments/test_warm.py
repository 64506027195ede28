"""A warm process does what a cold one does, and is gone with whoever called it."""

import array
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import warm

ROOT = Path(__file__).parents[2]
CASE = "dense_b1_n128_h4_d16_float32_forward"
# Minutes of work, in one process.
BRANCHES = "w2048+8192+32768+1048576_r1+4+16+512"
LONG = f"dilated-streamed_b1_n1048576_h8_d64_float32_causal_forward_{BRANCHES}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The sources alone: a server of their own."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("experiments", "models"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"experiments{name}", *arguments]


def run(copy: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(name, *arguments), cwd=copy, capture_output=True, text=True)


def test_it_measures_as_a_cold_process_does(copy, tmp_path):
    records = {}
    for name in ("", ".warm"):
        out = tmp_path / (name or "cold")
        asked = ("run", "--tier", "smoke", "--case", CASE, "--out", str(out))
        done = run(copy, name, *asked)
        assert done.returncode == 0, done.stderr
        assert "[round-1, 1/1, " in done.stderr and done.stdout == ""
        (path,) = out.rglob("*.json")
        records[name] = json.loads(path.read_text())
    cold, other = records[""], records[".warm"]
    for key in ("case", "status", "error", "useful_flops", "software", "machine", "command"):
        assert cold[key] == other[key], key


def test_output_and_exit_status_are_those_of_the_command(copy):
    for asked in (("list",), ("run", "nothing"), ("plan", "dilated", "--only", "size=3"), ("no",)):
        cold, other = (run(copy, name, *asked) for name in ("", ".warm"))
        assert (cold.returncode, cold.stdout) == (other.returncode, other.stdout), asked
        assert cold.stderr.splitlines()[-1:] == other.stderr.splitlines()[-1:]


def test_one_server_answers_until_the_files_change(copy, monkeypatch):
    monkeypatch.setattr(warm, "ROOT", copy)
    before = warm._address(warm.MEASURING)
    assert run(copy, ".warm", "list").returncode == 0
    assert before.exists() and warm._address(warm.MEASURING) == before
    grid = copy / "experiments/dilated.yaml"
    grid.write_text(grid.read_text().replace("title: ", "title: Edited, ", 1))
    assert warm._address(warm.MEASURING) != before
    assert "Edited, " in run(copy, ".warm", "list").stdout


def test_a_caller_that_goes_before_it_has_asked_leaves_nothing_at_work(copy, monkeypatch):
    monkeypatch.setattr(warm, "ROOT", copy)
    assert run(copy, ".warm", "list").returncode == 0
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(warm._address(warm.MEASURING)))
        streams = array.array("i", [1, 2])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)]
        caller.sendmsg([(1000).to_bytes(4, "big")], ancillary)
        caller.sendall(b"{")
        caller.shutdown(socket.SHUT_WR)
        # Its fork says so and ends.
        assert caller.recv(1) == b"\x01"


def test_a_server_is_of_its_limits_and_its_job(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    found = [warm._address(warm.MEASURING)]
    for number in ("7", "8"):
        monkeypatch.setenv("SLURM_JOB_ID", number)
        found.append(warm._address(warm.MEASURING))
    monkeypatch.setattr(warm.os, "sched_getaffinity", lambda _: {0})
    found.append(warm._address(warm.MEASURING))
    before = os.umask(0o027)
    found.append(warm._address(warm.MEASURING))
    os.umask(before)
    assert len(set(found)) == 5


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_it_runs_ends_with_the_caller(copy, tmp_path, how):
    asked = ("run", "--tier", "laptop", "--case", LONG, "--out", str(tmp_path))
    caller = subprocess.Popen(
        command(".warm", *asked),
        cwd=copy,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while ", 1/1, " not in caller.stderr.readline():
        assert caller.poll() is None
    time.sleep(0.5)  # The case is under way.
    begin = time.monotonic()
    caller.send_signal(how)
    # The end of the stream: nobody is left who could write to it.
    caller.stderr.read()
    assert time.monotonic() - begin < 20
    caller.wait(20)
    assert list(tmp_path.rglob("*.json")) == []
