"""What is asked of SLURM beside Snakemake's executor: what its nodes are, which jobs are left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.atomic_write import atomic_write

# Minutes that a node may take to say what it is, once it was given.
_ASK_MIN = 5
_ANSWER_S = 60.0


class SlurmError(RuntimeError):
    """SLURM did not do what it was asked."""


def is_here() -> bool:
    """Whether jobs can be submitted from this host."""
    return shutil.which("sbatch") is not None


def node(device: str, cards: dict[str, str], folder: Path) -> dict:
    """The machine that jobs get, as `Machine.to_json` has it: one node is asked, once.

    device: as `machine.choose_device` takes it. cards: of "slurm_partition" and "gpu_model", what
    jobs ask for. folder: where the answer is kept. SlurmError where none comes.
    """
    kept = folder / f"node-{'-'.join([device.replace(':', ''), *cards.values()])}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    command = ["srun", "--quiet", "--ntasks=1", f"--time={_ASK_MIN}", "--job-name=attention-node"]
    if "slurm_partition" in cards:
        command.append(f"--partition={cards['slurm_partition']}")
    if device != "cpu":
        model = cards.get("gpu_model")
        command.append(f"--gpus={model}:1" if model else "--gpus=1")
    command += [sys.executable, "-m", "experiments", "machine", "--device", device]
    print(f"asking a node what it is: {' '.join(command[:-6])}", file=sys.stderr, flush=True)
    try:
        found = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
        answer = json.loads(found.stdout)
    except (OSError, subprocess.CalledProcessError, json.JSONDecodeError) as error:
        raise SlurmError(f"no node says what it is: {error}") from None
    with atomic_write(kept) as partial:
        partial.write_text(found.stdout, encoding="utf-8")
    return answer


def cards_of_a_node(cards: dict[str, str]) -> int:
    """How many of the cards that jobs ask for a node has at most; SlurmError where none has any."""
    partition = [f"--partition={cards['slurm_partition']}"] if "slurm_partition" in cards else []
    listed = _answer(["sinfo", "--noheader", *partition, "--format=%G"])
    model = re.escape(cards.get("gpu_model", "")) or "[^:,]+"
    found = [int(count) for count in re.findall(rf"gpu:(?:{model}:)?(\d+)", listed)]
    if not found:
        asked = " ".join(f"{key}={value}" for key, value in cards.items()) or "any partition"
        raise SlurmError(f"no node of {asked} has a card: {' '.join(listed.split()) or 'none'}")
    return max(found)


def cancel_jobs_of(folder: Path) -> int:
    """Cancel the jobs that Snakemake has submitted for a folder; returns how many there were.

    A run that was killed leaves them behind, and the next would submit them again.
    """
    listed = _answer(["squeue", "--me", "--noheader", "--format=%A|%k|%Z"])
    jobs = [line.split("|") for line in listed.splitlines()]
    # A comment as Snakemake's executor writes it; not the job that this process runs in.
    ours = {
        number
        for number, comment, where in jobs
        if comment.startswith("rule_")
        and Path(where) == folder
        and number != os.environ.get("SLURM_JOB_ID")
    }
    if ours:
        _answer(["scancel", *sorted(ours)])
    return len(ours)


def _answer(command: list[str]) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=_ANSWER_S, check=True
        ).stdout
    except subprocess.CalledProcessError as error:
        raise SlurmError(f"{command[0]}: {error.stderr.strip()}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"SLURM does not answer: {error}") from None
