"""The two sides of a comparison: what one machine measured, named by its id or by a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.records import files
from analysis.records import frame as records
from analysis.records.files import DEFAULT_ROOTS, UNVOUCHED, File, RecordsError, repository
from experiments.case import Case
from experiments.shown import shown


@dataclass(frozen=True)
class Side:
    """What one machine measured.

    asked: as whoever compares called it. name: what a person would call the machine. rows: of
    `records.frame.load`, one a case. files: the records that count, oldest first.
    """

    asked: str
    machine: str
    name: str
    rows: Mapping[Case, Mapping]
    files: Mapping[Case, list[File]]

    @property
    def rounds(self) -> list[str]:
        """The rounds that any of its cases was measured in."""
        return sorted({one.round for own in self.files.values() for one in own})


def side(asked: Path) -> Side:
    """The side that `asked` names: a folder of records, one record, or the id of a machine.

    Of an id: what `results/published` and `results/local` have of that machine. RecordsError where
    there is no such folder and no such machine, and where a folder holds several machines.
    """
    found = of_machines(files.read(*_places(asked)), str(asked))
    if len(found) > 1 and str(asked) not in found:
        raise RecordsError(
            f"{shown(asked)}: holds records of {len(found)} machines, expected those of one: "
            f"{', '.join(map(shown, found))}"
        )
    return found.get(str(asked)) or next(iter(found.values()))


def of_machines(found: Iterable[File], asked: str | None = None) -> dict[str, Side]:
    """Machine -> its side; the one that the prose reports comes first, then as in `frame.machines`.

    asked: what they are called; None: by their ids.
    """
    found = list(found)
    frame, counting = records.of_files(found), files.counting(found)
    cases = {(machine, one.path): case for (machine, case), own in counting.items() for one in own}
    order = records.machines(frame, _reporting(frame))
    made = {}
    for machine in order:
        # One row per case: it has others where it is a point of several grids.
        rows = frame[frame["machine"] == machine].drop_duplicates("path").to_dict("records")
        of_cases = {cases[machine, row["path"]]: row for row in rows}
        made[machine] = Side(
            machine if asked is None else asked,
            machine,
            rows[0]["machine_name"],
            of_cases,
            {case: counting[machine, case] for case in of_cases},
        )
    return made


def _reporting(frame: pd.DataFrame) -> str:
    """The machine that the prose reports; of records that nobody vouches for, the first by id."""
    speaks = frame["vouched"].astype(bool).any()
    return records.reporting_machine(frame) if speaks else min(frame["machine"])


def _places(asked: Path) -> list[Path]:
    """The folders of what was asked for."""
    if asked.exists():
        return [asked]
    roots = [repository() / root for root in DEFAULT_ROOTS]
    name = str(asked).removesuffix(UNVOUCHED)
    known = {folder.name for root in roots for folder in root.glob("*/") if folder.is_dir()}
    if name not in known:
        there = f"one of the machines {', '.join(map(shown, sorted(known)))}" if known else ""
        raise RecordsError(
            f"{shown(asked)}: no such folder, and no machine of that id; "
            f"expected a folder of records{' or ' if there else ''}{there}"
        )
    return [root / name for root in roots if (root / name).is_dir()]
