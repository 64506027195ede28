"""The README: its numbers are looked up, its paths exist, its table finds every table."""

import re
from pathlib import Path

import pytest

from analysis.documents.readme import fill
from analysis.outputs import written
from analysis.rendering.numbers import NumbersError
from experiments import grid

ROOT = Path(__file__).parents[2]


def test_numbers_are_looked_up_between_the_marks():
    text = "a\n<!-- found -->\nold 1.0\n<!-- /found -->\nb"
    filled = fill(text, 'new {{ n("x") }}', {"x": {"text": "2.5"}})
    assert filled == "a\n<!-- found -->\nnew 2.5\n<!-- /found -->\nb"
    with pytest.raises(NumbersError, match="paper/readme.md.j2: unknown number 'y'"):
        fill(text, '{{ n("y") }}', {"x": {"text": "2.5"}})


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_linked_files_exist(name):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_table_of_the_write_ups_is_found_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    for line in re.findall(r"`build/tables/(\S+?)`", readme):
        names = re.sub(r"\{(.*)\}", lambda m: "(" + m[1].replace(",", "|") + ")", line)
        pattern = re.compile(r"tables/" + names.replace("*", ".*") + r"\.csv$")
        paths = [path for name in grid.names() for path in written(name)]
        paths.append("tables/advice.csv")  # of all experiments
        assert any(pattern.search(path) for path in paths), line
