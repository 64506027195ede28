"""Checkpoints and the folder: whole or not at all, cut to the last one, nobody else's."""

import fcntl
import json
import os
import pickle

import pytest
import torch

from experiments.training import checkpoint, metrics
from experiments.training.folder import Folder
from experiments.training.loop import StepReport, train
from experiments.training.metrics import JsonLines
from experiments.training.tasks import Copy
from tests.experiments.training.tiny import Tiny, training, weights

RUN = {"config": {"training": {"steps": 5, "seed": 0}, "data": {"batch": 4}}, "data": {"sha": "a"}}


def state(step):
    return {"step": step, "model": {"w": torch.full((3,), float(step))}, "optimiser": {}}


def report(step):
    return StepReport(step, 2.0 / step, 0.01, 1.0, 64, 3.5, None)


def test_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 30):
        checkpoint.save(tmp_path, state(step))
    assert [step for step, _ in checkpoint.all_in(tmp_path)] == [2, 30]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002.pt",
        "step-00000030.pt",
    ]
    assert checkpoint.load(tmp_path / "step-00000030.pt")["model"]["w"].tolist() == [30, 30, 30]


def test_what_fails_on_the_way_leaves_those_before(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, state(1))

    def fails(_, opened):
        opened.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("content", ["code", "half", "other"])
def test_a_file_that_is_no_checkpoint_runs_nothing_and_is_named(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = checkpoint.save(tmp_path, state(1))
    if content == "code":
        path.write_bytes(pickle.dumps(Hostile(), protocol=2))
    elif content == "half":
        path.write_bytes(path.read_bytes()[:300])
    else:
        torch.save({"step": 1}, path)
    with pytest.raises(ValueError, match=r"step-00000001\.pt: (cannot be read|expected a check)"):
        checkpoint.load(path)
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_another_model_is_refused():
    one = train(training(steps=1), source=Copy(16, 4, vocab_size=16), model=Tiny())
    with pytest.raises(ValueError, match="saved: of another model: .*size mismatch"):
        train(
            training(steps=1),
            source=Copy(16, 4, vocab_size=8),
            model=Tiny(vocab_size=8),
            resume=one.state.to_dict(),
        )


def test_all_of_a_state_survives_the_file(tmp_path):
    source = Copy(16, 4, vocab_size=16)
    whole = train(training(), source=source, model=(model := Tiny()))
    half = train(training(), source=source, model=Tiny(), until=3)
    path = checkpoint.save(tmp_path, half.state.to_dict())
    again = Tiny(seed=3)
    rest = train(training(), source=source, model=again, resume=checkpoint.load(path))
    assert half.losses + rest.losses == whole.losses
    assert all(torch.equal(one, weights(model)[name]) for name, one in weights(again).items())


def test_lines_after_the_checkpoint_and_half_a_line_are_cut(tmp_path):
    folder = Folder(tmp_path / "run")
    assert folder.begin(RUN) is None
    for step in (1, 2, 3):
        folder.add(report(step))
        if step == 2:
            folder.save(state(2))
    folder.close()
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 4, "lo')
    (tmp_path / "run" / "checkpoints" / ".77.partial").write_text("half")
    again = Folder(tmp_path / "run")
    assert again.begin(RUN).name == "step-00000002.pt"
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:2])
    assert [line["step"] for line in metrics.read(again.times.path)] == [1, 2]
    assert [one.name for one in again.checkpoints.iterdir()] == ["step-00000002.pt"]
    again.add(report(3))
    again.close()
    assert path.read_text() == whole


def test_without_a_checkpoint_all_lines_are_cut(tmp_path):
    folder = Folder(tmp_path)
    folder.begin(RUN)
    folder.add(report(1))
    folder.close()
    again = Folder(tmp_path)
    assert again.begin(RUN) is None and list(metrics.read(again.metrics.path)) == []
    again.close()


def test_a_folder_of_another_content_is_refused_and_left_as_it_is(tmp_path):
    folder = Folder(tmp_path)
    folder.begin(RUN)
    folder.add(report(1))
    folder.close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = json.loads(json.dumps(RUN))
    other["config"]["training"] |= {"steps": 6, "compile": True}
    with pytest.raises(ValueError) as caught:
        Folder(tmp_path).begin(other)
    assert str(caught.value) == (
        f"{tmp_path}: holds another training (config.training.steps is 5 there, 6 here; "
        "config.training.compile is null there, true here); give another --out"
    )
    with pytest.raises(ValueError, match='data.sha is "a" there, "b" here'):
        Folder(tmp_path).begin({**RUN, "data": {"sha": "b"}})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json: is not as a training wrote it"):
        Folder(tmp_path).begin(RUN)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"has a metrics\.jsonl and no run\.json beside it"):
        Folder(tmp_path).begin(RUN)


def test_one_process_at_a_time_writes_to_a_folder(tmp_path):
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is training there"):
            Folder(tmp_path).begin(RUN)
    Folder(tmp_path).begin(RUN)


def test_lines_that_are_none_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for text in ("[1]", '{"loss": 3}', "{", '{"step": "1"}'):
        path.write_text('{"step": 1}\n' + text + "\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected a JSON object"):
            list(metrics.read(path))
    with pytest.raises(ValueError):
        JsonLines(path).append({"step": 1, "loss": float("nan")})
