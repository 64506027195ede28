"""What `experiments.procedures.ranks` gives of a case over ranks, where these are on several nodes.

Called in a process of its own on the first node.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from experiments import check, measure
from experiments.case import Case
from experiments.die_with_parent import die_with_parent
from experiments.digest import ROOT
from experiments.nodes.allocation import Nodes, environment, step_over
from experiments.nodes.rank import BUSY, FAILED, OUT_OF_MEMORY, TOLD, WRONG
from experiments.procedures.ranks import RankFailed
from experiments.workload import build
from models.errors import UnsupportedBackend

_RAISED = {
    WRONG: check.CheckFailed,
    OUT_OF_MEMORY: MemoryError,
    BUSY: ChildProcessError,
    FAILED: RankFailed,
}


def make_reference(case: Case, device: str, reference: Path, kept: Callable = check.anew) -> dict:
    """As `attention.make_reference`, but this node need have no card for each rank."""
    measure.prepare(device)
    work = build(case, device)
    known = {"realised_density": work.density(), "useful_flops": work.useful_flops()}
    try:
        # Of simulated ranks, which run the same, it asks for no room.
        known["backend"] = replace(work, case=replace(case, simulated=True)).backend()
    except UnsupportedBackend as error:
        return {**known, "unsupported": str(error)}
    check.write_reference(work, reference, kept)
    return known


def replicate(case: Case, device: str, reference: Path, limits: dict, nodes: Nodes) -> dict:
    """As `ranks.replicate`, and "cards": those of all nodes, as `experiments.card` has them.

    Raises what a rank did (RankFailed, where it is no wrong result nor want of memory);
    ChildProcessError where a node's cards are held by others, and where the step ended and none
    told why.
    """
    job, count = nodes.job, nodes.ranks_of_each
    if job.cores < count:
        raise RankFailed(f"{count} ranks on a node, of which the job has {job.cores} cores")
    with tempfile.TemporaryDirectory(prefix="attention-nodes-") as folder:
        result = Path(folder) / "result.json"
        asked = {
            "case": {"variant": case.variant, **case.to_json()},
            "device": device,
            "reference": str(reference),
            "limits": limits,
            "result": str(result),
            "nodes": nodes.count,
            "ranks_of_each": count,
            "address": job.address,
            "port": _free_port(),
            "machine": nodes.machine,
            "cards": nodes.cards,
            # Of this node, where they are held already, and by whom.
            "host": job.host,
            "held": os.environ["CUDA_VISIBLE_DEVICES"],
            "supervisor": os.getpid(),
        }
        command = [sys.executable, "-m", "experiments.nodes.node", json.dumps(asked)]
        step = subprocess.run(
            [*step_over(nodes), *command],
            cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            encoding="utf-8", errors="replace", preexec_fn=die_with_parent,
        )  # fmt: skip
        if step.returncode or not result.exists():
            raise _failure(step)
        found = json.loads(result.read_text(encoding="utf-8"))
    ranks, cards_of = found["ranks"], found["cards"]
    return {
        "samples_ms": found["samples_ms"],
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in ranks),
        "error": found["error"],
        "ranks": ranks,
        "cards": None if None in cards_of else [card for own in cards_of for card in own],
    }


def _free_port() -> int:
    """One on which nothing listens now: the ranks meet there."""
    with socket.socket() as opened:
        opened.bind(("", 0))
        return opened.getsockname()[1]


def _failure(step: subprocess.CompletedProcess) -> Exception:
    """What a rank told that failed: what says most of the case before the rest."""
    lines = [line for line in step.stdout.splitlines() if line.startswith(TOLD)]
    told = []
    for line in lines:
        # One that was cut in two is none.
        with suppress(ValueError):
            told.append(json.loads(line.removeprefix(TOLD)))
    for kind, raised in _RAISED.items():
        for one in told:
            if one["kind"] == kind:
                return raised(one["text"])
    return ChildProcessError(f"the step over its nodes ended with status {step.returncode}")
