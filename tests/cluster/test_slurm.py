"""The workflow on a real SLURM cluster of two made-up nodes with two cards each."""

import json
import re
import signal
import subprocess
import time
from datetime import datetime
from itertools import pairwise

import pytest

from experiments.cards import STAND_INS
from tests.cluster.conftest import CARDS, NODES

pytestmark = pytest.mark.pipeline
# What a case is found to be, whoever measures it.
FOUND = ("case", "status", "reason", "backend", "realised_density", "useful_flops", "error")
ENOUGH_S = 400


def records(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def run(on, **options):
    """The workflow from its start to its end, by an interrupt if that does not come."""
    command = ["timeout", "-s", "INT", str(ENOUGH_S), *on.command]
    return subprocess.run(
        command, env=on.environment, cwd=on.where.parents[3], capture_output=True, text=True
    )


def spans(folder):
    """Of each card the times from which and to which each case was measured on it."""
    by_card = {}
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text())
        began = datetime.fromisoformat(record["started_at"]).timestamp()
        for card in cards_in(folder.parents[3] / f"build/logs/round-1/{path.stem}.log"):
            by_card.setdefault(card, []).append((began, began + record["wall_s"]))
    return by_card


def cards_in(log):
    """The cards that a case was measured on; none where its job came again, and found a record."""
    text = log.read_text()
    held = [card for line in re.findall(r"^    on (.*)$", text, re.M) for card in line.split(",")]
    assert held or "0 cases to measure, 1 kept" in text
    return held


def most_at_once(times):
    events = sorted(
        (time, change) for span in times for time, change in zip(span, (1, -1), strict=True)
    )
    count = most = 0
    for _, change in events:
        count += change
        most = max(most, count)
    return most


def asked(cluster, *command):
    return subprocess.run(
        command, env=cluster, capture_output=True, text=True, check=True
    ).stdout.split()


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.1)


