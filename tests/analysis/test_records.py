"""Records to the frame: columns, statuses, precedence, and messages that name file and field."""

import json
import math
import re
import shutil

import pytest

from analysis.records import frame as records
from analysis.records import systems
from analysis.selection import published, views
from tests.analysis import synthetic


def test_a_row_holds_the_records_numbers(laptop):
    case = next(c for c in synthetic.cases("comprehensive", "laptop") if c.variant == "dense")
    row = laptop[
        (laptop["experiment"] == "comprehensive")
        & (laptop["variant"] == "dense")
        & (laptop["seq_len"] == case.seq_len)
    ].iloc[0]
    assert row["median_ms"] == pytest.approx(synthetic.median_ms(case, synthetic.CPU))
    assert row["low_ms"] <= row["median_ms"] <= row["high_ms"]
    assert [len(samples) for samples in row["samples"]] == [7, 7, 7]
    assert row["system"] == "dense"
    assert math.isnan(row["sparsity"])
    assert (row["matmul_flops_per_s"], row["copy_bytes_per_s"]) == (2e11, 1.2e10)
    assert row["segment_lengths"] is None
    assert row["machine"] == synthetic.CPU
    assert row["origin"] == "published"
    assert row["peak_memory_bytes"] == int(case.seq_len * 8 * 64 * 4 * 2 * 1.004)


def test_one_row_per_record_of_every_tier_case(laptop):
    expected = sum(len(synthetic.cases(e, "laptop")) for e in published.EXPERIMENTS)
    assert len(laptop) == expected
    assert set(laptop["dilation_rates"].map(type)) == {tuple, type(None)}


def test_a_case_out_of_memory_is_a_row_without_numbers(both):
    lost = both[(both["status"] == "oom") & (both["seq_len"] == 131072)]
    lost = lost[lost["experiment"] != "memory"]
    assert len(lost) == 3  # once in comprehensive, forward and training in dilated
    assert lost["median_ms"].isna().all()
    assert lost["reason"].tolist() == ["oom on purpose"] * 3
    assert all(samples == [] for samples in lost["samples"])


def test_local_is_used_before_published_of_the_same_machine(tmp_path):
    synthetic.write(tmp_path / "published", "comprehensive")
    shutil.copytree(tmp_path / "published", tmp_path / "local")
    frame = records.load(tmp_path / "published", tmp_path / "local")
    assert len(frame) == len(synthetic.cases("comprehensive", "laptop"))
    assert set(frame["origin"]) == {"local"}


def test_the_reporting_machine_is_the_local_machine_then_a_gpu_then_a_cpu(both):
    assert records.reporting_machine(both) == synthetic.GPU
    assert records.reporting_machine(both[both["machine"] == synthetic.CPU]) == synthetic.CPU
    local = both.assign(origin=both["origin"].where(both["machine"] != synthetic.CPU, "local"))
    assert records.reporting_machine(local) == synthetic.CPU
    assert records.machines(both, synthetic.CPU) == [synthetic.CPU, synthetic.GPU]
    with pytest.raises(records.RecordsError, match="'toaster'.*big-gpu"):
        records.reporting_machine(both, "toaster")


def test_a_truncated_record_is_named(laptop_root, tmp_path):
    root = shutil.copytree(laptop_root, tmp_path / "published")
    victim = sorted(root.rglob("*.json"))[0]
    victim.write_text(victim.read_text()[:100])
    with pytest.raises(records.RecordsError, match=f"{re.escape(victim.name)}.*truncated"):
        records.load(root)


def test_a_record_of_another_version_is_named(laptop_root, tmp_path):
    victim = tmp_path / "one.json"
    data = json.loads(sorted(laptop_root.rglob("*.json"))[0].read_text())
    victim.write_text(json.dumps(data | {"schema_version": 99}))
    with pytest.raises(records.RecordsError, match="one.json.*schema_version.*99"):
        records.load(victim)


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(records.RecordsError, match="nowhere: no such"):
        records.load(tmp_path / "nowhere")
    with pytest.raises(records.RecordsError, match=f"{tmp_path.name}: no record"):
        records.load(tmp_path)


