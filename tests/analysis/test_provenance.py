"""From a number to its records and commands; costs, machines and code of all records."""

import csv
import io

import pytest

from analysis.across import provenance
from analysis.records.frame import RecordsError
from analysis.rendering import numbers
from tests.analysis import synthetic


def _rows(text):
    return {row["key"]: row for row in csv.DictReader(io.StringIO(text))}


def test_a_number_names_its_records_and_the_commands_that_made_them(laptop):
    two = laptop[laptop["experiment"] == "dilated"].iloc[:2]
    entry = numbers.entry(1.5, 1.25, 2, unit="ms", rows=[row for _, row in two.iterrows()])
    found = _rows(provenance.numbers_csv({"dilated.x": entry}, laptop))["dilated.x"]
    assert (found["text"], found["value"], found["low"], found["high"], found["unit"]) == (
        "1.50 [1.25, 2.00]", "1.5", "1.25", "2.0", "ms",
    )  # fmt: skip
    assert found["from"] == "records"
    assert found["records"].split(provenance.SEPARATOR) == list(two["path"])
    commands = [f"python -m experiments run dilated --only seq_len={n}" for n in two["seq_len"]]
    assert found["commands"].split(provenance.SEPARATOR) == list(dict.fromkeys(commands))


def test_a_number_without_records_says_what_it_is_from(laptop):
    keys = {
        "claims.all.total": numbers.entry(3),
        "dilated.published.time.dense.b1.n1": numbers.entry(2.5),
        "dilated.records.here": numbers.entry(28),
        "dilated.time.dense.b1.n1": numbers.entry(None),
    }
    rows = _rows(provenance.numbers_csv(keys, laptop))
    assert [row["from"] for row in rows.values()] == ["claims", "write-up", "counted"]
    assert "dilated.time.dense.b1.n1" not in rows


def test_a_number_of_a_record_that_is_not_there_is_refused(laptop):
    entry = numbers.entry(1, rows=[{"path": "results/published/gone.json"}])
    with pytest.raises(RecordsError, match=r"number 'a.b': is made of results/published/gone.json"):
        provenance.numbers_csv({"a.b": entry}, laptop)


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


def test_costs_add_up(both):
    table = provenance.costs(both)
    *parts, whole = table.rows
    cases = {(row[0], row[1]): int(row[2]) for row in parts}
    assert cases["Dilated", synthetic.CPU] == len(synthetic.cases("dilated", "laptop"))
    assert whole[2] == str(len(both)) == str(sum(cases.values()))
    assert int(whole[3]) == (both["status"] == "ok").sum() == sum(int(row[3]) for row in parts)
    assert whole[5] == provenance.number(3.0 * len(both) / 60)  # each took 3 s
    assert whole[6] == "2026-01-02"


def test_machines_are_listed_with_their_software(both):
    rows = {row[0]: row for row in provenance.machines(both).rows}
    assert rows[synthetic.GPU][2:5] == ("16", "16", "A Big GPU")
    assert rows[synthetic.CPU][2:5] == ("2", "16", "–")
    assert rows[synthetic.CPU][6:] == ("3.11.9", "2.13.0", "–")


def test_code_has_a_row_per_commit(laptop):
    other = laptop.copy()
    first = other.index[other["experiment"] == "ring"][0]
    other.loc[first, ["git_commit", "code_digest"]] = ["f" * 40, "other"]
    rows = [row for row in provenance.code(other).rows if row[0] == "Ring"]
    total = (laptop["experiment"] == "ring").sum()
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
    assert records[0]["started_at"] == "2026-01-02T03:04:05+00:00"
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"provenance-{name}.{kind}"
        for name in ("machines", "costs", "code")
        for kind in ("csv", "md", "typ", "tex")
    }
    found.write_text("{")
    assert provenance.main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"provenance: {found}: not JSON")