def test_cases_find_the_same_as_on_one_machine_and_no_card_is_used_twice_at_once(on_cluster, copy):
    done = run(on_cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    ours = records(on_cluster.where)
    assert set(ours) == set(copy.names)
    by_card = spans(on_cluster.where)
    assert set(by_card) == {
        f"stand-in-node{node}-{card}" for node in range(NODES) for card in range(CARDS)
    }
    for times in by_card.values():
        # When a record was begun is told to the second.
        assert all(a[1] <= b[0] + 1 for a, b in pairwise(sorted(times)))
    assert 2 <= most_at_once([span for times in by_card.values() for span in times]) <= 4
    for name in copy.names:
        held = cards_in(copy.folder / f"build/logs/round-1/{name}.log")
        assert len(held) == len(set(held)) == (2 if name.endswith("_p2") else 1)
        assert ours[name]["machine"]["nodes"] == len({card.split("-")[2] for card in held}) == 1
    # One machine with as many stand-ins, by its own executor.
    targets = [str(on_cluster.where.relative_to(copy.folder) / f"{n}.json") for n in copy.names]
    for path in on_cluster.where.glob("*.json"):
        path.unlink()
    here = copy.command("--config", "tier=smoke", "device=stand-in", "--cores", "4", "--", *targets)
    environment = {**copy.environment, STAND_INS: str(NODES * CARDS)}
    subprocess.run(here, env=environment, cwd=copy.folder, check=True, capture_output=True)
    theirs = records(on_cluster.where)
    assert set(theirs) == set(ours)
    for name, record in theirs.items():
        assert {key: record[key] for key in FOUND} == {key: ours[name][key] for key in FOUND}
    assert len(spans(on_cluster.where)) == NODES * CARDS


def test_a_ring_of_more_cards_than_a_node_has_is_measured_over_two(on_single_cards, copy):
    done = run(on_single_cards)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = records(on_single_cards.where).values()
    assert (found["status"], found["machine"]["nodes"]) == ("ok", 2), found["reason"]
    assert [*spans(on_single_cards.where)] == ["stand-in-node0-0", "stand-in-node1-0"]
    # On one node, by the local executor.
    (path,) = on_single_cards.where.glob("*.json")
    path.unlink()
    target = str(path.relative_to(copy.folder))
    here = copy.command("--config", "tier=smoke", "device=stand-in", "--cores", "2", "--", target)
    environment = {**copy.environment, STAND_INS: "2"}
    subprocess.run(here, env=environment, cwd=copy.folder, check=True, capture_output=True)
    (alone,) = records(on_single_cards.where).values()
    assert {key: found[key] for key in FOUND} == {key: alone[key] for key in FOUND}
    sent = [
        [(one["bytes_sent"], one["messages_sent"]) for one in ranks]
        for ranks in (record["replicates"][0]["ranks"] for record in (found, alone))
    ]
    assert sent[0] == sent[1] and all(count > 0 for count, _ in sent[0])


def test_a_drained_node_and_a_killed_job_lose_nothing(on_cluster, copy):
    environment = on_cluster.environment
    drain = ["scontrol", "update", "nodename=node0", "state=drain", "reason=test"]
    subprocess.run(drain, env=environment, check=True)
    try:
        going = subprocess.Popen(
            ["timeout", "-s", "INT", str(ENOUGH_S), *on_cluster.command],
            env=environment, cwd=copy.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        listed = ("squeue", "-h", "-t", "running", "-o", "%A")
        until(lambda: records(on_cluster.where))
        killed = asked(environment, *listed)[0]
        subprocess.run(["scancel", killed], env=environment, check=True)
        told = going.communicate()[0]
    finally:
        subprocess.run([*drain[:3], "state=resume"], env=environment, check=True)
    assert going.returncode == 0, told
    assert f"JOB {killed} ON node1 CANCELLED" in told and told.count("Trying to restart") == 1
    found = records(on_cluster.where)
    assert set(found) == set(copy.names)
    assert {record["status"] for record in found.values()} <= {"ok", "unsupported"}
    assert {card.split("-")[2] for card in spans(on_cluster.where)} == {"node1"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_ends_early_goes_on_and_leaves_no_job(on_cluster, copy, number):
    environment = on_cluster.environment
    going = subprocess.Popen(
        on_cluster.command, env=environment, cwd=copy.folder, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until(lambda: records(on_cluster.where))
    going.send_signal(number)
    told = going.communicate()[0]
    listed = ("squeue", "-h", "-t", "pending,running", "-o", "%A")
    left = asked(environment, *listed)
    if number == signal.SIGTERM:
        until(lambda: not asked(environment, *listed), 20)
    kept = records(on_cluster.where)
    assert 0 < len(kept) < len(copy.names)
    done = run(on_cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    if number == signal.SIGKILL:
        # Some may have ended by themselves before these were counted.
        cancelled = re.search(r"^(\d+) jobs on the cluster are cancelled$", done.stderr, re.M)
        assert 1 <= int(cancelled[1]) <= len(left)
    else:
        assert "jobs on the cluster are cancelled" in told and "stopped by SIGTERM" in told
    found = records(on_cluster.where)
    assert set(found) == set(copy.names)
    assert {name: found[name]["started_at"] for name in kept} == {
        name: record["started_at"] for name, record in kept.items()
    }
    assert not asked(environment, *listed)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("gpu_model=a100", "no node of gpu_model=a100 has a card: gpu:h100:2"),
        ("partition=other", "no partition other with nodes: cards"),
        ("device=cuda:1", "--config device=cuda:1: expected cpu, cuda or stand-in"),
    ],
)
def test_what_no_node_has_is_told_before_anything_starts(on_cluster, copy, config, told):
    command = copy.command("--workflow-profile", "profiles/slurm", "-n", "--config", "tier=smoke")
    device = [] if config.startswith("device") else ["device=stand-in"]
    done = subprocess.run(
        [*command, *device, config], env=on_cluster.environment, cwd=copy.folder,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and told in done.stdout + done.stderr
