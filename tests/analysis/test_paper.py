"""The paper: numbers looked up and traced, sections by what was measured, bytes repeat."""

import csv
import re
from pathlib import Path

import pytest

from analysis.documents import paper
from analysis.rendering.numbers import read, save
from experiments import grid
from tests.analysis import synthetic

PAPER = Path(__file__).parents[2] / "paper"
SECTIONS = PAPER / "sections"
SOURCES = sorted(PAPER.rglob("*.typ"))


@pytest.fixture(scope="module")
def pdf(build):
    return paper.compile_paper(build)


def test_two_papers_are_the_same_bytes(pdf, build):
    assert pdf.startswith(b"%PDF")
    assert pdf == paper.compile_paper(build)


def test_the_paper_of_a_card_that_was_taken_away_lacks_nothing(build, build_with_card):
    assert paper.compile_paper(build_with_card).startswith(b"%PDF")
    numbers = read(build_with_card / "numbers.json")
    assert numbers.keys() == read(build / "numbers.json").keys()
    assert numbers["comprehensive.machine.device"]["text"] == "NVIDIA H100 80GB HBM3"
    for key, number in numbers.items():
        assert not re.search(r"\bnan\b", number["text"]), key
    # What the card did not measure is of the laptop still: nothing is empty that was not.
    for kind in ("figures", "tables"):
        for path in sorted((build / kind).glob("*.csv")):
            before, now = (
                len((folder / kind / path.name).read_text().splitlines())
                for folder in (build, build_with_card)
            )
            assert now > 1 or before == 1, path.name


def test_the_paper_command_names_an_unknown_number(build, tmp_path, capsys):
    numbers = read(build / "numbers.json")
    del numbers["comprehensive.machine.device"]
    folder = _with_numbers(build, tmp_path / "build", numbers)
    out = tmp_path / "paper.pdf"
    assert paper.main(["--out", str(out), "--build", str(folder)]) == 1
    message = capsys.readouterr().err
    assert "unknown number 'comprehensive.machine.device'; the nearest are " in message
    assert ".machine.device" in message.partition("nearest")[2]
    assert message.count("\n") == 1
    assert not out.exists()


def test_every_experiment_has_a_section():
    titles = re.search(r"let titles = \((.*?)\n\)", (PAPER / "lib.typ").read_text(), re.S)
    names = re.findall(r"(\w+): ", titles[1])
    assert set(grid.names()) <= set(names)
    assert all((SECTIONS / f"{name}.typ").is_file() for name in names)


def test_every_section_file_is_in_the_paper():
    main, lib = ((PAPER / name).read_text() for name in ("paper.typ", "lib.typ"))
    for path in SECTIONS.iterdir():
        assert f'"sections/{path.name}"' in main or f"  {path.stem}: [" in lib, path.name


@pytest.mark.parametrize("name", ["extreme", "memory", "as_published"])
def test_an_experiment_without_records_has_no_section(pdf, build, tmp_path, name):
    """Nothing else in the paper asks for its numbers or refers to its section."""
    numbers = read(build / "numbers.json")
    kept = {key: entry for key, entry in numbers.items() if key.split(".")[0] != name}
    folder = _with_numbers(build, tmp_path / "build", kept)
    before, after = _experiments(pdf), _experiments(paper.compile_paper(folder))
    assert set(before) == set(grid.names())
    assert after == [other for other in before if other != name]


def _with_numbers(build: Path, folder: Path, numbers: dict) -> Path:
    """`build` with other numbers, at `folder`."""
    folder.mkdir()
    for path in build.iterdir():
        if path.name != "numbers.json":
            (folder / path.name).symlink_to(path)
    save(numbers, folder / "numbers.json")
    return folder


def _experiments(pdf: bytes) -> list[str]:
    """The experiments whose section is in the outline of the PDF."""
    outline = b"\n".join(re.findall(rb"/Title\s*\((.*)\)", pdf)).decode("latin-1")
    heading = re.compile(r"^== (.*?)(?: <.*)?$", re.M)
    first = {name: heading.search((SECTIONS / f"{name}.typ").read_text()) for name in grid.names()}
    return [name for name, found in first.items() if f" {found[1]}" in outline]


def test_every_reference_is_cited_and_every_citation_known():
    text = "\n".join(path.read_text() for path in SOURCES)
    known = set(re.findall(r"^([\w-]+):$", (PAPER / "references.yml").read_text(), re.M))
    cited = set(re.findall(r"(?<!\w)@([\w-]+)", re.sub(r'"[^"\n]*"', "", text)))
    local = set(re.findall(r"<([\w-]+:[\w-]+)>", text))
    assert known <= cited
    # What is cited and not a reference is a label here: sec:, eq:, tab:, fig:, app:.
    assert cited - known <= {label.split(":")[0] for label in local} | {"fig"}


def test_numbers_come_through_the_lookup_alone():
    """Only `lib.typ` reads the numbers, so that each is a link to its records."""
    for path in SOURCES:
        if path.name not in ("lib.typ",):
            assert "numbers.at(" not in path.read_text(), path.name
            assert "numbers.json" not in path.read_text().replace(
                "`build/numbers.json`", ""
            ).replace("--out build/numbers.json build/numbers/*.json", ""), path.name


def test_every_number_of_the_text_is_a_link_to_its_row(pdf, build):
    keys = set(re.findall(rb"/URI\(numbers\.html#([^)]+)\)", pdf))
    assert len(keys) > 200
    rows = {row["key"] for row in csv.DictReader((build / "numbers.csv").open())}
    not_measured = {key for key, one in read(build / "numbers.json").items() if key not in rows}
    assert {key.decode() for key in keys} <= rows | not_measured


def test_a_number_of_the_text_is_traced_to_its_command_in_two_steps(build):
    """The key in numbers.csv, then the record: what the page of all numbers shows."""
    rows = {row["key"]: row for row in csv.DictReader((build / "numbers.csv").open())}
    commands = {
        row["path"]: row["command"] for row in csv.DictReader((build / "records.csv").open())
    }
    row = rows["comprehensive.speedup.dilated-sdpa.b1.n8192"]
    paths = row["records"].split(" ; ")
    assert len(paths) == 2 * synthetic.ROUNDS
    for path in paths:
        run = "python -m experiments run --tier laptop --case"
        assert commands[path] == f"{run} {Path(path).stem}"
