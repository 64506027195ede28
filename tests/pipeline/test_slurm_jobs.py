"""What Snakemake submits to SLURM, by programs that stand for SLURM's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import grid, rounds
from tests.pipeline.conftest import fresh_copy

pytestmark = pytest.mark.pipeline
MACHINE = '{"id": "nvidia-h100-123456", "device": "NVIDIA H100"}'
PROGRAMS = {
    "srun": f"echo '{MACHINE}'",
    "sinfo": 'printf "node0 gpu:h100:1\\nnode1 gpu:h100:1\\n"',
    # Refuses each job, once it has noted it.
    "sbatch": 'printf "%s\\n===\\n" "$*" >> $(dirname $0)/submitted; exit 1',
    **dict.fromkeys(("squeue", "scancel", "sacct", "sacctmgr", "scontrol"), "exit 0"),
}


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    """The arguments of each submission of a smoke tier, on two nodes of one card each."""
    folder = tmp_path_factory.mktemp("submitted")
    copy = fresh_copy(folder / "copy")
    (folder / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    python = Path(sys.executable).parent
    path = os.pathsep.join([str(folder / "bin"), str(python), os.environ["PATH"]])
    command = ["experiments", "--workflow-profile", "profiles/slurm", "--retries", "0"]
    subprocess.run(
        [str(python / "snakemake"), *command, "--config", "tier=smoke"],
        env={**os.environ, "PATH": path, "PYTHONPATH": ""}, cwd=copy, capture_output=True,
    )  # fmt: skip
    return (folder / "bin/submitted").read_text().split("\n===\n")[:-1]


def cases_of(job):
    return set(re.findall(r"[:,]case=([^', ]+)", job))


def test_each_case_is_in_one_job_and_a_shape_is_not_divided(submitted):
    jobs = [cases_of(job) for job in submitted]
    tasks = grid.tasks("smoke")
    assert sorted(name for names in jobs for name in names) == sorted(task.name for task in tasks)
    shapes = {}
    for task in tasks:
        if not task.case.is_spread:
            shapes.setdefault(rounds.shape_of(task.case), set()).add(task.name)
    # One has more cases than the profile would put into a job.
    assert max(map(len, shapes.values())) > 20
    for names in shapes.values():
        assert sum(bool(names & job) for job in jobs) == 1
    for job in jobs:
        assert len(job) <= 20 or job in shapes.values()
    assert len([job for job in jobs if len(job) > 1]) < len(shapes)


def test_a_ring_asks_for_a_card_for_each_rank_over_nodes_where_one_has_too_few(submitted):
    for job in submitted:
        names = cases_of(job)
        over_two = all(name.endswith("_p2") for name in names)
        assert ("--nodes=2" in job) == over_two and ("--nodes=1 " in job) != over_two
        if over_two:
            assert "--gres=gpu:1" in job and "--ntasks=2" in job and "--gpus" not in job
        else:
            assert "--gpus=1" in job and "--ntasks-per-gpu" not in job
