"""What the pages share: one style, how they are filled by jinja, links to records."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

PAGES = Path(__file__).parent
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(PAGES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def filled(name: str, **given) -> str:
    """The page `<name>.html.j2` of `given`, with `page.css` and its own `<name>.css` as `style`."""
    style = Markup(style_of(name))
    return _ENVIRONMENT.get_template(f"{name}.html.j2").render(style=style, **given)


def style_of(name: str) -> str:
    """What all pages share, then what one has of its own."""
    return "".join((PAGES / f"{one}.css").read_text(encoding="utf-8") for one in ("page", name))


def record_link(path: str, folder: Path, root: Path) -> str:
    """The address, from a page in `folder`, of a record whose `path` is from `root`."""
    return quote(Path(os.path.relpath(root / path, folder)).as_posix())
