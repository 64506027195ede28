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
from difflib import get_close_matches
from pathlib import Path

from analysis.command import command, parser
from analysis.rendering.text import DASH, interval, number, read_json, write

VERDICTS = (
    *("holds", "does not hold", "undecided"),
    *("differs by machine", "needs a card", "not measured"),
)
SIDES = ("as_published", "method")
SORTS = ("claim", "restatement", "consistency", "context")


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
        return _verdict_counts(data)
    return read(file)


def _verdict_counts(judged: dict) -> dict[str, dict]:
    """Counts of all entries, of each write-up, and of the headlines.

    claims.<all or write-up>: .<sort> of entries; .total of claims; .as-published.<verdict>,
    .method.<verdict>; .by-record of those that records decide for the method; .agrees,
    .contradicts of figures checked against each other; .mechanism.* of claims of which the method
    does not hold. claims.headlines: .total; .of-code, those of write-ups whose code is judged, and
    of these .<side>.<verdict>.
    """
    groups = {"all": judged["claims"]}
    for verdict in judged["claims"]:
        groups.setdefault(verdict["writeup"], []).append(verdict)
    found = {}
    for name, group in groups.items():
        own = [verdict for verdict in group if verdict["sort"] == "claim"]
        counts = {sort: sum(one["sort"] == sort for one in group) for sort in SORTS}
        counts |= {"total": len(own)} | _by_verdict(own)
        method = [one["method"] for one in own if one["method"]]
        counts["by-record"] = sum(one["basis"] == "records" for one in method)
        checked = [one["consistency"]["verdict"] for one in group if one["consistency"]]
        counts["agrees"] = checked.count("holds")
        counts["contradicts"] = checked.count("does not hold")
        fallen = [one["mechanism"] for one in own if _fails(one)]
        counts |= {f"mechanism.{one}": fallen.count(one) for one in judged["mechanisms"]}
        found |= {f"claims.{name}.{key}": entry(n, unit="claims") for key, n in counts.items()}
    # What small models say of a paper is no verdict on the code that the others report on.
    of_code = [one for one in judged["headlines"] if not one["of_paper"]]
    counts = {"total": len(judged["headlines"]), "of-code": len(of_code)} | _by_verdict(of_code)
    found |= {f"claims.headlines.{key}": entry(n, unit="claims") for key, n in counts.items()}
    return found


def _by_verdict(judged: list[dict]) -> dict[str, int]:
    found = {}
    for side in SIDES:
        counts = Counter(one[side]["verdict"] for one in judged if one[side])
        for word in VERDICTS:
            found[f"{side.replace('_', '-')}.{word.replace(' ', '-')}"] = counts[word]
    return found


def _fails(verdict: dict) -> bool:
    """Whether the method does not do what is claimed."""
    return verdict["method"] is not None and verdict["method"]["verdict"] == "does not hold"


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
