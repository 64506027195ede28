"""The page of machines side by side: the numbers of the comparison, and what there is to say."""

import base64
import re
from xml.etree import ElementTree

import pytest

from analysis.comparison import report
from analysis.pages import comparison_page
from analysis.rendering.text import interval
from experiments.__main__ import main as command
from tests.analysis import synthetic, two_machines
from tests.analysis.two_machines import LAPTOP, copied, slower


def changed(record: dict) -> None:
    slower(record, 0.5)
    if record["variant"] == "dense-flex":
        record["software"]["code_digest"] = "0123456789abcdef"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of two machines below one root, the second twice as fast and some of it by other code."""
    source = synthetic.write(tmp_path_factory.mktemp("one") / "local", "backends")
    root = tmp_path_factory.mktemp("both") / "local"
    return [
        copied(source / synthetic.CPU, root, LAPTOP),
        copied(source / synthetic.CPU, root, two_machines.OTHER, changed),
    ]


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of tables."""
    of_rows = re.findall(r"<tr>.*?</tr>", text, re.S)
    cells = (re.findall(r"<t[dh].*?</t[dh]>", row, re.S) for row in of_rows)
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in row] for row in cells]


def test_every_case_and_every_mean_stands_there_with_its_ratio(folders, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert command(["compare", *map(str, folders), "--page", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    text, found = out.read_text(), report.compare(*folders)
    cells = rows(text)
    for one in found.timed:
        ratio = report.ratio_text(one.ratio)
        assert ratio.startswith("2.00 [") and ratio.endswith("] *")
        times = [interval(r["median_ms"], r["low_ms"], r["high_ms"]) for r in (one.a, one.b)]
        assert [one.label, *times, "3 / 3", ratio] in cells
    assert ["processor", LAPTOP.cpu, "Another CPU"] in cells
    assert not any(row[:1] == ["cores"] for row in cells)
    summary = r"<summary><span>([\w-]+).*?</span><span>(\d+)</span><span>(.*?)</span>"
    summaries = re.findall(summary, text)
    expected = [(m.system, str(len(m.pairs)), report.ratio_text(m.ratio)) for m in found.means]
    assert summaries == [one for one in expected if one[0]]
    other = sum(one.system == "dense-flex" for one in found.timed)
    same = len(found.timed) - other
    assert f"{same} of {len(found.timed)} cases were measured by the same code" in text
    assert '<p class="code other">' in text
    assert "Code that differs: no comparison of hardware: geometric mean" in text


def test_its_figure_is_in_it_and_equal_records_give_equal_pages(folders):
    text = comparison_page.render([report.compare(*folders)])
    assert text == comparison_page.render([report.compare(*folders)])
    (drawn,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert ElementTree.fromstring(base64.b64decode(drawn)).tag.endswith("svg")


def test_a_build_compares_the_reporting_machine_with_each_other_one(folders, tmp_path):
    out = tmp_path / "compare.html"
    root = folders[0].parent
    assert comparison_page.main(["--out", str(out), str(root)]) == 0
    headings = re.findall(r'<h2 id="comparison-1-title">(.*?)</h2>', out.read_text())
    assert sorted(headings[0].split(" and ")) == sorted(one.name for one in folders)


def test_of_one_machine_it_says_so(folders, tmp_path):
    out = tmp_path / "compare.html"
    assert comparison_page.main(["--out", str(out), str(folders[0])]) == 0
    text = out.read_text()
    assert f"Only one machine has records here: 2-core Maker Model, {LAPTOP.id}: " in text
    assert "<section" not in text and "<img" not in text


def test_machines_without_a_case_in_common_have_no_ratio(folders, tmp_path):
    root = tmp_path / "local"
    copied(folders[0], root, LAPTOP)
    source = synthetic.write(tmp_path / "sparse" / "local", "block_sparse")
    copied(source / synthetic.CPU, root, two_machines.OTHER)
    out = tmp_path / "compare.html"
    assert comparison_page.main(["--out", str(out), str(root)]) == 0
    text = out.read_text()
    assert "<li>0 in both, " in text and "No case was timed on both sides." in text
    (told,) = (row for row in rows(text) if row[:1] == ["processor"])
    assert {*told[1:]} == {LAPTOP.cpu, "Another CPU"}
    assert "<img" not in text
