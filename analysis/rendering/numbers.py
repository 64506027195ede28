r"""Every number that prose may use, by key.

An entry is {value, low, high, unit, text, records}: `text` is what is printed, an en dash where
nothing was measured; `records` are the paths it came from. Those of an experiment have `device`
and `bare` too (see `analysis.selection.reporting_machine`). A file is {numbers, not_measured}: the
entries by key, and the keys alone of what no record holds, so that a misspelt key is not taken for
a number that was not measured. A notebook writes those of its experiment
(`analysis.standard.numbers`); the command line joins them with the verdicts' counts:

    python -m analysis.rendering.numbers --out build/numbers.json \
        build/numbers/*.json build/claims.json
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from analysis.command import command, parser
from analysis.rendering.text import DASH, interval, number, read_json, write

VERDICTS = ("reproduced", "not reproduced", "refuted", "not testable here")
FALLEN = VERDICTS[1:3]


class NumbersError(ValueError):
    """Numbers that cannot be joined or found: names the file and the key."""


def entry(value, low=None, high=None, unit: str = "", text: str | None = None, rows=()) -> dict:
    """One number (or word) with its text. NaN bounds become null; `rows` name its records."""
    bounds = [None if b is None or math.isnan(b) else float(b) for b in (low, high)]
    if text is None:
        if value is None or isinstance(value, str):
            text = value or DASH
        elif None in bounds:
            text = number(value)
        else:
            text = interval(value, *bounds)
    paths = [path for row in rows if row is not None for path in row["paths"]]
    return {
        "value": value,
        "low": bounds[0],
        "high": bounds[1],
        "unit": unit,
        "text": text,
        "records": list(dict.fromkeys(paths)),
    }


NOT_MEASURED = entry(None) | {"bare": DASH, "device": DASH}


def is_measured(entry: dict) -> bool:
    """Whether there is anything to print but a dash."""
    return entry["value"] is not None or entry["text"] != DASH


def join(files: list[Path]) -> dict[str, dict]:
    """The entries of all number files and of the claims file, keys sorted.

    Raises NumbersError on a key that two files have, and on a file that is neither.
    """
    joined: dict[str, dict] = {}
    origin: dict[str, Path] = {}
    for file in files:
        for key, value in _entries(file).items():
            if key in joined:
                raise NumbersError(f"{file}: key {key!r}: is in {origin[key]} too")
            joined[key], origin[key] = value, file
    return dict(sorted(joined.items()))


def lookup(numbers: dict[str, dict], key: str, where: str, field: str = "text"):
    """`numbers[key][field]`. NumbersError for an unknown key: names it, `where`, those like it."""
    if key not in numbers:
        near = ", ".join(get_close_matches(key, numbers))
        raise NumbersError(
            f"{where}: unknown number {key!r}" + (f"; the nearest are {near}" if near else "")
        )
    return numbers[key][field]


def bare(numbers: dict[str, dict], key: str, where: str) -> str:
    """The text of a number without its device, for a sentence that names it."""
    lookup(numbers, key, where)
    return numbers[key].get("bare", numbers[key]["text"])


def read(file: Path) -> dict[str, dict]:
    """The entries in a file, NOT_MEASURED for what was not. NumbersError if it is no such file."""
    data = read_json(file, NumbersError)
    if not isinstance(data, dict) or data.keys() != {"numbers", "not_measured"}:
        raise NumbersError(f"{file}: holds no numbers")
    return data["numbers"] | dict.fromkeys(data["not_measured"], NOT_MEASURED)


def _entries(file: Path) -> dict[str, dict]:
    data = read_json(file, NumbersError)
    if isinstance(data, dict) and isinstance(data.get("claims"), list):
        return _verdict_counts(data["claims"], data["mechanisms"])
    return read(file)


def _verdict_counts(verdicts: list[dict], mechanisms: Iterable[str]) -> dict[str, dict]:
    """Counts of all and of each write-up; `.mechanism.*` are of the claims that do not hold."""
    groups = {"all": verdicts}
    for verdict in verdicts:
        groups.setdefault(verdict["writeup"], []).append(verdict)
    found = {}
    for name, group in groups.items():
        counts = Counter(verdict["verdict"] for verdict in group)
        found[f"claims.{name}.total"] = entry(len(group), unit="claims")
        for word in VERDICTS:
            key = f"claims.{name}.{word.replace(' ', '-')}"
            found[key] = entry(counts[word], unit="claims")
        judged = len(group) - counts[VERDICTS[-1]]
        found[f"claims.{name}.judged"] = entry(judged, unit="claims")
        by_record = sum(verdict["basis"] == "records" for verdict in group)
        found[f"claims.{name}.by-record"] = entry(by_record, unit="claims")
        fallen = [v["mechanism"] for v in group if v["verdict"] in FALLEN]
        for one in mechanisms:
            key = f"claims.{name}.mechanism.{one}"
            found[key] = entry(fallen.count(one), unit="claims")
    return found


def save(numbers: dict[str, dict], path: Path) -> None:
    """Write `numbers` as sorted JSON; of what was not measured, the keys alone."""
    measured = {key: value for key, value in numbers.items() if is_measured(value)}
    data = {"numbers": measured, "not_measured": sorted(numbers.keys() - measured.keys())}
    write(path, json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")


@command("numbers", NumbersError)
def main(arguments: list[str] | None = None) -> None:
    """Join numbers and verdicts into one file."""
    options = parser(main.__doc__, out="build/numbers.json")
    options.add_argument("files", nargs="+", type=Path)
    given = options.parse_args(arguments)
    save(join(given.files), given.out)


if __name__ == "__main__":
    sys.exit(main())
