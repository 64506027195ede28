"""A SLURM cluster of this machine, and the workflow run on it."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import grid
from experiments.cards import STAND_INS
from tests.cluster import one_machine
from tests.pipeline.conftest import fresh_copy

NODES, CARDS = 2, 2
# Cases of one card, and over two ranks.
ALONE, SPREAD = 8, 2


@contextmanager
def started(folder, cards):
    """A cluster whose nodes have so many cards: what its commands need in the environment."""
    # It starts daemons, which nobody expects of a test.
    if os.environ.get("ATTENTION_SLURM") != "required":
        pytest.skip("starts a SLURM cluster: with ATTENTION_SLURM=required")
    if not one_machine.is_possible():
        pytest.fail(f"needs root and {', '.join(one_machine.NEEDED)}")
    yield one_machine.start(folder, nodes=NODES, cards=cards)
    one_machine.stop(folder)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    with started(tmp_path_factory.mktemp("slurm"), CARDS) as environment:
        yield environment


@pytest.fixture
def of_single_cards(tmp_path):
    with started(tmp_path / "slurm", 1) as environment:
        yield environment


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository, and how its workflow is called, here and on the cluster."""
    folder = fresh_copy(tmp_path / "copy")
    python = Path(sys.executable).parent
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",
    }
    tasks = grid.tasks("smoke")
    spread = [task for task in tasks if task.case.is_spread and task.case.world_size == 2]
    alone = [task for task in tasks if not task.case.is_spread]
    names = [task.name for task in [*spread[:SPREAD], *alone[:: len(alone) // ALONE][:ALONE]]]

    def command(*arguments):
        return [str(python / "snakemake"), *arguments]

    return SimpleNamespace(folder=folder, environment=environment, names=names, command=command)


@pytest.fixture
def on_cluster(cluster, copy):
    """How the copy's workflow is called there; records of `names` are its targets."""
    return called(cluster, copy, CARDS, copy.names)


@pytest.fixture
def on_single_cards(of_single_cards, copy):
    """The same where each node has one card; its target is a ring over two ranks."""
    return called(of_single_cards, copy, 1, copy.names[:1])


def called(cluster, copy, cards, names):
    environment = {**copy.environment, **cluster, STAND_INS: str(cards)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{cluster['PATH']}"
    machine = subprocess.run(
        ["python", "-m", "experiments", "machine", "--device", "stand-in"],
        env=environment, cwd=copy.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    where = Path("results/local") / json.loads(machine.stdout)["id"] / "round-1"
    seconds = ("--slurm-init-seconds-before-status-checks", "2")
    arguments = [
        *("--workflow-profile", "profiles/slurm", "--config", "tier=smoke", "device=stand-in"),
        *("--group-components", "cases=2", "--default-resources", "mem_mb=400", "runtime=10"),
        *("--set-resources", "measure:mem_mb=400", *seconds, "--latency-wait", "5", "--"),
        *(str(where / f"{name}.json") for name in names),
    ]
    return SimpleNamespace(
        environment=environment, where=copy.folder / where, command=copy.command(*arguments)
    )
