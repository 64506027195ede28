"""A ring over several nodes: programs stand for SLURM's, and torchrun starts its ranks here."""

import json
import os

import pytest

from experiments import cards, grid, runner
from experiments.device_lock import hold
from experiments.nodes import allocation, node, spread
from experiments.nodes.allocation import Job, Nodes, nodes_of
from experiments.nodes.rank import TOLD
from experiments.schema import Record
from experiments.slurm import SlurmError

HERE = Job("7", "node0", 2, 4, "127.0.0.1", "attention-1a2b")
PROGRAMS = {
    # Of an array, whose jobs are listed together.
    "squeue": 'case "$*" in *--steps*) cat $HERE.steps;;'
    ' *) printf "8 2 2 node[4-5]\\n7 2 8 node[0-1]\\n";; esac',
    "scontrol": 'case "$*" in *hostnames*) printf "node0\\nnode1\\n";; *)'
    ' echo "NodeName=node1 Arch=x NodeAddr=127.0.0.1 Port=1";; esac',
    "scancel": ": > $(dirname $HERE)/squeue.steps",
    # As the real one: the command once on each node.
    "srun": """\
while [ "${1#--}" != "$1" ]; do
    case "$1" in --ntasks=*) count=${1#*=};; esac
    shift
done
status=0; processes=
for place in $(seq 0 $((count - 1))); do
    SLURM_PROCID=$place SLURMD_NODENAME=node$place "$@" & processes="$processes $!"
done
for one in $processes; do wait $one || status=$?; done
exit $status""",
}

needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a rank has a core of its own"
)


