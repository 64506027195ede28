"""How numbers read, in tables, write-ups and the paper; text files written, JSON files read."""

from __future__ import annotations

import json
import math
from pathlib import Path

from experiments.atomic_write import atomic_write

DASH = "–"
SEPARATOR = " ; "  # of several paths or commands in one cell of a CSV
WIDE = 20  # a bound this many times off shares no decimals with its value
# The forms that a figure and a table are written in.
FIGURE_FORMS, TABLE_FORMS = ("svg", "png", "csv"), ("csv", "md", "typ", "tex")


def number(value: float | None) -> str:
    """Three significant digits, thousands with commas; what is not known is an en dash.

    Whole numbers below a million stay whole.
    """
    if value is None or math.isnan(value):
        return DASH
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if abs(value) >= 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def interval(value: float, low: float, high: float, form: str | None = None) -> str:
    """`1.87 [1.80, 1.95]`; the bounds are left out where there are none.

    All three have the decimals of the value's three significant digits, unless `form` is given;
    bounds that are decades away from it, or beyond 0, have digits of their own.
    """
    if math.isnan(value):
        return DASH
    if form is None:
        decimals = 2 - math.floor(math.log10(abs(value))) if value else 2
        form = f"{{:,.{min(max(decimals, 0), 9)}f}}"
    if math.isnan(low) or math.isnan(high):
        return form.format(value)
    size, least, most = (value, low, high) if value >= 0 else (-value, -high, -low)
    if least < size / WIDE or most > size * WIDE:
        return f"{form.format(value)} [{number(low)}, {number(high)}]"
    return f"{form.format(value)} [{form.format(low)}, {form.format(high)}]"


def title(experiment: str) -> str:
    """The name of an experiment at the head of a sentence."""
    return experiment.replace("_", "-").capitalize()


def tokens(n: float) -> str:
    """A length in short: 512, 2K, 1M, 1G with K = 1024."""
    for unit, size in (("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if n >= size:
            return f"{n / size:g}{unit}"
    return f"{n:g}"


def span(lengths) -> str:
    """The shortest and longest of some lengths, in short."""
    lengths = list(lengths)
    low, high = min(lengths), max(lengths)
    return tokens(low) if low == high else f"{tokens(low)}–{tokens(high)}"


def read_json(path: Path, error: type[ValueError]):
    """The contents of a JSON file; `error` naming the file where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as found:
        raise error(f"{path}: cannot be read: {found.strerror}") from None
    except json.JSONDecodeError as found:
        raise error(f"{path}: not JSON (truncated?): {found}") from None


def write(path: Path, text: str) -> None:
    """Write `text` at `path` so that it is either the old file or the whole new one."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
