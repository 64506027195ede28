"""The first page of a build, which leads to everything else in it, and one archive of its data.

    python -m analysis.pages.index_page [--build build] [--out build/index.html] [ROOT ...]

It lists what is in the build folder. `downloads.zip`, beside the page: the records of the roots,
tables, figures, numbers and verdicts; the same bytes for the same files.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from analysis.command import command, parser
from analysis.pages.template import filled
from analysis.records import files
from analysis.records.frame import RecordsError
from analysis.rendering.text import FIGURE_FORMS, TABLE_FORMS, title, write
from experiments.atomic_write import atomic_write

ARCHIVE = "downloads.zip"
# What to read first, and what each answers.
_READ = {
    "paper.pdf": "The paper",
    "ledger.html": "Every published claim, its two verdicts and their records",
    "results.html": "Every record, by machine, as charts and samples",
    "compare.html": "How the machines that have records differ, case by case",
    "reproduction.html": "Which of our findings hold on this machine",
    "numbers.html": "Where each number comes from",
    "report.html": "All of these in one file, by Snakemake",
}
_DATA = ("numbers.csv", "records.csv", "claims.csv", "claims.json")
# The oldest date that an archive can hold: the date of a build is not part of its data.
_NO_DATE = (1980, 1, 1, 0, 0, 0)
_FIRST_PARAGRAPH = re.compile(r"\*\*(?P<head>.+?)\*\*\n\n(?P<text>.+?)(?:\n\n|\Z)", re.S)


class BuildError(ValueError):
    """A build folder with nothing to show: names it."""


def render(build: Path, archive_bytes: int) -> str:
    """The page of what is in `build`, to lie there; `archive_bytes` is the size of its archive."""
    notebooks = {path.stem: path for path in sorted(build.glob("notebooks/*.html"))}
    writeups = {path.stem: path for path in sorted(build.glob("writeups/*.md"))}
    names = [*notebooks, *(name for name in writeups if name not in notebooks)]
    return filled(
        "index",
        images="'self' data:",
        read=[(name, text) for name, text in _READ.items() if (build / name).is_file()],
        experiments=[
            {
                "title": title(name),
                "notebook": f"notebooks/{name}.html" if name in notebooks else None,
                "writeup": f"writeups/{name}.md" if name in writeups else None,
                "tables": _tables(build, name),
            }
            for name in names
        ],
        figures=[
            {"name": path.stem, "caption": _caption(build, path)}
            for path in sorted(build.glob("figures/*.svg"))
        ],
        data=[name for name in _DATA if (build / name).is_file()],
        archive=ARCHIVE,
        megabytes=f"{archive_bytes / 1e6:.1f}",
    )


def _tables(build: Path, experiment: str) -> list[tuple[str, str]]:
    """Name and link of each of its tables, as read in a browser."""
    return [
        (path.stem.removeprefix(f"{experiment}-"), f"tables/{path.name}")
        for path in sorted(build.glob(f"tables/{experiment}-*.md"))
    ]


def _caption(build: Path, figure: Path) -> str:
    """The head of its caption; of a figure without one, nothing."""
    path = build / "captions" / "figures" / f"{figure.stem}.rst"
    found = _FIRST_PARAGRAPH.match(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found["head"] if found else ""


def archive(build: Path, roots: Sequence[Path]) -> dict[str, Path]:
    """Name in the archive -> file: the records under `roots`, and what is made of them."""
    found = {name: build / name for name in _DATA}
    for folder, forms in (("tables", TABLE_FORMS), ("figures", FIGURE_FORMS)):
        found |= {f"{folder}/{path.name}": path for path in build.glob(f"{folder}/*")
                  if path.suffix[1:] in forms}  # fmt: skip
    for one in files.read(*roots):
        found[one.path.lstrip("/")] = one.file
    return {name: path for name, path in sorted(found.items()) if path.is_file()}


def save_archive(members: dict[str, Path], out: Path) -> int:
    """Write the members as a zip; the number of its bytes."""
    with atomic_write(out) as path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for name, file in members.items():
                entry = zipfile.ZipInfo(name, _NO_DATE)
                entry.external_attr = 0o644 << 16
                made.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
        return path.stat().st_size


@command("index page", BuildError, RecordsError)
def main(arguments: list[str] | None = None) -> None:
    """The first page of a build, and the archive of its data."""
    options = parser(main.__doc__, out="build/index.html", records=True)
    options.add_argument("--build", type=Path, default=Path("build"))
    given = options.parse_args(arguments)
    if not any((given.build / name).is_file() for name in _READ):
        raise BuildError(f"{given.build}: nothing is built there")
    size = save_archive(archive(given.build, given.roots), given.out.with_name(ARCHIVE))
    write(given.out, render(given.build, size))


if __name__ == "__main__":
    sys.exit(main())
