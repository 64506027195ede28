"""Snakemake is stopped at any moment, its lock ends with it, and a dry run writes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import ROOT, snakemake
from tests.pipeline.kills import torture

pytestmark = pytest.mark.pipeline

# Jobs so short that Snakemake itself is nearly always at work.
SNAKEFILE = f"""
import sys

sys.path.insert(0, "{ROOT}")

include: "{ROOT}/rules/one_run.smk"

onstart:
    lock_run()

rule all:
    input: expand("out/{{n}}", n=range(300))

rule one:
    output: "out/{{n}}"
    shell: "touch {{output}}"
"""
# Snakemake is imported once, and each run is a fork.
STOPS = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import snakemake.cli
draw, found = random.Random(int(sys.argv[1])), []
for number in range(int(sys.argv[2])):
    shutil.rmtree("out", ignore_errors=True)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for stream in (1, 2):
            os.dup2(os.open("told", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream)
        snakemake.cli.main(["--cores", "4", "--nolock", "--rerun-incomplete"])
        os._exit(99)
    while not Path("out/1").exists():
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.7))
    os.kill(pid, getattr(signal, sys.argv[3]))
    end, status = time.monotonic() + 25, None
    while status is None and time.monotonic() < end:
        done, code = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
        time.sleep(0.005)
    if status is None:
        os.killpg(pid, signal.SIGKILL)
    found.append([status, Path("told").read_text().strip().splitlines()[-1]])
print(json.dumps(found))
"""


@pytest.mark.parametrize(("name", "times"), [("SIGTERM", 30), ("SIGHUP", 3), ("SIGINT", 3)])
def test_a_signal_at_any_moment_ends_it(tmp_path, name, times):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    done = subprocess.run(
        [sys.executable, "-c", STOPS, "7", str(times), name],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    told = f"stopped by {name}: what is done is kept, and the same command goes on"
    assert json.loads(done.stdout) == [[128 + getattr(signal, name), told]] * times, done.stderr


def test_one_run_at_a_time_and_a_killed_one_holds_nothing(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE.replace("touch", "sleep 30; touch"))
    command = [str(Path(sys.executable).with_name("snakemake")), "--cores", "1", "--nolock"]
    first = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    lock = tmp_path / ".snakemake/run.lock"
    try:
        while not (lock.exists() and lock.read_text()):
            assert first.poll() is None
            time.sleep(0.05)
        second = snakemake(tmp_path, "--cores", "1", "--nolock")
        assert second.returncode == 1
        told = f"another run works in this folder (process {first.pid}): wait until it ends"
        assert told in second.stdout
    finally:
        first.kill()
        first.wait()
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    done = snakemake(tmp_path, "--cores", "4", "--nolock", "--rerun-incomplete", "out/5")
    assert done.returncode == 0 and (tmp_path / "out/5").exists(), done.stdout


def test_killed_runs_lose_nothing_and_one_command_goes_on(tmp_path):
    found = torture(tmp_path, only="dilated", count=4, seed=5)
    assert found.wrong == [] and sum(found.tried.values()) == 4
    assert os.environ.get("ATTENTION_KILLS") is None
