"""Records: the schema, atomic writing, and what a bad file is told."""

import json
import math
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from experiments import record, schema
from experiments.case import COLUMNS, Case
from experiments.procedures import case_classes, columns_of
from experiments.publish import validate

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
def good(published):
    return json.loads(published("dense_*")[0].read_text())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema_version": 1}, "schema_version: is 1, this code reads 2"),
        ({"experiment": "dilated"}, "experiment: Extra inputs are not permitted"),
        ({"gauges": {"before": {}, "after": {}}}, "gauges.before.dense_ms: "),
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
    assert set(good["case"]) <= set(COLUMNS)
    described = schema.Record.model_json_schema()["$defs"]
    for one in case_classes():
        found = {*described[f"{one.__name__}Fields"]["properties"]}
        assert found == {*columns_of(one)} - {"variant"}
    assert columns_of(Case) == COLUMNS
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


def test_a_replicate_holds_what_its_procedure_measures(tmp_path, published):
    source = published("dilated-streamed_*")[0]
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


def _put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_validate_counts_good_and_tells_of_bad(tmp_path, published):
    source = published("dense_*")[0]
    machine, name = source.parents[1].name, source.stem
    whole, good = source.read_bytes(), f"{machine}/round-1/{name}"
    # What stands aside is not looked at.
    for place in (good, f"{machine}/outdated/round-1/{name}"):
        _put(tmp_path / f"{place}.json", whole)
    for place, content in (
        (f"{machine}/round-0/{name}", whole),
        (f"{machine}/round-1/cut", whole[:50]),
        (f"{machine}/round-1/dense_b9", whole),
        (f"m/round-1/{name}", whole),
    ):
        _put(tmp_path / f"{place}.json", content)
    valid, problems = validate(tmp_path)
    assert valid == 1 and len(problems) == 4
    for problem, told in zip(
        problems,
        (
            "expected a round's folder, not round-0",
            "cut.json: not JSON",
            f"case: belongs at {name}, not dense_b9",
            f"machine.id: belongs at {machine}, not m",
        ),
        strict=True,
    ):
        assert told in problem


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
