"""Records to the frame: columns, statuses, precedence, and messages that name file and field."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.records import frame as records
from analysis.records import systems
from analysis.selection import published, views
from experiments import grid, rounds
from experiments.provenance import command
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
    assert [len(one.all) for one in row["samples"]] == [7, 7, 7]
    assert [one.round for one in row["samples"]] == [synthetic.round_name(n) for n in (1, 2, 3)]
    assert (row["rounds"], row["hosts"]) == (3, 1)
    assert [Path(path).parent.name for path in row["paths"]] == [s.round for s in row["samples"]]
    assert row["path"] == row["paths"][-1]
    assert row["system"] == "dense"
    assert math.isnan(row["sparsity"])
    assert (row["matmul_flops_per_s"], row["copy_bytes_per_s"]) == (2e11, 1.2e10)
    assert row["segment_lengths"] is None
    assert row["machine"] == synthetic.CPU
    assert row["origin"] == "published"
    assert row["peak_memory_bytes"] == int(case.seq_len * 8 * 64 * 4 * 2 * 1.004)


def test_a_case_is_a_row_of_every_experiment_that_has_it(laptop):
    cases = {case for e in published.EXPERIMENTS for case in synthetic.cases(e, "laptop")}
    assert len(laptop) == sum(len(grid.experiments_of(case)) for case in cases)
    assert len(set(laptop["path"])) == len(cases)
    several = laptop[laptop["path"] == laptop["path"].mode()[0]]
    assert len(set(several["experiment"])) == len(several) > 3
    assert several["samples"].nunique() == 1
    assert set(laptop["dilation_rates"].map(type)) == {tuple, type(None)}


def test_a_case_out_of_memory_is_a_row_without_numbers(both):
    lost = both[(both["status"] == "oom") & (both["seq_len"] == 131072)]
    lost = lost[lost["experiment"] != "memory"]
    assert len(lost) == 3  # once in comprehensive, forward and training in dilated
    assert lost["median_ms"].isna().all()
    assert lost["reason"].tolist() == ["oom on purpose"] * 3
    assert all(samples == () for samples in lost["samples"])
    assert set(lost["rounds"]) == {0}


def test_local_is_used_before_published_of_the_same_machine(tmp_path):
    synthetic.write(tmp_path / "published", "comprehensive")
    shutil.copytree(tmp_path / "published", tmp_path / "local")
    frame = records.load(tmp_path / "published", tmp_path / "local")
    assert len(set(frame["path"])) == len(synthetic.cases("comprehensive", "laptop"))
    assert set(frame["origin"]) == {"local"}


@pytest.fixture
def rounds_of_one_case(tmp_path):
    """Changes to the records of rounds 1, 2, ... of one case -> its row of the frame."""
    (case,) = [c for c in synthetic.cases("dilated", "laptop") if c.variant == "dense"][:1]

    def load(*changes, folder="published"):
        for number, change in enumerate(changes, start=1):
            data = synthetic.record(case, "laptop", synthetic.CPU, number=number)
            for key, value in change.items():
                data[key] = data[key] | value if isinstance(value, dict) else value
            name = synthetic.round_name(number)
            path = rounds.path_of(tmp_path / folder, synthetic.CPU, name, case)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(data))
        synthetic.vouch(tmp_path / folder)
        frame = records.load(tmp_path / folder)
        return frame[frame["experiment"] == "dilated"].iloc[0]

    return load


LOST = {"status": "oom", "reason": "too large", "replicates": [], "error": None}


def test_only_rounds_of_the_code_that_measured_last_count(rounds_of_one_case):
    old = {"software": {"code_digest": "0" * 16}}
    row = rounds_of_one_case(old, {}, {})
    assert [one.round for one in row["samples"]] == [synthetic.round_name(n) for n in (2, 3)]
    assert len(row["paths"]) == row["rounds"] == 2


def test_a_case_is_ok_if_it_is_in_any_round(rounds_of_one_case):
    row = rounds_of_one_case({}, LOST, LOST)
    assert (row["status"], row["reason"], row["rounds"], len(row["paths"])) == ("ok", None, 1, 3)
    assert math.isnan(row["low_ms"]) and Path(row["path"]).parent.name == synthetic.round_name(1)
    row = rounds_of_one_case(LOST, LOST, LOST | {"reason": "at last"})
    assert (row["status"], row["reason"], row["samples"]) == ("oom", "at last", ())
    assert math.isnan(row["median_ms"])


def test_smoke_records_count_where_there_are_no_others(rounds_of_one_case):
    (case,) = [c for c in synthetic.cases("dilated", "laptop") if c.variant == "dense"][:1]
    smoke = {"tier": "smoke", "command": command("smoke", case)}
    assert rounds_of_one_case(smoke, smoke)["rounds"] == 2
    row = rounds_of_one_case(smoke, {}, smoke)
    assert (row["rounds"], row["tier"]) == (1, "laptop")


def test_hosts_are_counted_and_an_unknown_one_is_one(rounds_of_one_case):
    unknown = {"machine": {"host": None}}
    row = rounds_of_one_case({}, unknown, unknown)
    assert (row["rounds"], row["hosts"]) == (3, 2)
    assert [one.host for one in row["samples"]] == [synthetic.MACHINES[0].host.id, "", ""]


def test_another_record_of_a_round_is_left_out(rounds_of_one_case, tmp_path, capsys):
    path = tmp_path / rounds_of_one_case({})["path"]
    assert capsys.readouterr().err == ""
    again = shutil.copytree(tmp_path / "published", tmp_path / "again" / "published")
    frame = records.load(tmp_path / "published", again)
    assert len(frame) == len(set(frame["experiment"]))
    assert f"it is the measurement in {path} again" in capsys.readouterr().err


def test_the_reporting_machine_is_the_local_machine_then_a_gpu_then_a_cpu(both):
    assert records.reporting_machine(both) == synthetic.GPU
    assert records.reporting_machine(both[both["machine"] == synthetic.CPU]) == synthetic.CPU
    local = both.assign(origin=both["origin"].where(both["machine"] != synthetic.CPU, "local"))
    assert records.reporting_machine(local) == synthetic.CPU
    assert records.machines(both, synthetic.CPU) == [synthetic.CPU, synthetic.GPU]
    with pytest.raises(records.RecordsError, match=f"'toaster'.*{synthetic.GPU}"):
        records.reporting_machine(both, "toaster")


def test_a_truncated_record_is_left_out_and_named(laptop_root, tmp_path, capsys):
    root = shutil.copytree(laptop_root, tmp_path / "published")
    victim = sorted(root.rglob("*.json"))[0]
    victim.write_text(victim.read_text()[:100])
    kept = records.load(root)
    assert victim.as_posix() not in {*kept["path"]} and len(kept) > 100
    (told,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"left out: .*{re.escape(victim.name)}: not JSON \(truncated\?\).*", told)


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
    others = laptop[laptop["experiment"] != "ring"]
    with pytest.raises(records.RecordsError, match="'ring'.*block_sparse, compreh"):
        records.of_experiment(others, "ring")


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
    assert view.batch_for(4, 2048) == 4
    view = replace(view, rows=view.rows[view.rows["batch"] == 1])
    assert view.batch_for(4, 2048) == 1
    assert views.view(both, "block_sparse", synthetic.GPU).batch_for(4, 2048) == 4


def test_dense_series_are_told_apart_by_heads_and_masking(both):
    found = views.view(both, "backends", synthetic.GPU).series()
    assert [(s.head_dim, s.is_causal) for s in found] == [
        (64, False), (128, False), (64, True), (128, True),
    ]  # fmt: skip
    assert all(s.dtype == "float16" and s.pattern == "" for s in found)
    assert "dense-eager" in found[0].systems


def test_of_many_dense_series_the_nearest_to_the_published_are_shown(both):
    """Ten thousand cases had 41 series of `backends`, in a table of 288 lines."""
    import pandas as pd

    from analysis.standard.tables import scaling

    own = both[both["experiment"] == "backends"]
    many = pd.concat([own.assign(batch=own["batch"] * factor) for factor in (1, 2, 3, 4)])
    found = views.view(many, "backends", synthetic.GPU).series()
    assert len(found) == views.MOST_SERIES == 12
    # Causality, type and head size before the batch.
    batches = sorted(set(many[many["machine"] == synthetic.GPU]["batch"]))[:4]
    assert [(s.head_dim, s.is_causal) for s in found] == [
        *4 * [(64, False)], *4 * [(128, False)], *4 * [(64, True)],
    ]  # fmt: skip
    assert [s.batch for s in found] == 3 * batches
    told = "at most 12 series"
    assert told in scaling("backends")(many, "auto").note
    assert told not in scaling("backends")(both, "auto").note


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


def test_a_machine_is_called_by_its_card_or_processor_and_two_of_one_name_by_their_id_too():
    processor = "Intel(R) Core(TM) i7-8565U CPU @ 1.80GHz"
    machines = [
        ("a", "cpu", "x", "AMD EPYC 9R14 96-Core Processor", 2),
        ("b", "cpu", "x", processor, 4),
        ("c", "cpu", "x", processor, 4),
        ("d", "cuda", "NVIDIA H200", processor, 4),
        ("e", "cpu", "x", "CPU", 8),
    ]
    columns = ["machine", "device_kind", "device", "cpu", "cores"]
    frame = pd.DataFrame(machines * 2, columns=columns).assign(vouched=True)
    names = records._named(frame)["machine_name"].tolist()
    assert (
        names[:5]
        == names[5:]
        == [
            "2-core AMD EPYC 9R14",
            "4-core Intel Core i7-8565U (b)",
            "4-core Intel Core i7-8565U (c)",
            "NVIDIA H200",
            "8-core CPU",
        ]
    )
    strangers = records._named(frame.assign(vouched=False))["machine_name"].tolist()
    assert strangers[0] == "2-core AMD EPYC 9R14 (not vouched for)"
