"""Every number of a build on one page, under its key, with its records and their commands.

    python -m analysis.pages.numbers_page [--build build] [--out build/numbers.html]

The paper's numbers are links to their rows. Read from `numbers.csv` and `records.csv`, which
`analysis.across.provenance` writes; links to records are relative to the page.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path

from analysis.command import command, parser
from analysis.pages.template import filled, record_link
from analysis.records.frame import RecordsError, repository
from analysis.rendering.escaping import text_of_cell
from analysis.rendering.text import SEPARATOR, write


class PageError(ValueError):
    """A table of numbers or records that cannot be read: names the file."""


def render(numbers: list[dict], records: list[dict], out: Path, root: Path) -> str:
    """The page of the rows of `numbers.csv` and `records.csv`, to lie at `out`."""
    used = sorted({path for row in numbers for path in _paths(row)})
    place = {path: number for number, path in enumerate(used, start=1)}
    commands = {row["path"]: row["command"] for row in records}
    return filled(
        "numbers",
        numbers=[row | {"places": runs(place[path] for path in _paths(row))} for row in numbers],
        records=[
            {
                "place": place[path],
                "path": path,
                "href": record_link(path, out.parent, root),
                "command": commands[path],
            }
            for path in used
        ],
    )


def runs(places: Iterable[int]) -> list[tuple[int, int]]:
    """3, 4, 5, 9 as (3, 5), (9, 9)."""
    found: list[tuple[int, int]] = []
    for place in sorted(places):
        if found and found[-1][1] == place - 1:
            found[-1] = (found[-1][0], place)
        else:
            found.append((place, place))
    return found


def _paths(row: dict) -> list[str]:
    return row["records"].split(SEPARATOR) if row["records"] else []


def _rows(path: Path) -> list[dict]:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return [
                {name: text_of_cell(cell) for name, cell in row.items()}
                for row in csv.DictReader(lines)
            ]
    except OSError as error:
        raise PageError(f"{path}: cannot be read: {error.strerror}") from None


@command("numbers page", PageError, RecordsError)
def main(arguments: list[str] | None = None) -> None:
    """Every number as one offline page."""
    options = parser(main.__doc__, out="build/numbers.html")
    options.add_argument("--build", type=Path, default=Path("build"))
    given = options.parse_args(arguments)
    numbers, records = (_rows(given.build / name) for name in ("numbers.csv", "records.csv"))
    write(given.out, render(numbers, records, given.out.resolve(), repository()))


if __name__ == "__main__":
    sys.exit(main())
