"""From a number to its records and commands; costs, machines and code of all records."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from analysis.across import provenance
from analysis.records import files
from analysis.records.files import RecordsError
from analysis.rendering import numbers
from tests.analysis import synthetic


def _rows(text):
    return {row["key"]: row for row in csv.DictReader(io.StringIO(text))}


def test_a_number_names_its_records_and_the_commands_that_made_them(laptop, every_laptop):
    two = laptop[laptop["experiment"] == "dilated"].iloc[:2]
    entry = numbers.entry(1.5, 1.25, 2, unit="ms", rows=[row for _, row in two.iterrows()])
    found = _rows(provenance.numbers_csv({"dilated.x": entry}, every_laptop))["dilated.x"]
    assert (found["text"], found["value"], found["low"], found["high"], found["unit"]) == (
        "1.50 [1.25, 2.00]", "1.5", "1.25", "2.0", "ms",
    )  # fmt: skip
    assert found["from"] == "records"
    assert found["records"].split(provenance.SEPARATOR) == [
        path for paths in two["paths"] for path in paths
    ]
    run = "python -m experiments run --tier laptop --case"
    commands = [f"{run} {Path(path).stem}" for path in two["path"]]
    assert found["commands"].split(provenance.SEPARATOR) == list(dict.fromkeys(commands))


def test_a_number_without_records_says_what_it_is_from(every_laptop):
    keys = {
        "claims.all.total": numbers.entry(3),
        "dilated.published.time.dense.b1.n1": numbers.entry(2.5),
        "dilated.records.here": numbers.entry(28),
        "dilated.time.dense.b1.n1": numbers.entry(None),
    }
    rows = _rows(provenance.numbers_csv(keys, every_laptop))
    assert [row["from"] for row in rows.values()] == ["claims", "write-up", "counted"]
    assert "dilated.time.dense.b1.n1" not in rows


def test_a_number_of_a_record_that_is_not_there_is_refused(every_laptop):
    entry = numbers.entry(1, rows=[{"paths": ("results/published/gone.json",)}])
    with pytest.raises(RecordsError, match=r"number 'a.b': is made of results/published/gone.json"):
        provenance.numbers_csv({"a.b": entry}, every_laptop)


def test_every_number_of_a_build_has_an_origin(build):
    rows = _rows((build / "numbers.csv").read_text())
    known = numbers.read(build / "numbers.json")
    assert rows.keys() == {key for key, entry in known.items() if numbers.is_measured(entry)}
    assert len(rows) < len(known)
    # What was measured names its records: a time, a ratio, a growth, a crossover.
    measured = [
        row
        for key, row in rows.items()
        if key.split(".")[1] in ("time", "speedup", "vs_dense", "growth", "crossover")
        and not key.endswith((".tokens", ".word"))
        and row["text"] != "–"
    ]
    assert len(measured) > 100
    assert {row["from"] for row in measured} == {"records"}


@pytest.fixture(scope="module")
def every_both(both_root):
    return provenance.table_of(files.read(both_root))


def test_costs_add_up(both, every_both):
    table = provenance.costs(every_both)
    *parts, whole = table.rows
    counts = {(row[0], row[1]): int(row[2]) for row in parts}
    of_dilated = both[(both["experiment"] == "dilated") & (both["machine"] == synthetic.CPU)]
    assert counts["Dilated", synthetic.CPU] == 3 * len(of_dilated)
    cases = both.drop_duplicates("path")
    assert whole[2] == str(3 * len(cases)) == str(len(every_both))
    assert whole[3] == "6" and {row[3] for row in parts} == {"3"}  # on two machines, on one
    assert whole[4] == "0"
    assert int(whole[5]) == 3 * (cases["status"] == "ok").sum()
    assert int(whole[6].replace(",", "")) == synthetic.SAMPLES * int(whole[5])
    assert whole[7] == provenance.number(every_both["wall_s"].sum() / 60)
    assert whole[8] == "2026-01-01 to 2026-01-03"


def test_what_earlier_code_measured_is_counted_as_history(laptop_root, tmp_path):
    root = shutil.copytree(laptop_root, tmp_path / "published")
    old = sorted(root.rglob("dense_*.json"))[:2]
    for path in old:
        data = json.loads(path.read_text())
        data["software"]["code_digest"] = "0" * 16
        path.write_text(json.dumps(data))
    every = provenance.table_of(files.read(synthetic.vouch(root)))
    assert {Path(path).name for path in every["path"][~every["counts"].astype(bool)]} == {
        path.name for path in old
    }
    assert provenance.costs(every).rows[-1][4] == "2"
    assert provenance.records_csv(every).count(",False,") == 2


def test_machines_are_listed_with_their_rounds_hosts_and_software(both, every_both):
    rows = {row[0]: row for row in provenance.machines(both, every_both).rows}
    assert rows[synthetic.GPU][2:5] == ("16", "16", "A Big GPU")
    assert rows[synthetic.CPU][2:5] == ("2", "16", "–")
    assert rows[synthetic.CPU][6:] == ("3", "1", "3.11.9", "2.13.0", "–")


def test_code_has_a_row_per_commit(every_laptop):
    other = every_laptop.copy()
    of_ring = ["ring" in names for names in other["experiments"]]
    other.loc[other.index[of_ring][0], ["git_commit", "code_digest"]] = ["f" * 40, "other"]
    rows = [row for row in provenance.code(other).rows if row[0] == "Ring"]
    total = sum(of_ring)
    assert [(row[2][0], row[3], row[4]) for row in rows] == [
        ("0", str(total - 1), "1"),
        ("f", "1", "1"),
    ]


def test_the_command_writes_all_and_names_what_is_wrong(laptop_root, tmp_path, capsys):
    found = tmp_path / "numbers.json"
    numbers.save({"a.b": numbers.entry(1)}, found)
    arguments = ["--numbers", str(found), "--build", str(tmp_path), str(laptop_root)]
    assert provenance.main(arguments) == 0
    records = list(csv.DictReader(io.StringIO((tmp_path / "records.csv").read_text())))
    assert [row["path"] for row in records] == sorted(row["path"] for row in records)
    assert records[0]["started_at"] == "2026-01-01T03:04:05+00:00"
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"provenance-{name}.{kind}"
        for name in ("machines", "costs", "code")
        for kind in ("csv", "md", "typ", "tex")
    }
    found.write_text("{")
    assert provenance.main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"provenance: {found}: not JSON")
