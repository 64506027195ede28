"""What a notebook writes, read off the notebook: `page.figure("x")` and `page.table("y")`.

So the workflow knows a new figure as soon as the notebook draws it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

# The forms that a figure and a table are written in.
FIGURES, TABLES = ("svg", "csv"), ("csv", "md", "typ", "tex")
NOTEBOOKS = Path(__file__).parent / "notebooks"


def written(experiment: str) -> list[str]:
    """Paths under the build folder that the experiment's notebook writes, besides itself."""
    cells = json.loads((NOTEBOOKS / f"{experiment}.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    figures = re.findall(r'page\.figure\("([\w-]+)"\)', code)
    tables = re.findall(r'page\.table\("([\w-]+)"\)', code)
    return [
        *(f"figures/{experiment}-{name}.{form}" for name in figures for form in FIGURES),
        *(f"tables/{experiment}-{name}.{form}" for name in tables for form in TABLES),
        f"numbers/{experiment}.json",
    ]
