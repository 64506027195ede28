"""An executed notebook as a page.

    python -m analysis.pages.notebook_page build/notebooks/<name>.ipynb

writes `<name>.html` beside it, by nbconvert with the template in `pages/notebook/`.
"""

from __future__ import annotations

import sys

from nbconvert.nbconvertapp import NbConvertApp

from analysis.command import command, parser
from analysis.pages.template import PAGES


@command("notebook page")
def main(arguments: list[str] | None = None) -> None:
    """Write an executed notebook as a page beside it."""
    options = parser(main.__doc__)
    options.add_argument("notebook")
    given = options.parse_args(arguments)
    NbConvertApp.launch_instance(
        [
            *("--to", "html", "--log-level", "WARN", "--template", "notebook"),
            f"--TemplateExporter.extra_template_basedirs={PAGES}",
            given.notebook,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
