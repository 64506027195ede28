r"""Every number that prose may say, by key.

An entry is {value, low, high, unit, text, records}: `text` is what is printed, an en dash where
nothing was measured; `records` are the paths it came from. Those of an experiment have `device`
and `bare` too (see `analysis.selection.reporting_machine`). A notebook writes those of its
experiment (`analysis.standard.numbers`); the command line joins them with the verdicts' counts:

    python -m analysis.rendering.numbers --out build/numbers.json \
        build/numbers/*.json build/claims.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from analysis.rendering.text import DASH, interval, number, write

VERDICTS = ("reproduced", "not reproduced", "refuted", "not testable here")
FALLEN = VERDICTS[1:3]


class NumbersError(ValueError):
    """Numbers that cannot be joined or found: names the file and the key."""


def entry(value, low=None, high=None, unit: str = "", text: str | None = None, rows=()) -> dict:
    """One number (or word) with its text. NaN bounds become null; `rows` are its records."""
    bounds = [None if b is None or math.isnan(b) else float(b) for b in (low, high)]
    if text is None:
        if value is None or isinstance(value, str):
            text = value or DASH
        elif None in bounds:
            text = number(value)
        else:
            text = interval(value, *bounds)
    paths = [row["path"] for row in rows if row is not None]
    return {
        "value": value,
        "low": bounds[0],
        "high": bounds[1],
        "unit": unit,
        "text": text,
        "records": list(dict.fromkeys(paths)),
    }


def join(files: list[Path]) -> dict[str, dict]:
    """The flat dictionary of all number files and the claims file, keys sorted.

    Raises NumbersError on a key that two files have, and on a file that is neither.
    """
    joined: dict[str, dict] = {}
    origin: dict[str, Path] = {}
    for file in files:
        for key, value in _read(file).items():
            if key in joined:
                raise NumbersError(f"{file}: key {key!r}: is in {origin[key]} too")
            joined[key], origin[key] = value, file
    return dict(sorted(joined.items()))


def lookup(numbers: dict[str, dict], key: str, where: str, field: str = "text"):
    """`numbers[key][field]`. Raises NumbersError naming the key and `where` it was asked for."""
    if key not in numbers:
        raise NumbersError(f"{where}: unknown number {key!r}")
    return numbers[key][field]


def bare(numbers: dict[str, dict], key: str, where: str) -> str:
    """The text of a number without its device, for a sentence that names it."""
    lookup(numbers, key, where)
    return numbers[key].get("bare", numbers[key]["text"])


def _read(file: Path) -> dict[str, dict]:
    try:
        data = json.loads(file.read_text())
    except OSError as error:
        raise NumbersError(f"{file}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise NumbersError(f"{file}: not JSON (truncated?): {error}") from None
    if isinstance(data, dict) and isinstance(data.get("claims"), list):
        return _verdict_counts(data["claims"], data["mechanisms"])
    if not isinstance(data, dict) or not all(
        isinstance(value, dict) and "text" in value for value in data.values()
    ):
        raise NumbersError(f"{file}: neither numbers nor verdicts")
    return data


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
    """Write `numbers` as sorted JSON."""
    write(path, json.dumps(numbers, indent=1, sort_keys=True, allow_nan=False) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Join; returns the exit status, 1 with one line on stderr for unusable input."""
    parser = argparse.ArgumentParser(description="Join numbers and verdicts into one file.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    try:
        save(join(options.files), options.out)
    except (NumbersError, OSError) as error:
        print(f"numbers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
