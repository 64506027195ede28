"""The ledger page in a real browser: filters, words, links to a claim, and no network."""

import pytest

from analysis.pages import ledger_page
from analysis.selection.published import CLAIMS

ROOT = CLAIMS.parents[1]
ROWS = "[...document.querySelectorAll('.claim:not([hidden])')]"


@pytest.fixture(scope="module")
def page(ledger, tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "ledger.html"
    path.write_text(ledger_page.render(ledger, path, ROOT))
    return path.as_uri()


@pytest.fixture
def opened(browser, page):
    browser.open("about:blank")
    browser.logs("browser")
    browser.requests()
    browser.open(page)
    return browser


def shown(browser) -> list[str]:
    return browser.run(f"return {ROWS}.map(one => one.id)")


def choose(browser, field: str, value: str) -> None:
    browser.run(
        "const f = document.getElementById('filter').elements[arguments[0]];"
        "f.value = arguments[1]; f.dispatchEvent(new Event('input', {bubbles: true}))",
        field,
        value,
    )


def verdict(claim: dict, field: str):
    """What a claim has in a field that is filtered by."""
    one = claim[field]
    return one["verdict"] if isinstance(one, dict) else one


def test_each_filter_shows_what_it_says_and_they_join(opened, ledger):
    everything = [claim["id"] for claim in ledger["claims"]]
    assert shown(opened) == everything
    mechanism = next(c["mechanism"] for c in ledger["claims"] if c["mechanism"])
    for field, value in [
        ("writeup", "overview"),
        ("as_published", "holds"),
        ("method", "does not hold"),
        ("consistency", "does not hold"),
        ("sort", "context"),
        ("headline", "block-sparse"),
        ("mechanism", mechanism),
    ]:
        choose(opened, field, value)
        expected = [c["id"] for c in ledger["claims"] if verdict(c, field) == value]
        assert expected and shown(opened) == expected
        text = opened.run("return document.getElementById('shown').textContent")
        assert text == f"{len(expected)} of {len(everything)} entries"
        choose(opened, field, "")
    choose(opened, "writeup", "ring")
    choose(opened, "method", "does not hold")
    expected = [
        c["id"]
        for c in ledger["claims"]
        if c["writeup"] == "ring" and verdict(c, "method") == "does not hold"
    ]
    assert expected and shown(opened) == expected
    assert opened.run("return location.hash") == "#writeup=ring&method=does+not+hold"
    opened.run("document.querySelector('#filter button[type=reset]').click()")
    assert shown(opened) == everything


def test_words_find_claims_as_they_are_typed(opened, ledger):
    opened.press("#filter input[name=text]", "LOCALITY hilbert")
    found = shown(opened)
    assert found == [i for i in found if i.startswith("ring.feature.locality.ring-hilbert")]
    assert "ring.feature.locality.ring-hilbert.text" in found


def test_a_number_of_the_table_shows_its_claims(opened, ledger):
    opened.run("document.querySelector('button[data-writeup=dilated][data-method=holds]').click()")
    opened.run("dispatchEvent(new HashChangeEvent('hashchange'))")
    found = [one for one in ledger["claims"] if one["id"] in shown(opened)]
    counted = [one for one in found if one["sort"] == "claim"]
    assert len(counted) == ledger["counts"]["dilated"]["method"]["holds"] > 0
    assert {(one["writeup"], one["method"]["verdict"]) for one in found} == {("dilated", "holds")}


def test_an_address_with_a_finding_opens_it(browser, page, ledger):
    name = ledger["headlines"][3]["name"]
    browser.open("about:blank")
    browser.open(f"{page}#headline.{name}")
    opened = "return new Promise((done) => setTimeout(() => done("
    opened += "document.getElementById(arguments[0]).open), 300));"
    assert browser.run(opened, f"headline.{name}")


def test_an_address_with_a_claim_opens_it_down_to_record_and_command(browser, page, ledger):
    claim = next(c for c in ledger["claims"] if c["method"] and c["method"]["basis"] == "records")
    browser.open("about:blank")
    browser.open(f"{page}#{claim['id']}")
    row = "document.getElementById(arguments[0])"
    # The driver may come back before the page has followed its address.
    followed = "return new Promise((done) => setTimeout(() => done(Boolean("
    followed += f"{row}?.querySelector('details').open)), 300));"
    assert browser.run(followed, claim["id"])
    top = browser.run(f"return {row}.getBoundingClientRect().top", claim["id"])
    assert 0 <= top < browser.run("return innerHeight")
    text = browser.run(f"return {row}.innerText", claim["id"])
    for record in claim["method"]["evidence"]:
        assert record["path"] in text and record["command"] in text
    closed = browser.run(f"return {ROWS}.filter(one => one.querySelector('[open]')).length")
    assert closed == 1


def test_nothing_is_fetched_nothing_is_logged_and_a_phone_does_not_scroll_sideways(opened, page):
    assert [one for one in opened.requests() if not one.startswith(("file:", "data:"))] == []
    assert opened.logs("browser") == []
    opened.resize(390, 800)
    widths = opened.run("return [document.documentElement.scrollWidth, innerWidth]")
    opened.devtools("Emulation.clearDeviceMetricsOverride", {})
    assert widths[0] <= widths[1]