def test_half_written_files_are_not_read(laptop_root, tmp_path):
    root = shutil.copytree(laptop_root, tmp_path / "published")
    (root / ".partial.json").write_text("{")
    assert len(records.load(root)) == len(records.load(laptop_root))


def test_an_experiment_without_records_is_named(laptop):
    with pytest.raises(records.RecordsError, match="'quality'.*block_sparse, compreh"):
        records.of_experiment(laptop, "quality")


def test_the_series_keeps_one_pattern_and_the_longer_one_follows(both):
    cpu = views.view(both, "dilated", synthetic.CPU).series()
    assert [s.lengths for s in cpu] == [[512, 1024, 2048, 4096, 8192]]
    assert cpu[0].pattern == "segments 512/1024/2048, rates 1/2/4"
    assert cpu[0].systems == ["dense", "dilated-gather", "dilated-sdpa"]
    first, longer = views.view(both, "comprehensive", synthetic.GPU).series()
    assert (first.lengths, first.dtype) == ([2048, 4096, 8192, 16384], "float32")
    assert first.pattern == longer.pattern == "the published segments"
    assert (longer.lengths[-1], longer.dtype) == (131072, "float16")


def test_a_system_is_a_variant_at_a_sparsity(both):
    rows = both[(both["experiment"] == "block_sparse") & (both["machine"] == synthetic.CPU)]
    assert set(rows["system"]) == {
        "dense", "block-sparse@90", "block-sparse@95", "block-sparse@98",
    }  # fmt: skip
    assert systems.parts("block-sparse@97.5") == ("block-sparse", 0.975)
    assert systems.key("block-sparse", 0.975) == "block-sparse@97.5"
    shuffled = ["gone", "dense-flash", "block-sparse@98", "block-sparse@90", "dense"]
    assert systems.ordered(shuffled) == [
        "dense", "block-sparse@90", "block-sparse@98", "dense-flash", "gone",
    ]  # fmt: skip
    assert systems.of_experiment("block_sparse") == (
        "dense",
        *(f"block-sparse@{s}" for s in (90, 95, 98)),
        *(f"block-sparse-flex@{s}" for s in (90, 95, 98)),
    )


def test_a_block_sparse_series_keeps_the_published_blocks(both):
    view = views.view(both, "block_sparse", synthetic.CPU)
    (series,) = view.series()
    assert series.pattern == "dilated blocks of 64"
    assert series.lengths == [1024, 2048, 4096, 8192, 16384]
    assert set(series.rows["pattern"].dropna()) == {"dilated"}
    (training,) = view.series("forward_backward")
    assert (training.training, training.lengths) == (True, [2048, 4096])
    assert view.batch_for(4, 2048) == 1  # the laptop has batch 1 only
    assert views.view(both, "block_sparse", synthetic.GPU).batch_for(4, 2048) == 4


def test_dense_series_are_told_apart_by_heads_and_masking(both):
    found = views.view(both, "backends", synthetic.GPU).series()
    assert [(s.head_dim, s.is_causal) for s in found] == [
        (64, False), (128, False), (64, True), (128, True),
    ]  # fmt: skip
    assert all(s.dtype == "float16" and s.pattern == "" for s in found)
    assert "dense-eager" in found[0].systems


def test_smoke_records_speak_only_where_there_are_no_others(laptop, smoke):
    import pandas as pd

    mixed = pd.concat([laptop, smoke], ignore_index=True)
    assert set(views.view(mixed, "dilated").rows["tier"]) == {"laptop"}
    assert set(views.view(smoke, "dilated").rows["tier"]) == {"smoke"}


def test_a_fit_recovers_the_growth_that_was_put_in(laptop):
    series = views.view(laptop, "dilated").series()[0]
    for variant in ("dense", "dilated-sdpa"):
        exponent = series.growth(variant, "time").exponent
        assert synthetic.SPEED[variant][1] in exponent
        assert math.isclose(series.growth(variant, "memory").exponent.value, 1, abs_tol=1e-3)
