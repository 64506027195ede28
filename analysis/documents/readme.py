"""The README's finding and figure, from a build of the published records.

    snakemake --config source=published && python -m analysis.documents.readme [--check]

fills the README between its `found` marks from `paper/readme.md.j2` and copies the overview
figure to `paper/overview.svg`, so that a reader sees both without a build. With `--check` nothing
is written, and the exit status is 1 if either differs from the build.
"""

from __future__ import annotations

import re
import sys

import jinja2

from analysis.command import command, parser
from analysis.records.frame import repository
from analysis.rendering.numbers import NumbersError, bare, lookup, read
from analysis.rendering.text import write

_MARKED = re.compile(r"(<!-- found -->\n).*(<!-- /found -->)", re.S)


def fill(readme: str, template: str, numbers: dict) -> str:
    """`readme` with the text between its marks rendered from `template`.

    Raises NumbersError on an unknown key.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    where = "paper/readme.md.j2"
    found = environment.from_string(template).render(
        # The template names the device of each number itself: `n` is the text without it.
        n=lambda key: bare(numbers, key, where),
        on=lambda key: lookup(numbers, key, where, "device"),
        known=lambda key: lookup(numbers, key, where, "value") is not None,
    )
    return _MARKED.sub(lambda marks: f"{marks[1]}{found.strip()}\n{marks[2]}", readme)


@command("readme", NumbersError)
def main(arguments: list[str] | None = None) -> int:
    """Fill the README from published records."""
    options = parser(main.__doc__)
    options.add_argument("--check", action="store_true", help="write nothing, only compare")
    given = options.parse_args(arguments)
    root = repository()
    numbers = read(root / "build/numbers.json")
    figure = (root / "build/figures/overview.svg").read_text()
    readme = (root / "README.md").read_text()
    filled = fill(readme, (root / "paper/readme.md.j2").read_text(), numbers)
    shown = root / "paper/overview.svg"
    stale = [
        path.relative_to(root)
        for path, text in ((root / "README.md", filled), (shown, figure))
        if not path.exists() or path.read_text() != text
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
