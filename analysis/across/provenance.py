"""From a number to its records and their commands, and what all records cost to make.

    python -m analysis.across.provenance [--numbers build/numbers.json] [--build build] [ROOT ...]

writes to the build folder `numbers.csv` (every number that prose may use, with the records it is
made of and the commands that made them), `records.csv` (every record, those of earlier code too)
and the tables `provenance-machines`, `provenance-costs` and `provenance-code`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from analysis.command import command, parser
from analysis.records import files
from analysis.records import frame as records
from analysis.records.files import File, RecordsError
from analysis.rendering.escaping import csv_cell, csv_text
from analysis.rendering.numbers import NumbersError, is_measured, read
from analysis.rendering.table import Table, save
from analysis.rendering.text import DASH, SEPARATOR, number, title, write
from analysis.standard.cards_in_words import apart
from experiments import grid

GIB = 2**30
# Several records, or commands, in one cell of a CSV file.
RECORD_COLUMNS = (
    *("path", "experiments", "machine", "host", "round", "vouched", "counts", "device_kind"),
    "variant",
    *("backend", "status", "git_commit", "code_digest", "started_at", "wall_s", "command"),
)


def table_of(found: Iterable[File]) -> pd.DataFrame:
    """One row per record, history too, by path; `counts`: see `files.counting`.

    experiments: those of its case, as a tuple. samples: how many; rounds are folders.
    """
    found = list(found)
    counting = {one.file for of_case in files.counting(found).values() for one in of_case}
    rows = [_row(one, one.file in counting) for one in sorted(found, key=lambda one: one.path)]
    return pd.DataFrame(rows).astype(object)


def _row(one: File, counts: bool) -> dict:
    record = one.record
    software = record.software
    return {
        "path": one.path,
        "experiments": grid.experiments_of(one.case),
        "machine": one.machine,
        "host": one.host or None,
        "card": one.card or None,
        "round": one.round,
        "vouched": one.is_vouched,
        "counts": counts,
        "device_kind": record.machine.device_kind,
        "variant": record.variant,
        "backend": record.backend,
        "status": record.status,
        "git_commit": software.git_commit,
        "code_digest": software.code_digest,
        "started_at": record.started_at,
        "wall_s": record.wall_s,
        "command": record.command_line,
        "samples": sum(len(replicate.samples_ms) for replicate in record.replicates),
    }


def machines(frame: pd.DataFrame, every: pd.DataFrame) -> Table:
    """The machines that records are from, one per row, with rounds, hosts and software.

    And, where one was measured on several cards, with how many of each, and how far apart they are.
    """
    body = []
    has_cards = every.groupby(["machine", "host"], dropna=False)["card"].nunique().max() > 1
    for name in records.machines(frame, records.reporting_machine(frame)):
        own = frame[frame["machine"] == name]
        counting = every[(every["machine"] == name) & every["counts"].astype(bool)]
        row = own.iloc[0]
        body.append(
            (name, row["cpu"], str(row["cores"]), number(row["memory_bytes"] / GIB),
             DASH if row["device_kind"] == "cpu" else row["device"], row["operating_system"],
             str(counting["round"].nunique()), str(counting["host"].fillna("").nunique()),
             *((_cards(own, counting),) if has_cards else ()),
             *(_values(own, key) for key in ("python", "torch", "triton")))
        )  # fmt: skip
    columns = ("Machine", "CPU", "Cores", "Memory (GiB)", "Card", "System", "Rounds", "Hosts")
    note = "Records that do not say which host they are from are taken to be of one."
    if has_cards:
        columns += ("Cards",)
        note += (
            " Cards: how many of the kind were measured on, and how much longer all cases take on "
            "the slowest than on the fastest."
        )
    return Table("Machines", (*columns, "Python", "PyTorch", "Triton"), body, note)


def _cards(own: pd.DataFrame, counting: pd.DataFrame) -> str:
    """How many, and how far apart, where the cases say."""
    count, effects = counting["card"].nunique(), own["spread"].iloc[0].card_effects
    if not count:
        return DASH
    return f"{count}, {apart(effects)}" if effects else str(count)


def costs(every: pd.DataFrame) -> Table:
    """What measuring cost: records and minutes by experiment and machine, then all together."""
    body = [
        (title(experiment), machine, *_cost(own))
        for (experiment, machine), own in _by_experiment(every).groupby(["experiment", "machine"])
    ]
    body.append(("All", "", *_cost(every)))
    columns = ("Experiment", "Machine", "Records", "Rounds", "Of earlier code", "With a time")
    columns += ("Samples", "Minutes", "Days")
    note = (
        "A record is one case in one round. It counts in every experiment that has the case, and "
        "once in all; of earlier code it is history and judges nothing. Minutes: from the start of "
        "a case to its record, summed; the reference, the warm-up and processes without a result "
        "are in them. Days: first and last start, UTC."
    )
    return Table("Cost of the records", columns, body, note)


def code(every: pd.DataFrame) -> Table:
    """The commits that records were measured at, and how many records at each."""
    body = []
    known = _by_experiment(every).fillna({"git_commit": DASH})
    for (experiment, machine, commit), own in known.groupby(
        ["experiment", "machine", "git_commit"]
    ):
        digests = own["code_digest"].nunique()
        body.append((title(experiment), machine, commit, str(len(own)), str(digests)))
    columns = ("Experiment", "Machine", "Commit", "Records", "Digests")
    note = (
        "A digest is of the source that one variant's measurement imports: it says whether a later "
        "commit still runs the same code."
    )
    return Table("Code that was measured", columns, body, note)


def tables(frame: pd.DataFrame, every: pd.DataFrame) -> dict[str, Table]:
    """The tables by name. frame: of the records that count; every: that of `table_of`."""
    return {"machines": machines(frame, every), "costs": costs(every), "code": code(every)}


def _by_experiment(every: pd.DataFrame) -> pd.DataFrame:
    """A row for every experiment of a record."""
    return every.explode("experiments").rename(columns={"experiments": "experiment"})


def records_csv(every: pd.DataFrame) -> str:
    """Every record, one per line, by path; `counts` is false of what earlier code measured."""
    chosen = every[list(RECORD_COLUMNS)]
    started = [when.isoformat(timespec="seconds") for when in chosen["started_at"]]
    names = [SEPARATOR.join(names) for names in chosen["experiments"]]
    chosen = chosen.assign(started_at=started, experiments=names)
    return chosen.map(csv_cell).to_csv(index=False, lineterminator="\n")


def numbers_csv(numbers: Mapping[str, dict], every: pd.DataFrame) -> str:
    """Every measured number: key, text, value, bounds, unit, origin, records, their commands.

    `from` is "records" where paths follow; "claims" for counts of verdicts, which are in
    `claims.csv`; "write-up" for published figures, which are in `paper/claims.yaml`;
    "counted" for what is counted over an experiment's records (`records.csv`), or of a pattern or
    a model without any. every: of `table_of`. Raises RecordsError for a number made of a record
    that is not in there.
    """
    commands = dict(zip(every["path"], every["command"], strict=True))
    lines = [("key", "text", "value", "low", "high", "unit", "from", "records", "commands")]
    for key, entry in numbers.items():
        if not is_measured(entry):
            continue
        paths = entry["records"]
        missing = [path for path in paths if path not in commands]
        if missing:
            raise RecordsError(f"number {key!r}: is made of {missing[0]}, which is not a record")
        made_by = list(dict.fromkeys(commands[path] for path in paths))
        cells = ["" if entry[field] is None else entry[field] for field in ("value", "low", "high")]
        origin = (_origin(key, entry), SEPARATOR.join(paths), SEPARATOR.join(made_by))
        lines.append((key, entry["text"], *cells, entry["unit"], *origin))
    return csv_text(lines)


def _origin(key: str, entry: dict) -> str:
    if entry["records"]:
        return "records"
    if key.startswith("claims."):
        return "claims"
    if ".published." in key or key.endswith(".published"):
        return "write-up"
    return "counted"


def _cost(own: pd.DataFrame) -> tuple:
    """How many records and rounds, of earlier code, with a time; samples, minutes and days."""
    minutes = number(own["wall_s"].sum() / 60)
    days = [f"{when:%Y-%m-%d}" for when in (own["started_at"].min(), own["started_at"].max())]
    timed = int((own["status"] == "ok").sum())
    between = " to ".join(dict.fromkeys(days))
    history = len(own) - int(own["counts"].sum())
    counts = (len(own), own.groupby("machine")["round"].nunique().sum(), history, timed)
    return (*map(str, counts), f"{own['samples'].sum():,}", minutes, between)


def _values(own: pd.DataFrame, column: str) -> str:
    """What a machine's records have in a column; more than one after an update."""
    return ", ".join(sorted({value for value in own[column] if isinstance(value, str)})) or DASH


@command("provenance", RecordsError, NumbersError)
def main(arguments: list[str] | None = None) -> None:
    """Where each number comes from."""
    options = parser(main.__doc__, records=True)
    options.add_argument("--numbers", type=Path, default=Path("build/numbers.json"))
    options.add_argument("--build", type=Path, default=Path("build"))
    given = options.parse_args(arguments)
    found = files.read(*given.roots)
    frame, every = records.of_files(found), table_of(found)
    write(given.build / "numbers.csv", numbers_csv(read(given.numbers), every))
    write(given.build / "records.csv", records_csv(every))
    for name, table in tables(frame, every).items():
        save(table, given.build / "tables" / f"provenance-{name}")


if __name__ == "__main__":
    sys.exit(main())
