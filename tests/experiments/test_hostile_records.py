"""The gate: no hostile record passes, each is told by name, field and reason, valid ones stay."""

import errno
import json
import os
from pathlib import Path

import pytest

from analysis.records import files
from experiments import gate, plausible, publish, record, rounds
from experiments.case import DTYPES
from tests.experiments.hostile_records import HOSTILE, lay, lay_one


@pytest.fixture(scope="module")
def sources(published):
    """Records of one round: the first is over ranks, of the second kind as those made of it."""
    found = published("ring-standard_*_p2")
    first = next(path for path in found if path.parent.name > "2026-11-29")
    return [first, *sorted(first.parent.glob("dense_*.json"))[:2]]


@pytest.fixture(scope="module")
def valid(sources):
    return json.loads(sources[0].read_text(encoding="utf-8"))


@pytest.fixture
def beside(tmp_path, sources):
    """A folder of all machines with two valid records."""
    for path in sources[1:]:
        target = tmp_path / "published" / Path(*path.parts[-3:])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "published"


def test_there_are_many_and_the_one_that_they_are_made_of_is_valid(tmp_path, sources, valid):
    assert len(HOSTILE) > 200 and len({one.name for one in HOSTILE}) == len(HOSTILE)
    target = tmp_path / Path(*sources[0].parts[-3:])
    record.write(target, valid)
    assert publish.validate(tmp_path) == (1, [])


@pytest.mark.parametrize("one", HOSTILE, ids=lambda one: one.name)
def test_each_is_refused_by_name_and_field_and_those_beside_it_stay(
    beside, valid, capsys, one, tmp_path
):
    place = lay_one(one, beside, valid)
    count, lines = publish.validate(beside)
    assert count == 2 and lines
    for line in lines:
        assert line.isprintable() and f": {one.field}" in line and len(line) < 2000
    # A folder's link is told under its own name.
    assert any(ascii(place.name)[1:-1] in line or place.name in line for line in lines)
    read, left_out = files.sifted(beside)
    assert len(read) == 2 and left_out == lines
    assert len(files.read(beside)) == 2
    told = capsys.readouterr().err.splitlines()
    assert told == [f"left out: {line}" for line in lines]
    with pytest.raises(record.RecordError, match="."):
        publish.publish(beside, tmp_path / "home")
    assert not (tmp_path / "home").exists()
    # The runner reads without the gate: of what it takes, the types are those of a record.
    found = record.read(place) or {}
    assert {type(found.get(key)) for key in ("machine", "software")} <= {dict, type(None)}


def test_all_of_them_together_are_left_out_and_nothing_else(tmp_path, sources, beside, valid):
    lay(beside / "stranger", valid)
    found = gate.sift([beside])
    assert len(found.records) == 2 and len(found.left_out) >= len(HOSTILE)
    names = {path.name for path in sources[1:]}
    assert {path.name for path in rounds.well_placed(beside)} == names


def test_a_measurement_counts_once(beside, sources, tmp_path):
    path = sorted(beside.rglob("*.json"))[0]
    again = path.parent.with_name("2026-11-28T235959Z") / path.name
    again.parent.mkdir()
    again.write_bytes(path.read_bytes())
    found = gate.sift([beside])
    assert len(found.records) == 2 and len(found.left_out) == 1
    assert f"started_at: it is the measurement in {again} again" in found.left_out[0]
    # What was published from here lies in both.
    local = tmp_path / "local" / Path(*path.parts[-3:])
    local.parent.mkdir(parents=True)
    local.write_bytes(path.read_bytes())
    assert gate.sift([beside, tmp_path / "local"]).left_out == found.left_out


def test_without_any_good_record_the_first_bad_one_is_named(tmp_path, valid):
    lay_one(HOSTILE[0], tmp_path, valid)
    with pytest.raises(files.RecordsError, match="schema_version: is 1"):
        files.read(tmp_path)


def test_publishing_leaves_nothing_where_a_write_fails(beside, tmp_path, monkeypatch):
    home = tmp_path / "home"
    write = record.write

    def full(path, data):
        if home.is_dir():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(record, "write", full)
    with pytest.raises(OSError, match="No space"):
        publish.publish(beside, home)
    assert [*home.rglob("*")] == []
    monkeypatch.undo()
    assert len(publish.publish(beside, home)) == 2


def test_nothing_is_published_through_a_link(beside, tmp_path):
    machine = next(beside.iterdir()).name
    outside, home = tmp_path / "outside", tmp_path / "home"
    outside.mkdir()
    home.mkdir()
    (home / machine).symlink_to(outside)
    with pytest.raises(record.RecordError, match="is a symbolic link"):
        publish.publish(beside, home)
    assert [*outside.iterdir()] == []


def test_the_command_is_that_of_the_case_whatever_an_old_record_says(published):
    old = next(
        path
        for path in published("dense_*")
        if json.loads(path.read_text(encoding="utf-8"))["machine"]["host"] is None
    )
    found = gate.admit(old, old)
    assert found.command != found.command_line
    assert found.command_line == f"python -m experiments run --tier laptop --case {old.stem}"


def test_the_allowances_and_the_gauge_are_those_that_are_measured_by():
    torch = pytest.importorskip("torch")
    from experiments import ceilings, check, gauge

    assert plausible.ALLOWED == {
        "output": check.OUTPUT_ALLOWANCE,
        "gradient": check.GRADIENT_ALLOWANCE,
    }
    assert {name: torch.finfo(getattr(torch, name)).eps for name in DTYPES} == plausible.EPS
    for kind, (dtype, dense, _, copied) in plausible.GAUGES.items():
        assert dtype == gauge.DTYPE[kind]
        n = gauge._TOKENS[kind]
        assert dense == 4 * gauge._HEADS * gauge._HEAD_DIM * n * (n + 1) // 2
        assert copied % 2**20 == 0
    assert plausible.GAUGES["cuda"][2:] == (
        2 * ceilings._SIDE["cuda"] ** 3,
        2 * ceilings._COPY_BYTES["cuda"],
    )
