"""The README: its numbers and verdicts are looked up, its paths exist, tables are made."""

import re
from pathlib import Path

import pytest

from analysis.documents.readme import fill
from analysis.outputs import written
from analysis.rendering.numbers import NumbersError
from experiments import grid

ROOT = Path(__file__).parents[2]


MEASURED = {"value": 2.5, "low": 2.25, "high": 2.75, "unit": "x"}
SIDE = {"verdict": "does not hold", "stand_in": "on a CPU", "measured": [MEASURED], "beside": None}
JUDGED = {
    "headlines": [{"name": "h", "title": "t", "method": SIDE, "as_published": None}],
    "writeups": {"w": {"repository": "a/b", "url": "https://x/y"}},
}


def test_numbers_and_verdicts_are_looked_up_between_the_marks():
    text = "a\n<!-- found -->\nold 1.0\n<!-- /found -->\nb"
    known = {"x": {"text": "2.5"}}
    template = """new {{ n("x") }} {{ repository }} {{ told(headlines.h.method) }}
{% if only_cpus %}
CPUs {{ told(headlines.h.as_published) }}
{% endif %}"""
    filled = fill(text, template, known, JUDGED, only_cpus=True)
    told = "**does not hold**, on a CPU: 2.50 [2.25, 2.75]×"
    assert filled == f"a\n<!-- found -->\nnew 2.5 a/b {told}\nCPUs –\n<!-- /found -->\nb"
    assert "CPUs" not in fill(text, template, known, JUDGED, only_cpus=False)
    with pytest.raises(NumbersError, match="paper/readme.md.j2: unknown number 'y'"):
        fill(text, '{{ n("y") }}', known, JUDGED, only_cpus=True)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/reproducing.md"])
def test_linked_files_exist(name):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text())
    folder = (ROOT / name).parent
    assert [link for link in links if not (folder / link).exists()] == []


def test_every_table_that_the_documents_name_is_made():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs/reproducing.md").read_text()
    for line in re.findall(r"`build/tables/(\S+?)`", text):
        names = re.sub(r"\{(.*)\}", lambda m: "(" + m[1].replace(",", "|") + ")", line)
        pattern = re.compile(r"tables/" + names.replace("*", ".*") + r"\.csv$")
        paths = [path for name in grid.names() for path in written(name)]
        paths.append("tables/advice.csv")  # of all experiments
        assert any(pattern.search(path) for path in paths), line
