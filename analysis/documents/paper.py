"""The paper: `paper/paper.typ` compiled by Typst; the same inputs give the same bytes.

    python -m analysis.documents.paper --out build/paper.pdf [--build build]

The paper reads `numbers.json`, `claims.json`, `records.csv`, `tables/` and `figures/*.svg` of the
build folder. Fonts are those of the compiler, not of the system.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import typst

from analysis.command import command, parser
from experiments.atomic_write import atomic_write

SOURCE = Path(__file__).resolve().parents[2] / "paper" / "paper.typ"


class PaperError(ValueError):
    """The paper cannot be compiled; the message is Typst's, with the source file."""


def compile_paper(build: Path, source: Path = SOURCE) -> bytes:
    """The PDF of `source` from the files in `build`.

    Raises PaperError on an unknown number or claim, a missing file and on Typst's own errors.
    """
    build, source = build.resolve(), source.resolve()
    # Typst reads nothing outside its root, and a build folder may lie outside the repository.
    root = Path(os.path.commonpath([build, source.parent.parent]))
    try:
        return typst.compile(
            source,
            root=root,
            ignore_system_fonts=True,
            sys_inputs={"build": "/" + build.relative_to(root).as_posix()},
        )
    except typst.TypstError as error:
        message = " ".join(str(error.message).split())
        # The text of a panic is quoted in Typst's message.
        panic = re.fullmatch(r'panicked with: "(.*)"', message)
        hints = "; ".join(error.hints or ())
        text = panic[1].replace('\\"', '"') if panic else message
        raise PaperError(f"{source.name}: {text}" + (f" ({hints})" if hints else "")) from None


@command("paper", PaperError)
def main(arguments: list[str] | None = None) -> None:
    """Compile the paper."""
    options = parser(main.__doc__, out="build/paper.pdf")
    options.add_argument("--build", type=Path, default=Path("build"))
    given = options.parse_args(arguments)
    pdf = compile_paper(given.build)
    with atomic_write(given.out) as partial:
        partial.write_bytes(pdf)


if __name__ == "__main__":
    sys.exit(main())
