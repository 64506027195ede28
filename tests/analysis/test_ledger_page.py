"""The ledger page: every claim is in it, its links lead somewhere, it needs no network."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from analysis import claims
from analysis.pages import ledger_page
from analysis.selection.published import CLAIMS
from tests.analysis.claims_cases import SPEEDUP, data, entry, load, times

ROOT = CLAIMS.parents[1]


class _Page(HTMLParser):
    """Articles by id, with their attributes, links and text; and every address in the page."""

    def __init__(self, text: str):
        super().__init__()
        self.articles: dict[str, dict] = {}
        self.addresses: list[str] = []
        self._open: dict | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [v for k, v in attrs.items() if k in ("href", "src")]
        if tag == "article":
            self._open = attrs | {"links": [], "text": ""}
            self.articles[attrs["id"]] = self._open
        elif tag == "a" and self._open is not None:
            self._open["links"].append(attrs["href"])

    def handle_endtag(self, tag):
        if tag == "article":
            self._open = None

    def handle_data(self, data):
        if self._open is not None:
            self._open["text"] += data


@pytest.fixture(scope="module")
def text(ledger):
    return ledger_page.render(ledger, ROOT / "build" / "ledger.html", ROOT)


SIDES = ("as_published", "method", "consistency")


def test_every_claim_is_a_row_with_what_it_is_filtered_by(ledger, text):
    articles = _Page(text).articles
    assert list(articles) == [claim["id"] for claim in ledger["claims"]]
    for claim in ledger["claims"]:
        row = articles[claim["id"]]
        for field in ("writeup", "sort", "headline", "mechanism"):
            assert row[f"data-{field}"] == (claim[field] or ""), claim["id"]
        shown = " ".join(row["text"].split())
        line = claim["line"]
        parts = [claim["claim"], f"line {line}" if line[0].isdigit() else f"longnet, {line}"]
        for side in SIDES:
            one = claim[side]
            assert row[f"data-{side}"] == (one["verdict"] if one else ""), claim["id"]
            parts += [one["reason"], one["command"] or "", one["needs"] or ""] if one else []
        for part in parts:
            assert " ".join(part.split()) in shown, claim["id"]
    for writeup, counts in ledger["counts"].items():
        rows = [r for r in articles.values() if r["data-writeup"] == writeup]
        sorts = Counter(r["data-sort"] for r in rows)
        assert {sort: sorts[sort] for sort in sorts} == {
            sort: counts[sort] for sort in counts if counts[sort] and sort in sorts
        }
        for side in ("as_published", "method"):
            own = Counter(r[f"data-{side}"] for r in rows if r["data-sort"] == "claim")
            assert {verdict: own[verdict] for verdict in counts[side]} == counts[side]


def test_it_opens_with_the_findings_and_each_leads_to_its_claims(ledger, text):
    found = re.findall(
        r'<details class="headline" id="headline\.([\w-]+)">(.*?)</details>', text, re.S
    )
    assert [name for name, _ in found] == [one["name"] for one in ledger["headlines"]]
    assert text.index('class="headline"') < text.index("<article")
    for (_, content), one in zip(found, ledger["headlines"], strict=True):
        links = re.findall(r'href="#([^"]+)"', content)
        assert set(one["claims"] + one["restatements"]) <= set(links)
        assert all(f'id="{link}"' in text for link in links)
    placed = [claim for one in ledger["headlines"] for claim in one["claims"] + one["restatements"]]
    counted = [claim["id"] for claim in ledger["claims"] if claim["sort"] != "context"]
    assert sorted(placed) == sorted(counted)


def test_a_row_by_records_leads_to_them_and_shows_their_commands(ledger, text):
    articles = _Page(text).articles
    by_records = [
        claim
        for claim in ledger["claims"]
        if any(claim[side] and claim[side]["basis"] == "records" for side in SIDES)
    ]
    assert len(by_records) > 100
    for claim in by_records:
        row = articles[claim["id"]]
        evidence = {
            record["path"]: record for side in SIDES if claim[side]
            for record in claim[side]["evidence"]
        }  # fmt: skip
        found = [unquote(link) for link in row["links"] if link.startswith("../results/")]
        assert found == [f"../{path}" for path in evidence]
        for link, record in zip(found, evidence.values(), strict=True):
            kept = json.loads((ROOT / "build" / link).resolve().read_text())
            assert kept["command"] == record["command"] in row["text"]
        assert any(re.match(r"(tables|figures)/", link) for link in row["links"])


def test_a_mechanism_is_explained_in_the_rows_that_name_it(ledger, text):
    articles = _Page(text).articles
    for claim in ledger["claims"]:
        for name, mechanism in ledger["mechanisms"].items():
            shown = mechanism["explanation"] in articles[claim["id"]]["text"]
            assert shown == (claim["mechanism"] == name), (claim["id"], name)


def test_the_page_needs_no_network_and_is_the_same_every_time(ledger, text):
    # Links to the write-ups are for the reader to follow; nothing is loaded from anywhere.
    outside = [one for one in _Page(text).addresses if re.match(r"(https?:)?//", one)]
    urls = tuple(one["url"] for one in ledger["writeups"].values())
    assert outside and all(one.startswith(urls) for one in outside)
    assert not re.search(r"url\(|@import|<script src|<link rel=.stylesheet", text)
    assert text == ledger_page.render(ledger, ROOT / "build" / "ledger.html", ROOT)


def test_what_is_written_into_it_cannot_be_markup(tmp_path):
    sharp = entry(SPEEDUP, 2.0) | {"claim": "a <b> & 'c'", "note": "<script>alert(1)</script>"}
    book = load(tmp_path, data(sharp))
    frame = pd.DataFrame(times(10, 20))
    made = json.loads(claims.to_json(book, claims.evaluate(book, frame)))
    text = ledger_page.render(made, tmp_path / "build" / "ledger.html", tmp_path)
    assert "<b>" not in text and "<script>alert" not in text
    assert "a <b> & 'c'" in _Page(text).articles["w.it"]["text"]
    assert '<a href="../results/cpu-1/dilated-sdpa-2-1024.json">' in text


def test_a_mechanism_with_a_replica_names_it_and_where_it_is_shown(tmp_path):
    content = data(entry(SPEEDUP, 2.0) | {"mechanism": "slip"})
    content["mechanisms"]["slip"].update(variant="head-partitioned", evidence="tables/x-replica")
    book = load(tmp_path, content)
    made = json.loads(claims.to_json(book, claims.evaluate(book, pd.DataFrame(times(10, 20)))))
    text = ledger_page.render(made, tmp_path / "ledger.html", tmp_path)
    row = _Page(text).articles["w.it"]
    assert "Computed again as head-partitioned" in " ".join(row["text"].split())
    assert {"tables/x-replica.md", "tables/x-replica.csv"} <= set(row["links"])


def test_the_tables_and_figures_of_an_output():
    assert ledger_page.places("tables/ring-single") == [
        "tables/ring-single.md",
        "tables/ring-single.csv",
    ]
    assert ledger_page.places("figures/ring-time") == ["figures/ring-time.svg"]
    assert ledger_page.places(None) == []


def test_the_command_says_in_one_line_what_is_missing(tmp_path, capsys):
    out = tmp_path / "ledger.html"
    lost = tmp_path / "claims.json"
    assert ledger_page.main(["--claims", str(lost), "--out", str(out)]) == 1
    assert capsys.readouterr().err == f"ledger: {lost}: cannot be read: No such file or directory\n"
    lost.write_text('{"claims": [')
    assert ledger_page.main(["--claims", str(lost), "--out", str(out)]) == 1
    assert "not JSON (truncated?)" in capsys.readouterr().err
    assert not out.exists()
    assert not Path(f"{out}.partial").exists()
