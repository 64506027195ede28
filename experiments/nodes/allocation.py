"""The nodes of the SLURM job that this process is in, and a step over them."""

from __future__ import annotations

import os
import re
import socket
import sys
from dataclasses import dataclass

from experiments.case import Case
from experiments.slurm import SlurmError, answer

# What steps of rings are called.
_STEP = "attention-ranks"


@dataclass(frozen=True)
class Job:
    """A job of several nodes, of which this process is on the first.

    cores: of the job on each node. address: this node's, to the others.
    """

    id: str
    nodes: int
    cores: int
    address: str


@dataclass(frozen=True)
class Nodes:
    """Those over which a ring is spread: as many ranks on each of them, each with a card.

    cards: how these are called: "cuda" or "stand-in".
    """

    job: Job
    count: int
    ranks_of_each: int
    cards: str


def job() -> Job | None:
    """The job of several nodes that this process is in, on the first; None in no such job."""
    number, here = (os.environ.get(key) for key in ("SLURM_JOB_ID", "SLURMD_NODENAME"))
    if not number or not here:
        return None
    told = answer(["squeue", "--noheader", f"--jobs={number}", "--format=%D %C %N"]).split()
    if len(told) != 3 or int(told[0]) == 1:
        return None
    names = answer(["scontrol", "show", "hostnames", told[2]]).split()
    if names[0] != here:
        return None
    shown = answer(["scontrol", "--oneliner", "show", "node", names[-1]])
    other = re.search(r"\bNodeAddr=(\S+)", shown)
    return Job(number, len(names), int(told[1]) // len(names), _own_address(other and other[1]))


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
        *("srun", "--quiet", f"--jobid={nodes.job.id}", f"--job-name={_STEP}"),
        # The supervisor may itself be a step, of the same cards and cores.
        *("--overlap", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"),
        *(f"--cpus-per-task={nodes.job.cores}", "--kill-on-bad-exit=1"),
    ]


def end_steps(nodes: Nodes) -> None:
    """End what a ring has left: SLURM goes on with a step whose `srun` was killed.

    Where SLURM does not answer it says so: what was measured is no less a result.
    """
    asked = ["squeue", "--steps", "--noheader", f"--jobs={nodes.job.id}", "--format=%i %j"]
    try:
        lines = [line.split() for line in answer(asked).splitlines()]
        steps = [line[0] for line in lines if line[1:] == [_STEP]]
        if steps:
            answer(["scancel", "--signal=KILL", *steps])
    except SlurmError as error:
        print(f"    {error}: ranks on other nodes may go on", file=sys.stderr, flush=True)
