"""Which machine a statement is read from, where several have records.

The rule, the same for all: a statement is read from the first machine that has all that it needs,
and all numbers of a statement are of one machine. The order is that of `records.machines`: the
local machine, then cards before CPUs, those with more timed cases first. A number that is not of
the machine that the experiment's prose names has its own in its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import pandas as pd

from analysis.records import frame as records
from analysis.rendering.text import DASH, span
from analysis.selection import views

Found = TypeVar("Found")

# What the keys of one statement have in common (`id`, `more`), and their `part` in it; then the
# parts that it cannot do without. A key that fits none is a statement of its own.
_STATEMENTS = tuple(
    (re.compile(pattern), needed)
    for pattern, needed in (
        (
            r"(?P<id>series|training)\.(?:vs_dense|vs_base|density)"
            r"\.(?P<more>.+\.(?:shortest|longest))(?P<part>\.word|\.tokens|)",
            {""},
        ),
        (r"(?P<id>rate\..+?)(?P<part>\.against|\.ratio|\.tokens|\.share|)", {".ratio"}),
        (
            r"(?P<id>strong\..+?)\.(?P<part>speedup(?:\.word)?|efficiency|ranks|each|tokens|waiting)",
            {"speedup"},
        ),
        (r"(?P<id>weak\..+?)\.(?P<part>efficiency|tokens)", {"efficiency"}),
        (r"(?P<id>traffic\..+?)\.(?P<part>share|sent|ranks)", {"share"}),
        (r"(?P<id>memory\.over_(?:length|ranks))(?P<part>(?:\.(?:at|kind|few|many|ideal))?)", {""}),
        (r"(?P<part>single\.(?:best|spread))\.(?P<id>n\d+)(?:\.word)?", {"single.spread"}),
        (r"(?P<id>peers\.[^.]+)(?P<part>\.word|\.outcome|)", {""}),
        (
            r"(?P<id>forward|training)\.(?P<part>exponent|model|weight|shortest|longest|ran_out)"
            r"\.(?P<more>.+)",
            {"exponent"},
        ),
        (r"(?P<id>(?:same|global)\.longest)\.(?P<part>.+)", {"time"}),
        (r"(?P<id>same|global)\.(?P<part>shortest\..+|per_token|memory_ratio)", {"per_token"}),
        (r"(?P<id>dense)\.(?P<part>.+)", {"longest.time"}),
        (
            r"(?P<id>three\..+)\.(?P<part>published|replica|exact|over_dense)",
            {"replica", "exact", "over_dense"},
        ),
        (r"(?P<id>deviation\.[^.]+)\.(?P<part>.+)", {"exact"}),
        (r"(?P<id>plots)\.(?P<part>.+)", {"made.share", "meant.share", "exact.share"}),
        (r"(?P<id>billion\.exact)(?P<part>\.tokens|)", {""}),
        (r"(?P<id>billion)\.(?P<part>chunk|chunk\.first|replica)", {"chunk"}),
        (
            r"(?P<id>memory\.b\d+\.n\d+)\.(?P<part>published|alive|dropped|peak|exact|type)",
            {"alive", "exact"},
        ),
        (r"(?P<id>.+?)(?P<part>\.word|)", {""}),
    )
)
# Of the machine that the prose names, whatever others have.
_OWN = re.compile(r"(machine|records|error|model|published|locality)\.")
# What the numbers of a series have in common: of the first machine with a fit over length.
_SERIES = re.compile(
    r"(?P<id>series|training)\.(shortest|longest|points|batch|heads|head_dim|dtype|pattern)"
)
_IN_SERIES = re.compile(
    r"(?P<id>series|training)\.(?:vs_|density)|(?P<training>training\.)?(?:growth|crossover)\."
)
# Units of numbers that are the place of a statement, and need no machine of their own.
_PLACES = ("tokens", "sequences", "rows")
# These hold over a range of lengths, which is another on another machine.
_RANGES = re.compile(
    r"(training\.)?(growth|crossover)\.|(?:forward|training)\.exponent|.*\.per_token$"
)


def order(frame: pd.DataFrame, experiment: str, machine: str = "auto") -> list[str]:
    """The machines that an experiment is reported from, the preferred one first.

    A named machine is the only one.
    """
    rows = records.of_experiment(records.vouched(frame), experiment)
    first = records.reporting_machine(rows, machine)
    return [first] if machine != "auto" else records.machines(rows, first)


def fullest(
    frame: pd.DataFrame,
    experiment: str,
    machine: str,
    find: Callable[[views.View], Found],
    size: Callable[[Found], int] = len,
) -> tuple[views.View, Found]:
    """The view of the machine that has most to show in a figure of one machine, and what it has.

    find(view) -> what is shown; size: how much that is. Of machines with as much, the first.
    """
    of_machines = (
        views.view(frame, experiment, name) for name in order(frame, experiment, machine)
    )
    return max(((view, find(view)) for view in of_machines), key=lambda pair: size(pair[1]))


def chosen(
    found: Mapping[str, Mapping[str, dict]], rows: pd.DataFrame, ids: Sequence[str]
) -> dict[str, dict]:
    """One entry per key, of the machine that is reported there.

    found: machine -> key -> entry, with the same keys for each. rows: the experiment's records.
    ids: the machines in order. Entries gain `device`, where they are from, and `bare`, their
    text without it.
    """
    first = ids[0]
    by_statement: dict[tuple, list[tuple[str, str]]] = {}
    for key in found[first]:
        number, match = _statement(key)
        groups = match.groupdict()
        statement = (number, groups["id"], groups.get("more"))
        by_statement.setdefault(statement, []).append((key, groups["part"]))
    machine_of = dict.fromkeys(found[first], first)
    for (number, *_), keys in by_statement.items():
        keys = [(key, part) for key, part in keys if not (_OWN.match(key) or _SERIES.match(key))]
        needed = [key for key, part in keys if part in _STATEMENTS[number][1]]
        reporting = _first_with(needed, found, ids)
        machine_of |= {key: reporting for key, _ in keys}
    homes = {name: _home(name, found, ids) for name in ("series", "training")}
    for key in machine_of:
        if series := _SERIES.fullmatch(key):
            machine_of[key] = homes[series["id"]]
    by_path = _by_path(rows, found)
    devices = {machine: views.device(rows[rows["machine"] == machine].iloc[0]) for machine in ids}
    return {
        key: _placed(key, found[machine][key], by_path, first, homes, devices)
        | {"device": devices[machine]}
        for key, machine in machine_of.items()
    }


def _by_path(rows: pd.DataFrame, found: Mapping[str, Mapping[str, dict]]) -> dict[str, pd.Series]:
    """The row of each record that is behind an entry: of a few of thousands."""
    named = {path for own in found.values() for entry in own.values() for path in entry["records"]}
    places = [place for place, paths in enumerate(rows["paths"]) if not named.isdisjoint(paths)]
    return {path: row for row in map(rows.iloc.__getitem__, places) for path in row["paths"]}


def _statement(key: str) -> tuple[int, re.Match]:
    return next(
        (number, match)
        for number, (pattern, _) in enumerate(_STATEMENTS)
        if (match := pattern.fullmatch(key))
    )


def _first_with(needed: list[str], found: Mapping, ids: Sequence[str]) -> str:
    """The first machine with every needed number that any has; else the first with most."""

    def has(machine: str) -> set[str]:
        return {key for key in needed if found[machine][key]["text"] != DASH}

    return max(ids, key=lambda machine: (len(has(machine)), -ids.index(machine)))


def _home(name: str, found: Mapping, ids: Sequence[str]) -> str:
    """The first machine with any growth of time in a series; else the first of all."""
    prefix = "growth.time." if name == "series" else f"{name}.growth.time."
    growing = (
        machine
        for machine in ids
        if any(k.startswith(prefix) and e["value"] is not None for k, e in found[machine].items())
    )
    return next(growing, ids[0])


def _placed(
    key: str,
    entry: dict,
    by_path: Mapping[str, pd.Series],
    first: str,
    homes: Mapping,
    devices: Mapping,
) -> dict:
    """The entry, with device, type and batch in its text where a reader would expect others."""
    placed = entry | {"bare": entry["text"]}
    is_number = isinstance(entry["value"], int | float) and entry["unit"] not in _PLACES
    is_number |= "crossover." in key and entry["text"] != DASH
    if not is_number or _OWN.match(key) or key.endswith((".ranks", ".at")):
        return placed
    own = [by_path[path] for path in entry["records"] if path in by_path]
    if not own:
        return placed
    row, expected = own[-1], [first]
    if series := _IN_SERIES.match(key):
        expected.append(homes["training" if series["training"] else series["id"] or "series"])
    if all(row["machine"] == machine for machine in expected):
        return placed
    words = [devices[row["machine"]], row["dtype"]]
    shape = re.search(r"\.b(\d+)\.n\d+", key)
    if shape and row["batch"] != int(shape[1]):
        words.append(f"batch {row['batch']}")
    if _RANGES.match(key):
        words.append(f"{span(one['seq_len'] for one in own)} tokens")
    return placed | {"text": f"{entry['text']} ({', '.join(words)})"}
