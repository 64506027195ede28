"""Write-ups: every number looked up, unknown names fail by name."""

import json

import pytest

from analysis import claims
from analysis.documents import writeups
from analysis.rendering.numbers import NumbersError, read
from analysis.selection import published


@pytest.mark.parametrize("name", writeups.names())
def test_a_write_up_has_numbers_tables_figures_and_every_verdict(build, name):
    text = writeups.render(name, build, build / "writeups" / f"{name}.md")
    joined = read(build / "numbers.json")
    figure = {"overview": "overview.svg", "longnet": "quality-"}.get(name, f"{name}-")
    assert f"(../figures/{figure}" in text
    if name not in claims.load(published.CLAIMS).writeups:  # nothing was published of it
        return
    subject = ", which are about the method" if name == "longnet" else " the published code"
    assert f"Of its {joined[f'claims.{name}.total']['text']} claims{subject}" in text
    ledger = text[text.index("## All verdicts") :]
    rows = [line for line in ledger.splitlines() if line.startswith("|")]
    headings = 2 * ledger.count("\n### ")
    sorts = ("claim", "restatement", "consistency", "context")
    assert len(rows) - headings == sum(joined[f"claims.{name}.{one}"]["value"] for one in sorts)


def test_every_write_up_has_a_template():
    named = claims.load(published.CLAIMS).writeups
    assert writeups.names() == sorted({*published.EXPERIMENTS, *named})


def test_a_verdict_leads_to_its_row_in_the_ledger(build, tmp_path):
    (tmp_path / "overview.md.j2").write_text(
        "{{ verdict('plot.288m.tokens') }}; {{ published('plot.288m.tokens') }}; "
        "{{ measured('plot.288m.tokens') }}; "
        "{{ measured('speed.block-sparse.least.written-out') }}; "
        "{{ verdict_and_reason('scale.billion') }}"
    )
    text = writeups.render("overview", build, build / "writeups" / "overview.md", tmp_path)
    verdict, published_figure, none, measured, billion, *more = text.split("; ")
    assert verdict == "[**does not hold**](../ledger.html#overview.plot.288m.tokens)"
    assert (published_figure, none) == ("288", "–")
    assert measured.endswith("×")
    found = json.loads((build / "claims.json").read_text())["claims"]
    name = "overview.speed.block-sparse.least.written-out"
    sparse = next(claim for claim in found if claim["id"] == name)
    assert measured == writeups.measured_text(sparse["method"]["measured"])
    link = "(../ledger.html#overview.scale.billion)"
    assert billion.startswith(f"as published [**does not hold**]{link} (one chunk of 4096 tokens")
    assert "computed exactly [**" in "; ".join(more)


def test_a_write_up_takes_tables_of_any_experiment_by_their_whole_name(build, tmp_path):
    (tmp_path / "overview.md.j2").write_text("{{ table('backends-worth') }}")
    (tmp_path / "backends.md.j2").write_text("{{ table('worth') }}")
    whole, own = (
        writeups.render(name, build, build / "writeups" / f"{name}.md", tmp_path)
        for name in ("overview", "backends")
    )
    assert whole == own and whole.startswith("**")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{{ n('no.such.key') }}", "bad.md.j2: unknown number 'no.such.key'"),
        ("{{ table('no-such') }}", "bad.md.j2: table 'no-such': no file"),
        ("{{ figure('no-such', 'x') }}", "bad.md.j2: figure 'no-such': no file"),
        ("{{ verdict_and_reason('no.such') }}", "bad.md.j2: unknown claim bad.no.such"),
        ("{{ published('no.such') }}", "bad.md.j2: unknown claim bad.no.such"),
        ("{{ measured('no.such') }}", "bad.md.j2: unknown claim bad.no.such"),
        ("{{ verdict('no.such') }}", "bad.md.j2: unknown claim bad.no.such"),
        ("{{ verdicts('no such') }}", "bad.md.j2: no claim of section 'no such'"),
        ("{{ undefined_thing }}", "bad.md.j2: 'undefined_thing' is undefined"),
        ("{{ n('x' }}", "bad.md.j2:1:"),
    ],
)
def test_an_unknown_name_in_a_template_is_named(build, tmp_path, line, message):
    (tmp_path / "bad.md.j2").write_text(line)
    with pytest.raises((writeups.WriteupError, NumbersError)) as error:
        writeups.render("bad", build, tmp_path / "bad.md", tmp_path)
    assert str(error.value).startswith(message)


def test_the_command_says_in_one_line_what_is_missing(tmp_path, capsys):
    out = tmp_path / "d.md"
    assert writeups.main(["dilated", "--out", str(out), "--build", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"writeups: {tmp_path}/numbers.json: cannot be read: No such file or directory\n"
    )
    assert not out.exists()
