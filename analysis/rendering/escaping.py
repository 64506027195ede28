r"""What a record says is data: in every form of output it is shown letter by letter and never read.

One function per form; our own markup is put around what they return. HTML is filled by jinja with
`autoescape`; figures read no mathematics but where a text asks for it (`rendering.style`).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

# A pair of numbers in brackets is an interval, which no reader takes for a link; an underscore
# between letters is none of emphasis.
_MARKDOWN = re.compile(
    r"(?P<kept>\[[-+\d.,e% ]+\](?![(\[:])|(?<=[^\W_])_(?=[^\W_]))|[\\$`*_\[\]<>&~|]"
    # At the start of a line: headings, rules, lists.
    r"|^#(?=#{0,5}(?:\s|$))|^[-+=](?!\d)|^\d+[.)](?=\s)"
)
# Elements of their own: neither the program that reads the Markdown nor the one that looks for
# mathematics in what it shows finds a pair of dollars, or a backslash before something.
_APART = {"\\": "<span>&#92;</span>", "$": "<span>&#36;</span>"}
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_LINE_ENDS = re.compile(r"[\r\n\v\f\x85\u2028\u2029]+")
# What LaTeX reads as markup, and what is not ASCII: every engine sets the same then.
_TEX = {
    **{mark: "\\" + mark for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\dots{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "µ": r"$\mu$",
    "²": r"$^2$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
}
# What spreadsheets take for a formula, after https://owasp.org/www-community/attacks/CSV_Injection;
# and that after apostrophes, so that `text_of_cell` takes away no other.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?", re.I)


def markdown(text: object) -> str:
    """`text` in a paragraph or a cell of a table, as GitHub and Jupyter show it: on one line."""
    return _MARKDOWN.sub(_in_markdown, _LINE_ENDS.sub(" ", str(text)))


def _in_markdown(found: re.Match) -> str:
    if found["kept"]:
        return found["kept"]
    before, mark = found[0][:-1], found[0][-1]
    return before + (_APART.get(mark) or _ENTITIES.get(mark) or "\\" + mark)


def latex(text: str) -> str:
    """`text` in LaTeX, in ASCII: no letter is read as markup, and no two as a ligature."""
    apart = re.sub(r"([-',])(?=\1)", r"\1\0", _LINE_ENDS.sub(" ", text))
    return "".join("{}" if letter == "\0" else _TEX.get(letter, letter) for letter in apart)


def typst(text: str) -> str:
    """`text` as a string of Typst."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def csv_cell(value):
    """A text that a spreadsheet would take for a formula, with an apostrophe before it.

    Numbers, as text too, and everything else are as they were.
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return "'" + value
    return value


def text_of_cell(cell: str) -> str:
    """The text that `csv_cell` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_text(rows: Iterable[Iterable]) -> str:
    """Rows of cells as a CSV file."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([csv_cell(cell) for cell in row] for row in rows)
    return out.getvalue()


def script_json(value) -> str:
    """`value` as JSON in a script element, which nothing in it can end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def address(path: str | Path) -> str:
    """A path as the address in a link: percent-encoded, so that a colon names no scheme."""
    return quote(os.fsencode(path))


def policy(script: str = "", images: str = "data:") -> str:
    """The Content-Security-Policy of a page that is one file: it fetches nothing.

    script: the only one that runs, as it stands in its element. images: where pictures are from.
    """
    runs = ""
    if script:
        digest = hashlib.sha256(script.encode()).digest()
        runs = f" script-src 'sha256-{base64.b64encode(digest).decode()}';"
    return (
        f"default-src 'none'; img-src {images}; style-src 'unsafe-inline';{runs} "
        "base-uri 'none'; form-action 'none'"
    )
