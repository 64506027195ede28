"""Records: the schema, atomic writing, and what a bad file is told."""

import json
import math
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from experiments import record, schema
from experiments.case import COLUMNS
from experiments.publish import publish, validate

ROOT = Path(__file__).parents[2]


def test_the_json_schema_in_the_repository_is_the_model():
    tracked = (ROOT / "experiments/record.schema.json").read_text()
    hint = "run: python -m experiments schema > experiments/record.schema.json"
    assert tracked == schema.json_schema(), hint


def test_every_published_record_is_valid():
    published = ROOT / "results/published"
    valid, problems = validate(published)
    assert problems == []
    assert valid == len(list(published.rglob("*.json")))


@pytest.fixture(scope="module")
def good():
    path = min((ROOT / "results/published").rglob("comprehensive/*.json"))
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema_version": 2}, "schema_version: is 2, this code reads 1"),
        ({"status": "fine"}, "status: "),
        ({"wall_s": "long"}, "wall_s: "),
        ({"case": {"batch": 0}}, "case.batch: "),
        ({"reason": "none needed"}, "reason: expected null exactly when status is ok"),
        ({"replicates": []}, "replicates: expected timed samples"),
        ({"speed": 9}, "speed: "),
        ({"case": {"pattern": "dilated"}}, "case: missing key 'sparsity'"),
        ({"ceilings": {"matmul_flops_per_s": 1e12}}, "ceilings.copy_bytes_per_s: "),
        (
            {"ceilings": {"matmul_flops_per_s": 0.0, "copy_bytes_per_s": 1e11}},
            "ceilings.matmul_flops_per_s: ",
        ),
    ],
)
def test_a_bad_field_is_named_with_its_file(tmp_path, good, change, told):
    data = {**good, **change}
    if "case" in change:
        data["case"] = {**good["case"], **change["case"]}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(data))
    with pytest.raises(record.RecordError) as error:
        schema.load(path)
    assert str(path) in str(error.value) and told in str(error.value)


def test_the_fields_of_a_case_are_those_of_its_record_and_its_row(case, good):
    assert set(good["case"]) <= set(COLUMNS) and set(
        schema.CaseFields.model_json_schema()["properties"]
    ) == set(COLUMNS) - {"variant"}
    row = case(variant="dense").cells()
    assert tuple(row) == COLUMNS and row["pass"] == "forward" and row["segment_lengths"] is None
    assert all(math.isnan(row[name]) for name in ("sparsity", "block_size", "world_size"))
    row = case(variant="ring-standard", world_size=4, simulated=True).cells()
    assert (row["world_size"], type(row["world_size"]), row["simulated"]) == (4.0, float, True)


def test_a_record_is_made_of_the_fields_of_the_schema(good):
    given = {k: v for k, v in good.items() if k not in ("ceilings", "replicates", "error")}
    failed = record.compose(**{**given, "status": "failed", "reason": "wrong"})
    assert list(failed) == list(schema.Record.model_fields)
    assert (failed["ceilings"], failed["replicates"], failed["deviation"]) == (None, [], None)
    schema.check(failed, "failed")
    with pytest.raises(TypeError, match="has no field speed"):
        record.compose(**given, speed=9)
    del given["wall_s"]
    with pytest.raises(TypeError, match="wall_s is missing"):
        record.compose(**given)


def test_a_replicate_holds_what_its_procedure_measures(tmp_path, good):
    source = next(p for p in (ROOT / "results/published").rglob("extreme/*dilated-streamed_*"))
    path = tmp_path / Path(*source.parts[-3:])
    data = json.loads(source.read_text())
    record.write(path, data)
    assert validate(tmp_path) == (1, [])
    for replicate in data["replicates"]:
        del replicate["source_ms"]
    record.write(path, data)
    assert validate(tmp_path)[1][0].endswith("streamed gives samples_ms and source_ms")
    for replicate in data["replicates"]:
        del replicate["samples_ms"]
    with pytest.raises(record.RecordError, match="replicates: expected timed samples"):
        schema.check(data, "record")


def test_records_from_before_a_field_stay_valid(tmp_path, good):
    path = tmp_path / "record.json"
    old = {k: v for k, v in good.items() if k != "ceilings"}
    masks = ("pattern", "sparsity", "block_size")
    old["case"] = {k: v for k, v in good["case"].items() if k not in masks}
    path.write_text(json.dumps(old))
    found = schema.load(path)
    assert found.ceilings is None and found.to_case().pattern is None
    rates = {"matmul_flops_per_s": 1e12, "copy_bytes_per_s": 2e11}
    path.write_text(json.dumps({**old, "ceilings": rates}))
    assert schema.load(path).ceilings.model_dump() == rates


def test_a_truncated_file_is_named(tmp_path, good):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(good)[:200])
    with pytest.raises(record.RecordError, match=r"record\.json: not JSON \(truncated\?\)"):
        schema.load(path)


def test_validate_counts_good_and_tells_of_bad(tmp_path, good):
    machine, experiment = good["machine"]["id"], good["experiment"]
    source = next((ROOT / "results/published" / machine / experiment).glob("*.json"))
    folder = tmp_path / machine / experiment
    folder.mkdir(parents=True)
    (folder / source.name).write_bytes(source.read_bytes())
    (folder / "variant-dense_batch-9.json").write_bytes(source.read_bytes())
    (folder / "cut.json").write_bytes(source.read_bytes()[:50])
    valid, problems = validate(tmp_path)
    assert valid == 1 and len(problems) == 2
    assert "belongs at" in problems[1] and "cut.json: not JSON" in problems[0]


def _write_for_ever(path):
    number = 0
    while True:
        record.write(path, {"number": number, "filler": "x" * 200_000})
        number += 1


def test_a_killed_writer_leaves_a_whole_record(tmp_path):
    path = tmp_path / "record.json"
    for _ in range(5):
        writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        writer.start()
        writer.join(0.15)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert len(json.loads(path.read_text())["filler"]) == 200_000


def test_a_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(record.RecordError, match="cannot write there"):
        record.write(tmp_path / "file" / "record.json", {})
    assert record.read(tmp_path / "absent.json") is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tier": "smoke"}, "tier: is smoke"),
        ({"software": {"git_dirty": True}}, "git_dirty"),
        ({"status": "failed", "reason": "wrong", "replicates": [], "error": None}, "is failed"),
    ],
)
def test_publish_takes_only_what_may_be_published(tmp_path, good, change, told):
    machine, experiment = good["machine"]["id"], good["experiment"]
    source = next((ROOT / "results/published" / machine / experiment).glob("*.json"))
    data = json.loads(source.read_text())
    folder = tmp_path / "local" / machine / experiment
    record.write(folder / source.name, data)
    (target,) = publish(tmp_path / "local", tmp_path / "published")
    assert json.loads(target.read_text()) == data
    data.update({k: v if k != "software" else {**data[k], **v} for k, v in change.items()})
    record.write(folder / source.name, data)
    with pytest.raises(record.RecordError, match=told):
        publish(tmp_path / "local", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_a_peer_that_is_wrong_is_published_as_failed(tmp_path):
    found = [
        path
        for path in (ROOT / "results/published").rglob("ring/*.json")
        if json.loads(path.read_text())["status"] == "failed"
    ]
    assert found and all("variant-ring-attention-pytorch_" in path.name for path in found)
    wrong = tmp_path / "local" / Path(*found[0].parts[-3:])
    wrong.parent.mkdir(parents=True)
    wrong.write_text(found[0].read_text())
    (target,) = publish(tmp_path / "local", tmp_path / "published")
    assert json.loads(target.read_text())["reason"].startswith("gradient: relative error")
