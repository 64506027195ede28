"""Measuring replicas: checked against their own formula, and what the record says of them."""

import pytest
import torch

from experiments import check, schema
from experiments.procedures import replica
from experiments.procedures.replica import _MadeStorages
from models.registry import VARIANTS

pytestmark = pytest.mark.usefixtures("one_core")

SHAPE = {"batch": 2, "seq_len": 256, "heads": 8, "kv_heads": 8, "head_dim": 16}
BRANCHES = {"segment_lengths": (64, 128, 128), "dilation_rates": (1, 2, 4)}
BLOCKS = {"pattern": "dilated", "sparsity": 0.75, "block_size": 16}
REPLICAS = [name for name, variant in VARIANTS.items() if variant.replica_of]


def _fields(name):
    return SHAPE | (BLOCKS if VARIANTS[name].takes == "blocks" else BRANCHES)


@pytest.fixture
def of(measure):
    def run(name, **changes):
        return measure(variant=name, **_fields(name) | {"is_causal": False} | changes)

    return run


@pytest.fixture
def one_thread(monkeypatch):
    """For what runs in this process, which must not start the threads that forks would lack."""
    monkeypatch.setattr(replica.measure, "prepare", lambda device: None)


@pytest.mark.parametrize("name", REPLICAS)
def test_a_replica_gives_a_valid_record(of, name):
    record = of(name)
    assert record["status"] == "ok", record["reason"]
    schema.Record.model_validate(record)
    assert record["error"]["reference"].startswith("replica's own formula in float64: ")
    assert record["deviation"]["variant"] == VARIANTS[name].replica_of
    assert record["deviation"]["relative_rms"] > 0.3
    (replicate,) = record["replicates"]
    output = 2 * 256 * 8 * 16 * 4
    assert (replicate["calls"]["kept_bytes"], replicate["calls"]["dropped_bytes"]) == (output, 0)
    assert replicate["peak_memory_bytes"] > 0 and replicate["calls"]["first_ms"] > 0


def test_the_deviation_tells_what_is_no_attention(of):
    heads = of("published-over-heads")["deviation"]
    assert heads["of_other_tokens"] == heads["of_future_tokens"] == 0.0
    assert heads["zero_rows"] == pytest.approx(0.375)
    assert heads["weight_sum_low"] == pytest.approx(1 / 3)
    sums = of("published-signed-sum")["deviation"]
    assert sums["of_future_tokens"] > 1
    blocks = of("published-block-sums")["deviation"]
    assert (blocks["weight_sum_low"], blocks["weight_sum_high"]) == pytest.approx((4, 7))
    assert blocks["of_future_tokens"] > 1 and blocks["zero_rows"] == 0
    ring = of("published-dense-ring")["deviation"]
    assert ring["weight_sum_low"] == pytest.approx(1) and ring["of_future_tokens"] == 0


def test_work_is_counted_as_it_is_done(of):
    record = of("published-over-heads")
    # Groups of 3, 3 and 2 heads at all, half and a quarter of the positions.
    pairs = 256 * (9 + 9 / 2 + 4 / 4)
    assert record["useful_flops"] == 4 * 16 * 2 * pairs
    assert record["realised_density"] == pytest.approx(pairs / (8 * 256**2))


def test_a_replica_is_timed_on_the_forward_pass_alone(of):
    record = of("published-over-heads", pass_="forward_backward")
    assert record["status"] == "failed"
    assert record["reason"].endswith("expected forward, of a replica")


@pytest.mark.parametrize("name", REPLICAS)
@pytest.mark.usefixtures("one_thread")
def test_a_replica_that_leaves_its_formula_is_not_timed(case, tmp_path, name):
    one, path = case(variant=name, **_fields(name)), tmp_path / "reference.pt"
    replica.make_reference(one, "cpu", path)
    reference = torch.load(path)
    reference["out"] *= 1.01
    torch.save(reference, path)
    with pytest.raises(check.CheckFailed, match="[79][.].*e-03 against the replica's own formula"):
        replica.replicate(one, "cpu", path, {"min_samples": 1, "max_samples": 1})


@pytest.mark.usefixtures("one_thread")
def test_of_many_sequences_the_first_are_checked(case, tmp_path, monkeypatch):
    monkeypatch.setattr(replica, "_TOKENS_CHECKED", 256)
    limits = {"min_samples": 1, "max_samples": 1, "sample_seconds": 0.01}
    one, path = case(variant="published-signed-sum", **SHAPE, **BRANCHES), tmp_path / "reference.pt"
    replica.make_reference(one, "cpu", path)
    checked = torch.load(path)
    rows = len(checked["rows"])
    assert checked["out"].shape == (1, rows, 8, 16)
    assert replica.replicate(one, "cpu", path, limits)["error"]["rows_checked"] == rows


def test_what_is_held_is_counted_by_storage():
    x = torch.ones(1000)
    with _MadeStorages([x]) as made:
        y = (x + 1).view(10, 100)
        z = y[0].clone()
        view = x[:10]
        (x * 2).sum()
    assert made.alive() == 4000 + 400
    del y
    assert made.alive() == 400
    del z
    assert made.alive() == 0 and len(view) == 10
