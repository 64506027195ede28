"""The README's finding and figure, from a build of the published records.

    snakemake --config source=published && python -m analysis.documents.readme [--check]

fills the README between its `found` marks from `paper/readme.md.j2` and copies the overview
figure to `paper/overview.svg`, so that a reader sees both without a build. With `--check` nothing
is written, and the exit status is 1 if either differs from the build.
"""

from __future__ import annotations

import csv
import re
import sys

import jinja2

from analysis.command import command, parser
from analysis.documents.writeups import measured_of_finding
from analysis.records.frame import repository
from analysis.rendering.escaping import markdown
from analysis.rendering.numbers import NumbersError, bare, lookup, read
from analysis.rendering.text import DASH, read_json, write

_MARKED = re.compile(r"(<!-- found -->\n).*(<!-- /found -->)", re.S)


def fill(readme: str, template: str, numbers: dict, judged: dict, *, only_cpus: bool) -> str:
    """`readme` with the text between its marks rendered from `template`.

    judged: `build/claims.json`. only_cpus: whether no record that counts is of a GPU. Raises
    NumbersError on an unknown key.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    where = "paper/readme.md.j2"
    found = environment.from_string(template).render(
        headlines={one["name"]: one for one in judged["headlines"]},
        writeups=judged["writeups"],
        repository=next(iter(judged["writeups"].values()))["repository"],
        told=_told,
        only_cpus=only_cpus,
        # The template names the device of each number itself: `n` is the text without it.
        n=lambda key: markdown(bare(numbers, key, where)),
        on=lambda key: markdown(lookup(numbers, key, where, "device")),
        known=lambda key: lookup(numbers, key, where, "value") is not None,
    )
    return _MARKED.sub(lambda marks: f"{marks[1]}{found.strip()}\n{marks[2]}", readme)


def _told(side: dict | None) -> str:
    """A verdict with what stood in for what, and what was measured."""
    if side is None:
        return DASH
    words = [f"**{side['verdict']}**", *filter(None, [markdown(side["stand_in"])])]
    measured = markdown(measured_of_finding(side))
    if measured == DASH:
        return ", ".join(words)
    # What another device gave decides nothing then, but is no secret.
    elsewhere = "on another device " if side["verdict"] == "needs a card" else ""
    return f"{', '.join(words)}: {elsewhere}{measured}"


@command("readme", NumbersError)
def main(arguments: list[str] | None = None) -> int:
    """Fill the README from published records."""
    options = parser(main.__doc__)
    options.add_argument("--check", action="store_true", help="write nothing, only compare")
    given = options.parse_args(arguments)
    root = repository()
    numbers = read(root / "build/numbers.json")
    figure = (root / "build/figures/overview.svg").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    judged = read_json(root / "build/claims.json", NumbersError)
    with (root / "build/records.csv").open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["vouched"] == "True"]
    only_cpus = all(row["device_kind"] == "cpu" for row in rows)
    template = (root / "paper/readme.md.j2").read_text(encoding="utf-8")
    filled = fill(readme, template, numbers, judged, only_cpus=only_cpus)
    shown = root / "paper/overview.svg"
    stale = [
        path.relative_to(root)
        for path, text in ((root / "README.md", filled), (shown, figure))
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if given.check and stale:
        print(
            f"readme: {' and '.join(map(str, stale))} differ from the published records; "
            "run: snakemake --config source=published && python -m analysis.documents.readme",
            file=sys.stderr,
        )
        return 1
    if not given.check:
        write(root / "README.md", filled)
        write(shown, figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
