"""The page of all numbers: each leads to its records, each record to its file and command."""

import csv
import re

import pytest

from analysis.pages import numbers_page

NUMBERS = [
    {"key": "a.x", "text": "2.50 [2.25, 2.75]", "unit": "x", "from": "records",
     "records": "results/m/r/one.json ; results/m/r/two.json"},
    {"key": "a.<y>", "text": "7", "unit": "claims", "from": "claims", "records": ""},
    {"key": "b", "text": "1", "unit": "", "from": "records", "records": "results/m/r/two.json"},
]  # fmt: skip
RECORDS = [
    {"path": f"results/m/r/{name}.json", "command": f"measure {name}"}
    for name in ("one", "three", "two")
]


@pytest.fixture
def text(tmp_path):
    return numbers_page.render(NUMBERS, RECORDS, tmp_path / "build" / "numbers.html", tmp_path)


def test_a_number_leads_to_its_records_and_these_to_their_commands(text):
    row = re.search(r'<tr id="a.x">.*?</tr>', text, re.S)[0]
    assert "2.50 [2.25, 2.75]" in row
    assert re.findall(r'href="#record-(\d+)"', row) == ["1", "2"]
    record = re.search(r'<li id="record-2".*?</li>', text, re.S)[0]
    assert 'href="../results/m/r/two.json"' in record and "measure two" in record
    assert "measure three" not in text  # no number is made of it


def test_a_number_without_records_says_what_it_is_from_and_is_no_markup(text):
    assert "a.<y>" not in text
    row = re.search(r'<tr id="a.&lt;y&gt;">.*?</tr>', text, re.S)[0]
    assert "claims" in row and "#record" not in row


@pytest.mark.parametrize(
    ("places", "found"),
    [([], []), ([4], [(4, 4)]), ([9, 3, 5, 4], [(3, 5), (9, 9)]), ([1, 3], [(1, 1), (3, 3)])],
)
def test_places_that_follow_each_other_are_one_run(places, found):
    assert numbers_page.runs(places) == found


def test_the_command_reads_a_build_and_names_what_is_missing(build, tmp_path, capsys):
    out = tmp_path / "numbers.html"
    assert numbers_page.main(["--build", str(build), "--out", str(out)]) == 0
    with (build / "numbers.csv").open(newline="") as lines:
        keys = [row["key"] for row in csv.DictReader(lines)]
    assert re.findall(r'<tr id="([^"]+)">', out.read_text()) == keys
    assert numbers_page.main(["--build", str(tmp_path), "--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("numbers page: ") and "numbers.csv: cannot be read" in message
