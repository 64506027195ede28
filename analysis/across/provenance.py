"""From a number to its records and their commands, and what all records cost to make.

    python -m analysis.across.provenance [--numbers build/numbers.json] [--build build] [ROOT ...]

writes to the build folder `numbers.csv` (every number that prose may use, with the records it is
made of and the commands that made them), `records.csv` (every record) and the tables
`provenance-machines`, `provenance-costs` and `provenance-code`.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.command import command, parser
from analysis.records import frame as records
from analysis.records.frame import RecordsError
from analysis.rendering.numbers import NumbersError, is_measured, read
from analysis.rendering.table import Table, save
from analysis.rendering.text import DASH, number, title, write

GIB = 2**30
# Several records, or commands, in one cell of a CSV file.
SEPARATOR = " ; "
RECORD_COLUMNS = (
    *("path", "experiment", "machine", "device_kind", "variant", "backend", "status"),
    *("git_commit", "code_digest", "started_at", "wall_s", "command"),
)


def machines(frame: pd.DataFrame) -> Table:
    """The machines that records are from, one per row, with their software."""
    body = []
    for name in records.machines(frame, records.reporting_machine(frame)):
        own = frame[frame["machine"] == name]
        row = own.iloc[0]
        body.append(
            (name, row["cpu"], str(row["cores"]), number(row["memory_bytes"] / GIB),
             DASH if row["device_kind"] == "cpu" else row["device"], row["operating_system"],
             *(_values(own, key) for key in ("python", "torch", "triton")))
        )  # fmt: skip
    columns = ("Machine", "CPU", "Cores", "Memory (GiB)", "Card", "System")
    return Table("Machines", (*columns, "Python", "PyTorch", "Triton"), body)


def costs(frame: pd.DataFrame) -> Table:
    """What measuring cost: cases and minutes by experiment and machine, then all together."""
    body = [
        (title(experiment), machine, *_cost(own))
        for (experiment, machine), own in frame.groupby(["experiment", "machine"])
    ]
    body.append(("All", "", *_cost(frame)))
    columns = ("Experiment", "Machine", "Cases", "With a time", "Samples", "Minutes", "Days")
    note = (
        "Minutes: from the start of a case to its record, summed; the reference, the warm-up and "
        "processes without a result are in them. Days: first and last start, UTC."
    )
    return Table("Cost of the records", columns, body, note)


def code(frame: pd.DataFrame) -> Table:
    """The commits that records were measured at, and how many cases at each."""
    body = []
    for (experiment, machine, commit), own in frame.fillna({"git_commit": DASH}).groupby(
        ["experiment", "machine", "git_commit"]
    ):
        digests = own["code_digest"].nunique()
        body.append((title(experiment), machine, commit, str(len(own)), str(digests)))
    columns = ("Experiment", "Machine", "Commit", "Cases", "Digests")
    note = (
        "A digest is of the source that one variant's measurement imports: it says whether a later "
        "commit still runs the same code."
    )
    return Table("Code that was measured", columns, body, note)


TABLES = {"machines": machines, "costs": costs, "code": code}


def records_csv(frame: pd.DataFrame) -> str:
    """Every record, one per line, by path."""
    chosen = frame.sort_values("path")[list(RECORD_COLUMNS)]
    started = [when.isoformat(timespec="seconds") for when in chosen["started_at"]]
    return chosen.assign(started_at=started).to_csv(index=False, lineterminator="\n")


def numbers_csv(numbers: Mapping[str, dict], frame: pd.DataFrame) -> str:
    """Every measured number: key, text, value, bounds, unit, origin, records, their commands.

    `from` is "records" where paths follow; "claims" for counts of verdicts, which are in
    `claims.csv`; "write-up" for published figures, which are in `paper/claims.yaml`;
    "counted" for what is counted over an experiment's records (`records.csv`), or of a pattern or
    a model without any. Raises RecordsError for a number made of a record that is not in `frame`.
    """
    commands = dict(zip(frame["path"], frame["command"], strict=True))
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(("key", "text", "value", "low", "high", "unit", "from", "records", "commands"))
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
        lines.writerow((key, entry["text"], *cells, entry["unit"], *origin))
    return out.getvalue()


def _origin(key: str, entry: dict) -> str:
    if entry["records"]:
        return "records"
    if key.startswith("claims."):
        return "claims"
    if ".published." in key or key.endswith(".published"):
        return "write-up"
    return "counted"


def _cost(own: pd.DataFrame) -> tuple:
    """Cases, those with a time, their samples, minutes and days of some records."""
    samples = sum(len(one) for replicates in own["samples"] for one in replicates)
    minutes = number(own["wall_s"].sum() / 60)
    days = [f"{when:%Y-%m-%d}" for when in (own["started_at"].min(), own["started_at"].max())]
    timed = int((own["status"] == "ok").sum())
    between = " to ".join(dict.fromkeys(days))
    return (str(len(own)), str(timed), f"{samples:,}", minutes, between)


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
    frame = records.load(*given.roots)
    write(given.build / "numbers.csv", numbers_csv(read(given.numbers), frame))
    write(given.build / "records.csv", records_csv(frame))
    for name, make in TABLES.items():
        save(make(frame), given.build / "tables" / f"provenance-{name}")


if __name__ == "__main__":
    sys.exit(main())
