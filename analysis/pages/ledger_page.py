"""The ledger as a page: every claim of `build/claims.json` in one file that needs no network.

    python -m analysis.pages.ledger_page [--claims build/claims.json] [--out build/ledger.html]

It opens with the headline claims. Rows are in the HTML, each under the claim's id,
with a `data-` attribute for each filter; `analysis/pages/ledger.js` only hides and opens them.
Links to records, tables and figures are relative to the page, so that it works from wherever the
repository lies.
"""

from __future__ import annotations

import sys
from pathlib import Path

from analysis.claims.schema import SIDES, SORTS, VERDICTS
from analysis.command import command, parser
from analysis.documents.writeups import measured_of_finding, measured_text, published_text
from analysis.pages.template import PAGES, filled, record_link
from analysis.records.frame import RecordsError, repository
from analysis.rendering.text import read_json, write

SUFFIXES = {"tables": ("md", "csv"), "figures": ("svg",)}
LABELS = {
    "as_published": "As published",
    "method": "Computed exactly",
    "consistency": "Its own figures",
}


class PageError(ValueError):
    """A ledger that cannot be read: names the file."""


def render(ledger: dict, out: Path, root: Path) -> str:
    """The page of `ledger` (`build/claims.json`), to lie at `out`; records are below `root`."""
    used = {claim["mechanism"] for claim in ledger["claims"]}
    mechanisms = {name: m for name, m in ledger["mechanisms"].items() if name in used}
    titles = {one["name"]: one["title"] for one in ledger["headlines"]}
    verdicts = [(name, name) for name in VERDICTS]
    return filled(
        "ledger",
        script="\n" + (PAGES / "ledger.js").read_text(encoding="utf-8"),
        counts=ledger["counts"],
        verdicts=VERDICTS,
        sides=SIDES,
        mechanisms=ledger["mechanisms"],
        titles=titles,
        places=places,
        filters=[
            ("writeup", "Write-up", [(name, name) for name in ledger["counts"]]),
            ("as_published", "As published", verdicts),
            ("method", "Computed exactly", verdicts),
            ("consistency", "Its own figures", verdicts[:2]),
            ("sort", "Entry", [(name, name) for name in SORTS]),
            ("headline", "Headline", list(titles.items())),
            ("mechanism", "How it arose", [(name, m["title"]) for name, m in mechanisms.items()]),
        ],
        headlines=[_headline(one) for one in ledger["headlines"]],
        claims=[_shown(claim, ledger, out.parent, root) for claim in ledger["claims"]],
    )


def places(output: str | None) -> list[str]:
    """The files of a table or figure (`tables/ring-single`), from the build folder."""
    if output is None:
        return []
    return [f"{output}.{suffix}" for suffix in SUFFIXES[output.partition("/")[0]]]


def _sides(judged: dict) -> list[tuple[str, dict]]:
    """The verdicts that there are, with what each is called."""
    return [(label, judged[side]) for side, label in LABELS.items() if judged[side]]


def _headline(one: dict) -> dict:
    measured = measured_of_finding(one["method"] or one["as_published"])
    return {**one, "measured": measured, "sides": _sides(one)}


def _shown(claim: dict, ledger: dict, folder: Path, root: Path) -> dict:
    sides = _sides(claim)
    measured = next((side["measured"] for _, side in reversed(sides) if side["measured"]), None)
    records = {
        record["path"]: {
            **record,
            "href": record_link(record["path"], folder, root),
        }
        for _, side in sides
        for record in side["evidence"]
    }
    data = {name: claim[name] or "" for name in ("writeup", "sort", "headline", "mechanism")}
    data |= {side: claim[side]["verdict"] if claim[side] else "" for side in LABELS}
    return {
        **claim,
        "published": published_text(claim),
        "measured": measured_text(measured),
        "strength_words": {"may": "says that it may be", "estimates": "estimates it"}.get(
            claim["strength"], ""
        ),
        "source": _source(ledger["writeups"][claim["writeup"]], claim["line"]),
        "place": f"line {claim['line']}" if claim["line"][0].isdigit() else claim["line"],
        "data": data,
        "sides": sides,
        "evidence": list(records.values()),
        "see": [file for output in claim["see"] for file in places(output)],
    }


def _source(writeup: dict, line: str) -> str:
    """The address of a line of a write-up, of the first of several; of a paper its page."""
    if not line[0].isdigit():
        return writeup["url"]
    return f"{writeup['url']}#L{line.partition(',')[0].partition('-')[0]}"


@command("ledger", PageError, RecordsError)
def main(arguments: list[str] | None = None) -> None:
    """The ledger of claims as one offline page."""
    options = parser(main.__doc__, out="build/ledger.html")
    options.add_argument("--claims", type=Path, default=Path("build/claims.json"))
    given = options.parse_args(arguments)
    ledger = read_json(given.claims, PageError)
    write(given.out, render(ledger, given.out.resolve(), repository()))


if __name__ == "__main__":
    sys.exit(main())
