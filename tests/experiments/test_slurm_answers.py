"""What SLURM answers, by programs that stand for its own."""

import json
import os
import sys

import pytest

from experiments import slurm

MACHINE = {"id": "nvidia-h100-123456", "device": "NVIDIA H100"}


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Have a command of SLURM's print a text; returns how to learn the ways it was called."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def put(name, text, status=0):
        program, called = tmp_path / name, tmp_path / f"{name}.called"
        (tmp_path / f"{name}.text").write_bytes(text)
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {called}\ncat {program}.text\n'
            f"[ {status} = 0 ] || cat {program}.text >&2\nexit {status}\n"
        )
        program.chmod(0o755)
        return lambda: called.read_text().splitlines() if called.exists() else []

    return put


@pytest.mark.parametrize(
    ("listed", "model", "count"),
    [
        ("n0 gpu:h100:4(S:0-1)\nn1 (null)\n", "h100", (4, 1)),
        ("n0 gpu:a100:8,gpu:2080ti:2", "2080ti", (2, 1)),
        ("n0 gpu:a100:8,gpu:2080ti:2\nn1 gpu:a100:8", None, (8, 2)),
        ("n0 gpu:4\nn1 gpu:4\nn2 gpu:4", None, (4, 3)),
        ("n0 gpu:2080ti:4", None, (4, 1)),
        ("n0 craynetwork:2,gpu:a100:2\nn1 gpu:a100:6\n", "a100", (6, 1)),
        # Of two partitions.
        ("n0 gpu:h100:4\nn0 gpu:h100:4\nn1 gpu:h100:4\n", "h100", (4, 2)),
    ],
)
def test_the_cards_of_nodes_are_read_from_their_resources(answers, listed, model, count):
    called = answers("sinfo", listed.encode())
    asked = {"nodes": 1, "slurm_partition": "a"} | ({"gpu_model": model} if model else {})
    assert slurm.cards_of_nodes(asked) == count
    every = "--noheader --Node --partition=a --format=%N %G"
    assert called() == [every, f"{every} --states=idle,mixed,allocated,completing"]


@pytest.mark.parametrize(
    ("listed", "model"), [("n0 gpu:2080ti:4", "a100"), ("n0 gpu:4", "a100"), ("n0 (null)", None)]
)
def test_a_card_that_no_node_has_is_told(answers, listed, model):
    answers("sinfo", listed.encode())
    with pytest.raises(slurm.SlurmError, match=r"no node of .* has a card: [g(]"):
        slurm.cards_of_nodes({"gpu_model": model} if model else {})


def test_a_node_is_asked_once_for_what_is_asked_of_it(answers, tmp_path):
    called = answers("srun", json.dumps(MACHINE).encode())
    for asked in ({"slurm_partition": "h100"}, {"gpu_model": "h100"}, {"gpu_model": "h100"}):
        assert slurm.node("cuda", {**asked, "nodes": 1}, 4, tmp_path / "kept") == MACHINE
    rest = f"{sys.executable} -m experiments machine --device cuda"
    start = "--quiet --ntasks=1 --cpus-per-task=4 --time=5 --job-name=attention-node"
    assert called() == [
        f"{start} --partition=h100 --gpus=1 {rest}", f"{start} --gpus=h100:1 {rest}"
    ]  # fmt: skip


@pytest.mark.parametrize("text", [b"", b"[1]", b'{"id": "a"}', b"Traceback"])
def test_an_answer_that_is_none_is_told_and_not_kept(answers, tmp_path, text):
    answers("srun", text)
    with pytest.raises(slurm.SlurmError, match="no node says what it is: "):
        slurm.node("cuda", {}, 4, tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("*"))
    # Nor is one believed that was cut short.
    (tmp_path / "kept").mkdir(exist_ok=True)
    (tmp_path / "kept/node_device=cuda.json").write_bytes(text)
    answers("srun", json.dumps(MACHINE).encode())
    assert slurm.node("cuda", {}, 4, tmp_path / "kept") == MACHINE


def test_jobs_are_cancelled_by_their_name_alone(answers):
    listing, cancelling = answers("squeue", b"11\n12\n"), answers("scancel", b"")
    assert slurm.cancel("a-run") == 2
    assert listing() == ["--me --noheader --name=a-run --format=%A"]
    assert cancelling() == ["--me --name=a-run"]
    answers("squeue", b"\xff is down", status=1)
    with pytest.raises(slurm.SlurmError, match="squeue: .* is down"):
        slurm.cancel("a-run")
