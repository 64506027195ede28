"""LongNet models in folders: back to the bit, whole or not at all."""

import json
import os

import pytest
import torch

from models import LongNetConfig, LongNetEncoder, LongNetLM
from tests.models.longnet_models import model, tokens

safetensors = pytest.importorskip("safetensors")
pytest.importorskip("safetensors.torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [LongNetLM, LongNetEncoder])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_to_the_bit(tmp_path, kind, dtype, tied):
    network = model("block-sparse", "random", kind=kind, dtype=dtype, tied_embeddings=tied)
    network.save(tmp_path / "new" / "folder")
    loaded = kind.load(tmp_path / "new" / "folder")
    assert loaded.config == network.config
    want, got = network.state_dict(), loaded.state_dict()
    assert list(want) == list(got)
    for name, x in want.items():
        assert got[name].dtype == dtype and torch.equal(got[name], x)
    assert all(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded(tokens()), network(tokens()))


def test_files(tmp_path):
    """Tied weights are there once, and the configuration can be read by eye."""
    network = model()
    network.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert LongNetConfig(**json.loads((tmp_path / "config.json").read_text())) == network.config
    weights = 4 * sum(p.numel() for p in network.parameters())
    size = (tmp_path / "model.safetensors").stat().st_size
    assert weights < size < weights + 10_000
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert not [name for name in opened.keys() if "head" in name]  # noqa: SIM118


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    network, ids = model(), tokens()
    network.save(tmp_path)
    want = network(ids)
    with torch.no_grad():
        network.embedding.weight.add_(1)

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        network.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(LongNetLM.load(tmp_path)(ids), want)


def test_a_save_over_another_model_that_is_killed_at_any_file_leaves_one_of_the_two(
    tmp_path, monkeypatch
):
    """The same shapes and another segment length: no weight tells which configuration is theirs."""
    before, after = (model("dilated-sdpa", segment_lengths=(w, 16)) for w in (4, 8))
    replace, ids = os.replace, tokens()
    for fatal in (1, 2):
        before.save(tmp_path)
        done = []

        def killed(*paths, fatal=fatal, done=done):
            done.append(paths)
            if len(done) == fatal:
                raise KeyboardInterrupt
            replace(*paths)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(os, "replace", killed)
            after.save(tmp_path)
        loaded = LongNetLM.load(tmp_path)
        expected = before if fatal == 1 else after
        assert loaded.config == expected.config
        assert torch.equal(loaded(ids), expected(ids))


def test_what_is_not_the_model_is_told(tmp_path):
    model().save(tmp_path)
    with pytest.raises(ValueError, match="holds a LongNetLM: expected a LongNetEncoder"):
        LongNetEncoder.load(tmp_path)
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds a model of another kind: expected a LongNetLM"):
        LongNetLM.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        LongNetLM.load(tmp_path / "absent")
