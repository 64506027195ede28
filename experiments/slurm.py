"""What is asked of SLURM beside Snakemake's executor: what its nodes are, which jobs are left."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from experiments.atomic_write import atomic_write

# Minutes that a node may take to say what it is, once it was given.
_ASK_MIN = 5
# A stopped run waits for its answers.
_ANSWER_S = 10.0
# States of nodes that take jobs, now or later.
_TAKES_JOBS = "idle,mixed,allocated,completing"


class SlurmError(OSError):
    """SLURM did not do what it was asked."""


def is_here() -> bool:
    """Whether jobs can be submitted from this host."""
    return shutil.which("sbatch") is not None


def node(device: str, asked: dict, cores: int, folder: Path) -> dict:
    """The machine that jobs get, as `Machine.to_json` has it: one node is asked, once.

    device: as `machine.choose_device` takes it. asked: of "slurm_partition" and "gpu_model", what
    jobs ask for. cores: of a job. folder: where the answer is kept. SlurmError where none comes.
    """
    named = {key: asked[key] for key in ("slurm_partition", "gpu_model") if key in asked}
    key = "_".join([f"device={device}", *(f"{key}={value}" for key, value in named.items())])
    kept = folder / f"node_{key}.json"
    with suppress(OSError, SlurmError):
        return _machine(kept.read_text(encoding="utf-8"))
    command = ["srun", "--quiet", "--ntasks=1", f"--cpus-per-task={cores}", f"--time={_ASK_MIN}"]
    command.append("--job-name=attention-node")
    if "slurm_partition" in named:
        command.append(f"--partition={named['slurm_partition']}")
    if device != "cpu":
        command.append(f"--gpus={named['gpu_model']}:1" if "gpu_model" in named else "--gpus=1")
    told = f"asking a node what it is, once one is free: {' '.join(command)}"
    print(told, file=sys.stderr, flush=True)
    command += [sys.executable, "-m", "experiments", "machine", "--device", device]
    try:
        found = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    except subprocess.CalledProcessError as error:
        told = f"no node says what it is: srun ended with status {error.returncode}"
        raise SlurmError(told) from None
    except OSError as error:
        raise SlurmError(f"no node says what it is: {error}") from None
    answer = _machine(found.stdout)
    with atomic_write(kept) as partial:
        partial.write_text(found.stdout, encoding="utf-8")
    return answer


def _machine(text: str) -> dict:
    with suppress(json.JSONDecodeError):
        answer = json.loads(text)
        if isinstance(answer, dict) and {"id", "device"} <= set(answer):
            return answer
    raise SlurmError(f"no node says what it is: {text.strip()[-200:] or 'nothing came'}")


def cards_of_nodes(asked: dict) -> tuple[int, int]:
    """How many of the cards that jobs ask for a node has at most, and how many nodes have so many.

    Nodes that are down count for the first alone. SlurmError where none has any.
    """
    partition = [f"--partition={asked['slurm_partition']}"] if "slurm_partition" in asked else []
    command = ["sinfo", "--noheader", "--Node", *partition, "--format=%N %G"]
    listed = answer(command)
    found = _cards_by_node(listed, asked)
    if not listed.strip():
        there = " ".join(sorted({*answer(["sinfo", "--noheader", "--format=%R"]).split()}))
        raise SlurmError(f"no partition {asked.get('slurm_partition', '')} with nodes: {there}")
    if not found:
        shown = " ".join(f"{key}={value}" for key, value in asked.items() if key != "nodes")
        told = " ".join(sorted({line.partition(" ")[2].strip() for line in listed.splitlines()}))
        raise SlurmError(f"no node of {shown or 'any partition'} has a card: {told}")
    most = max(found.values())
    there = _cards_by_node(answer([*command, f"--states={_TAKES_JOBS}"]), asked)
    return most, sum(count == most for count in there.values())


def _cards_by_node(listed: str, asked: dict) -> dict[str, int]:
    """By the name of each node that has any its cards; a node of several partitions is one."""
    model = re.escape(asked["gpu_model"]) + ":" if "gpu_model" in asked else "(?:[^:,()]+:)?"
    # As gpu:h100:4(S:0-1), or gpu:4 where the cluster does not tell models apart.
    card = re.compile(rf"\bgpu:{model}(\d+)(?![^,(\s])")
    found = {}
    for line in listed.splitlines():
        name, _, cards = line.partition(" ")
        counts = [int(count) for count in card.findall(cards)]
        if counts:
            found[name] = max(counts)
    return found


def cancel(name: str) -> int:
    """Cancel one's jobs of that name; returns how many there were. SlurmError without an answer."""
    count = len(answer(["squeue", "--me", "--noheader", f"--name={name}", "--format=%A"]).split())
    if count:
        answer(["scancel", "--me", f"--name={name}"])
    return count


def answer(command: list[str]) -> str:
    """What a command of SLURM's prints; SlurmError where it fails, or says nothing for long."""
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_ANSWER_S,
            check=True,
        ).stdout  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise SlurmError(f"{command[0]}: {error.stderr.strip()}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"SLURM does not answer: {error}") from None
