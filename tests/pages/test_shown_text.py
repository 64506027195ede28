"""One hostile text in every free field of every record: each product shows it, and none runs it."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import typst
from nbconvert.filters import markdown2html_mistune

from analysis.rendering import escaping
from tests.pages import hostile
from tests.pages.hostile import IN_PATH, TEXT

ROOT = Path(__file__).parents[2]
START = TEXT[:14]  # a commit is cut shorter
PAGES = {"results": 2, "ledger": 1, "numbers": 0, "reproduction": 0, "index": 0, "notebook": 0}
PAGES |= {"compare": 0}


@pytest.fixture(scope="session")
def build(once):
    folder = once.folder / "hostile"
    return once("hostile", hostile.build, folder / "records", folder / "build")


class _Read(HTMLParser):
    """Of HTML its words, its elements and what they have."""

    def __init__(self, html: str):
        super().__init__()
        self.words, self.tags, self.attributes = "", set(), []
        self.feed(html)

    def handle_data(self, data):
        self.words += data

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs


def _is_whole(words: str) -> bool:
    """Whether the text stands there, and wherever it begins stands to its end."""
    return 0 < words.count(TEXT) == words.count(START)


def test_no_cell_of_a_csv_file_is_a_formula(build):
    files = [*build.glob("*.csv"), *build.glob("tables/*.csv"), *build.glob("figures/*.csv")]
    said = set()
    for path in files:
        with path.open(newline="") as lines:
            cells = {cell for row in csv.reader(lines) for cell in row}
        for cell in cells:
            if not re.fullmatch(r"-[\d.,]+(e[-+]?\d+)?", cell):
                assert cell[:1] not in {*"=+-@\t\r"}, (path, cell)
            if TEXT in escaping.text_of_cell(cell):
                said.add(path.name)
    assert {"records.csv", "backends-censored.csv", "ring-efficiency.csv"} <= said
    assert len(said) > 20


def test_markdown_shows_it_letter_by_letter(build):
    ours = {"p", "table", "thead", "tbody", "tr", "th", "td", "ol", "li", "h1", "h2", "h3"}
    ours |= {"strong", "em", "code", "span", "a", "img"}
    files = [*build.glob("tables/*.md"), *build.glob("writeups/*.md"), build / "reproduction.md"]
    said = set()
    for path in files:
        text = path.read_text()
        read = _Read(markdown2html_mistune(text))
        assert read.tags <= ours, path
        for name, value in read.attributes:
            assert name in ("href", "src", "alt", "id", "class", "style"), (path, name)
            assert not value.startswith(("javascript:", "x")), (path, value)
        # A reader of Markdown that looks for mathematics finds none.
        assert "$" not in text
        assert "\\(" not in text and "\\begin" not in text
        if START in read.words:
            assert _is_whole(read.words), path
            said.add(path.stem)
    assert {"reproduction", "dilated", "overview", "provenance-machines"} <= said
    assert {"backends-censored", "ring-machines", "comprehensive-scaling"} <= said


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "- a",
        "# a",
        "12. a",
        "--- x",
        "> a",
        "a_b_ __c__ _",
        "[1, 2]: x",
        "a\n\n# b",
        "\\|",
        "``",
    ],
)
def test_markdown_of_any_text_is_that_text_on_a_line(text):
    read = _Read(markdown2html_mistune(escaping.markdown(text)))
    assert read.words.strip("\n") == " ".join(text.split()) and read.tags <= {"p", "span"}
    row = f"| a | b |\n| --- | --- |\n| {escaping.markdown(text)} | c |\n"
    read = _Read(markdown2html_mistune(row))
    assert " ".join(read.words.split()) == f"a b {' '.join(text.split())} c"
    assert read.tags - {"span"} == {"table", "thead", "tbody", "tr", "th", "td"}


def test_what_reads_as_itself_is_left():
    for text in ("x86_64", "1.87 [1.80, 1.95]", "Intel(R) Xeon(R) @ 2.0GHz", "-9.49", "n^2 × 3 %"):
        assert escaping.markdown(text) == text


def test_latex_reads_none_of_it(build):
    """Undoing our few commands one by one gives the text back: there is nothing else in it."""
    undone = {command: letter for letter, command in escaping._TEX.items() if letter.isascii()}
    parts = sorted(map(re.escape, undone), key=len, reverse=True)
    for text in (TEXT, "".join(map(chr, range(32, 127)))):
        made = escaping.latex(text)
        back = re.sub("|".join(parts), lambda found: undone[found[0]], made)
        assert back.replace("-{}-", "--") == text
        bare = re.sub("|".join(parts), "", made).replace("-{}-", "")
        assert not set(bare) & set("\\{}$&#^_~%")
    assert escaping.latex(TEXT) in (build / "tables" / "backends-censored.tex").read_text()


def test_typst_shows_it_letter_by_letter(build, tmp_path):
    name = "backends-censored.typ"
    shutil.copy(build / "tables" / name, tmp_path)
    (tmp_path / "main.typ").write_text(f'#include "{name}"\n')
    typst.compile(tmp_path / "main.typ")
    found = json.loads(typst.query(tmp_path / "main.typ", "figure"))
    assert TEXT in "".join(_strings(found)).replace("\u200b", "")


def _strings(found) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, list | dict):
        for one in found.values() if isinstance(found, dict) else found:
            yield from _strings(one)


def test_figures_say_it_and_read_no_mathematics(build):
    said = 0
    for path in build.glob("figures/*.svg"):
        text = path.read_text()
        tags = {one.tag.rpartition("}")[2] for one in ElementTree.fromstring(text).iter()}
        assert not tags & {"script", "a", "foreignObject", "image"}, path
        # Text is drawn as outlines; each stands in a comment as well.
        comments = re.findall(r"<!--(.*?)-->", text, re.S)
        said += any("$x^2$ $\\frac$ **b**" in comment for comment in comments)
    assert said >= 4


def test_cells_go_there_and_back():
    for text in (
        "=1+1",
        "+a",
        "-a",
        "@SUM(A1)",
        "\tx",
        "\rx",
        "＝1",
        "'=1",
        "''-a",
        "'a",
        "a=1",
        "",
    ):
        assert escaping.text_of_cell(escaping.csv_cell(text)) == text
    assert escaping.csv_cell("=1") == "'=1" and escaping.csv_cell("''=1") == "'''=1"
    for number in (-1, -1.5, "-1,234.5", "+2e-3", None, True):
        assert escaping.csv_cell(number) is number


@pytest.fixture(scope="session")
def pages(once, build):
    """Each page; of the notebooks one, made as the pipeline makes it."""
    made = {name: build / f"{name}.html" for name in PAGES if name != "notebook"}
    return made | {"notebook": once("notebook-page", _notebook_page, build)}


def _notebook_page(build: Path) -> Path:
    source = build / "notebooks" / "comprehensive.ipynb"
    command = [sys.executable, "-m", "analysis.pages.notebook_page", source]
    subprocess.run(command, cwd=ROOT, check=True)
    return source.with_suffix(".html")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_may_fetch_nothing_and_run_only_its_script(pages, name):
    text = pages[name].read_text()
    (policy,) = re.findall(r'content="(default-src[^"]*)"', text[:1000])
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    images = "'self' data:" if name == "index" else "data:"
    assert policy == escaping.policy(*scripts, images=images)


@pytest.fixture
def opened(browser, pages):
    """(name) -> the browser with a page, which ran nothing and asked for nothing else."""

    def run(name: str):
        browser.open("about:blank")
        browser.logs("browser")
        browser.requests()
        browser.open(pages[name].as_uri())
        # A picture that is not there would have said so by then.
        browser.run("return new Promise((done) => setTimeout(done, 50))")
        assert browser.run("return window.ran") is None
        assert browser.run("return document.scripts.length") == PAGES[name]
        assert browser.logs("browser") == []
        assert all(url.startswith(("file:", "data:", "about:")) for url in browser.requests())
        assert all(one.startswith(("file:", "https:")) for one in links(browser))
        return browser

    return run


def links(browser) -> list[str]:
    return browser.run("return [...document.links].map((one) => one.href)")


@pytest.mark.parametrize("name", [name for name in PAGES if name != "index"])
def test_a_page_shows_it_and_does_not_run_it(opened, name):
    page = opened(name)
    page.run("for (const one of [...document.scripts]) one.remove()")
    assert _is_whole(page.run("return document.body.textContent"))
    found = "document.querySelectorAll('img:not([src^=data]), [onload], [onerror], body i').length"
    assert page.run(f"return {found}") == 0


@pytest.mark.parametrize("name", ["ledger", "numbers", "reproduction", "results"])
def test_a_page_links_a_record_by_its_path(opened, name):
    page = opened(name)
    assert any(f"/{IN_PATH}/" in unquote(one) for one in links(page))


def test_the_first_page_shows_pictures_and_links_any_name(opened):
    page = opened("index")
    assert "a#b?<i>%" in page.run("return document.body.textContent")
    assert any(one.endswith("/figures/a%23b%3F%3Ci%3E%25.svg") for one in links(page))
    page.run(
        "const one = [...document.images].find((one) => one.src.endsWith('/overview.svg'));"
        "one.loading = 'eager'; return one.decode();"
    )
