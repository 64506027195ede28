"""The nodes of the SLURM job that this process is in, and a step over them."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import time
from dataclasses import dataclass

from experiments.case import Case
from experiments.slurm import SlurmError, answer

# Seconds that a step may take to end.
_END_S = 30.0


@dataclass(frozen=True)
class Job:
    """A job of several nodes, of which this process is on the first.

    host: this node's name. cores: of the job on each node. address: this node's, to the others.
    step: what this run's steps are called, and nobody else's.
    """

    id: str
    host: str
    nodes: int
    cores: int
    address: str
    step: str


@dataclass(frozen=True)
class Nodes:
    """Those over which a ring is spread: as many ranks on each of them, each with a card.

    cards: how these are called: "cuda" or "stand-in". machine: the id that each node must have.
    """

    job: Job
    count: int
    ranks_of_each: int
    cards: str
    machine: str


def job() -> Job | None:
    """The job of several nodes that this process is in, on the first; None in no such job."""
    number, here = (os.environ.get(key) for key in ("SLURM_JOB_ID", "SLURMD_NODENAME"))
    if not number or not here:
        return None
    # Of an array all its jobs are listed.
    listed = answer(["squeue", "--noheader", f"--jobs={number}", "--format=%A %D %C %N"])
    told = next((row for row in map(str.split, listed.splitlines()) if row[:1] == [number]), [])
    if len(told) != 4 or int(told[1]) == 1:
        return None
    names = answer(["scontrol", "show", "hostnames", told[3]]).split()
    if names[0] != here:
        return None
    shown = answer(["scontrol", "--oneliner", "show", "node", names[-1]])
    other = re.search(r"\bNodeAddr=(\S+)", shown)
    address, step = _own_address(other and other[1]), f"attention-{secrets.token_hex(4)}"
    return Job(number, here, len(names), int(told[2]) // len(names), address, step)


def _own_address(other: str | None) -> str:
    """This host's IPv4 address on the way to another node; SlurmError where there is no way."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            # Sends nothing. By its own name many a host is 127.0.1.1 to itself.
            opened.connect((other, 9))
            return opened.getsockname()[0]
    except (OSError, TypeError) as error:
        raise SlurmError(f"no way to the node at {other}: {error}") from None


def nodes_of(case: Case, cards: int, there: int) -> int:
    """Over how many of `there` nodes with `cards` cards each a case is spread.

    As few as have a card for each of its ranks, as many ranks on each; 1 where it needs no other
    node, or where there are too few.
    """
    if not case.is_spread or case.world_size <= cards:
        return 1
    fitting = (
        count
        for count in range(2, there + 1)
        if case.world_size % count == 0 and case.world_size // count <= cards
    )
    return next(fitting, 1)


def step_over(nodes: Nodes) -> list[str]:
    """How a command begins that is to be run once on each of these nodes."""
    count = nodes.count
    return [
        *("srun", "--quiet", f"--jobid={nodes.job.id}", f"--job-name={nodes.job.step}"),
        # The supervisor may itself be a step, of the same cards and cores. From the first node on:
        # that is where it is.
        *("--overlap", f"--nodes={count}", "--relative=0", f"--ntasks={count}"),
        "--ntasks-per-node=1",
        *(f"--cpus-per-task={nodes.job.cores}", "--kill-on-bad-exit=1"),
    ]


def environment() -> dict[str, str]:
    """That of a step: of SLURM's variables, which would change what `step_over` asks, hardly any.

    Which of its cards a node gives to the step it says itself.
    """
    kept = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_CLUSTER_NAME")
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or not name.startswith(("SLURM_", "SRUN_", "CUDA_VISIBLE_DEVICES"))
    }


def end_steps(nodes: Nodes) -> None:
    """End what a ring has left, and wait: SLURM goes on with a step whose `srun` was killed.

    Where SLURM does not answer it says so: what was measured is no less a result.
    """
    asked = ["squeue", "--steps", "--noheader", f"--jobs={nodes.job.id}", "--format=%i %j"]
    try:
        end = time.monotonic() + _END_S
        while time.monotonic() < end:
            lines = [line.split() for line in answer(asked).splitlines()]
            steps = [line[0] for line in lines if line[1:] == [nodes.job.step]]
            if not steps:
                return
            answer(["scancel", "--signal=KILL", *steps])
            time.sleep(0.2)
        print("    ranks on other nodes go on", file=sys.stderr, flush=True)
    except SlurmError as error:
        print(f"    {error}: ranks on other nodes may go on", file=sys.stderr, flush=True)
