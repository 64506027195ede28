"""What the pages share: one style, how they are filled by jinja, links to records."""

from __future__ import annotations

import os
from pathlib import Path

import jinja2
from markupsafe import Markup

from analysis.rendering.escaping import address, policy

PAGES = Path(__file__).parent
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(PAGES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["address"] = address


def filled(name: str, script: str = "", images: str = "data:", **given) -> str:
    """The page `<name>.html.j2` of `given`, with `page.css` and its own `<name>.css` as `style`.

    script: the one that the page has. images: where its pictures are from.
    """
    own = {"style": style_of(name), "script": script, "policy": policy(script, images)}
    page = _ENVIRONMENT.get_template(f"{name}.html.j2")
    return page.render({word: Markup(text) for word, text in own.items()}, **given)


def style_of(name: str) -> str:
    """What all pages share, then what one has of its own."""
    return "".join((PAGES / f"{one}.css").read_text(encoding="utf-8") for one in ("page", name))


def record_link(path: str, folder: Path, root: Path) -> str:
    """The address, from a page in `folder`, of a record whose `path` is from `root`."""
    return address(os.path.relpath(root / path, folder))
