"""Write-ups and paper: every number looked up, unknown names fail by name, bytes repeat."""

import json
import shutil

import pytest

from analysis import (
    claims,
    drawing,
    figures,
    findings,
    numbers,
    overview,
    paper,
    published,
    table,
    tables,
    writeups,
)


@pytest.fixture(scope="module")
def build(laptop, tmp_path_factory):
    """Everything that write-ups and paper read, of synthetic laptop records."""
    folder = tmp_path_factory.mktemp("build")
    for experiment in published.EXPERIMENTS:
        found = findings.of_experiment(laptop, experiment)
        numbers.save(found, folder / "numbers" / f"{experiment}.json")
        for name, draw in figures.FIGURES[experiment].items():
            drawing.save(draw(laptop, experiment), folder / f"figures/{experiment}-{name}.svg")
        for name, make in tables.TABLES[experiment].items():
            table.save(make(laptop, "auto"), folder / "tables" / f"{experiment}-{name}")
    drawing.save(overview.overview(laptop), folder / "figures/overview.svg")
    verdicts = claims.evaluate(claims.load(published.CLAIMS), laptop)
    (folder / "claims.json").write_text(claims.to_json(verdicts))
    files = [*sorted((folder / "numbers").iterdir()), folder / "claims.json"]
    numbers.save(numbers.join(files), folder / "numbers.json")
    return folder


@pytest.mark.parametrize("name", writeups.names())
def test_a_write_up_has_numbers_tables_figures_and_every_verdict(build, name):
    text = writeups.render(name, build, build / "writeups" / f"{name}.md")
    joined = json.loads((build / "numbers.json").read_text())
    if name == "as_published":  # judged in the write-ups that its figures are from
        assert "(../figures/as_published-speedups.svg)" in text
        return
    assert f"(../figures/{name}-time.svg)" in text
    if name == "backends":  # of which nothing was published
        return
    assert f"{joined[f'claims.{name}.total']['text']} published statements" in text
    ledger = text[text.index("## All verdicts") :]
    rows = [line for line in ledger.splitlines() if line.startswith("|")]
    headings = 2 * ledger.count("\n### ")
    assert len(rows) - headings == joined[f"claims.{name}.total"]["value"]


def test_every_write_up_has_a_template():
    assert writeups.names() == sorted(published.EXPERIMENTS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{{ n('no.such.key') }}", "bad.md.j2: unknown number 'no.such.key'"),
        ("{{ table('no-such') }}", "bad.md.j2: table 'no-such': no file"),
        ("{{ figure('no-such', 'x') }}", "bad.md.j2: figure 'no-such': no file"),
        ("{{ verdict('no.such') }}", "bad.md.j2: unknown claim bad.no.such"),
        ("{{ verdicts('no such') }}", "bad.md.j2: no claim of section 'no such'"),
        ("{{ undefined_thing }}", "bad.md.j2: 'undefined_thing' is undefined"),
        ("{{ n('x' }}", "bad.md.j2:1:"),
    ],
)
def test_an_unknown_name_in_a_template_is_named(build, tmp_path, line, message):
    (tmp_path / "bad.md.j2").write_text(line)
    with pytest.raises(writeups.WriteupError) as error:
        writeups.render("bad", build, tmp_path / "bad.md", tmp_path)
    assert str(error.value).startswith(message)


def test_the_command_says_in_one_line_what_is_missing(tmp_path, capsys):
    out = tmp_path / "d.md"
    assert writeups.main(["dilated", "--out", str(out), "--build", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"writeups: {tmp_path}/numbers.json: cannot be read: No such file or directory\n"
    )
    assert not out.exists()


def test_two_papers_are_the_same_bytes(build):
    first = paper.compile_paper(build)
    assert first.startswith(b"%PDF")
    assert first == paper.compile_paper(build)


def test_the_paper_command_names_an_unknown_number(build, tmp_path, capsys):
    folder = shutil.copytree(build, tmp_path / "build")
    joined = json.loads((folder / "numbers.json").read_text())
    del joined["comprehensive.machine.device"]
    (folder / "numbers.json").write_text(json.dumps(joined))
    out = tmp_path / "paper.pdf"
    assert paper.main(["--out", str(out), "--build", str(folder)]) == 1
    message = capsys.readouterr().err
    assert "unknown number 'comprehensive.machine.device'" in message
    assert message.count("\n") == 1
    assert not out.exists()
