"""The paper: numbers looked up and traced, sections by what was measured, bytes repeat."""

import csv
import re
import shutil
from pathlib import Path

import pytest

from analysis.documents import paper
from analysis.rendering.numbers import entry, read, save
from experiments import grid

PAPER = Path(__file__).parents[2] / "paper"
SECTIONS = PAPER / "sections"
SOURCES = sorted(PAPER.rglob("*.typ"))
# Experiments with a section that may have no records yet.
LATER = ("extreme", "memory", "as_published")


def test_two_papers_are_the_same_bytes(build):
    first = paper.compile_paper(build)
    assert first.startswith(b"%PDF")
    assert first == paper.compile_paper(build)


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
    folder = shutil.copytree(build, tmp_path / "build")
    joined = read(folder / "numbers.json")
    del joined["comprehensive.machine.device"]
    save(joined, folder / "numbers.json")
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


@pytest.fixture(scope="module")
def without_later(build, tmp_path_factory):
    """A build without the numbers of LATER, and the pages and links of its paper."""
    folder = shutil.copytree(build, tmp_path_factory.mktemp("without") / "build")
    known = read(folder / "numbers.json")
    kept = {key: number for key, number in known.items() if key.partition(".")[0] not in LATER}
    save(kept, folder / "numbers.json")
    return folder, _pages_and_links(paper.compile_paper(folder))


@pytest.mark.parametrize("name", LATER)
def test_a_section_appears_with_its_numbers(without_later, tmp_path, name):
    """With a stand-in for what its section asks for, the paper is longer by it."""
    source_folder, before = without_later
    folder = shutil.copytree(source_folder, tmp_path / "build")
    without = read(folder / "numbers.json")
    source = (SECTIONS / f"{name}.typ").read_text()
    keys = {f"{name}.{key}" for key in re.findall(r'(?:ex|mem|pub)\("([^"]+)"\)', source)}
    keys |= set(re.findall(rf'n\("({name}[^"]+)"\)', (SECTIONS / "abstract.typ").read_text()))
    assert f"{name}.records.here" in keys
    keys |= {f"{name}.error.{key}" for key in ("cases", "output.worst", "output.worst.system")}
    keys |= {f"{name}.error.{key}" for key in ("gradient.worst", "gradient.worst.system")}
    save(without | dict.fromkeys(keys, entry(1)), folder / "numbers.json")
    figures, tables = (
        re.search(rf"^  {name}: \((.*?)\),$", part, re.M)[1]
        for part in (SECTIONS / "cases.typ").read_text().split("#let ")[-2:]
    )
    shown = set(re.findall(r'fig\("([\w-]+)"', source))
    shown |= {f"{name}-{figure}" for figure in re.findall(r"(\w+): \[", figures)}
    for figure in shown:
        shutil.copy(folder / "figures/dilated-time.svg", folder / f"figures/{figure}.svg")
    for table in (*re.findall(r'"([\w-]+)"', tables), "machines", "censored"):
        for kind in ("csv", "typ"):
            stem = folder / f"tables/{name}-{table}"
            shutil.copy(folder / f"tables/dilated-machines.{kind}", f"{stem}.{kind}")
    assert _pages_and_links(paper.compile_paper(folder)) >= before + len(keys)


def _pages_and_links(pdf: bytes) -> int:
    """A number in the text is a link, and so is each of its records in the appendix."""
    found = re.findall(rb"/Type\s*/Page\b|/Subtype\s*/Link", pdf)
    assert len(found) > 100
    return len(found)


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


def test_a_number_of_the_text_is_traced_to_its_command_in_two_steps(build):
    """The key in numbers.csv, then the record: what the paper's appendix prints."""
    rows = {row["key"]: row for row in csv.DictReader((build / "numbers.csv").open())}
    commands = {
        row["path"]: row["command"] for row in csv.DictReader((build / "records.csv").open())
    }
    row = rows["comprehensive.speedup.dilated-sdpa.b1.n8192"]
    paths = row["records"].split(" ; ")
    assert len(paths) == 2
    for path in paths:
        assert commands[path] == "python -m experiments run comprehensive --only seq_len=8192"