@pytest.fixture
def in_job(tmp_path, monkeypatch):
    """On the first of two nodes with two stand-ins each; returns how each program was called."""

    def put(name, text):
        program = tmp_path / name
        called = tmp_path / f"{name}.called"
        program.write_text(f'#!/bin/sh\nHERE={program}\necho "$@" >> {called}\n{text}\n')
        program.chmod(0o755)
        return lambda: called.read_text().splitlines() if called.exists() else []

    calls = {name: put(name, text) for name, text in PROGRAMS.items()}
    steps = "7.batch batch\n7.3 attention-1a2b\n8.3 attention-3c4d\n"
    (tmp_path / "squeue.steps").write_text(steps)
    monkeypatch.setattr(allocation.secrets, "token_hex", lambda _: "1a2b")
    for name, value in {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURMD_NODENAME": "node0",
        cards.STAND_INS: "2",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cards.stand_ins.cache_clear()
    yield lambda name: calls[name]()
    cards.stand_ins.cache_clear()


def spread_over(world_size, variant="ring-distributed"):
    """The task of a tiny ring."""
    tasks = (one for one in grid.tasks("smoke") if one.case.variant == variant)
    found = next(one for one in tasks if one.case.is_spread)
    values = {"variant": variant, **found.case.to_json(), "world_size": world_size}
    case = type(found.case).from_mapping({**values, "pass": "forward_backward"})
    return grid.Task(case, found.experiments, found.procedure, found.limits)


@pytest.mark.parametrize(
    ("world_size", "cards", "there", "over"),
    [
        (4, 4, 8, 1),
        (8, 4, 8, 2),
        (16, 8, 8, 2),
        (16, 4, 3, 1),
        (16, 4, 4, 4),
        (6, 4, 8, 2),
        (6, 2, 3, 3),
        (7, 4, 8, 7),
        (4, 3, 2, 2),
        (2, 1, 1, 1),
    ],
)
def test_as_few_nodes_as_have_a_card_for_each_rank(world_size, cards, there, over):
    assert nodes_of(spread_over(world_size).case, cards, there) == over


def test_what_takes_one_card_takes_one_node():
    alone = [one.case for one in grid.tasks("gpu", ["ring"]) if not one.case.is_spread]
    assert {nodes_of(case, 1, 64) for case in alone} == {1}


def test_the_job_is_what_slurm_says(in_job, monkeypatch):
    assert allocation.job() == HERE
    assert in_job("squeue") == ["--noheader --jobs=7 --format=%A %D %C %N"]
    # A process on another node does not start ranks, nor does one of no job.
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    assert allocation.job() is None
    monkeypatch.delenv("SLURM_JOB_ID")
    assert allocation.job() is None and len(in_job("squeue")) == 2


@pytest.mark.parametrize("other", [None, "no-such-node.invalid"])
def test_no_way_to_another_node_is_told(other):
    with pytest.raises(SlurmError, match=f"^no way to the node at {other}: "):
        allocation._own_address(other)


def test_a_step_is_one_process_on_each_node_and_is_ended_by_its_name(in_job, capsys):
    nodes = Nodes(HERE, 2, 3, "cuda", "nvidia-h100-123456")
    assert allocation.step_over(nodes) == [
        "srun", "--quiet", "--jobid=7", "--job-name=attention-1a2b", "--overlap", "--nodes=2",
        "--relative=0", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=4",
        "--kill-on-bad-exit=1",
    ]  # fmt: skip
    allocation.end_steps(nodes)
    assert in_job("scancel") == ["--signal=KILL 7.3"]
    assert len(in_job("squeue")) == 2 and not capsys.readouterr().err


def test_what_slurm_says_of_a_job_is_no_variable_of_its_step(in_job, monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_CPU_BIND", "SRUN_DEBUG", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    found = allocation.environment()
    assert found["SLURM_JOB_ID"] == "7" and found["PATH"] == os.environ["PATH"]
    assert {name for name in found if name.startswith(("SLURM_", "SRUN_", "CUDA"))} <= {
        "SLURM_JOB_ID", "SLURM_CONF", "SLURM_CLUSTER_NAME",
    }  # fmt: skip


@needs_two_cores
def test_four_ranks_over_two_nodes_give_the_record_of_a_ring(in_job, tmp_path, capfd, measure):
    task = spread_over(4)
    (path,) = runner.run([task], "smoke", device="stand-in", out=tmp_path / "out")
    found = Record.model_validate(json.loads(path.read_text()))
    assert found.status == "ok", found.reason
    assert found.machine.nodes == 2 and found.machine.cards is None
    told = capfd.readouterr().err
    assert "    on stand-in-node0-0,stand-in-node0-1\n" in told
    assert "    on stand-in-node1-0,stand-in-node1-1\n" in told
    assert found.error.output.relative_rms <= 2 * found.error.output.baseline_relative_rms
    assert found.error.gradient.relative_rms <= 3 * found.error.gradient.baseline_relative_rms
    (replicate,) = found.replicates
    assert [rank.rank for rank in replicate.ranks] == [0, 1, 2, 3]
    # What is sent is counted as of simulated ranks, which send the same.
    fields = {**task.case.to_json(), "simulated": True}
    alone = measure(variant=task.case.variant, **{"pass_": fields.pop("pass"), **fields})
    of_ranks = alone["replicates"][0]["ranks"]
    assert [(rank.bytes_sent, rank.messages_sent) for rank in replicate.ranks] == [
        (rank["bytes_sent"], rank["messages_sent"]) for rank in of_ranks
    ]
    n, heads, dim = task.case.seq_len, task.case.heads, task.case.head_dim
    pairs = n * (n + 1) // 2 if task.case.is_causal else n * n
    assert found.useful_flops == 3.5 * 4 * dim * task.case.batch * heads * pairs
    (step,) = in_job("srun")
    assert "--nodes=2 --relative=0 --ntasks=2" in step
    # Before the case.
    assert in_job("scancel") == ["--signal=KILL 7.3"]


def test_a_step_that_ends_early_is_no_fault_of_the_case(in_job, tmp_path):
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 9\n")
    (path,) = runner.run([spread_over(4)], "smoke", device="stand-in", out=tmp_path / "out")
    found = json.loads(path.read_text())
    assert (found["status"], found["cause"]) == ("failed", "day")
    assert found["reason"] == "ChildProcessError: the step over its nodes ended with status 9"
    assert found["machine"]["nodes"] == 2


def test_more_ranks_than_the_job_has_cards_are_unsupported(in_job, tmp_path):
    (path,) = runner.run([spread_over(8)], "smoke", device="stand-in", out=tmp_path / "out")
    found = json.loads(path.read_text())
    assert (found["status"], found["machine"]["nodes"]) == ("unsupported", 1)
    assert "8 ranks need a core each" in found["reason"] and not in_job("srun")


def test_where_slurm_does_not_answer_all_but_its_rings_are_measured(in_job, tmp_path, capsys):
    (tmp_path / "squeue").write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
    alone = next(one for one in grid.tasks("smoke") if one.case.variant == "dense")
    paths = runner.run([spread_over(4), alone], "smoke", device="stand-in", out=tmp_path / "out")
    assert [path.exists() for path in paths] == [False, True]
    assert "    not measured: squeue: no controller\n" in capsys.readouterr().err


def test_ranks_without_a_core_each_are_not_begun(in_job, tmp_path):
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 7 2 2 node[0-1]\n")
    (path,) = runner.run([spread_over(4)], "smoke", device="stand-in", out=tmp_path / "out")
    found = json.loads(path.read_text())
    assert found["status"] == "failed" and not in_job("srun")
    assert found["reason"].endswith("2 ranks on a node, of which the job has 1 cores")


ASKED = {"cards": "stand-in", "ranks_of_each": 2, "host": "node0", "machine": "another-machine"}


@pytest.mark.parametrize(
    ("place", "name", "changed", "kind", "text"),
    [
        (1, "node1", {"ranks_of_each": 3}, "failed", "3 ranks need a card each, and here are 2"),
        (1, "node1", {}, "failed", "is {here}, and the first node another-machine"),
        (0, "node1", {}, "failed", "is place 0 of the step, and the first is not its own"),
        (1, "node0", {}, "failed", "is place 1 of the step, and the first is not its own"),
    ],
)
def test_a_node_that_cannot_take_ranks_says_so(
    in_job, monkeypatch, capsys, place, name, changed, kind, text
):
    monkeypatch.setenv("SLURM_PROCID", str(place))
    monkeypatch.setenv("SLURMD_NODENAME", name)
    assert node.main(json.dumps(ASKED | changed)) == 1
    told = capsys.readouterr().out
    assert told.startswith(TOLD)
    here = runner.describe("stand-in").id
    expected = {"kind": kind, "text": f"node {name}: {text.format(here=here)}"}
    assert json.loads(told.removeprefix(TOLD)) == expected


def test_cards_that_another_run_holds_are_not_waited_for(in_job, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    with hold("stand-in", 1):
        assert node.main(json.dumps(ASKED)) == 1
    told = json.loads(capsys.readouterr().out.removeprefix(TOLD))
    assert told == {"kind": "busy", "text": "node node1: its cards are held by another run"}


@pytest.mark.parametrize(
    ("kinds", "raised", "text"),
    [
        ([], "ChildProcessError", "ended with status 1"),
        (["failed", "failed"], "RankFailed", "of 0"),
        (["failed", "out of memory"], "MemoryError", "of 1"),
        (["failed", "out of memory", "wrong"], "CheckFailed", "of 2"),
        (["failed", "busy"], "ChildProcessError", "of 1"),
    ],
)
def test_of_ranks_that_fail_what_says_most_is_raised(kinds, raised, text):
    lines = [f"{TOLD}{json.dumps({'kind': k, 'text': f'of {n}'})}" for n, k in enumerate(kinds)]
    cut = f'{TOLD}{{"kind": "wro'
    step = spread.subprocess.CompletedProcess([], 1, "\n".join(["a warning", cut, *lines]))
    error = spread._failure(step)
    assert type(error).__name__ == raised and text in str(error)


def test_gloo_takes_the_interface_that_leads_to_the_first_node(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    node._bind_gloo("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setattr(node, "_interface", lambda address: "ib0")
    node._bind_gloo("10.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    # One that a user names stays.
    node._bind_gloo("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(node, "_interface", lambda address: None)
    node._bind_gloo("10.0.0.1")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
