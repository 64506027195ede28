"""The ledger as a page: every claim of `build/claims.json` in one file that needs no network.

    python -m analysis.pages.ledger_page [--claims build/claims.json] [--out build/ledger.html]

Rows are in the HTML, each under the claim's id, with `data-writeup`, `data-verdict`, `data-basis`
and `data-mechanism`; `analysis/pages/ledger.js` only hides and opens them. Links to records, tables
and figures are relative to the page, so that it works from wherever the repository lies.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from analysis.command import command, parser
from analysis.documents.writeups import measured_text, published_text
from analysis.records.frame import RecordsError, repository
from analysis.rendering.text import read_json, write

PAGES = Path(__file__).parent
SUFFIXES = {"tables": ("md", "csv"), "figures": ("svg",)}


class PageError(ValueError):
    """A ledger that cannot be read: names the file."""


def render(ledger: dict, out: Path, root: Path) -> str:
    """The page of `ledger` (`build/claims.json`), to lie at `out`; records are below `root`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    used = {claim["mechanism"] for claim in ledger["claims"]}
    mechanisms = {name: m for name, m in ledger["mechanisms"].items() if name in used}
    bases = dict.fromkeys(claim["basis"] for claim in ledger["claims"])
    verdicts = list(next(iter(ledger["counts"].values()), ()))
    return environment.get_template("ledger.html.j2").render(
        style=Markup((PAGES / "ledger.css").read_text()),
        script=Markup((PAGES / "ledger.js").read_text()),
        counts=ledger["counts"],
        verdicts=verdicts,
        mechanisms=ledger["mechanisms"],
        places=places,
        filters=[
            ("writeup", "Write-up", [(name, name) for name in ledger["counts"]]),
            ("verdict", "Verdict", [(name, name) for name in verdicts]),
            ("basis", "Basis", [(name, name) for name in bases]),
            ("mechanism", "How it arose", [(name, m["title"]) for name, m in mechanisms.items()]),
        ],
        claims=[_shown(claim, out.parent, root) for claim in ledger["claims"]],
    )


def places(output: str | None) -> list[str]:
    """The files of a table or figure (`tables/ring-single`), from the build folder."""
    if output is None:
        return []
    return [f"{output}.{suffix}" for suffix in SUFFIXES[output.partition("/")[0]]]


def _shown(claim: dict, folder: Path, root: Path) -> dict:
    texts = {"published": published_text(claim), "measured": measured_text(claim["measured"])}
    links = [
        {**record, "href": quote(Path(os.path.relpath(root / record["path"], folder)).as_posix())}
        for record in claim["evidence"]
    ]
    see = [file for output in claim["see"] for file in places(output)]
    return {**claim, **texts, "evidence": links, "see": see}


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
