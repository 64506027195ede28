"""`python -m experiments train`: killed, stopped, gone on with, spread; what it writes and says."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from experiments import __main__
from experiments.training import checkpoint, metrics
from experiments.training.folder import Folder
from models.longnet import LongNetLM
from tests.experiments.training.tiny import values

ROOT = Path(__file__).parents[3]


@pytest.fixture
def told(tmp_path, handlers, capsys):
    """Runs the command here on values of a configuration: its status and what it said."""

    def told(made, *options, out=None):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(made))
        out = out or tmp_path / "out"
        status = __main__.main(["train", str(path), "--out", str(out), "--device", "cpu", *options])
        return status, capsys.readouterr().err

    return told


def kept(out):
    """The lines of the metrics, and the weights of the last checkpoint with its step."""
    step, path = checkpoint.all_in(out / "checkpoints")[-1]
    return (out / "metrics.jsonl").read_bytes(), step, checkpoint.load(path)


def assert_same(one, other):
    assert one[:2] == other[:2]
    mine, theirs = one[2], other[2]
    assert all(torch.equal(x, theirs["model"][name]) for name, x in mine["model"].items())
    for number, averages in mine["optimiser"]["state"].items():
        for name, x in averages.items():
            assert torch.equal(x, theirs["optimiser"]["state"][number][name])


def test_killed_in_step_12_it_goes_on_to_the_bit(tmp_path, told):
    """The checkpoint is of step 8: lines 9 to 11 are written again, and nothing else differs."""
    made, whole, killed = values(), tmp_path / "whole", tmp_path / "killed"
    assert told(made, out=whole)[0] == 0
    script = (
        "import os, signal\n"
        "from experiments import __main__\n"
        "from experiments.training.folder import Folder\n"
        "add = Folder.add\n"
        "def dies(self, report):\n"
        "    if report.step == 12:\n"
        "        self.metrics.append({'step': 12})\n"
        "        self.metrics._opened.write('{\"st')\n"
        "        self.metrics._opened.flush()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    add(self, report)\n"
        "Folder.add = dies\n"
        f"__main__.main(['train', {str(tmp_path / 'config.yaml')!r}, '--out', {str(killed)!r}, "
        "'--device', 'cpu'])\n"
    )
    dead = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert len(kept(killed)[0].splitlines()) == 13 and kept(killed)[1] == 8
    status, said = told(made, out=killed)
    assert status == 0 and "20 steps of associative_recall, 8 done" in said
    assert_same(kept(killed), kept(whole))
    assert [line["step"] for line in metrics.read(killed / "metrics.jsonl")] == list(range(1, 21))
    times = [line["step"] for line in metrics.read(killed / "times.jsonl") if "ms" in line]
    assert times == list(range(1, 21))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopped_it_keeps_the_step_and_goes_on_to_the_bit(tmp_path, told, monkeypatch, name):
    made, whole, stopped = values(), tmp_path / "whole", tmp_path / "stopped"
    assert told(made, out=whole)[0] == 0
    add = Folder.add

    def is_told(folder, report):
        add(folder, report)
        if report.step == 5:
            os.kill(os.getpid(), getattr(signal, name))

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "add", is_told)
        status, said = told(made, out=stopped)
    assert status == 128 + getattr(signal, name)
    *_, before, last = said.splitlines()
    assert before == f"{stopped}: stopped after step 6 of 20"
    assert last == f"stopped by {name}: the same command goes on" and "Traceback" not in said
    assert kept(stopped)[1] == 6
    assert told(made, out=stopped)[0] == 0
    assert_same(kept(stopped), kept(whole))


def test_what_is_written_and_said(tmp_path, told):
    status, said = told(values(), "--steps", "11")
    out = tmp_path / "out"
    assert status == 0 and said.splitlines()[-1] == f"{out}: stopped after step 11 of 20"
    assert kept(out)[1] == 11 and not (out / "model").exists()
    status, said = told(values(), "--steps", "11")
    assert status == 0 and ", 11 done" in said and kept(out)[1] == 11
    status, said = told(values())
    assert status == 0
    assert said.splitlines()[-1] == (
        f"{out}: complete; python -m analysis.training_curve {out} draws the loss"
    )
    lines = list(metrics.read(out / "metrics.jsonl"))
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert [line["step"] for line in lines if "evaluation" in line] == [10, 20]
    assert lines[0]["learning_rate"] == pytest.approx(0.01 / 3)
    # Untrained, of 16 tokens: 4 bits, and what the first weights add.
    assert 3.5 < lines[0]["loss"] < 6
    assert lines[19]["evaluation"]["tokens"] == 16
    assert lines[19]["evaluation"]["by_distance"][0].keys() == {
        *("first", "last", "tokens", "loss", "accuracy")
    }
    starts = [x["started"] for x in metrics.read(out / "times.jsonl") if "started" in x]
    assert len(starts) == 3 and starts[0]["ranks"] == 1 and starts[0]["compile"] is False
    run = json.loads((out / "run.json").read_text())["run"]
    assert run["config"]["training"]["steps"] == 20
    assert run["data"]["task"] == "associative_recall"
    model = LongNetLM.load(out / "model")
    assert run["parameters"] == sum(one.numel() for one in model.parameters())
    saved = kept(out)[2]["model"]
    assert all(torch.equal(x, saved[name]) for name, x in model.state_dict().items())
    status, said = told(values(training_seed=1))
    assert status == 2 and said == (
        f"error: {out}: holds another training (config.training.seed is 0 there, 1 here); "
        "give another --out\n"
    )


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, told):
    for changes, expected in (
        ({"training_steps": 0}, f"{tmp_path}/config.yaml: training.steps=0: expected an integer"),
        ({"parallel": {"context": 2}}, "parallel.context=2: expected 1, or in model.attention"),
        ({"model_attention": "dilated-streamed"}, "model.attention='dilated-streamed'"),
        ({"training_evaluation_batches": 9, "data_source": "copy"}, "data.options.pairs: no such"),
    ):
        status, said = told(values(**changes))
        assert status == 2 and said.startswith(f"error: {expected}") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_torchrun_spreads_rows_and_tokens(tmp_path, told):
    """A row over two processes by ring attention; the metrics are those of one process."""
    made = values(
        model={"attention": "ring-distributed", "layers": 1, "embed_dim": 16, "heads": 2},
        training_steps=5,
        training_evaluate_every=5,
    )
    assert told(made, out=tmp_path / "alone")[0] == 0
    path = tmp_path / "spread.yaml"
    path.write_text(yaml.safe_dump({**made, "parallel": {"context": 2}}))
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "experiments", "train", path, "--out", tmp_path / "spread"]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command), "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    one, other = (
        list(metrics.read(tmp_path / name / "metrics.jsonl")) for name in ("alone", "spread")
    )
    assert [x["loss"] for x in other] == pytest.approx([x["loss"] for x in one], rel=1e-5)
    found = [x[-1]["evaluation"]["loss"] for x in (one, other)]
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert done.stderr.count(": complete;") == 1
