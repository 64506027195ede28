"""The outputs of a notebook and their captions, read from the notebook.

Each `page.figure("x")` and `page.table("y")` in a notebook is an output, so the workflow knows a
new figure as soon as the notebook draws it; the text before it is its caption in the report.

    python -m analysis.outputs EXPERIMENT [--build DIR]

writes the captions.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path, PurePosixPath

from analysis.command import command, parser
from analysis.rendering.text import FIGURE_FORMS, TABLE_FORMS, title, write

NOTEBOOKS = Path(__file__).parent / "notebooks"
_SHOWN = re.compile(r'page\.(figure|table)\("([\w-]+)"\)|page\.(numbers)\(\)')


def written(experiment: str) -> list[str]:
    """Paths, under the build folder, of what the experiment's notebook writes besides itself."""
    shown = [(kind, name) for kind, name, _ in _shown(experiment)]
    return [
        *(
            f"figures/{experiment}-{name}.{form}"
            for kind, name in shown
            if kind == "figure"
            for form in FIGURE_FORMS
        ),
        *(
            f"tables/{experiment}-{name}.{form}"
            for kind, name in shown
            if kind == "table"
            for form in TABLE_FORMS
        ),
        f"numbers/{experiment}.json",
    ]


def caption_path(path: str) -> str:
    """The path of an output's caption, both under the build folder; all forms share one."""
    return f"captions/{PurePosixPath(path).with_suffix('.rst')}"


def place(path: str, experiment: str) -> dict:
    """Category, subcategory and labels of an output in the report."""
    own = PurePosixPath(path)
    kind = own.parts[0]
    labels = {"of": experiment}
    if kind != "numbers":
        labels = {kind.removesuffix("s"): own.stem.removeprefix(f"{experiment}-")}
        labels["form"] = own.suffix[1:]
    return {"category": kind.title(), "subcategory": title(experiment), "labels": labels}


def captions(experiment: str) -> dict[str, str]:
    """Path under the build folder -> reStructuredText of every caption of the experiment."""
    found = {}
    for kind, name, text in _shown(experiment):
        stem = f"{kind}s/{experiment}-{name}" if name else f"numbers/{experiment}"
        source = (
            f"Made from the records by the notebook ``{experiment}``, which is under Notebooks: "
            f"``python -m analysis.notebook {experiment}``."
        )
        found[caption_path(f"{stem}.rst")] = f"{_rst(text)}\n\n{source}\n"
    return found


def _shown(experiment: str) -> list[tuple[str, str, str]]:
    """("figure", "table" or "numbers"; name or ""; the Markdown before it) in reading order."""
    cells = json.loads((NOTEBOOKS / f"{experiment}.ipynb").read_text(encoding="utf-8"))["cells"]
    found, text = [], ""
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = source
            continue
        for kind, name, numbers in _SHOWN.findall(source):
            found.append((kind or numbers, name, text))
    return found


def _rst(markdown: str) -> str:
    """The notebooks' Markdown as reStructuredText: headings become bold lines, code literals."""
    lines = [re.sub(r"^#+ (.*)$", r"**\1**", line) for line in markdown.splitlines()]
    return re.sub(r"`([^`]+)`", r"``\1``", "\n".join(lines))


@command("captions")
def main(arguments: list[str] | None = None) -> None:
    """Write the captions of an experiment's outputs."""
    options = parser(main.__doc__)
    options.add_argument("experiment")
    options.add_argument("--build", type=Path, default=Path("build"))
    given = options.parse_args(arguments)
    for path, text in captions(given.experiment).items():
        write(given.build / path, text)


if __name__ == "__main__":
    sys.exit(main())
